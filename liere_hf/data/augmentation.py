"""Augmentation of whole batches: every example has its own random choices, like choices are computed together.

Pixels are uint8 of shape (batch, channels, height, width), or (batch, frames, channels, height, width), where all
frames of a clip get the same.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy.special import ndtri
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..configuration import DataArguments
from .draws import Draws

# Of torchvision.transforms.v2.RandomErasing.
ERASING_SCALE, ERASING_RATIO = (0.02, 0.33), (0.3, 3.3)
CROP_RATIO = (3 / 4, 4 / 3)
_TRIES = 10
# Pixels of the largest images whose operations are faster by the batch than one by one with Pillow.
LARGEST_BATCHED = 64 * 64


class Box(NamedTuple):
    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class BatchAugmentation:
    """Random crop, flip, RandAugment and erasing of a batch, then normalization, in this order.

    Args:
        image_mean, image_std: per channel, of pixels in [0, 1].
        random_crop_padding: pad with so many black pixels at each side and crop at random.
        horizontal_flip: flip half of the examples.
        rand_augment: None for none.
        random_erasing: share of the examples of which a random rectangle is set to the mean.
    """

    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    random_crop_padding: int = 0
    horizontal_flip: bool = False
    rand_augment: "BatchRandAugment | None" = None
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
            pixels = random_crop(pixels, self.random_crop_padding, draws.next(2))
        if self.horizontal_flip:
            flipped = torch.from_numpy(draws.next(1)[:, 0] < 0.5)
            pixels[flipped] = pixels[flipped].flip(-1)
        if self.rand_augment is not None:
            pixels = self.rand_augment(pixels, draws)
        normalized = normalize(pixels, self.image_mean, self.image_std)
        if self.random_erasing:
            erase(normalized, self.random_erasing, draws)
        return normalized


class BatchRandAugment(v2.RandAugment):
    """torchvision's RandAugment (arXiv 1909.13719), for a batch whose examples each have their own operations.

    Small images are computed together, by torchvision's operations on tensors; large ones each by those on Pillow's
    images, which are then several times faster.

    Args:
        num_ops: operations one after another.
        magnitude: from 0 to 30.
        magnitude_std: deviation of the magnitude from operation to operation.
        probability: with which an operation is done at all.
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
        """An operation, as its place in the list of names, and its magnitude for every example."""
        operations = np.where(done < self.probability, (choice * len(self._names)).astype(int), self._identity)
        magnitudes = np.zeros(len(operations))
        levels = np.clip(self.magnitude + self.magnitude_std * ndtri(np.clip(level, 1e-9, 1 - 1e-9)), 0, 30)
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
        """By torchvision, which takes tensors (..., channels, height, width) and images of Pillow."""
        return self._apply_image_or_video_transform(
            images, self._names[operation], magnitude, self.interpolation, self._fill
        )


class Mixing:
    """MixUp (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of a batch, one or the other where both are asked for.

    Args:
        mixup_alpha, cutmix_alpha: of the Beta distributions of the shares; 0 for none.
    """

    def __init__(self, mixup_alpha: float, cutmix_alpha: float, num_labels: int):
        self.transforms = []
        if mixup_alpha:
            self.transforms.append(v2.MixUp(alpha=mixup_alpha, num_classes=num_labels))
        if cutmix_alpha:
            self.transforms.append(v2.CutMix(alpha=cutmix_alpha, num_classes=num_labels))

    def __call__(
        self, pixel_values: torch.Tensor, labels: torch.Tensor, draw: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixed pixels, and the shares of the classes as labels, (batch, num_labels)."""
        transform = self.transforms[int(draw * len(self.transforms))]
        kind = tv_tensors.Video if pixel_values.dim() == 5 else tv_tensors.Image
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which also formats a stack trace each time for devices that are not there.
            torch.default_generator.manual_seed(int(draw * 2**53))
            mixed, shares = transform(kind(pixel_values), labels)
        return mixed.as_subclass(torch.Tensor), shares


def normalize(pixels: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """float32 (..., channels, height, width) of mean 0 and deviation 1 from uint8."""
    normalized = torch.empty(pixels.shape, dtype=torch.float32)
    # Channel by channel, as products with a number are several times faster than those with a broadcast tensor.
    for channel, (center, deviation) in enumerate(zip(mean, std, strict=True)):
        plane = normalized[..., channel, :, :].copy_(pixels[..., channel, :, :])
        plane.mul_(1 / (255 * deviation)).sub_(center / deviation)
    return normalized


def random_crop(pixels: torch.Tensor, padding: int, draws: np.ndarray) -> torch.Tensor:
    """Windows of the original size out of padded pixels; `draws` are two numbers in [0, 1) an example."""
    height, width = pixels.shape[-2:]
    padded = torch.nn.functional.pad(pixels, (padding,) * 4)
    offsets = (draws * (2 * padding + 1)).astype(int)
    return torch.stack(
        [image[..., y : y + height, x : x + width] for image, (y, x) in zip(padded, offsets.tolist(), strict=True)]
    )


def erase(pixels: torch.Tensor, probability: float, draws: Draws) -> None:
    """Set a random rectangle of some examples to zero, in place (Random Erasing, arXiv 1708.04896)."""
    chosen, numbers = draws.next(1)[:, 0] < probability, draws.next(4 * _TRIES)
    for index in np.flatnonzero(chosen):
        box = _random_box(*pixels.shape[-2:], numbers[index], ERASING_SCALE, ERASING_RATIO, strictly_smaller=True)
        if box is not None:
            pixels[index, ..., box.top : box.top + box.height, box.left : box.left + box.width] = 0


def random_resized_crop(height: int, width: int, numbers: np.ndarray, scale: tuple[float, float]) -> Box:
    """A box of random area and aspect ratio within an image, as torchvision's RandomResizedCrop draws it.

    Args:
        numbers: 40 in [0, 1).
        scale: range of the box's share of the area.
    """
    box = _random_box(height, width, numbers, scale, CROP_RATIO)
    if box is not None:
        return box
    ratio = float(np.clip(width / height, *CROP_RATIO))
    crop_height, crop_width = min(height, round(width / ratio)), min(width, round(height * ratio))
    return Box((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


RESIZED_CROP_NUMBERS = 4 * _TRIES


def _random_box(
    height: int,
    width: int,
    numbers: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    strictly_smaller: bool = False,
) -> Box | None:
    for area, aspect, y, x in np.reshape(numbers, (_TRIES, 4)):
        area = height * width * (scale[0] + area * (scale[1] - scale[0]))
        aspect = np.exp(np.log(ratio[0]) + aspect * np.log(ratio[1] / ratio[0]))
        box_height, box_width = round(np.sqrt(area / aspect)), round(np.sqrt(area * aspect))
        if 0 < box_height <= height - strictly_smaller and 0 < box_width <= width - strictly_smaller:
            return Box(int(y * (height - box_height + 1)), int(x * (width - box_width + 1)), box_height, box_width)
    return None
