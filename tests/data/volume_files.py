"""Valid and invalid volume files: NIfTI and .npy."""

import gzip

import nibabel
import numpy as np
import pytest

from liere_hf.configuration import DataArguments
from liere_hf.data import load_splits
from liere_hf.data.decoding.volumes import read_volume


def from_path(path):
    return {"bytes": None, "path": str(path)}


def from_bytes(content):
    return {"bytes": content, "path": None}


def read_channel(volume):
    """The only channel (depth, height, width)."""
    (channel,) = read_volume(volume)
    return channel


def random_volume(shape, dtype=np.int16, seed=0):
    """(depth, height, width)."""
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(dtype)


def save_nifti(path, volume, affine=None, kind=nibabel.Nifti1Image):
    """Write a volume (depth, height, width) to a file with axes right, anterior and superior."""
    nibabel.save(kind(volume.T, np.eye(4) if affine is None else affine), path)
    return path


def save_npy(path, volume):
    np.save(path, volume)
    return path


def nifti_bytes(dtype=np.int16, shape=(5, 6, 7)):
    return nibabel.Nifti1Image(random_volume(shape, dtype).T, np.eye(4)).to_bytes()


def npy_bytes(path, volume):
    return save_npy(path, volume).read_bytes()


def bad_files(tmp_path):
    """Invalid files by name, each with its error message."""
    good, short = nifti_bytes(), nifti_bytes()[:-1]
    huge = bytearray(good)
    huge[42:48] = np.array([30000, 30000, 30000], np.int16).tobytes()
    pair = bytearray(good)
    pair[344:348] = b"ni1\0"
    compressed = gzip.compress(good)
    broken = bytearray(compressed)
    broken[len(broken) // 2] ^= 0xFF
    npy = tmp_path / "scratch.npy"
    complex_image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.complex64), np.eye(4))
    colours = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    contents = {
        "empty.nii": (b"", "it is empty"),
        "empty.nii.gz": (b"", "it is empty"),
        "empty.npy": (b"", "it is empty"),
        "header.nii": (good[:200], "neither NIfTI nor .npy"),
        "text.nii": (b"no volume" * 100, "neither NIfTI nor .npy"),
        "pair.nii": (bytes(pair), "neither NIfTI nor .npy"),
        "short.nii": (short, f"it has {len(short)} bytes, its header announces {len(good)}"),
        "short.nii.gz": (gzip.compress(short), f"its header announces {len(good)}"),
        "huge.nii": (bytes(huge), f"its header announces {352 + 2 * 30000**3}"),
        "cut.nii.gz": (compressed[:-20], "ended before the end-of-stream marker"),
        "broken.nii.gz": (bytes(broken), ".+"),
        "plane.nii": (nibabel.Nifti1Image(np.zeros((3, 4)), np.eye(4)).to_bytes(), r"its shape is \(3, 4\)"),
        "series.nii": (
            nibabel.Nifti1Image(np.zeros((3, 4, 5, 2)), np.eye(4)).to_bytes(),
            r"its shape is \(3, 4, 5, 2\), allowed are three axes",
        ),
        "complex.nii": (complex_image.to_bytes(), "its dtype is .?complex64, allowed are real numbers"),
        "colours.nii": (nibabel.Nifti1Image(colours, np.eye(4)).to_bytes(), "allowed are real numbers"),
        "nan.nii": (nibabel.Nifti1Image(np.full((3, 4, 5), np.nan), np.eye(4)).to_bytes(), "no voxel is finite"),
        "nan.npy": (npy_bytes(npy, np.full((3, 4, 5), np.nan)), "no voxel is finite"),
        "large.npy": (npy_bytes(npy, np.full((3, 4, 5), 1e300)), "no voxel is finite"),
        "cut.npy": (npy_bytes(npy, np.zeros((3, 4, 5)))[:-1], ".+"),
        "plane.npy": (npy_bytes(npy, np.zeros((3, 4))), r"its shape is \(3, 4\)"),
        "series.npy": (npy_bytes(npy, np.zeros((3, 4, 5, 2))), r"its shape is \(3, 4, 5, 2\), allowed are three axes"),
        "nothing.npy": (npy_bytes(npy, np.zeros((3, 0, 5))), r"its shape is \(3, 0, 5\)"),
        "complex.npy": (npy_bytes(npy, np.zeros((3, 4, 5), complex)), "its dtype is complex128"),
        "text.npy": (npy_bytes(npy, np.full((3, 4, 5), "a")), "its dtype is <U1"),
        "object.npy": (npy_bytes(npy, np.full((3, 4, 5), Unpicklable())), "allow_pickle"),
    }
    npy.unlink()
    return contents


class Unpicklable:
    """Reports when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("an .npy file was unpickled",)


def load_volume_folders(directory, **options):
    return load_splits(DataArguments(dataset="volumes", data_dir=str(directory), data_num_proc=1, **options), seed=0)
