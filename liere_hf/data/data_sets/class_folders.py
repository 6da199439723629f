"""Class folders of any medium: which files are examples of which split and class, and what is left out and why."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ...errors import InputError, first_names
from .files import NotedFile

# The names of the folders of each split, in lower case.
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


class ClassFolders(NamedTuple):
    """Paths and classes of the examples of each split, and what else there is."""

    splits: dict[str, list[tuple[str, str]]]
    left_out: list[NotedFile]


def find_examples(folders: Mapping[str, Path], column: str, suffixes: Sequence[str]) -> ClassFolders:
    """The examples in the folders of splits; an example's class is the first folder below that of its split.

    Links are followed. Everything else in these folders is left out.

    Args:
        column: the medium, for messages.
        suffixes: of the files that are examples, in lower case.

    Raises:
        InputError: a folder without examples in class folders, or with split folders below class folders.
    """
    finder = _Finder(column, tuple(suffixes))
    return ClassFolders({split: finder.split(folder) for split, folder in folders.items()}, finder.left_out)


def find_files(folder: Path, column: str, suffixes: Sequence[str]) -> tuple[list[str], list[NotedFile]]:
    """The paths of all examples in a folder and below it, and what is left out; arguments as in `find_examples`."""
    finder = _Finder(column, tuple(suffixes))
    return list(finder.files(folder)), finder.left_out


def find_splits(directory: Path, column: str, suffixes: Sequence[str]) -> tuple[dict[str, Path], list[NotedFile]]:
    """The folders of splits in a directory, and what is beside them; without such folders, `directory` is `train`.

    Split folders are named as in `SPLIT_FOLDERS`, in upper or lower case.

    Args:
        column, suffixes: as in `find_examples`.

    Raises:
        InputError: two folders for one split, or class folders beside splits other than `train`.
    """
    finder = _Finder(column, tuple(suffixes))
    return _split_folders(directory, finder), finder.left_out


def folder_split(name: str) -> str | None:
    """The split that a folder's name means, if any."""
    return next((split for split, names in SPLIT_FOLDERS.items() if name.lower() in names), None)


def _split_folders(directory: Path, finder: "_Finder") -> dict[str, Path]:
    entries = finder.entries(directory)
    candidates: dict[str, list[str]] = {}
    for entry in entries.folders:
        split = folder_split(entry.name)
        if split:
            candidates.setdefault(split, []).append(entry.name)
    others = [entry for entry in entries.folders if folder_split(entry.name) is None]
    if not candidates or (others and _is_class(directory, candidates, finder)):
        return {"train": directory}
    for split, names in candidates.items():
        if len(names) > 1:
            raise InputError(
                f"data_dir {directory} has the folders {' and '.join(names)}, allowed is one for the split {split}"
            )
    if "train" not in candidates and any(finder.holds_examples(entry) for entry in others):
        splits = " and ".join(name for names in candidates.values() for name in names)
        raise InputError(
            f"data_dir {directory} has {splits} beside {first_names([entry.name for entry in others])} but no train: "
            f"put the classes to train on in {directory / 'train'}"
        )
    for entry in [*others, *entries.files]:
        finder.leave_out(entry, "beside the split folders")
    finder.left_out += entries.left_out
    return {split: directory / candidates[split][0] for split in SPLIT_FOLDERS if split in candidates}


def _is_class(directory: Path, candidates: dict[str, list[str]], finder: "_Finder") -> bool:
    """Whether a folder train is a class, the vehicle beside others: it holds examples but no folders."""
    if [len(names) for names in candidates.values()] != [1] or "train" not in candidates:
        return False
    entries = finder.entries(directory / candidates["train"][0])
    return not entries.folders and any(map(finder.is_example, entries.files))


def _is_above(link: os.DirEntry | Path) -> bool:
    """Whether a link goes to a folder that it lies in, at any depth."""
    path = Path(link)
    return path.resolve() in (path.parent.resolve(), *path.parent.resolve().parents)


def _is_text(path: os.PathLike | str) -> bool:
    """Whether a path is valid UTF-8, as tables of paths need; those of old archives may not be."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _escaped(path: os.PathLike | str) -> str:
    """A path that is not UTF-8, as text that can be printed."""
    return os.fsencode(path).decode(errors="backslashreplace")


class _Entries(NamedTuple):
    """What a folder holds, in the order of names."""

    folders: list[os.DirEntry]
    files: list[os.DirEntry]
    left_out: list[NotedFile]


class _Finder:
    """Walks through folders, and notes what is left out.

    Args:
        column, suffixes: as in `find_examples`.
    """

    def __init__(self, column: str, suffixes: tuple[str, ...]):
        self.column = column
        self.suffixes = suffixes
        self.left_out: list[NotedFile] = []

    def split(self, directory: Path) -> list[tuple[str, str]]:
        """Paths and classes of the examples in the class folders of a split.

        Raises:
            InputError: there are none, or class folders hold split folders.
        """
        entries = self.entries(directory)
        rows, empty = [], []
        for folder in entries.folders:
            self._require_no_splits(folder)
            paths = list(self.files(folder))
            rows += [(path, folder.name) for path in paths]
            if not paths:
                empty.append(folder)
        num_stray = sum(map(self.is_example, entries.files))
        if not rows and num_stray:
            raise InputError(
                f"{directory} holds {num_stray} {self.column}s that are not in class folders: put each in a folder "
                "named by its class"
            )
        if not rows:
            raise InputError(f"{directory} holds no {self.column}s in class folders{self._other_types()}")
        for folder in empty:
            self.leave_out(folder, f"a class folder without {self.column}s")
        for entry in entries.files:
            self.leave_out(entry, "beside the class folders" if self.is_example(entry) else self._unknown)
        self.left_out += entries.left_out
        return rows

    def entries(self, folder: os.PathLike | str) -> _Entries:
        """
        Raises:
            InputError: the folder cannot be read, or its name is not text.
        """
        if not _is_text(folder):
            raise InputError(f"folder {_escaped(folder)} has a name that is not UTF-8: rename it")
        folders, files, left_out = [], [], []
        try:
            with os.scandir(folder) as scanned:
                for entry in sorted(scanned, key=lambda entry: entry.name):
                    if entry.name.startswith("."):
                        left_out.append(NotedFile(entry.path, "hidden"))
                    elif entry.is_dir():
                        folders.append(entry)
                    elif entry.is_file() and not _is_text(entry):
                        left_out.append(NotedFile(_escaped(entry), "a name that is not UTF-8"))
                    elif entry.is_file():
                        files.append(entry)
                    else:
                        reason = "a broken link" if entry.is_symlink() else "neither a file nor a folder"
                        left_out.append(NotedFile(entry.path, reason))
        except OSError as error:
            raise InputError(f"folder {os.fspath(folder)} cannot be read: {error.strerror}") from error
        return _Entries(folders, files, left_out)

    def leave_out(self, entry: os.DirEntry | Path, reason: str) -> None:
        self.left_out.append(NotedFile(os.fspath(entry), reason))

    def is_example(self, entry: os.DirEntry) -> bool:
        return entry.name.lower().endswith(self.suffixes)

    def holds_examples(self, folder: os.DirEntry) -> bool:
        """Whether there are examples in a folder or below it."""
        return next(_Finder(self.column, self.suffixes).files(folder), None) is not None

    @property
    def _unknown(self) -> str:
        return f"no type of {self.column} that can be read"

    def files(self, folder: os.DirEntry | Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
        """Paths of the examples in a folder and below it."""
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above or (folder.is_symlink() and _is_above(folder)):
            self.leave_out(folder, "a link to a folder above it")
            return
        entries = self.entries(folder)
        self.left_out += entries.left_out
        for entry in entries.files:
            if self.is_example(entry):
                yield entry.path
            else:
                self.leave_out(entry, self._unknown)
        for inner in entries.folders:
            yield from self.files(inner, (*above, identity))

    def _require_no_splits(self, folder: os.DirEntry) -> None:
        names = {folder_split(entry.name): entry.name for entry in self.entries(folder).folders}
        names.pop(None, None)
        if len(names) > 1:
            inner = [*names.values()]
            raise InputError(
                f"{folder.path} holds the folders {' and '.join(inner)}: splits come before classes, as in "
                f"{inner[0]}/{folder.name}"
            )

    def _other_types(self) -> str:
        names = (Path(each.file) for each in self.left_out if each.reason == self._unknown)
        suffixes = sorted({path.suffix or path.name for path in names})
        return f", only files of other types: {first_names(suffixes)}" if suffixes else ""
