"""Predictions for files against the model's own output, in every medium and format."""

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pyarrow import parquet
from selection import mostly_extensive
from tiny_run import QUIET, TINY_MODEL, as_flags
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTImageProcessor, pipeline

from liere_hf import LiereViTConfig, LiereViTForImageClassification, LiereViTForVideoClassification
from liere_hf.configuration import parse_recipe
from liere_hf.configuration.prediction_options import PredictionOptions
from liere_hf.data import load_splits
from liere_hf.errors import InputError
from liere_hf.modeling.video_processing_liere_vit import LiereViTVideoProcessor
from liere_hf.prediction import predict
from liere_hf_cli.main import main

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
LABELS = {index: f"class {index}" for index in range(7)}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """An image classifier whose answers differ between pictures."""
    directory = tmp_path_factory.mktemp("models") / "images"
    torch.manual_seed(0)
    config = LiereViTConfig(**SMALL, image_size=16, patch_size=4, id2label=LABELS, initializer_range=0.5)
    LiereViTForImageClassification(config).save_pretrained(directory)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(directory)
    return directory


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Pictures at several depths, beside other files, hidden ones, and two that cannot be read."""
    random = np.random.default_rng(0)
    for number, path in enumerate(("a.png", "b/c.JPG", "b/d/e.webp", "b/d/[f].png", ".hidden.png", ".git/g.png")):
        target = tmp_path / "pictures" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(256, size=(20 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(target)
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    (tmp_path / "pictures" / "b" / "empty.png").write_bytes(b"")
    (tmp_path / "pictures" / "broken.png").write_bytes((tmp_path / "pictures" / "a.png").read_bytes()[:100])
    (tmp_path / "pictures" / "again").symlink_to(tmp_path / "pictures")
    return tmp_path / "pictures"


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["predict", *map(str, words), "--use_cpu"])
    return exit_.value.code


@pytest.mark.parametrize("options", [{}, {"batch_size": 1}, {"batch_size": 2, "num_workers": 2}])
def test_folders_equal_the_pipeline(model, pictures, options):
    predictions = predict(str(model), [str(pictures)], PredictionOptions(use_cpu=True, **options))
    rows = {Path(row.file).relative_to(pictures): row for row in predictions.rows}
    assert sorted(map(str, rows)) == sorted(
        ["a.png", "b/c.JPG", "b/d/[f].png", "b/d/e.webp", "b/empty.png", "broken.png"]
    )
    assert [row.file for row in predictions.rows] == sorted(row.file for row in predictions.rows)
    classify = pipeline("image-classification", model=str(model), top_k=5)
    for path, row in rows.items():
        if path.name in ("empty.png", "broken.png"):
            assert f"{pictures / path}" in row.error
            assert row.values == []
            continue
        expected = classify(str(pictures / path))
        assert row.error is None
        assert [label for label, _ in row.values] == [each["label"] for each in expected]
        assert [value for _, value in row.values] == pytest.approx([each["score"] for each in expected], abs=1e-5)


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".json"])
def test_files_of_predictions(model, pictures, tmp_path, capsys, ending):
    output = tmp_path / "results" / f"predictions{ending}"
    assert run(model, pictures, "--output", output, "--top_k", 2) == 0
    printed = capsys.readouterr()
    assert "2 of 6 files cannot be read" in printed.out
    assert str(pictures / "broken.png") in printed.out
    assert "Predicting" not in printed.out + printed.err
    if ending == ".json":
        content = json.loads(output.read_text())
        rows = {
            row["file"]: [row["predictions"][0]["label"], row["predictions"][0]["probability"]]
            for row in content
            if not row["error"]
        }
        assert all(len(row["predictions"]) == 2 for row in content if not row["error"])
        errors = [row["file"] for row in content if row["error"]]
    else:
        table = parquet.read_table(output).to_pylist() if ending == ".parquet" else list(csv.DictReader(output.open()))
        assert list(table[0]) == ["file", "label", "probability", "label_2", "probability_2", "error"]
        rows = {row["file"]: [row["label"], float(row["probability"])] for row in table if not row["error"]}
        errors = [row["file"] for row in table if row["error"]]
    assert len(errors) == 2
    processor = AutoImageProcessor.from_pretrained(model)
    classifier = AutoModelForImageClassification.from_pretrained(model)
    for file, (label, probability) in rows.items():
        with Image.open(file) as picture, torch.no_grad():
            logits = classifier(**processor(picture.convert("RGB"), return_tensors="pt")).logits[0]
        assert label == f"class {int(logits.argmax())}"
        assert probability == pytest.approx(float(logits.softmax(0).max()), abs=1e-5)


def test_video_and_volume_models(tmp_path):
    """Views are averaged as in an evaluation; the recipe beside the model says how many."""
    av = pytest.importorskip("av")
    torch.manual_seed(0)
    config = LiereViTConfig(
        **SMALL, image_size=[2, 16, 16], patch_size=[1, 8, 8], id2label=LABELS, initializer_range=0.5
    )
    model = LiereViTForVideoClassification(config)
    model.save_pretrained(tmp_path / "clips")
    size = {"height": 16, "width": 16}
    LiereViTVideoProcessor(size={"shortest_edge": 16}, crop_size=size).save_pretrained(tmp_path / "clips")
    (tmp_path / "clips" / "recipe.yaml").write_text("{frame_stride: 2, eval_segments: 2, eval_crops: 1}")
    (tmp_path / "videos").mkdir()
    with av.open(str(tmp_path / "videos" / "one.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "0"})
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv444p"
        for number in range(5):
            pixels = np.random.default_rng(number).integers(256, size=(16, 16, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    (row,) = predict(str(tmp_path / "clips"), [str(tmp_path / "videos")], PredictionOptions(use_cpu=True)).rows
    with av.open(str(tmp_path / "videos" / "one.mp4")) as container:
        frames = [
            torch.tensor(frame.to_ndarray(format="rgb24")).permute(2, 0, 1) for frame in container.decode(video=0)
        ]
    processor = LiereViTVideoProcessor.from_pretrained(tmp_path / "clips")
    pixels = processor([torch.stack(frames[0:3:2]), torch.stack(frames[2:5:2])], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model.eval()(pixels).logits.mean(0).softmax(0)
    assert dict(row.values)[f"class {int(expected.argmax())}"] == pytest.approx(float(expected.max()), abs=1e-4)

    config = LiereViTConfig(
        **SMALL, image_size=[4, 8, 8], patch_size=[2, 4, 4], num_channels=1, id2label=LABELS, initializer_range=0.5
    )
    LiereViTForVideoClassification(config).save_pretrained(tmp_path / "volumes")
    processor = LiereViTVideoProcessor(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.25])
    processor.save_pretrained(tmp_path / "volumes")
    scans = tmp_path / "scans" / "patient"
    scans.mkdir(parents=True)
    volume = np.random.default_rng(0).normal(size=(8, 9, 10)).astype(np.float32)
    np.save(scans / "one.npy", volume)
    nibabel.save(nibabel.Nifti1Image(volume.T, np.eye(4)), scans / "two.nii.gz")
    first, second = predict(str(tmp_path / "volumes"), [str(tmp_path / "scans")], PredictionOptions(use_cpu=True)).rows
    assert [label for label, _ in first.values] == [label for label, _ in second.values]


def test_short_videos_are_left_out(tmp_path):
    """As in an evaluation: no frame is repeated to fill a clip. A still picture is a video of one frame."""
    pytest.importorskip("av")
    from video_files import write_video

    checkpoint = Path(__file__).parents[1] / "checkpoints" / "liere-clips"
    for count in (1, 7, 8):
        write_video(tmp_path / f"{count}.mp4", count, size=(32, 32))
    Image.new("RGB", (32, 32)).save(tmp_path / "still.png")
    (tmp_path / "still.png").rename(tmp_path / "still.mp4")
    rows = predict(str(checkpoint), [str(tmp_path)], PredictionOptions(use_cpu=True)).rows
    errors = {Path(row.file).name: row.error for row in rows}
    assert errors.pop("8.mp4") is None
    for name, frames in {"1.mp4": "1 frame", "7.mp4": "7 frames", "still.mp4": "1 frame"}.items():
        assert f"it has {frames}; a clip of 8 with frame_stride 1 takes 8" in errors.pop(name)
    assert not errors


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_other_problems(model, pictures, tmp_path, problem):
    """Numbers have no probabilities; classes that exclude nothing have each their own."""
    classifier = LiereViTForImageClassification.from_pretrained(model)
    classifier.config.problem_type = problem
    classifier.save_pretrained(tmp_path / "model")
    AutoImageProcessor.from_pretrained(model).save_pretrained(tmp_path / "model")
    output = tmp_path / "numbers.csv"
    assert run(tmp_path / "model", pictures / "a.png", "--output", output, "--top_k", 7) == 0
    (row,) = csv.DictReader(output.open())
    processor = AutoImageProcessor.from_pretrained(model)
    with Image.open(pictures / "a.png") as picture, torch.no_grad():
        logits = classifier.eval()(**processor(picture, return_tensors="pt")).logits[0]
    if problem == "regression":
        assert [float(row[name]) for name in LABELS.values()] == pytest.approx(logits.tolist(), abs=1e-4)
    else:
        assert float(row["probability"]) == pytest.approx(float(logits.sigmoid().max()), abs=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.png"], "missing.png does not exist"),
        (["empty"], "folder empty holds no image, which end with"),
        (["pictures/broken.png"], "none of 1 images can be read, for example"),
        (
            ["pictures", "--output", "predictions.txt"],
            "output is predictions.txt, allowed are names that end",
        ),
        (
            ["pictures", "--output", "/proc/predictions.csv"],
            "output is /proc/predictions.csv, which cannot be",
        ),
        (["pictures", "--top_k", "0"], "top_k is 0, allowed is 1 or more"),
        (["pictures", "--num_workers", "-1"], "num_workers is -1, allowed is 0 to 1024"),
        (["pictures", "--batch_sise", "3"], "unknown option '--batch_sise', did you mean '--batch_size'?"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(model, pictures, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert run(model, *words) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == before


def test_models_that_take_no_files(tmp_path):
    config = LiereViTConfig(**SMALL, image_size=[16], patch_size=[4], num_channels=2)
    LiereViTForImageClassification(config).save_pretrained(tmp_path / "signals")
    with pytest.raises(InputError, match=r"takes 1 axes and 2 channel\(s\), files give 2 axes and 3 channels"):
        predict(str(tmp_path / "signals"), ["a.png"], PredictionOptions())


@pytest.mark.parametrize("with_paths", mostly_extensive([False, True], [True]))
def test_do_predict_after_training(pictures, tmp_path, with_paths):
    """The evaluation examples' predictions are as accurate as the evaluation says."""
    flags = ["--train_examples", 64, "--eval_examples", 64]
    words = ["train", "digits", *as_flags(TINY_MODEL | QUIET), *flags, "--max_steps", 9]
    words += ["--eval_strategy", "no", "--save_strategy", "no", "--do_predict", "true"]
    words += ["--output_dir", tmp_path / "run"]
    words += ["--predict_paths", pictures / "a.png", pictures / "broken.png"] if with_paths else []
    with pytest.raises(SystemExit) as exit_:
        main(list(map(str, words)))
    assert exit_.value.code == 0
    rows = list(csv.DictReader((tmp_path / "run" / "predictions.csv").open()))
    if with_paths:
        assert [bool(row["error"]) for row in rows] == [False, True]
        return
    _, data_arguments, training_arguments = parse_recipe("digits", list(map(str, flags)))
    splits = load_splits(data_arguments, training_arguments.seed)
    examples = splits.evaluation
    correct = [int(row["label"]) == label for row, label in zip(rows, examples["label"], strict=True)]
    results = json.loads((tmp_path / "run" / "eval_results.json").read_text())
    assert np.mean(correct) == pytest.approx(results["eval_accuracy"])


def test_volumes_keep_their_millimetres(tmp_path):
    """Predictions of a model that was trained with volume_spacing take the size of voxels, too."""
    nibabel = pytest.importorskip("nibabel")
    rng = np.random.default_rng(0)
    for number in range(10):
        path = tmp_path / "scans" / "ab"[number % 2] / f"{number}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        voxels = np.diag([1 + 0.5 * number, 1, 2, 1]).astype(float)
        nibabel.Nifti1Image(rng.normal(size=(8, 8, 8)).astype(np.float32), voxels).to_filename(path)
    words = ["train", "volumes_smoke", "--data_dir", tmp_path / "scans", "--output_dir", tmp_path / "run"]
    words += ["--volume_spacing", 1, 1, 1, "--max_steps", 2, "--initializer_range", 0.5, "--do_predict", "true"]
    words += ["--use_cpu", "true", "--data_num_proc", 1, "--eval_strategy", "no", "--save_strategy", "no"]
    words += ["--effective_batch_size", 4, "--dataloader_num_workers", 0]
    with pytest.raises(SystemExit) as exit_:
        main(list(map(str, words)))
    assert exit_.value.code == 0
    trained = {row["file"]: row for row in csv.DictReader((tmp_path / "run" / "predictions.csv").open())}
    scans = [str(tmp_path / "scans")]

    def probabilities():
        return {row.file: dict(row.values) for row in predict(str(tmp_path / "run"), scans, options).rows}

    options = PredictionOptions(use_cpu=True)
    found = probabilities()
    assert len(found) == 10
    assert trained
    for file, row in trained.items():
        assert found[file][row["label"]] == pytest.approx(float(row["probability"]), abs=1e-5)
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"volume_spacing": None}))
    others = probabilities()
    assert max(abs(found[file]["a"] - others[file]["a"]) for file in found) > 1e-4
