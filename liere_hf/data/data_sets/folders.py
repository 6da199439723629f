"""Directories of files: with `datasets`' metadata files, or in class folders."""

from collections.abc import Mapping
from pathlib import Path

from ...configuration import DataArguments
from ...configuration.metric_names import SINGLE_LABEL
from ...errors import InputError, first_names
from ..decoding.images import image_suffixes
from .class_folders import find_examples, find_files, find_splits
from .files import NotedFile
from .groups import GROUP, groups_by_pattern
from .label_files import DEFAULT_LABEL, ListedExamples, read_columns, read_label_file
from .tables import FoundTables, table_of_paths, tables_of_listed

VIDEO_SUFFIXES = (
    ".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf",
    ".ogv", ".ts", ".vob", ".webm", ".wmv",
)  # fmt: skip
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".npy", ".npy.gz")
# Of `datasets`, beside the files that they list.
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def tables_of_folders(directory: Path, column: str, arguments: DataArguments) -> FoundTables:
    """The examples that metadata files in a directory or in its split folders list, else those in class folders.

    Raises:
        InputError: a layout that is not understood, see `find_examples`, `find_splits` and `read_label_file`.
    """
    folders, beside = find_splits(directory, column, suffixes(column))
    metadata = {folder: path for folder in {directory, *folders.values()} if (path := _metadata(folder, arguments))}
    if metadata:
        listed = _listed(directory, folders, metadata, column, arguments)
        found = tables_of_listed(listed, column, arguments)
        others = [noted for noted in beside if Path(noted.file) not in metadata.values()]
        return found._replace(left_out=[*others, *found.left_out, *_unlisted(folders, metadata, listed, column)])
    if arguments.problem_type != SINGLE_LABEL or arguments.group_column:
        name = "group_column" if arguments.group_column else "problem_type"
        raise InputError(
            f"{name} is {getattr(arguments, name)!r}, which needs a table of labels: {directory} has no "
            f"{' or '.join(METADATA_FILES)} with a column {_label_column(arguments)}, and train_file is not given"
        )
    found = tables_of_class_folders(folders, column, arguments.group_pattern, directory)
    return found._replace(left_out=[*beside, *found.left_out])


def tables_of_class_folders(
    folders: Mapping[str, Path], column: str, group_pattern: str | None = None, directory: Path | None = None
) -> FoundTables:
    """The files in the class folders of each split; classes are in the order of their names.

    Args:
        group_pattern: finds the groups in the files' paths from `directory`.

    Raises:
        InputError: see `find_examples`.
    """
    found = find_examples(folders, column, suffixes(column))
    names = sorted({name for rows in found.splits.values() for _, name in rows})
    numbers = {name: number for number, name in enumerate(names)}
    tables = {}
    for split, rows in found.splits.items():
        paths = [path for path, _ in rows]
        tables[split] = table_of_paths(column, paths, [numbers[name] for _, name in rows], names)
        if group_pattern:
            relative = [Path(path).relative_to(directory).as_posix() for path in paths]
            tables[split] = tables[split].add_column(GROUP, groups_by_pattern(relative, group_pattern))
    return FoundTables(tables, found.left_out)


def suffixes(column: str) -> tuple[str, ...]:
    """The endings of a medium's files, in lower case."""
    return {"video": VIDEO_SUFFIXES, "volume": VOLUME_SUFFIXES}.get(column) or image_suffixes()


def _label_column(arguments: DataArguments) -> str:
    return (arguments.label_column_name or [DEFAULT_LABEL])[0]


def _metadata(folder: Path, arguments: DataArguments) -> Path | None:
    """The metadata file of a folder, if it has one with labels."""
    paths = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    if len(paths) > 1:
        raise InputError(f"{folder} has {' and '.join(path.name for path in paths)}, allowed is one of them")
    return next((path for path in paths if _label_column(arguments) in read_columns(path)), None)


def _listed(
    directory: Path, folders: Mapping[str, Path], metadata: Mapping[Path, Path], column: str, arguments: DataArguments
) -> dict[str, ListedExamples]:
    """The examples of each split from the metadata of its folder, or from those of the directory above all of them."""
    without = [folder for folder in folders.values() if folder not in metadata]
    if not without:
        return {
            split: read_label_file(metadata[folder], folder, column, arguments) for split, folder in folders.items()
        }
    if directory not in metadata:
        raise InputError(f"{without[0]} has no {' or '.join(METADATA_FILES)}, unlike {next(iter(metadata))}")
    listed = read_label_file(metadata[directory], directory, column, arguments)
    rows: dict[str, list[int]] = {split: [] for split in folders}
    for row, file in enumerate(listed.files):
        split = next((name for name, folder in folders.items() if Path(file["path"]).is_relative_to(folder)), None)
        if split is None:
            raise InputError(f"{metadata[directory]} lists {file['path']}, which is in none of the split folders")
        rows[split].append(row)
    empty = [str(folders[split]) for split, chosen in rows.items() if not chosen]
    if empty:
        raise InputError(f"{metadata[directory]} lists no {column}s in {first_names(empty)}")
    return {split: listed.select(chosen) for split, chosen in rows.items()}


def _unlisted(
    folders: Mapping[str, Path], metadata: Mapping[Path, Path], listed: Mapping[str, ListedExamples], column: str
) -> list[NotedFile]:
    """What is in the folders of splits but not in the metadata."""
    known = {file["path"] for examples in listed.values() for file in examples.files}
    known |= {noted.file for examples in listed.values() for noted in examples.left_out}
    known |= {str(path) for path in metadata.values()}
    left_out = []
    for folder in folders.values():
        paths, others = find_files(folder, column, suffixes(column))
        left_out += [NotedFile(path, "not listed in the metadata") for path in paths if path not in known]
        left_out += [noted for noted in others if noted.file not in known]
    return left_out
