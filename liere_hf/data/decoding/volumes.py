"""Files of volumes of one channel, such as CT or MR, to intensities and pixels."""

import gzip
import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError


def read_volume(volume: dict[str, Any]) -> np.ndarray:
    """NIfTI or .npy, with or without gzip, to float32 (depth, height, width).

    NIfTI intensities are scaled, and the axes are turned to the closest ones of the patient: depth, height and width
    go from inferior to superior, from posterior to anterior and from left to right. An .npy file is
    (depth, height, width) already. Voxels that are not finite become the smallest finite value.

    Args:
        volume: `bytes`, or None and the `path` of a file; the content, not the name, determines the format.

    Raises:
        InputError: a volume that cannot be read, that does not have three axes, whose values are not real numbers, or
            that has no finite value.
    """
    try:
        content = volume["bytes"] if volume["bytes"] is not None else Path(volume["path"]).read_bytes()
        # Values too large for float32 become infinite; infinite voxels are replaced below.
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(_decode(content), np.float32)
        finite = np.isfinite(array)
        if not finite.any():
            raise ValueError("no voxel is finite")
    except ImportError:
        raise
    except Exception as error:  # nibabel, NumPy and gzip have no other error class in common.
        name = volume["path"] or "without a name"
        raise InputError(f"volume {name} cannot be read: {' '.join(str(error).split())}") from error
    return array if finite.all() else np.where(finite, array, array[finite].min())


def to_uint8(volume: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """Intensities (depth, height, width) to uint8, 0 at the window's lower end and 255 at its upper one.

    Args:
        window: None for the volume's 0.5th and 99.5th percentiles or, where these are equal, its minimum and maximum.
            A volume of one intensity becomes 0.
    """
    low, high = np.percentile(volume, (0.5, 99.5)) if window is None else window
    if window is None and low == high:
        low, high = volume.min(), volume.max()
    pixels = np.zeros(volume.shape, np.uint8)
    if low == high:
        return pixels
    low, high = float(low), float(high)
    # Slice by slice, as a float64 volume takes eight times the memory of the result.
    for intensities, target in zip(volume, pixels, strict=True):
        shares = (intensities.astype(np.float64) - low) / (high - low)
        target[...] = np.rint(255 * np.clip(shares, 0, 1))
    return pixels


def _decode(content: bytes) -> np.ndarray:
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    if content[:6] == b"\x93NUMPY":
        array = np.load(io.BytesIO(content), allow_pickle=False)
        _require_volume(array.dtype, array.shape)
        return array
    if content[344:348] == b"n+1\0":
        return _decode_nifti(content, version=1)
    if content[4:8] == b"n+2\0":
        return _decode_nifti(content, version=2)
    raise ValueError("it is neither NIfTI nor .npy" if content else "it is empty")


def _decode_nifti(content: bytes, version: int) -> np.ndarray:
    """Scaled intensities (z, y, x), with axes towards the patient's superior, anterior and right side."""
    # Not needed for .npy volumes.
    import nibabel

    image = (nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image).from_bytes(content)
    shape = image.shape[:3] if math.prod(image.shape[3:]) == 1 else image.shape
    _require_volume(image.get_data_dtype(), shape)
    num_bytes = image.dataobj.offset + math.prod(shape) * image.get_data_dtype().itemsize
    # nibabel would allocate what a broken header asks for before it notices that the file is shorter.
    if len(content) < num_bytes:
        raise ValueError(f"it has {len(content)} bytes, its header announces {num_bytes}")
    intensities = image.get_fdata(dtype=np.float32).reshape(shape)
    return np.asarray(nibabel.as_closest_canonical(nibabel.Nifti1Image(intensities, image.affine)).dataobj).T


def _require_volume(dtype: np.dtype, shape: tuple[int, ...]) -> None:
    if dtype.kind not in "biuf":
        raise ValueError(f"its dtype is {dtype}, allowed are real numbers")
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"its shape is {shape}, allowed are three axes of one voxel or more")
