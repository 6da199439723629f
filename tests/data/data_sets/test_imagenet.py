import functools
import io
import itertools
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from hub_server import HubServer
from PIL import Image
from preloaded import ONLY_TORCH, preloaded
from selection import mostly_extensive
from transformers import default_data_collator

from liere_hf.configuration import DataArguments
from liere_hf.data import load_splits
from liere_hf.data.augmentation.batch_augmentation import BatchAugmentation
from liere_hf.data.batching import StreamedExamples, TrainingTransform
from liere_hf.data.decoding.images import decode_image
from liere_hf.data.resizing.images import TrainingImages
from liere_hf.errors import InputError

NUM_SHARDS, ROWS_PER_SHARD = 12, 2
NUM_TRAIN, NUM_TEST = NUM_SHARDS * ROWS_PER_SHARD, 24
NAMES = [f"n{10_000_000 + label}" for label in range(NUM_TRAIN)]

datasets.disable_progress_bars()
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.xdist_group("preloaded"),
]


def grey(label: int) -> int:
    return 10 * label


def jpeg(label: int) -> bytes:
    """A single color that encodes the label. Size and mode differ between labels."""
    mode, fill = [("RGB", (grey(label),) * 3), ("L", grey(label)), ("CMYK", (0, 0, 0, 255 - grey(label)))][label % 3]
    content = io.BytesIO()
    Image.new(mode, (20 + label, 40 - label), fill).save(content, "JPEG", quality=95)
    return content.getvalue()


def write_parquet(path: Path, labels: range, feature: object = None) -> None:
    columns = {
        "image": [{"bytes": jpeg(label), "path": f"{label}.JPEG"} for label in labels],
        "label": [*labels],
        "other": ["unused"] * len(labels),
    }
    features = {"image": datasets.Image(), "label": feature or datasets.ClassLabel(names=NAMES)}
    features = datasets.Features(features | {"other": datasets.Value("string")})
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)


def write_tar(path: Path, labels: range, contents: dict[str, object] | None = None) -> None:
    """`contents` maps extensions to functions that make a member's bytes from its label."""
    contents = contents or {
        "jpg": jpeg,
        "cls": lambda label: str(label).encode(),
        # Examples have different fields.
        "json": lambda label: json.dumps({"label": label} if label % 2 else {"size": [1, "2"]}).encode(),
    }
    with tarfile.open(path, "w") as file:
        for label in labels:
            for extension, content in contents.items():
                member = tarfile.TarInfo(f"n{label:08}_{label}.{extension}")
                member.size = len(content(label))
                file.addfile(member, io.BytesIO(content(label)))


def shard(number: int) -> range:
    return range(number * ROWS_PER_SHARD, (number + 1) * ROWS_PER_SHARD)


def parquet_directory(directory: Path) -> Path:
    for number in range(NUM_SHARDS):
        write_parquet(directory / "data" / f"train-{number:05}-of-{NUM_SHARDS:05}.parquet", shard(number))
    write_parquet(directory / "data" / "validation-00000-of-00001.parquet", range(NUM_TEST))
    # The official test images have no labels and must not be used.
    (directory / "data" / "test-00000-of-00001.parquet").write_bytes(b"")
    return directory


def tar_directory(directory: Path) -> Path:
    directory.mkdir()
    for number in range(NUM_SHARDS):
        write_tar(directory / f"imagenet1k-train-{number:04}.tar", shard(number))
    write_tar(directory / "imagenet1k-validation-00.tar", range(NUM_TEST))
    (directory / "_info.json").write_text(json.dumps({"splits": {"train": {"num_samples": NUM_TRAIN}}}))
    return directory


def folder_directory(directory: Path) -> Path:
    """Class folders; the files are not images, so opening any of them fails."""
    for split, count in (("train", 3), ("val", 1)):
        for label in (1, 0):
            (directory / split / NAMES[label]).mkdir(parents=True)
            for number in range(count):
                name = f"{NAMES[label]}_{number}{['.JPEG', '.jpg', '.png'][number]}"
                (directory / split / NAMES[label] / name).write_bytes(b"")
            (directory / split / NAMES[label] / "notes.txt").write_text("no image")
    return directory


@pytest.fixture(scope="module", params=[parquet_directory, tar_directory])
def shards(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("shards") / "imagenet")


@pytest.fixture(scope="module")
def parquet_shards(tmp_path_factory):
    return parquet_directory(tmp_path_factory.mktemp("parquet") / "imagenet")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # Seconds that `datasets` sleeps after each pass over parquet files.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def load(directory: Path, **options):
    return load_splits(DataArguments(dataset="imagenet", data_dir=str(directory), **options), seed=0)


def assert_undecoded(data):
    for split in (data.train, data.test):
        assert split.features == {"image": datasets.Image(decode=False), "label": data.test.features["label"]}


def test_class_folders_are_not_opened(tmp_path):
    directory = folder_directory(tmp_path / "imagenet")
    data = load(directory)
    assert_undecoded(data)
    assert data.label_names == NAMES[:2]
    assert (data.num_train, len(data.train), len(data.test)) == (6, 6, 2)
    assert {Path(file).name for file, _ in data.left_out} == {"notes.txt"}
    for split, folder in ((data.train, "train"), (data.test, "val")):
        paths = {row["image"]["path"]: row["label"] for row in split}
        assert paths == {str(path): NAMES.index(path.parent.name) for path in (directory / folder).glob("n*/n1*")}


@pytest.mark.parametrize("name", ["validation", "test"])
def test_names_of_the_evaluation_folder(tmp_path, name):
    directory = folder_directory(tmp_path / "imagenet")
    (directory / "val").rename(directory / name)
    assert len(load(directory).test) == 2


def test_class_folders_are_preferred_to_shards(tmp_path):
    directory = folder_directory(tmp_path / "imagenet")
    write_parquet(directory / "train-00000-of-00001.parquet", range(3))
    write_parquet(directory / "validation-00000-of-00001.parquet", range(3))
    write_tar(directory / "train.tar", range(3))
    assert load(directory).num_train == 6
    shutil.rmtree(directory / "train")
    assert load(directory).num_train == 3


def test_validation_is_preferred_to_unlabeled_test_images(tmp_path):
    directory = folder_directory(tmp_path / "imagenet")
    (directory / "test").mkdir()
    (directory / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(b"")
    assert len(load(directory).test) == 2


def test_folders_that_do_not_match(tmp_path):
    directory = folder_directory(tmp_path / "imagenet")
    (directory / "val" / NAMES[1]).rename(directory / "val" / NAMES[2])
    with pytest.raises(InputError, match=f"has no training examples of {NAMES[2]}, which test has"):
        load(directory)
    shutil.rmtree(directory / "val")
    with pytest.raises(InputError, match="imagenet has train but none of val, validation, test"):
        load(directory)
    (directory / "val").mkdir()
    (directory / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"")
    with pytest.raises(InputError, match=r"val has no class folders: .* val/n01440764/ILSVRC2012_val_\d+\.JPEG$"):
        load(directory)


def test_shards(shards):
    data = load(shards)
    assert_undecoded(data)
    assert isinstance(data.train, datasets.IterableDataset)
    assert (data.train.n_shards, data.num_train, len(data.test)) == (NUM_SHARDS, NUM_TRAIN, NUM_TEST)
    assert data.label_names == (NAMES if any(shards.rglob("*.parquet")) else [str(i) for i in range(NUM_TEST)])
    for split in (data.train, data.test):
        rows = [*split]
        assert [row["label"] for row in rows] == [*range(len(rows))]
        assert [row["image"]["bytes"] for row in rows] == [jpeg(label) for label in range(len(rows))]


def test_parquet_without_class_names(tmp_path):
    for split, labels in (("train", range(2)), ("val", range(3))):
        write_parquet(tmp_path / f"{split}-0.parquet", labels, datasets.Value("int64"))
    data = load(tmp_path)
    assert_undecoded(data)
    assert data.label_names == ["0", "1", "2"]
    assert [row["label"] for row in data.train] == [0, 1]


def test_number_of_examples_in_tars(tmp_path):
    directory = tar_directory(tmp_path / "imagenet")
    (directory / "_info.json").write_text('{"splits": {"train": {"num_samples": 7}}}')
    assert load(directory).num_train == 7
    assert load(directory, train_examples=8).num_train == 8
    (directory / "_info.json").write_text('{"splits": {}}')
    with pytest.raises(InputError, match=r"_info\.json has no splits\.train\.num_samples"):
        load(directory)
    (directory / "_info.json").unlink()
    with pytest.raises(InputError, match="set train_examples"):
        load(directory)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("make, suffix", [(parquet_directory, "parquet"), (tar_directory, "tar")])
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("damage", [truncate, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"?")])
def test_damaged_shards(tmp_path, make, suffix, split, damage):
    directory = make(tmp_path / "imagenet")
    path = sorted(directory.rglob(f"*{split}*.{suffix}"))[-1]
    damage(path)
    with pytest.raises(InputError, match=rf"^{path} (cannot be read|is not a tar file or ends early)[^\n]*$"):
        load(directory)


@pytest.mark.parametrize("make, suffix", [(parquet_directory, "parquet"), (tar_directory, "tar")])
def test_missing_splits(tmp_path, make, suffix):
    directory = make(tmp_path / "imagenet")
    validation = next(directory.rglob(f"*validation*.{suffix}"))
    validation.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=rf"has \*train\*\.{suffix} but no \*val\*\.{suffix}"):
        load(directory)
    for path in directory.rglob(f"*train*.{suffix}"):
        path.unlink()
    with pytest.raises(InputError, match="has neither train and val folders"):
        load(directory)
    (tmp_path / "elsewhere").rename(validation)
    with pytest.raises(InputError, match=rf"has \*val\*\.{suffix} but no \*train\*\.{suffix}"):
        load(directory)


def test_tars_that_are_not_webdatasets(tmp_path):
    """The official archives, recognized by name: one contains class archives, the other unlabeled images."""
    write_tar(tmp_path / "ILSVRC2012_img_train.tar", range(2), {"tar": lambda label: b"archive"})
    write_tar(tmp_path / "ILSVRC2012_img_val.tar", range(2), {"JPEG": jpeg})
    with pytest.raises(InputError, match=r"img_train\.tar holds tar, but needs one of image, jpg"):
        load(tmp_path, train_examples=2)


@pytest.mark.parametrize(
    "contents, message",
    [
        ({"jpg": jpeg, "cls": lambda label: b"tabby cat"}, "cannot be read: .*tabby cat"),
        ({"jpg": jpeg, "cls": lambda label: b"-1"}, "without a label"),
        ({"jpg": jpeg}, "without a label"),
    ],
)
def test_tar_labels_that_are_not_classes(tmp_path, contents, message):
    write_tar(tmp_path / "train.tar", range(2))
    write_tar(tmp_path / "val.tar", range(2), contents)
    with pytest.raises(InputError, match=message):
        load(tmp_path, train_examples=2)


def test_parquet_files_that_do_not_match(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", range(2))
    write_parquet(tmp_path / "val-0.parquet", range(2), datasets.ClassLabel(names=NAMES[::-1]))
    with pytest.raises(InputError, match=r"val-0\.parquet has other class names than .*train-0\.parquet"):
        load(tmp_path)
    datasets.Dataset.from_dict({"pixels": [1], "label": [1]}).to_parquet(tmp_path / "val-0.parquet")
    with pytest.raises(InputError, match=r"val-0\.parquet holds pixels, label, but needs"):
        load(tmp_path)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: None, "is not a directory"),
        (lambda path: path.mkdir(), "is empty"),
        (lambda path: (path / "train").mkdir(parents=True), "has neither train and val folders"),
    ],
)
def test_directories_without_data(tmp_path, make, message):
    make(tmp_path / "imagenet")
    with pytest.raises(InputError, match=f"data_dir .*imagenet {message}"):
        load(tmp_path / "imagenet")


# The files that require accepting the terms.
REPOSITORIES = {"open": None, "of_unknown_length": None, "gated": "*", "gated_files": "*.parquet"}
SCRIPT = """
import sys
from liere_hf.configuration import DataArguments
from liere_hf.data import load_splits
from liere_hf.errors import InputError
for name in sys.argv[1:]:
    try:
        data = load_splits(DataArguments(dataset="imagenet", hub_id=f"org/{name}"), seed=0)
        print(data.num_train, data.train.n_shards, data.train.features == data.test.features, data.test["label"][:])
    except InputError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def hub(parquet_shards, tmp_path_factory):
    """Output of SCRIPT by repository, with the real clients and our test server, and the clients' requests."""
    root = tmp_path_factory.mktemp("hub")
    with HubServer(root / "server") as server:
        server.add_user("org", "hf_org")
        for name, gated_files in REPOSITORIES.items():
            directory = shutil.copytree(parquet_shards, root / name)
            if name != "of_unknown_length":
                write_card(directory)
            publish(directory, f"org/{name}", server)
            if gated_files:
                server.gate(f"org/{name}", "dataset", gated_files)
        num_uploads = len(server.requests())
        command = [preloaded("python", ONLY_TORCH), "-c", SCRIPT, *REPOSITORIES]
        environment = server.environment(home=root / "home")
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        requests = server.requests()[num_uploads:]
    assert done.returncode == 0, done.stderr
    return dict(zip(REPOSITORIES, done.stdout.splitlines(), strict=True)), requests


def publish(directory: Path, repo_id: str, server: HubServer) -> None:
    api = huggingface_hub.HfApi(server.url, "hf_org")
    api.create_repo(repo_id, repo_type="dataset")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        api.upload_folder(repo_id=repo_id, folder_path=directory, repo_type="dataset")


def write_card(directory: Path) -> None:
    """Write a card as `push_to_hub` does."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    counts = {"train": NUM_TRAIN, "validation": NUM_TEST}
    splits = datasets.SplitDict({name: datasets.SplitInfo(name, num_examples=count) for name, count in counts.items()})
    card = huggingface_hub.DatasetCardData()
    info = datasets.DatasetInfo(features=features, splits=splits)
    datasets.info.DatasetInfosDict({"default": info}).to_dataset_card_data(card)
    (directory / "README.md").write_text(f"---\n{card.to_yaml()}\n---\n")


@pytest.mark.end_to_end
def test_hub_streams_and_downloads_only_the_validation_files(hub):
    printed, requests = hub
    assert printed["open"] == f"{NUM_TRAIN} {NUM_SHARDS} True {[*range(NUM_TEST)]}"
    files = {request["path"] for request in requests if request["method"] == "GET"}
    shards = {Path(path).name for path in files if "/org/open/" in path and path.endswith(".parquet")}
    assert shards == {"validation-00000-of-00001.parquet"}


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", ["gated", "gated_files"])
def test_gated_hub_data_without_access(hub, name):
    assert hub[0][name] == (
        f"org/{name} is gated: accept its terms at https://huggingface.co/datasets/org/{name} and log in with "
        "'hf auth login', or give data_dir with local files"
    )


@pytest.mark.end_to_end
def test_hub_data_of_unknown_length(hub):
    message = "org/of_unknown_length does not say how many training examples it has: set train_examples"
    assert hub[0]["of_unknown_length"] == message


@functools.cache
def stream(directory):
    return load(directory).train


def streamed(directory, rank=0, world_size=1, batch_size=2, num_examples=NUM_TRAIN):
    transform = TrainingTransform(
        "image",
        TrainingImages((16, 16), "resize"),
        BatchAugmentation((0.5,) * 3, (0.25,) * 3),
        None,
        seed=0,
        num_labels=NUM_TRAIN,
    )
    return StreamedExamples(stream(directory), transform, num_examples, batch_size, rank, world_size, buffer_size=8)


def batches(examples, num_workers, epoch=0):
    examples.transform.epoch = epoch
    loader = torch.utils.data.DataLoader(
        examples, batch_size=examples.batch_size, num_workers=num_workers, collate_fn=default_data_collator
    )
    return [*loader]


def labels_of(epoch_batches):
    return [label for batch in epoch_batches for label in batch["labels"].tolist()]


@pytest.mark.parametrize(
    ("world_size", "num_workers"),
    mostly_extensive([*itertools.product([1, 2, 3], [0, 1, 2])], [(1, 0), (2, 2), (3, 1)]),
)
def test_streamed_epoch_has_every_row_once(shards, world_size, num_workers):
    seen = []
    for rank in range(world_size):
        examples = streamed(shards, rank, world_size)
        epoch = batches(examples, num_workers)
        for batch in epoch:
            assert batch["pixel_values"].shape == (2, 3, 16, 16)
            shades = (batch["pixel_values"] * 0.25 + 0.5) * 255
            expected = grey(batch["labels"])[:, None, None, None].expand_as(shades)
            torch.testing.assert_close(shades, expected.float(), atol=3, rtol=0)
        assert len(labels_of(epoch)) == len(examples) == NUM_TRAIN // world_size
        seen += labels_of(epoch)
    assert sorted(seen) == [*range(NUM_TRAIN)]


@pytest.mark.parametrize("world_size, num_workers", [(1, 0), (3, 0), (2, 2)])
def test_streamed_epoch_drops_the_remainder(parquet_shards, world_size, num_workers):
    seen = []
    for rank in range(world_size):
        examples = streamed(parquet_shards, rank, world_size, batch_size=5)
        assert len(examples) == NUM_TRAIN // (5 * world_size) * 5
        epoch = labels_of(batches(examples, num_workers))
        assert len(epoch) == len(examples)
        seen += epoch
    assert len(set(seen)) == len(seen) == NUM_TRAIN // (5 * world_size) * 5 * world_size


@pytest.mark.parametrize("num_workers", mostly_extensive([0, 2], [2]))
def test_order_depends_only_on_the_epoch(shards, num_workers):
    examples = streamed(shards)
    orders = [labels_of(batches(examples, num_workers, epoch)) for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1] == labels_of(batches(streamed(shards), num_workers, 1))
    assert [*range(NUM_TRAIN)] not in orders


@pytest.mark.parametrize("world_size, num_workers", [(1, 0), (2, 2)])
def test_resumed_epoch(shards, world_size, num_workers):
    rank, num_seen = world_size - 1, 3
    uninterrupted = batches(streamed(shards, rank, world_size), num_workers, epoch=1)
    examples = streamed(shards, rank, world_size)
    examples.resume(1, num_seen)
    resumed = batches(examples, num_workers, epoch=1)
    assert len(resumed) == len(uninterrupted) > num_seen
    assert all("pixel_values" not in batch for batch in resumed[:num_seen])
    for first, second in zip(resumed[num_seen:], uninterrupted[num_seen:], strict=True):
        assert torch.equal(first["labels"], second["labels"])
        assert torch.equal(first["pixel_values"], second["pixel_values"])
    assert all("pixel_values" in batch for batch in batches(examples, num_workers, epoch=2))


def test_persistent_workers(parquet_shards):
    examples = streamed(parquet_shards)
    loader = torch.utils.data.DataLoader(
        examples, batch_size=2, num_workers=2, collate_fn=default_data_collator, persistent_workers=True
    )
    orders = []
    for epoch in (0, 1):
        examples.transform.epoch = epoch
        orders.append(labels_of(loader))
    assert orders == [labels_of(batches(streamed(parquet_shards), 2, epoch)) for epoch in (0, 1)]


def test_unequal_shards_still_give_equal_steps(tmp_path):
    for number, labels in enumerate((range(7), range(7, 8))):
        write_parquet(tmp_path / f"train-{number}.parquet", labels)
    write_parquet(tmp_path / "val-0.parquet", range(2))
    epochs = [labels_of(batches(streamed(tmp_path, rank, 2, num_examples=8), 0)) for rank in range(2)]
    assert [len(epoch) for epoch in epochs] == [4, 4]


@pytest.mark.timeout(60)
def test_fewer_shards_than_readers(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", range(8))
    write_parquet(tmp_path / "val-0.parquet", range(2))
    with pytest.raises(InputError, match="fewer shards"):
        batches(streamed(tmp_path, num_examples=8), num_workers=2)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_images_of_all_modes_decode_to_their_shade(label):
    pixels = decode_image({"bytes": jpeg(label), "path": None})
    assert np.abs(pixels.numpy().astype(int) - grey(label)).max() <= 3
