"""The smoke variant of every recipe, with each of its data formats, on small real files: it runs and learns."""

import io
import json
import math
import shutil
import tarfile
from pathlib import Path

import av
import cifar_files
import datasets
import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from selection import mostly_extensive
from transformers import AutoModelForVideoClassification, AutoVideoProcessor

from liere_hf_cli.main import main

WORDNET_IDS = ("n01440764", "n01443537", "n02102040", "n03000684")
ACTIONS = ("ApplyEyeMakeup", "Archery", "Basketball")


FEW_STEPS = ["--max_steps", 2, "--logging_steps", 1]


def train(recipe: str, output_dir: Path, *words: object) -> dict[str, float]:
    """First and last losses of a run, and its evaluation."""
    with pytest.raises(SystemExit) as exit_:
        main(["train", recipe, "--output_dir", str(output_dir), "--use_cpu", "true", *map(str, words)])
    assert exit_.value.code == 0
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    evaluation = json.loads((output_dir / "eval_results.json").read_text())
    return {"first": losses[0], "last": min(losses[-3:]), "accuracy": evaluation["eval_accuracy"]}


def assert_learned(results: dict[str, float], chance: float) -> None:
    assert results["last"] < 0.5 * results["first"], results
    assert results["accuracy"] > chance + 0.5 * (1 - chance), results


def assert_runs(results: dict[str, float]) -> None:
    assert all(math.isfinite(value) for value in results.values()), results


def patterns(count: int, size: int) -> np.ndarray:
    """A coarse color pattern for each class, uint8 (count, size, size, 3)."""
    coarse = np.random.default_rng(3).integers(30, 226, size=(count, 4, 4, 3))
    return coarse.repeat(size // 4, 1).repeat(size // 4, 2).astype(np.uint8)


@pytest.mark.end_to_end
def test_cifar(tmp_path, monkeypatch):
    """tests/data/data_sets/test_cifar.py has the other data set and formats."""
    monkeypatch.setattr(cifar_files, "SPLITS", {"train": 256, "test": 64})
    monkeypatch.setitem(cifar_files.NUM_CLASSES, "cifar100", 10)
    cifar_files.write_parquet("cifar100", tmp_path / "data")
    assert_learned(train("cifar100_smoke", tmp_path / "run", "--data_dir", tmp_path / "data"), 0.1)


def photograph(label: int, seed: int) -> Image.Image:
    """An image of random size, sometimes in CMYK, as photographs are."""
    random = np.random.default_rng([label, seed])
    noise = random.integers(-20, 21, size=(64, 64, 3))
    image = Image.fromarray((patterns(4, 64)[label] + noise).clip(0, 255).astype(np.uint8))
    image = image.resize((int(random.integers(70, 130)), int(random.integers(70, 130))))
    return image.convert("CMYK") if seed % 10 == 0 else image


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def photographs(split: str) -> list[tuple[int, bytes]]:
    count, start = {"train": (160, 0), "val": (48, 1000)}[split]
    return [(number % 4, jpeg(photograph(number % 4, start + number))) for number in range(count)]


def write_tree(directory: Path) -> None:
    for split in ("train", "val"):
        for number, (label, content) in enumerate(photographs(split)):
            folder = directory / split / WORDNET_IDS[label]
            folder.mkdir(parents=True, exist_ok=True)
            stem = f"ILSVRC2012_val_{number:08d}" if split == "val" else f"{WORDNET_IDS[label]}_{number}"
            (folder / f"{stem}.JPEG").write_bytes(content)


def write_parquet(directory: Path) -> None:
    (directory / "data").mkdir(parents=True)
    names = datasets.ClassLabel(names=["tench, Tinca tinca", "goldfish", "dog", "chain saw"])
    for split, name, num_shards in (("train", "train", 4), ("val", "validation", 2)):
        rows = photographs(split)
        table = datasets.Dataset.from_dict(
            {"image": [{"bytes": content, "path": None} for _, content in rows], "label": [row[0] for row in rows]},
            features=datasets.Features({"image": datasets.Image(), "label": names}),
        )
        for shard in range(num_shards):
            path = directory / "data" / f"{name}-{shard:05d}-of-{num_shards:05d}.parquet"
            table.shard(num_shards, shard).to_parquet(path)


def write_tars(directory: Path) -> None:
    directory.mkdir(parents=True)
    for split, name, num_shards in (("train", "train", 4), ("val", "validation", 2)):
        rows = photographs(split)
        for shard in range(num_shards):
            with tarfile.open(directory / f"imagenet1k-{name}-{shard:04d}.tar", "w") as archive:
                for number in range(shard, len(rows), num_shards):
                    label, content = rows[number]
                    for suffix, member in (("jpg", content), ("cls", str(label).encode())):
                        info = tarfile.TarInfo(f"{number:08d}.{suffix}")
                        info.size = len(member)
                        archive.addfile(info, io.BytesIO(member))
    (directory / "_info.json").write_text(json.dumps({"splits": {"train": {"num_samples": 160}}}))


@pytest.fixture(scope="module")
def imagenet_run(tmp_path_factory) -> Path:
    """A run on class folders, from which the recipe at the larger size starts."""
    directory = tmp_path_factory.mktemp("imagenet")
    write_tree(directory / "data")
    assert_learned(train("imagenet_smoke", directory / "run", "--data_dir", directory / "data"), 0.25)
    return directory


@pytest.mark.end_to_end
def test_imagenet_streams(tmp_path, monkeypatch):
    """A resumed run below streams tar files."""
    # `datasets` waits for its threads after each pass over parquet files, and small files need many passes.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    write_parquet(tmp_path / "data")
    assert_learned(train("imagenet_smoke", tmp_path / "run", "--data_dir", tmp_path / "data"), 0.25)


@pytest.mark.end_to_end
def test_imagenet_at_a_larger_size(imagenet_run, tmp_path):
    words = ["--data_dir", imagenet_run / "data", "--model_name_or_path", imagenet_run / "run"]
    before = json.loads((imagenet_run / "run" / "eval_results.json").read_text())["eval_accuracy"]
    assert before > 0.6
    results = train("imagenet_384_finetune_smoke", tmp_path / "run", *words)
    assert results["accuracy"] > 0.6
    assert results["last"] < results["first"]
    # The model keeps its original size, which defines positions; its processor has the larger one.
    assert json.loads((tmp_path / "run" / "config.json").read_text())["image_size"] == 64
    processor = json.loads((tmp_path / "run" / "preprocessor_config.json").read_text())
    assert processor["crop_size"] == {"height": 96, "width": 96}


def write_clip(path: Path, label: int, seed: int, codec: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng([label, seed])
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.gop_size = 12
        picture = np.zeros((64, 96, 3), np.uint8)
        picture[:, 16:80] = patterns(3, 64)[label]
        for shift in range(34 + seed % 5):
            moved = np.roll(picture, shift // 4, axis=1).astype(int) + random.integers(-10, 11, size=picture.shape)
            frame = av.VideoFrame.from_ndarray(moved.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@torch.no_grad()
def loss_of_averaged_views(run: Path, data: Path) -> float:
    """Loss of the saved model's logits on 5 clips x 3 crops, averaged for each held-out video."""
    model = AutoModelForVideoClassification.from_pretrained(run).eval()
    processor = AutoVideoProcessor.from_pretrained(run)
    losses = []
    for path in sorted(data.rglob("*_g*.*")):
        if int(path.stem.split("_g")[1][:2]) <= 8:
            continue
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        last = len(frames) - 29
        views = []
        for start in (round(last * segment / 4) for segment in range(5)):
            # The frames are 64 pixels high already, and 96 wide.
            clip = pixels[start : start + 29 : 4].float() / 255
            views += [clip[..., left : left + 64] for left in (0, 16, 32)]
        mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
        logits = model((torch.stack(views) - mean) / std).logits.mean(0)
        label = next(label for label, name in model.config.id2label.items() if name in path.stem)
        losses.append(-logits.log_softmax(0)[label].item())
    return sum(losses) / len(losses)


@pytest.mark.end_to_end
@pytest.mark.parametrize("layout", ["official", "folders"])
def test_ucf101(tmp_path, layout):
    data = tmp_path / "data"
    lists = {"trainlist01.txt": [], "testlist01.txt": []}
    for label, action in enumerate(ACTIONS):
        for number in range(12):
            group = f"v_{action}_g{number + 1:02d}_c01"
            is_test = number >= 8
            if layout == "official":
                write_clip(data / "UCF-101" / action / f"{group}.avi", label, number, "mpeg4")
                line = f"{action}/{group}.avi" + ("" if is_test else f" {label + 1}")
                lists["testlist01.txt" if is_test else "trainlist01.txt"].append(line)
            else:
                write_clip(data / ("test" if is_test else "train") / action / f"{group}.mp4", label, number, "mpeg4")
    broken = next(data.rglob(f"v_{ACTIONS[0]}_g01_c01.*"))
    broken.write_bytes(b"")
    if layout == "official":
        (data / "ucfTrainTestlist").mkdir()
        index = "\n".join(f"{label + 1} {action}" for label, action in enumerate(ACTIONS))
        (data / "ucfTrainTestlist" / "classInd.txt").write_text(index + "\n")
        for name, lines in lists.items():
            (data / "ucfTrainTestlist" / name).write_text("\n".join(lines) + "\n")
    few = FEW_STEPS if layout == "folders" else []
    results = train("ucf101_smoke", tmp_path / "run", "--data_dir", data, *few)
    assert_runs(results) if few else assert_learned(results, 1 / 3)
    # Of one's own videos, the test split is evaluated in the end only.
    prefix = "eval" if layout == "official" else "test"
    evaluation = json.loads((tmp_path / "run" / f"{prefix}_results.json").read_text())
    assert evaluation[f"{prefix}_loss"] == pytest.approx(loss_of_averaged_views(tmp_path / "run", data), abs=1e-4)
    facts = json.loads((tmp_path / "run" / "train_results.json").read_text())["data"]
    assert facts["left_out"] == [
        {"file": str(broken), "reason": "cannot be used: Invalid data found when processing input"}
    ]


@pytest.mark.end_to_end
def test_volumes(tmp_path):
    for split, count in (("train", 24), ("test", 10)):
        for label, name in enumerate(("low", "middle", "high")):
            for number in range(count):
                random = np.random.default_rng([label, number, count])
                shape = random.integers(20, 36, size=3)
                volume = random.normal(0, 60, size=shape)
                third = shape[0] * label // 3
                volume[third : third + shape[0] // 3] += 400
                path = tmp_path / "data" / split / name / f"{number}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                nibabel.save(nibabel.Nifti1Image(volume.T.astype(np.int16), np.eye(4)), path)
    assert_learned(train("volumes_smoke", tmp_path / "run", "--data_dir", tmp_path / "data"), 1 / 3)


@pytest.mark.end_to_end
@pytest.mark.parametrize("size", [108, 276])
def test_arrows(tmp_path, size):
    # The larger size only shows that the recipe runs.
    few = [] if size == 108 else [*FEW_STEPS, "--eval_examples", 64, "--train_examples", 256]
    results = train(f"arrows_{size}_smoke", tmp_path / "run", "--data_num_proc", 1, *few)
    assert_runs(results) if few else assert_learned(results, 0.25)


def fails(capsys, *words: object) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(["train", *map(str, words), "--use_cpu", "true", "--disable_tqdm", "true"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert not any("Traceback" in line for line in error)
    return error[-1]


def break_shard(directory: Path, image: bytes, label: int) -> None:
    """Add one example to the first training shard, and make the labels of all shards plain numbers."""
    path = directory / "data" / "train-00000-of-00004.parquet"
    table = datasets.Dataset.from_parquet(str(path), cache_dir=str(directory.parent / "cache"))
    table = table.cast_column("image", datasets.Image(decode=False))
    rows = [*table, {"image": {"bytes": image, "path": None}, "label": label}]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    for other in (directory / "data").glob("*.parquet"):
        numbers = datasets.Dataset.from_parquet(str(other), cache_dir=str(directory.parent / "cache" / other.stem))
        numbers.cast_column("label", datasets.Value("int64")).to_parquet(other)


@pytest.mark.parametrize(
    "image, label, message",
    [
        (jpeg(photograph(0, 1)), 4, "label 4 is out of range, allowed are 0 to 3"),
        (jpeg(photograph(0, 1))[:200], 1, "image without a name cannot be read"),
    ],
)
def test_broken_example_of_a_stream_in_a_worker(capsys, monkeypatch, tmp_path, image, label, message):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    write_parquet(tmp_path / "data")
    break_shard(tmp_path / "data", image, label)
    words = ["imagenet_smoke", "--data_dir", tmp_path / "data", "--output_dir", tmp_path / "run"]
    assert message in fails(capsys, *words)


def test_more_workers_than_shards(capsys, tmp_path):
    write_parquet(tmp_path / "data")
    words = ["imagenet_smoke", "--data_dir", tmp_path / "data", "--output_dir", tmp_path / "run"]
    error = fails(capsys, *words, "--dataloader_num_workers", 5)
    assert "dataloader_num_workers is 5, allowed is at most 4" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("write", "step"), mostly_extensive([(write_tars, 3), (write_tars, 4), (write_tree, 4)], fast=[(write_tars, 4)])
)
@pytest.mark.end_to_end
def test_resumed_run_with_workers_ends_as_an_uninterrupted_one(monkeypatch, tmp_path, write, step):
    """Resumed at the end of the first epoch and in the middle of the second, with dropout, for streams and files."""
    write(tmp_path / "data")
    words = ["--data_dir", tmp_path / "data", "--max_steps", 7, "--save_steps", 1, "--save_total_limit", 9]
    words += ["--warmup_steps", 0, "--dataloader_drop_last", "false"]
    train("imagenet_smoke", tmp_path / "whole", *words)
    (tmp_path / "half").mkdir()
    shutil.copy(tmp_path / "whole" / "recipe.yaml", tmp_path / "half")
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", tmp_path / "half" / f"checkpoint-{step}")
    train("imagenet_smoke", tmp_path / "half", *words, "--resume_from_checkpoint", "true")
    whole, half = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "half"))
    for name, tensor in whole.items():
        assert tensor.equal(half[name]), name
