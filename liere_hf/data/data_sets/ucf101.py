"""UCF101, from local files or from a copy on the Hub."""

from pathlib import Path

import datasets

from ...configuration import DataArguments
from ...errors import InputError, first_names
from ...modeling.configuration_liere_vit import LiereViTConfig
from ..media import encoded_feature
from .files import check_files, existing_directory
from .hub import from_hub, require_columns, require_split
from .own_data import checker, own_splits
from .splits import Splits
from .tables import table_of_paths

CLASS_LIST = "classInd.txt"
# Splits of a copy on the Hub that are evaluated, the preferred one first.
EVALUATION_SPLITS = ("test", "validation", "val")


def load_ucf101(arguments: DataArguments, config: LiereViTConfig | None) -> Splits:
    """UCF101 by one of its official splits, or in class folders, with a column `video`.

    `data_dir` holds the official lists, directly or in a folder, and the .avi files in at most two levels of
    folders; or class folders, as for `load_videofolder`. Without `data_dir`, the copy on the Hub that `hub_id` names
    is loaded. Every video is opened once before training, and must have enough frames for a clip.

    Raises:
        InputError: neither `data_dir` nor `hub_id`, another layout, listed files that are missing, or videos that are
            corrupt or too short without `skip_corrupt_files`.
    """
    if arguments.data_dir is not None:
        directory = existing_directory(arguments.data_dir)
        lists = _list_folder(directory)
        if lists is None:
            return own_splits("video", arguments, config)
        tables = _from_lists(directory, lists, arguments.ucf101_split)
    elif arguments.hub_id is not None:
        tables = _from_hub(arguments.hub_id)
    else:
        raise InputError("data_dir and hub_id are both missing, ucf101 needs one of them")
    checked = check_files(tables, "video", checker("video", arguments, config), arguments)
    return Splits.of(**checked.tables, left_out=checked.left_out, remarks=checked.remarks)


def _list_folder(directory: Path) -> Path | None:
    folders = [directory, *sorted(path for path in directory.iterdir() if path.is_dir())]
    return next((folder for folder in folders if (folder / CLASS_LIST).is_file()), None)


def _from_lists(directory: Path, lists: Path, split: int) -> dict[str, datasets.Dataset]:
    names = _read_classes(lists)
    listed = {name: _read_list(lists, f"{name}list{split:02}.txt", names) for name in ("train", "test")}
    # File names are unique. Of several copies of a file, the first one is taken.
    found = [path for depth in ("*", "*/*", "*/*/*") for path in sorted(directory.glob(f"{depth}.avi"))]
    paths = {path.name: str(path) for path in reversed(found)}
    missing = [file for files in listed.values() for file in files if Path(file).name not in paths]
    if missing:
        raise InputError(
            f"data_dir {directory} lacks {len(missing)} of the files that split {split} in {lists} lists: "
            f"{first_names(missing)}"
        )
    return {
        name: table_of_paths(
            "video",
            [paths[Path(file).name] for file in files],
            [names.index(Path(file).parent.name) for file in files],
            names,
        )
        for name, files in listed.items()
    }


def _read_classes(lists: Path) -> list[str]:
    """The names of the classes, in the order of their numbers."""
    path = lists / CLASS_LIST
    rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
    numbers = [int(row[0]) if len(row) == 2 and row[0].isdecimal() else 0 for row in rows]
    if sorted(numbers) != list(range(1, len(rows) + 1)) or not rows:
        raise InputError(f"{path} must have a line 'number name' for each class, numbered from 1")
    return [name for _, (_, name) in sorted(zip(numbers, rows, strict=True))]


def _read_list(lists: Path, file_name: str, names: list[str]) -> list[str]:
    """The listed files as `class/file`. Training lists also have class numbers, which are redundant."""
    path = lists / file_name
    if not path.is_file():
        raise InputError(f"{lists} lacks {file_name}")
    files = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    if not files:
        raise InputError(f"{path} lists no files")
    for file in files:
        if Path(file).parent.name not in names:
            raise InputError(f"{path} lists {file}, which is in none of the classes of {CLASS_LIST}")
    return files


def _from_hub(hub_id: str) -> dict[str, datasets.Dataset]:
    splits = from_hub(hub_id)
    tables = {"train": require_split(splits, "train", hub_id)}
    evaluation = next((name for name in EVALUATION_SPLITS if name in splits), None)
    if evaluation is not None:
        tables["test"] = splits[evaluation]
    for name, table in tables.items():
        require_columns(table, ["video", "label"], hub_id)
        if not isinstance(table.features["label"], datasets.ClassLabel):
            raise InputError(f"{hub_id} has labels of type {table.features['label']}, allowed is ClassLabel")
        tables[name] = table.select_columns(["video", "label"]).cast_column("video", encoded_feature("video"))
    return tables
