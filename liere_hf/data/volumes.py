"""Volumes of one channel, CT or MR say: from NIfTI and .npy files to pixels of the size that a model trains at.

A model takes them as it takes clips, (batch, frames, channels, height, width): slices are its frames.
"""

import gzip
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from torch.nn import functional

from ..configuration import DataArguments
from ..errors import InputError
from .augmentation import normalize
from .draws import Draws
from .sources import Data, class_folders, existing_directory, hold_out, split_folders, without_corrupt_files

SUFFIXES = (".nii", ".nii.gz", ".npy")


def load_volumes(arguments: DataArguments, seed: int) -> Data:
    """Class folders of volumes in `data_dir`, or in its `train` and `test`, `validation` or `val` folders.

    Every volume is read once beforehand, so that a corrupt one ends the run at its start, or is left out and counted.

    Raises:
        InputError: no `data_dir`, no volumes in it, corrupt ones that may not be left out, or classes that are too
            small to hold some examples out.
    """
    if arguments.data_dir is None:
        raise InputError("data_dir is not given, volumes needs a directory of class folders")
    folders = split_folders(existing_directory(arguments.data_dir))
    splits = {"train": class_folders(folders["train"], "volume", SUFFIXES)}
    if "test" in folders:
        names = splits["train"].features["label"].names
        splits["test"] = class_folders(folders["test"], "volume", SUFFIXES, names)
    splits, skipped = without_corrupt_files(splits, "volume", is_readable, arguments)
    if "test" in splits:
        return Data.of(splits["train"], splits["test"], skipped)
    return Data.of(*hold_out(splits["train"], arguments.eval_fraction, seed), skipped)


def is_readable(volume: dict[str, Any]) -> bool:
    """Whether `read_volume` can read a volume."""
    try:
        read_volume(volume)
    except InputError:
        return False
    return True


def read_volume(volume: dict[str, Any]) -> np.ndarray:
    """NIfTI or .npy, either of them compressed by gzip or not, to float32 (depth, height, width).

    NIfTI comes with its scaling applied and its axes turned to the nearest of the patient's: along depth, height and
    width the voxels go from inferior to superior, from posterior to anterior and from left to right. An .npy is
    (depth, height, width) already. Voxels that are not finite become the smallest finite value.

    Args:
        volume: `bytes`, or None and the `path` of a file; the content, not the name, decides what it is.

    Raises:
        InputError: a volume that cannot be read, without three axes, with values that are not real numbers, or
            without finite ones.
    """
    try:
        content = volume["bytes"] if volume["bytes"] is not None else Path(volume["path"]).read_bytes()
        # Values too large for float32 become infinite, which is dealt with below.
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(_decode(content), np.float32)
        finite = np.isfinite(array)
        if not finite.any():
            raise ValueError("no voxel is finite")
    except Exception as error:  # The errors of nibabel, NumPy and gzip have no other base in common.
        name = volume["path"] or "without a name"
        raise InputError(f"volume {name} cannot be read: {' '.join(str(error).split())}") from error
    return array if finite.all() else np.where(finite, array, array[finite].min())


def to_uint8(volume: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """Intensities (depth, height, width) to uint8, 0 at the window's lower end and 255 at its upper one.

    Args:
        window: None for the volume's 0.5th and 99.5th percentile, or, where these are equal, for its minimum and
            maximum. A volume of one intensity becomes 0.
    """
    low, high = np.percentile(volume, (0.5, 99.5)) if window is None else window
    if window is None and low == high:
        low, high = volume.min(), volume.max()
    pixels = np.zeros(volume.shape, np.uint8)
    if low == high:
        return pixels
    low, high = float(low), float(high)
    # Slice by slice, as float64 needs eight times the memory of the result.
    for intensities, target in zip(volume, pixels, strict=True):
        shares = (intensities.astype(np.float64) - low) / (high - low)
        target[...] = np.rint(255 * np.clip(shares, 0, 1))
    return pixels


class TrainingVolumes:
    """Volumes brought to the training size.

    Args:
        size: (depth, height, width).
        window: intensities that become black and white, see `to_uint8`.
    """

    def __init__(self, size: tuple[int, int, int], window: tuple[float, float] | None):
        self.size = tuple(size)
        self.window = window

    def __call__(self, volumes: Sequence[dict[str, Any]], draws: Draws) -> torch.Tensor:
        """uint8 of shape (batch, depth, 1, height, width)."""
        return _prepare(volumes, self.size, self.window)


class EvaluationVolumes:
    """Volumes brought to the training size as in training, and normalized, one view of each.

    Args:
        size: (depth, height, width).
        window: intensities that become black and white, see `to_uint8`.
        image_mean, image_std: of the one channel, of pixels in [0, 1].
    """

    num_views = 1

    def __init__(
        self,
        size: tuple[int, int, int],
        window: tuple[float, float] | None,
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
    ):
        self.size = tuple(size)
        self.window = window
        self.image_mean = image_mean
        self.image_std = image_std

    def __call__(self, volumes: Sequence[dict[str, Any]], views: Sequence[int]) -> torch.Tensor:
        """`pixel_values` of shape (batch, depth, 1, height, width)."""
        return normalize(_prepare(volumes, self.size, self.window), self.image_mean, self.image_std)


def resize(pixels: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    """uint8 (depth, height, width) to another size.

    Axes that shrink to half or less are averaged over what each new voxel covers, which is exact where the size
    divides the old one; the others are interpolated linearly.
    """
    values = pixels[None, None].float()
    averaged = [new if old >= 2 * new else old for old, new in zip(pixels.shape, size, strict=True)]
    if averaged != list(pixels.shape):
        values = functional.adaptive_avg_pool3d(values, averaged)
    values = functional.interpolate(values, size, mode="trilinear", align_corners=False)
    return values[0, 0].round_().to(torch.uint8)


def _prepare(
    volumes: Sequence[dict[str, Any]], size: tuple[int, int, int], window: tuple[float, float] | None
) -> torch.Tensor:
    """Any sizes and formats to uint8 (batch, depth, 1, height, width)."""
    pixels = (torch.from_numpy(to_uint8(read_volume(volume), window)) for volume in volumes)
    return torch.stack([resize(each, size) for each in pixels]).unsqueeze(2)


def _decode(content: bytes) -> np.ndarray:
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    if content[:6] == b"\x93NUMPY":
        array = np.load(io.BytesIO(content), allow_pickle=False)
        _require_volume(array.dtype, array.shape)
        return array
    if content[344:348] == b"n+1\0":
        return _decode_nifti(nibabel.Nifti1Image, content)
    if content[4:8] == b"n+2\0":
        return _decode_nifti(nibabel.Nifti2Image, content)
    raise ValueError("it is neither NIfTI nor .npy" if content else "it is empty")


def _decode_nifti(kind: type[nibabel.Nifti1Image], content: bytes) -> np.ndarray:
    """Scaled intensities (z, y, x), which increase to the patient's superior, anterior and right."""
    image = kind.from_bytes(content)
    shape = image.shape[:3] if math.prod(image.shape[3:]) == 1 else image.shape
    _require_volume(image.get_data_dtype(), shape)
    num_bytes = image.dataobj.offset + math.prod(shape) * image.get_data_dtype().itemsize
    # nibabel would take all the memory that a broken header asks for before it sees that the file is shorter.
    if len(content) < num_bytes:
        raise ValueError(f"it has {len(content)} bytes, its header announces {num_bytes}")
    intensities = image.get_fdata(dtype=np.float32).reshape(shape)
    return np.asarray(nibabel.as_closest_canonical(nibabel.Nifti1Image(intensities, image.affine)).dataobj).T


def _require_volume(dtype: np.dtype, shape: tuple[int, ...]) -> None:
    if dtype.kind not in "biuf":
        raise ValueError(f"its dtype is {dtype}, allowed are real numbers")
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"its shape is {shape}, allowed are three axes of one voxel or more")
