"""RandAugment (arXiv 1909.13719) for whole batches."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from ..draws import Draws

# Pixels of the largest images for which operations on whole batches are faster than Pillow's on one image at a time.
LARGEST_BATCHED = 64 * 64


class BatchRandAugment(v2.RandAugment):
    """torchvision's RandAugment, for a batch whose examples each have their own operations.

    Small images are computed together, by torchvision's operations on tensors. Large ones are computed one by one, by
    Pillow's operations, which are several times faster there.

    Args:
        num_ops: number of operations applied one after another.
        magnitude: from 0 to 30.
        magnitude_std: deviation of the magnitude from operation to operation.
        probability: of each operation; otherwise the example stays as it is.
    """

    def __init__(self, num_ops: int, magnitude: float, magnitude_std: float = 0.0, probability: float = 1.0):
        super().__init__(num_ops)
        self.magnitude = magnitude
        self.magnitude_std = magnitude_std
        self.probability = probability
        self._names = list(self._AUGMENTATION_SPACE)
        self._identity = self._names.index("Identity")

    def forward(self, pixels: torch.Tensor, draws: Draws) -> torch.Tensor:
        steps = [self._choose(pixels.shape, *draws.next(4).T) for _ in range(self.num_ops)]
        if pixels.shape[-2] * pixels.shape[-1] > LARGEST_BATCHED:
            return self._one_by_one(pixels, steps)
        for operations, magnitudes in steps:
            pixels = self._together(pixels, operations, magnitudes)
        return pixels

    def _choose(
        self, shape: torch.Size, choice: np.ndarray, sign: np.ndarray, level: np.ndarray, done: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """For every example, an operation, as an index into the names, and its magnitude."""
        operations = np.where(done < self.probability, (choice * len(self._names)).astype(int), self._identity)
        magnitudes = np.zeros(len(operations))
        # Normal deviates from uniform numbers, which must not be 0 or 1.
        deviates = torch.special.ndtri(torch.from_numpy(np.clip(level, 1e-9, 1 - 1e-9))).numpy()
        levels = np.clip(self.magnitude + self.magnitude_std * deviates, 0, 30)
        for operation in np.unique(operations):
            table, signed = self._AUGMENTATION_SPACE[self._names[operation]]
            table = table(self.num_magnitude_bins, *shape[-2:])
            if table is None:
                continue
            rows = operations == operation
            magnitudes[rows] = np.interp(levels[rows], np.arange(len(table)), np.asarray(table, np.float64))
            if signed:
                magnitudes[rows] *= np.where(sign[rows] < 0.5, -1, 1)
        return operations, magnitudes

    def _together(self, pixels: torch.Tensor, operations: np.ndarray, magnitudes: np.ndarray) -> torch.Tensor:
        augmented = pixels.clone()
        groups, members = np.unique(np.stack([operations, magnitudes]), axis=1, return_inverse=True)
        for group, (operation, magnitude) in enumerate(groups.T):
            rows = torch.from_numpy(np.flatnonzero(members.reshape(-1) == group))
            augmented[rows] = self._operate(pixels[rows], int(operation), float(magnitude))
        return augmented

    def _one_by_one(self, pixels: torch.Tensor, steps: list[tuple[np.ndarray, np.ndarray]]) -> torch.Tensor:
        frames = pixels.movedim(-3, -1).reshape(-1, *pixels.shape[-2:], pixels.shape[-3]).contiguous().numpy()
        num_frames = len(frames) // len(pixels)
        augmented = np.empty_like(frames)
        for index, frame in enumerate(frames):
            image = Image.fromarray(frame)
            for operations, magnitudes in steps:
                example = index // num_frames
                image = self._operate(image, int(operations[example]), float(magnitudes[example]))
            augmented[index] = np.asarray(image)
        last = torch.from_numpy(augmented).reshape(pixels.movedim(-3, -1).shape)
        return last.movedim(-1, -3)

    def _operate(self, images: Any, operation: int, magnitude: float) -> Any:
        """Apply one operation to tensors (..., channels, height, width) or to an image of Pillow."""
        return self._apply_image_or_video_transform(
            images, self._names[operation], magnitude, self.interpolation, self._fill
        )
