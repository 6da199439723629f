"""Random Erasing (arXiv 1708.04896)."""

import numpy as np
import torch

from ..draws import Draws
from ..resizing.random_boxes import NUMBERS_PER_BOX, random_box

# Ranges of the share of the area and of width / height, of torchvision.transforms.v2.RandomErasing.
ERASING_SCALE, ERASING_RATIO = (0.02, 0.33), (0.3, 3.3)


def erase(pixels: torch.Tensor, probability: float, draws: Draws) -> None:
    """Set a random rectangle to zero, in place, in each example with some probability."""
    chosen, numbers = draws.next(1)[:, 0] < probability, draws.next(NUMBERS_PER_BOX)
    for index in np.flatnonzero(chosen):
        box = random_box(*pixels.shape[-2:], numbers[index], ERASING_SCALE, ERASING_RATIO, strictly_smaller=True)
        if box is not None:
            pixels[index, ..., box.top : box.top + box.height, box.left : box.left + box.width] = 0
