"""The media of inputs: the column that holds them, and what a model for them looks like."""

from typing import Any, NamedTuple

import datasets


class Medium(NamedTuple):
    """The type of the column, and the spatial axes and channels of a model that takes such inputs; None for any."""

    feature: Any
    num_axes: int
    num_channels: int | None


# By the name of the column.
MEDIA = {
    "image": Medium(datasets.Image, num_axes=2, num_channels=3),
    "video": Medium(datasets.Video, num_axes=3, num_channels=3),
    "volume": Medium(datasets.Nifti, num_axes=3, num_channels=None),
}


def encoded_feature(column: str) -> Any:
    """The type of a column of encoded files, with rows `{"bytes": ..., "path": ...}`: `datasets` decodes nothing."""
    return MEDIA[column].feature(decode=False)
