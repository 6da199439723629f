"""ImageNet-1k: class folders, streamed shards (parquet as on the Hub, or webdataset), or the Hub itself."""

import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from ...configuration import DATASETS, DataArguments
from ...errors import InputError
from ...modeling.configuration_liere_vit import LiereViTConfig
from ..media import encoded_feature
from .files import existing_directory
from .folders import tables_of_class_folders
from .hub import from_hub
from .splits import Splits

# `test` last: the official test images have no labels.
EVALUATION_FOLDERS = ("val", "validation", "test")
# Of parquet and webdataset shards.
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png")
LABEL_COLUMNS = ("label", "cls")
# A tar file ends in two blocks of 512 zero bytes.
_TAR_END = bytes(1024)
_READ_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    tarfile.TarError,
    pa.ArrowException,
    datasets.exceptions.DatasetGenerationError,
)


def load_imagenet(arguments: DataArguments, config: LiereViTConfig | None) -> Splits:
    """Class folders become a table of files; shards and the Hub give a stream of training examples.

    `data_dir` is read as the first of these that it holds: `train` and `val` (or `validation` or `test`) folders of
    class folders, parquet files, or tar files with `train` and `val` in their names.

    Raises:
        InputError: it holds none of these, a part is missing or cannot be read, or the stream's length is unknown.
    """
    if arguments.data_dir is None:
        return _from_hub(arguments.hub_id or DATASETS["imagenet"].hub_id, arguments)
    directory = existing_directory(arguments.data_dir)
    if (directory / "train").is_dir() and _has_folders(directory / "train"):
        return _from_folders(directory)
    for suffix, read in ((".parquet", _from_parquet), (".tar", _from_tars)):
        train, test = (sorted(map(str, directory.rglob(f"*{name}*{suffix}"))) for name in ("train", "val"))
        if train and test:
            return read(directory, train, test, arguments)
        if train or test:
            present, absent = ("train", "val") if train else ("val", "train")
            raise InputError(f"data_dir {directory} has *{present}*{suffix} but no *{absent}*{suffix}")
    raise InputError(
        f"data_dir {directory} has neither train and val folders with class folders nor *train*.parquet and "
        "*val*.parquet nor *train*.tar and *val*.tar"
    )


def _has_folders(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.is_dir() for entry in entries)


def _from_folders(directory: Path) -> Splits:
    test_folder = next((directory / name for name in EVALUATION_FOLDERS if (directory / name).is_dir()), None)
    if test_folder is None:
        raise InputError(f"data_dir {directory} has train but none of {', '.join(EVALUATION_FOLDERS)}")
    if not _has_folders(test_folder):
        raise InputError(
            f"{test_folder} has no class folders: its images belong in folders named by WordNet ids, as in train: "
            f"for example {test_folder.name}/n01440764/ILSVRC2012_val_00000293.JPEG"
        )
    found = tables_of_class_folders({"train": directory / "train", "test": test_folder}, "image")
    return Splits.of(**found.tables, left_out=found.left_out)


def _from_parquet(directory: Path, train: list[str], test: list[str], arguments: DataArguments) -> Splits:
    num_rows = {path: _num_rows(path) for path in train + test}
    return _from_shards("parquet", train, test, sum(num_rows[path] for path in train))


def _num_rows(path: str) -> int:
    try:
        return pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {_one_line(error)}") from error


def _from_tars(directory: Path, train: list[str], test: list[str], arguments: DataArguments) -> Splits:
    for path in train + test:
        _require_whole_tar(path)
    num_train = arguments.train_examples or _recorded_num_train(directory)
    if num_train is None:
        raise InputError(
            f"data_dir {directory} has no _info.json with splits.train.num_samples: set train_examples to the number "
            "of training examples"
        )
    # Given the features, `datasets` does not read other members of an example, such as json.
    image, label = _required_columns(_first_members(train[0]), train[0])
    features = datasets.Features({image: encoded_feature("image"), label: datasets.Value("int64")})
    return _from_shards("webdataset", train, test, num_train, features=features)


def _require_whole_tar(path: str) -> None:
    with Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - len(_TAR_END), 0))
        if file.read() != _TAR_END:
            raise InputError(f"{path} is not a tar file or ends early")


def _first_members(path: str) -> list[str]:
    """The suffixes of the first example's members."""
    first, suffixes = None, []
    try:
        with tarfile.open(path) as file:
            for member in file:
                name, _, suffix = Path(member.name).name.partition(".")
                first = first or name
                if name != first:
                    break
                suffixes.append(suffix)
    except tarfile.TarError as error:
        raise InputError(f"{path} cannot be read: {_one_line(error)}") from error
    return suffixes


def _recorded_num_train(directory: Path) -> int | None:
    """The number of training examples in the `_info.json` that timm writes beside the shards."""
    for path in sorted(directory.glob("*info.json")):
        try:
            return int(json.loads(path.read_text())["splits"]["train"]["num_samples"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} has no splits.train.num_samples") from error
    return None


def _from_shards(kind: str, train: list[str], test: list[str], num_train: int, **options: Any) -> Splits:
    try:
        stream = datasets.load_dataset(kind, data_files={"train": train}, split="train", streaming=True, **options)
        rows = datasets.load_dataset(kind, data_files={"test": test}, split="test", **options)
    except _READ_ERRORS as error:
        # `datasets` raises its own error; its cause says what is wrong with the file.
        raise InputError(
            f"{train[0]}, {test[0]} or those beside them cannot be read: {_one_line(error.__cause__ or error)}"
        ) from error
    return _from_columns(stream, train[0], rows, test[0], num_train)


def _from_hub(hub_id: str, arguments: DataArguments) -> Splits:
    stream = from_hub(hub_id, split="train", streaming=True)
    train = (stream.info.splits or {}).get("train")
    num_train = train.num_examples if train and train.num_examples else arguments.train_examples
    if num_train is None:
        raise InputError(f"{hub_id} does not say how many training examples it has: set train_examples")
    # With checks, some versions of `datasets` complain that the training split is missing.
    files = {"validation": "**/*validation*"}
    test = from_hub(hub_id, data_files=files, split="validation", verification_mode="no_checks")
    return _from_columns(stream, hub_id, test, hub_id, num_train)


def _from_columns(
    train: datasets.IterableDataset, train_name: str, test: datasets.Dataset, test_name: str, num_train: int
) -> Splits:
    """Images and labels from columns of any known name; classes without names are named by their numbers."""
    train, test = _image_and_label(train, train_name), _image_and_label(test, test_name)
    if isinstance(train.features["label"], datasets.ClassLabel) and train.features["label"] != test.features["label"]:
        raise InputError(f"{test_name} has other class names than {train_name}")
    if not isinstance(test.features["label"], datasets.ClassLabel):
        labels = test["label"][:]
        if not labels or None in labels or min(labels) < 0:
            raise InputError(f"{test_name} has examples without a label, or none at all")
        test = test.cast_column("label", datasets.ClassLabel(names=[str(label) for label in range(max(labels) + 1)]))
    return Splits(train.cast_column("label", test.features["label"]), None, test, num_train)


def _image_and_label(dataset: Any, name: str) -> Any:
    image, label = _required_columns(dataset.column_names or (), name)
    # Must come first: other operations would decode the images.
    dataset = dataset.select_columns([image, label]).cast_column(image, encoded_feature("image"))
    renamed = {old: new for old, new in ((image, "image"), (label, "label")) if old != new}
    return dataset.rename_columns(renamed) if renamed else dataset


def _required_columns(columns: Sequence[str], name: str) -> tuple[str, str]:
    image, label = (
        next((column for column in wanted if column in columns), None) for wanted in (IMAGE_COLUMNS, LABEL_COLUMNS)
    )
    if image is None or label is None:
        raise InputError(
            f"{name} holds {', '.join(columns) or 'nothing'}, but needs one of {', '.join(IMAGE_COLUMNS)} and one of "
            f"{', '.join(LABEL_COLUMNS)}"
        )
    return image, label


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
