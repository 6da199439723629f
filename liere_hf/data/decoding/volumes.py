"""Files of volumes, such as CT or MR, to intensities and pixels."""

import gzip
import io
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError

_GZIP, _NPY = b"\x1f\x8b", b"\x93NUMPY"
# More than the header of either version of NIfTI has, and than NumPy writes for an array of numbers.
_HEADER_BYTES = 1024
_MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}


def read_volume(volume: dict[str, Any], num_channels: int = 1) -> np.ndarray:
    """NIfTI or .npy, with or without gzip, to float32 (num_channels, depth, height, width).

    NIfTI intensities are scaled, and the axes are turned to the closest ones of the patient: depth, height and width
    go from inferior to superior, from posterior to anterior and from left to right. A fourth or fifth axis holds the
    channels. An .npy file is (depth, height, width) already, with channels as its first or its last axis. Voxels that
    are not finite become the smallest finite value of their channel.

    Args:
        volume: `bytes`, or None and the `path` of a file; the content, not the name, determines the format.

    Raises:
        InputError: a volume that cannot be read, that has other axes or channels, whose values are not real numbers,
            or that has a channel without a finite value.
    """
    try:
        # Values too large for float32 become infinite; infinite voxels are replaced below.
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(_decode(_content(volume), num_channels), np.float32)
        finite = np.isfinite(array)
        if not finite.any(axis=(1, 2, 3)).all():
            raise ValueError("no voxel is finite")
    except ImportError:
        raise
    except Exception as error:  # nibabel, NumPy and gzip have no other error class in common.
        raise _unreadable(volume, error) from error
    for channel, is_finite in zip(array, finite, strict=True):
        if not is_finite.all():
            channel[~is_finite] = channel[is_finite].min()
    return array


def read_extent(volume: dict[str, Any]) -> tuple[float, float, float]:
    """The extent of a NIfTI volume along depth, height and width in millimetres, read from its header only.

    Raises:
        InputError: it cannot be read, or no size of its voxels is known.
    """
    import nibabel

    try:
        header = _nifti_header(_content(volume, _HEADER_BYTES))
        if header is None:
            raise ValueError(
                "the size of its voxels is not known, which volume_spacing needs: only NIfTI files have one"
            )
        affine = header.get_best_affine()
        sizes = nibabel.affines.voxel_sizes(affine) * _MILLIMETRES[header.get_xyzt_units()[0]]
        extent = sizes * header.get_data_shape()[:3]
        if not (np.isfinite(extent).all() and (extent > 0).all()):
            raise ValueError(f"its voxels have the size {sizes.tolist()}, allowed are millimetres above 0")
        patient_axes = nibabel.io_orientation(affine)[:, 0].astype(int)
    except ImportError:
        raise
    except Exception as error:
        raise _unreadable(volume, error) from error
    right, anterior, superior = extent[np.argsort(patient_axes)].tolist()
    return superior, anterior, right


def announced_shape(volume: dict[str, Any]) -> tuple[int, ...]:
    """The shape of a volume with its channels, as its header says, which may be wrong.

    Raises:
        InputError: it has no header that can be read.
    """
    try:
        content = _content(volume, _HEADER_BYTES)
        if content[:6] == _NPY:
            return _npy_shape(content)
        header = _nifti_header(content)
        if header is None:
            raise ValueError(_not_a_volume(content))
        return tuple(map(int, header.get_data_shape()))
    except ImportError:
        raise
    except Exception as error:
        raise _unreadable(volume, error) from error


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


def _unreadable(volume: dict[str, Any], error: Exception) -> InputError:
    return InputError(f"volume {volume['path'] or 'without a name'} cannot be read: {' '.join(str(error).split())}")


def _content(volume: dict[str, Any], num_bytes: int | None = None) -> bytes:
    """The content of a file, or its first bytes, without compression."""
    if volume["bytes"] is not None:
        content = volume["bytes"]
    elif num_bytes is None:
        content = Path(volume["path"]).read_bytes()
    else:
        with Path(volume["path"]).open("rb") as file:
            # Compressed data may take slightly more than what it holds.
            content = file.read(2 * num_bytes)
    if content[:2] != _GZIP:
        return content[:num_bytes]
    if num_bytes is None:
        return gzip.decompress(content)
    return zlib.decompressobj(wbits=31).decompress(content, num_bytes)


def _npy_shape(content: bytes) -> tuple[int, ...]:
    file = io.BytesIO(content)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in read:
        raise ValueError(f"its .npy format is {version[0]}.{version[1]}, allowed are 1.0 and 2.0")
    return read[version](file)[0]


def _nifti_header(content: bytes) -> Any:
    """nibabel's header, unchecked; None if it is not that of a single NIfTI file."""
    # Not needed for .npy volumes.
    import nibabel

    if content[4:8] == b"n+2\0":
        kind = nibabel.Nifti2Header
    elif content[344:348] == b"n+1\0":
        kind = nibabel.Nifti1Header
    else:
        return None
    return kind(content[: kind.template_dtype.itemsize], check=False)


def _not_a_volume(content: bytes) -> str:
    return "it is neither NIfTI nor .npy" if content else "it is empty"


def _decode(content: bytes, num_channels: int) -> np.ndarray:
    if content[:6] == _NPY:
        array = np.load(io.BytesIO(content), allow_pickle=False)
        _require_real_numbers(array.dtype)
        return _channels_first(array, num_channels)
    if content[344:348] == b"n+1\0":
        return _decode_nifti(content, 1, num_channels)
    if content[4:8] == b"n+2\0":
        return _decode_nifti(content, 2, num_channels)
    raise ValueError(_not_a_volume(content))


def _channels_first(array: np.ndarray, num_channels: int) -> np.ndarray:
    """(depth, height, width), with channels before or behind, to (channels, depth, height, width)."""
    shape = array.shape
    if array.ndim == 3 and num_channels == 1 and min(shape) > 0:
        return array[None]
    is_first, is_last = (array.ndim == 4 and shape[axis] == num_channels for axis in (0, -1))
    if is_first and is_last and num_channels > 1:
        raise ValueError(f"its shape is {shape}: whether its first or its last axis has the channels is not clear")
    if min(shape, default=0) < 1 or not (is_first or is_last):
        raise ValueError(_wrong_shape(shape, num_channels, "a first or last one"))
    return array if is_first else np.moveaxis(array, -1, 0)


def _wrong_shape(shape: tuple[int, ...], num_channels: int, channel_axis: str) -> str:
    channels = (
        "; for channels in a further one, set num_channels of the model"
        if num_channels == 1
        else f", and {channel_axis} of num_channels {num_channels}"
    )
    return f"its shape is {shape}, allowed are three axes of one voxel or more{channels}"


def _decode_nifti(content: bytes, version: int, num_channels: int) -> np.ndarray:
    """Scaled intensities (channels, z, y, x), with axes towards the patient's superior, anterior and right side."""
    # Not needed for .npy volumes.
    import nibabel

    image = (nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image).from_bytes(content)
    dtype, shape = image.get_data_dtype(), image.shape
    _require_real_numbers(dtype)
    if len(shape) < 3 or min(shape) < 1 or math.prod(shape[3:]) != num_channels:
        raise ValueError(_wrong_shape(shape, num_channels, "a fourth or fifth one"))
    num_bytes = image.dataobj.offset + math.prod(shape) * dtype.itemsize
    # nibabel would allocate what a broken header asks for before it notices that the file is shorter.
    if len(content) < num_bytes:
        raise ValueError(f"it has {len(content)} bytes, its header announces {num_bytes}")
    intensities = image.get_fdata(dtype=np.float32).reshape(*shape[:3], num_channels)
    return np.asarray(nibabel.as_closest_canonical(nibabel.Nifti1Image(intensities, image.affine)).dataobj).T


def _require_real_numbers(dtype: np.dtype) -> None:
    if dtype.kind not in "biuf":
        raise ValueError(f"its dtype is {dtype}, allowed are real numbers")
