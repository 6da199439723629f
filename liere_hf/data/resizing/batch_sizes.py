"""Training batches of several sizes."""

from collections.abc import Sequence
from typing import Any

import torch

from ..draws import Draws


class OneOfSeveral:
    """Decodes and resizes each batch in one of several ways, drawn at random with the numbers of its first example.

    Args:
        ways: `TrainingPixels`, one for each size.
    """

    def __init__(self, ways: Sequence[Any]):
        self.ways = list(ways)

    def __call__(self, inputs: Sequence[Any], draws: Draws) -> torch.Tensor:
        """uint8 of shape (batch, [frames,] 3, height, width), of the drawn size."""
        return self.ways[int(draws.next(1)[0, 0] * len(self.ways))](inputs, draws)
