"""Your own images, videos and volumes: in folders, in files of paths and labels, or in a data set of the Hub."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ...configuration import DataArguments
from ...errors import InputError
from ...modeling.configuration_liere_vit import LiereViTConfig
from ..decoding.checks import Check, check_by
from ..decoding.images import check_image
from .files import check_files, existing_directory
from .folders import tables_of_folders
from .groups import GROUP, require_separate_groups
from .hub import tables_of_hub
from .label_files import read_label_file
from .splits import Splits
from .tables import FoundTables, tables_of_listed

# Frames of a clip where no model says it, as in the recipe ucf101.
DEFAULT_FRAMES = 8


def load_imagefolder(arguments: DataArguments, config: LiereViTConfig | None) -> Splits:
    """Images, each of which is decoded once before training: see `own_splits`."""
    return own_splits("image", arguments, config)


def load_videofolder(arguments: DataArguments, config: LiereViTConfig | None) -> Splits:
    """Videos, each of which is opened once before training: see `own_splits`."""
    return own_splits("video", arguments, config)


def load_volumes(arguments: DataArguments, config: LiereViTConfig | None) -> Splits:
    """Volumes, each of which is read once before training: see `own_splits`."""
    return own_splits("volume", arguments, config)


def own_splits(column: str, arguments: DataArguments, config: LiereViTConfig | None) -> Splits:
    """The examples of the label files, else of `data_dir`, else of `hub_id`, without those that are of no use.

    Args:
        column: the medium.
        config: of the model, whose inputs the files must suit.

    Raises:
        InputError: none of these, something that is not understood, or unusable files without `skip_corrupt_files`.
    """
    # First, as it imports what decodes the medium, which may not be installed.
    check = checker(column, arguments, config)
    found = _find(column, arguments)
    checked = check_files(found.tables, column, check, arguments)
    require_separate_groups(
        {split: table[GROUP][:] for split, table in checked.tables.items() if GROUP in table.column_names}
    )
    return Splits.of(
        **checked.tables, left_out=[*found.left_out, *checked.left_out], remarks=checked.remarks, is_own=True
    )


def checker(column: str, arguments: DataArguments, config: LiereViTConfig | None) -> Callable[[dict[str, Any]], Check]:
    """Finds out whether a file is a usable input of a model, for `check_files`."""
    window = tuple(arguments.intensity_window) if arguments.intensity_window else None
    if column == "image":
        return partial(check_image, window=window)
    if column == "video":
        # Only videos need PyAV.
        from ..decoding.videos import check_video

        size = arguments.input_size or (config.spatial_image_size if config else (DEFAULT_FRAMES,))
        return partial(check_video, size=size, frame_stride=arguments.frame_stride)
    from ..decoding.volumes import read_extent, read_volume

    def read(volume: dict[str, Any]) -> None:
        read_volume(volume, config.num_channels if config else 1)
        if arguments.volume_spacing:
            read_extent(volume)

    return partial(check_by, read)


def _find(column: str, arguments: DataArguments) -> FoundTables:
    if arguments.group_column and arguments.group_pattern:
        raise InputError("group_column and group_pattern are given, allowed is one of them")
    listed = {
        split: Path(path)
        for split in ("train", "validation", "test")
        if (path := getattr(arguments, f"{split}_file")) is not None
    }
    if listed:
        directory = None if arguments.data_dir is None else existing_directory(arguments.data_dir)
        return tables_of_listed(
            {
                split: read_label_file(path, directory or path.parent, column, arguments)
                for split, path in listed.items()
            },
            column,
            arguments,
        )
    if arguments.data_dir is not None:
        return tables_of_folders(existing_directory(arguments.data_dir), column, arguments)
    if arguments.hub_id is not None:
        return tables_of_hub(arguments.hub_id, column, arguments)
    raise InputError(f"data_dir, train_file and hub_id are not given, {arguments.dataset} needs one of them")
