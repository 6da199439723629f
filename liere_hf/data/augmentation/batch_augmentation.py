"""The augmentation of a batch: random crop, flip, RandAugment, normalization, erasing."""

from dataclasses import dataclass

import numpy as np
import torch

from ...configuration import DataArguments
from ..draws import Draws
from ..normalization import normalize
from .erasing import erase
from .rand_augment import BatchRandAugment


@dataclass(frozen=True)
class BatchAugmentation:
    """Random crop, flip, RandAugment, normalization and erasing of a batch, in this order.

    Args:
        image_mean, image_std: per channel, of pixels in [0, 1].
        random_crop_padding: black pixels that are padded at each side before a random crop, below 1 as a share of the
            shorter side; 0 for no crop.
        horizontal_flip: flip half of the examples at random.
        rand_augment: None for none.
        random_erasing: share of the examples in which a random rectangle is set to the mean.
    """

    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    random_crop_padding: float = 0
    horizontal_flip: bool = False
    rand_augment: BatchRandAugment | None = None
    random_erasing: float = 0.0

    @classmethod
    def from_arguments(
        cls, arguments: DataArguments, image_mean: tuple[float, ...], image_std: tuple[float, ...]
    ) -> "BatchAugmentation":
        rand_augment = None
        if arguments.rand_augment_num_ops:
            rand_augment = BatchRandAugment(
                arguments.rand_augment_num_ops,
                arguments.rand_augment_magnitude,
                arguments.rand_augment_magnitude_std,
                arguments.rand_augment_probability,
            )
        return cls(
            tuple(image_mean),
            tuple(image_std),
            arguments.random_crop_padding,
            arguments.horizontal_flip,
            rand_augment,
            arguments.random_erasing,
        )

    def __call__(self, pixels: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Normalized float32 pixels of the same shape."""
        if self.random_crop_padding:
            pixels = random_crop(pixels, self._padding(pixels), draws.next(2))
        if self.horizontal_flip:
            flipped = torch.from_numpy(draws.next(1)[:, 0] < 0.5)
            pixels[flipped] = pixels[flipped].flip(-1)
        if self.rand_augment is not None:
            pixels = self.rand_augment(pixels, draws)
        normalized = normalize(pixels, self.image_mean, self.image_std)
        if self.random_erasing:
            erase(normalized, self.random_erasing, draws)
        return normalized

    def _padding(self, pixels: torch.Tensor) -> int:
        is_share = self.random_crop_padding < 1
        return round(self.random_crop_padding * min(pixels.shape[-2:])) if is_share else int(self.random_crop_padding)


def random_crop(pixels: torch.Tensor, padding: int, numbers: np.ndarray) -> torch.Tensor:
    """Windows of the original size in padded pixels.

    Args:
        numbers: (examples, 2) in [0, 1).
    """
    height, width = pixels.shape[-2:]
    padded = torch.nn.functional.pad(pixels, (padding,) * 4)
    offsets = (numbers * (2 * padding + 1)).astype(int)
    return torch.stack(
        [image[..., y : y + height, x : x + width] for image, (y, x) in zip(padded, offsets.tolist(), strict=True)]
    )
