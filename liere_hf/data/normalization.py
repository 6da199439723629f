"""uint8 pixels to normalized floats."""

import torch


def normalize(pixels: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """float32 (..., channels, height, width) from uint8: pixels / 255, minus the mean, divided by the deviation.

    Args:
        mean, std: per channel, of pixels in [0, 1].
    """
    normalized = torch.empty(pixels.shape, dtype=torch.float32)
    # Channel by channel, as products with a number are several times faster than with a broadcast tensor.
    for channel, (center, deviation) in enumerate(zip(mean, std, strict=True)):
        plane = normalized[..., channel, :, :].copy_(pixels[..., channel, :, :])
        plane.mul_(1 / (255 * deviation)).sub_(center / deviation)
    return normalized


def denormalize(pixels: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """The inverse of `normalize`, up to its factor: pixels from 0 to 1."""
    shape = (-1, 1, 1)
    return pixels * pixels.new_tensor(std).view(shape) + pixels.new_tensor(mean).view(shape)
