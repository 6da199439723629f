"""Random boxes within an image: crops in training, and the rectangles that are erased."""

from typing import NamedTuple

import numpy as np

# As torchvision's RandomResizedCrop and RandomErasing, which draw up to ten boxes until one lies within the image.
_NUM_TRIES = 10
# An area, an aspect ratio and two offsets for each try.
NUMBERS_PER_BOX = 4 * _NUM_TRIES
# Range of width / height, of torchvision's RandomResizedCrop.
CROP_RATIO = (3 / 4, 4 / 3)


class Box(NamedTuple):
    """A rectangle, in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_resized_crop(height: int, width: int, numbers: np.ndarray, scale: tuple[float, float]) -> Box:
    """A box of random area and aspect ratio within an image, as torchvision's RandomResizedCrop draws it.

    Args:
        numbers: `NUMBERS_PER_BOX` in [0, 1).
        scale: range of the box's share of the area.
    """
    box = random_box(height, width, numbers, scale, CROP_RATIO)
    if box is not None:
        return box
    ratio = float(np.clip(width / height, *CROP_RATIO))
    crop_height, crop_width = min(height, round(width / ratio)), min(width, round(height * ratio))
    return Box((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def random_box(
    height: int,
    width: int,
    numbers: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    strictly_smaller: bool = False,
) -> Box | None:
    """The first box of all tries that lies within an image; None if none does.

    Args:
        numbers: `NUMBERS_PER_BOX` in [0, 1).
        scale: range of the box's share of the area.
        ratio: range of width / height.
        strictly_smaller: leave out boxes as high or as wide as the image.
    """
    for area, aspect, y, x in np.reshape(numbers, (_NUM_TRIES, 4)):
        area = height * width * (scale[0] + area * (scale[1] - scale[0]))
        aspect = np.exp(np.log(ratio[0]) + aspect * np.log(ratio[1] / ratio[0]))
        box_height, box_width = round(np.sqrt(area / aspect)), round(np.sqrt(area * aspect))
        if 0 < box_height <= height - strictly_smaller and 0 < box_width <= width - strictly_smaller:
            return Box(int(y * (height - box_height + 1)), int(x * (width - box_width + 1)), box_height, box_width)
    return None
