"""The media of inputs: the column that holds them, and what a model for them looks like."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import datasets

from ..errors import InputError
from ..modeling.configuration_liere_vit import LiereViTConfig


class Medium(NamedTuple):
    """The type of the column, and the spatial axes and channels of a model that takes such inputs; None for any."""

    feature: Any
    num_axes: int
    num_channels: int | None

    def suits(self, config: LiereViTConfig) -> bool:
        """Whether a model takes such inputs."""
        return self.num_axes == config.num_axes and self.num_channels in (None, config.num_channels)


# By the name of the column.
MEDIA = {
    "image": Medium(datasets.Image, num_axes=2, num_channels=3),
    "video": Medium(datasets.Video, num_axes=3, num_channels=3),
    "volume": Medium(datasets.Nifti, num_axes=3, num_channels=None),
}


def encoded_feature(column: str) -> Any:
    """The type of a column of encoded files, with rows `{"bytes": ..., "path": ...}`: `datasets` decodes nothing."""
    return MEDIA[column].feature(decode=False)


def require_taken(columns: Sequence[str], config: LiereViTConfig) -> None:
    """
    Raises:
        InputError: a model takes none of these media.
    """
    if not any(MEDIA[column].suits(config) for column in columns):
        raise InputError(
            f"image_size is {config.image_size!r} and num_channels {config.num_channels}, "
            f"{', '.join(map(_needs, columns))}"
        )


def _needs(column: str) -> str:
    medium = MEDIA[column]
    channels = "" if medium.num_channels is None else f" and {medium.num_channels} channels"
    return f"{column}s need {medium.num_axes} axes{channels}"
