"""UCF101 and other videos in class folders, from local files or from a copy on the Hub."""

from functools import partial
from pathlib import Path
from typing import Any

import datasets

from ..configuration import DataArguments
from ..errors import InputError
from .sources import (
    EVALUATION_FOLDERS,
    Data,
    class_folders,
    existing_directory,
    from_hub,
    from_paths,
    hold_out,
    require_split,
    split_folders,
    undecoded,
    without_corrupt_files,
)
from .videos import count_frames, minimum_frames

VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".webm", ".mov")
CLASS_LIST = "classInd.txt"
DEFAULT_FRAMES = 8


def load_ucf101(arguments: DataArguments, seed: int) -> Data:
    """UCF101 by one of its official splits, or any videos in class folders, with a column `video`.

    `data_dir` holds the official lists, themselves or in a folder, and the .avi files in at most two levels of
    folders; or class folders; or `train` and `test`, `validation` or `val` folders of class folders. Without
    `data_dir` the copy on the Hub that `hub_id` names is loaded. Every video is opened once beforehand, and must have
    the frames that a clip needs.

    Raises:
        InputError: neither `data_dir` nor `hub_id`, another layout, listed files that are missing, or videos that are
            corrupt or too short and may not be left out.
    """
    if arguments.data_dir is not None:
        directory = existing_directory(arguments.data_dir)
        lists = _list_folder(directory)
        splits = _from_folders(directory) if lists is None else _from_lists(directory, lists, arguments.ucf101_split)
    elif arguments.hub_id is not None:
        splits = _from_hub(arguments.hub_id)
    else:
        raise InputError("data_dir and hub_id are both missing, ucf101 needs one of them")
    frames = arguments.input_size[0] if arguments.input_size else DEFAULT_FRAMES
    is_usable = partial(_has_frames, minimum_frames((frames,), arguments.frame_stride))
    splits, skipped = without_corrupt_files(splits, "video", is_usable, arguments)
    if "test" in splits:
        return Data.of(splits["train"], splits["test"], skipped)
    return Data.of(*hold_out(splits["train"], arguments.eval_fraction, seed), skipped)


def _has_frames(least: int, video: dict[str, Any]) -> bool:
    return count_frames(video) >= least


def _list_folder(directory: Path) -> Path | None:
    folders = [directory, *sorted(path for path in directory.iterdir() if path.is_dir())]
    return next((folder for folder in folders if (folder / CLASS_LIST).is_file()), None)


def _from_lists(directory: Path, lists: Path, split: int) -> dict[str, datasets.Dataset]:
    names = _read_classes(lists)
    listed = {name: _read_list(lists, f"{name}list{split:02}.txt", names) for name in ("train", "test")}
    # Names of files are unique; should there be several copies, the first one is taken.
    found = [path for depth in ("*", "*/*", "*/*/*") for path in sorted(directory.glob(f"{depth}.avi"))]
    paths = {path.name: str(path) for path in reversed(found)}
    missing = [file for files in listed.values() for file in files if Path(file).name not in paths]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise InputError(
            f"data_dir {directory} lacks {len(missing)} of the files that split {split} in {lists} lists: {shown}"
        )
    return {
        name: from_paths(
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
    """The listed files as `class/file`; the numbers of the classes, which the training lists have, repeat that."""
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


def _from_folders(directory: Path) -> dict[str, datasets.Dataset]:
    splits, names = {}, None
    for name, folder in split_folders(directory).items():
        splits[name] = class_folders(folder, "video", VIDEO_SUFFIXES, names)
        names = splits[name].features["label"].names
    return splits


def _from_hub(hub_id: str) -> dict[str, datasets.Dataset]:
    tables = from_hub(hub_id)
    splits = {"train": require_split(tables, "train", hub_id)}
    evaluation = [name for name in EVALUATION_FOLDERS if name in tables]
    if evaluation:
        splits["test"] = tables[evaluation[0]]
    for name, table in splits.items():
        for column in ("video", "label"):
            if column not in table.column_names:
                raise InputError(f"{hub_id} has no column {column!r}, only {', '.join(table.column_names)}")
        if not isinstance(table.features["label"], datasets.ClassLabel):
            raise InputError(f"{hub_id} has labels of type {table.features['label']}, allowed is ClassLabel")
        splits[name] = table.select_columns(["video", "label"]).cast_column("video", undecoded("video"))
    return splits
