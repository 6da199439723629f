from pathlib import Path

import datasets
import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from volume_files import from_bytes, load_volume_folders, read_channel

from liere_hf import LiereViTConfig
from liere_hf.data.batching import EvaluationExamples
from liere_hf.data.data_sets.tables import table_of_paths
from liere_hf.data.decoding.volumes import to_uint8
from liere_hf.data.draws import Draws
from liere_hf.data.resizing.volumes import EvaluationVolumes, MillimetrePositions, TrainingVolumes, resize
from liere_hf.modeling.positions import grid_positions

SIZES = st.tuples(*[st.integers(1, 12)] * 3)


@given(old=SIZES, new=SIZES, value=st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_resized_constant_stays_constant(old, new, value):
    resized = resize(torch.full(old, value, dtype=torch.uint8), new)
    assert resized.shape == new and resized.dtype == torch.uint8
    assert (resized == value).all()


@given(new=SIZES, ratios=st.tuples(*[st.integers(1, 5)] * 3), seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_integer_ratios_are_exact_means(new, ratios, seed):
    (d, h, w), (rd, rh, rw) = new, ratios
    pixels = np.random.default_rng(seed).integers(256, size=(d * rd, h * rh, w * rw), dtype=np.uint8)
    means = pixels.reshape(d, rd, h, rh, w, rw).astype(float).mean((1, 3, 5))
    assert np.array_equal(resize(torch.from_numpy(pixels), new), np.rint(means))


@given(old=SIZES, new=SIZES, seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_resizing_commutes_with_mirroring(old, new, seed):
    pixels = torch.from_numpy(np.random.default_rng(seed).integers(256, size=old, dtype=np.uint8))
    resized = resize(pixels, new)
    assert resized.min() >= pixels.min() and resized.max() <= pixels.max()
    for axis in range(3):
        difference = resize(pixels.flip(axis), new).flip(axis).int() - resized.int()
        assert difference.abs().max() <= 1


def test_enlarging_is_linear_between_voxel_centers():
    ramp = torch.tensor([0, 40, 200], dtype=torch.uint8)
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = 6
        resized = resize(ramp.reshape([-1 if n == 6 else 1 for n in shape]), tuple(shape))
        assert resized.flatten().tolist() == [0, 10, 30, 80, 160, 200]


@pytest.mark.parametrize("size", [(8, 8, 8), (7, 6, 5), (3, 8, 8)])
def test_fine_patterns_do_not_alias(size):
    """A checkerboard of 16 voxels per side, in which every second voxel is white."""
    board = torch.from_numpy((np.indices((16, 16, 16)).sum(0) % 2 * 255).astype(np.uint8))
    assert ((resize(board, size).float() - 127.5).abs() <= 5).all()


@pytest.mark.parametrize("axis", range(3))
def test_stripes_do_not_alias_between_integer_ratios(axis):
    """Resized from 16 stripes to 6, each output covers 3 or 4 of them: the mean is 1/3, 1/2 or 2/3 of white."""
    stripes = torch.from_numpy((np.indices((16, 16, 16))[axis] % 2 * 255).astype(np.uint8))
    size = [16, 16, 16]
    size[axis] = 6
    assert set(resize(stripes, tuple(size)).unique().tolist()) <= {85, 128, 170}


def test_mixed_files_become_one_batch(volume_directory):
    rows = [row["volume"] for row in load_volume_folders(volume_directory).train]
    size, window = (4, 10, 6), (-500, 700)
    pixels = TrainingVolumes(size, window)(rows, Draws(0, 0, range(16)))
    assert pixels.shape == (16, 4, 1, 10, 6) and pixels.dtype == torch.uint8
    for row, each in zip(rows, pixels, strict=True):
        assert each[:, 0].equal(resize(torch.from_numpy(to_uint8(read_channel(row), window)), size))


@pytest.mark.parametrize("window", [None, (-500, 700)])
def test_evaluation_has_the_same_pixels_as_training(volume_directory, window):
    data = load_volume_folders(volume_directory)
    to_pixels = EvaluationVolumes((4, 10, 6), window, (0.4,), (0.3,))
    examples = EvaluationExamples(data.validation, data.column, to_pixels)
    assert len(examples) == 4
    batch = examples.__getitems__([0, 1, 2, 3])
    pixels = TrainingVolumes((4, 10, 6), window)(data.validation["volume"][:], Draws(0, 0, range(4)))
    for index, example in enumerate(batch):
        assert example["labels"] == data.validation[index]["label"]
        assert example["pixel_values"].dtype == torch.float32
        assert torch.allclose(example["pixel_values"], (pixels[index] / 255 - 0.4) / 0.3, atol=1e-5)
        assert example["pixel_values"].equal(examples[index]["pixel_values"])


def test_a_column_of_bytes_gives_the_same_as_a_column_of_paths(volume_directory):
    train = load_volume_folders(volume_directory).train
    paths = [row["path"] for row in train["volume"]]
    content = [from_bytes(Path(path).read_bytes()) for path in paths]
    features = table_of_paths("volume", paths, train["label"][:], ["ct", "mr"]).features
    stored = datasets.Dataset.from_dict({"volume": content, "label": train["label"][:]}, features=features)
    prepare = TrainingVolumes((4, 10, 6), None)
    draws = Draws(0, 0, range(16))
    assert prepare(stored["volume"][:], draws).equal(prepare(train["volume"][:], draws))


def test_channels_are_resized_and_normalized_one_by_one(tmp_path):
    channels = np.random.default_rng(0).integers(0, 200, (2, 8, 9, 10)).astype(np.int16)
    channels[1] += 5000
    np.save(tmp_path / "both.npy", channels)
    row = {"bytes": None, "path": str(tmp_path / "both.npy")}
    pixels = TrainingVolumes((4, 10, 6), None, num_channels=2)([row], Draws(0, 0, [0]))
    assert pixels.shape == (1, 4, 2, 10, 6)
    evaluated = EvaluationVolumes((4, 10, 6), None, (0.4, 0.5), (0.3, 0.2))([row], [0])
    for number, (channel, mean, std) in enumerate(zip(channels, (0.4, 0.5), (0.3, 0.2), strict=True)):
        np.save(tmp_path / "one.npy", channel)
        one = TrainingVolumes((4, 10, 6), None)([{"bytes": None, "path": str(tmp_path / "one.npy")}], Draws(0, 0, [0]))
        assert pixels[:, :, number].equal(one[:, :, 0])
        assert torch.allclose(evaluated[:, :, number], (one[:, :, 0] / 255 - mean) / std, atol=1e-5)


def nifti(path: Path, sizes: tuple[float, float, float], shape: tuple[int, int, int]) -> dict:
    """A volume (depth, height, width) with voxels of a size, in millimetres along these axes."""
    nibabel.save(nibabel.Nifti1Image(np.ones(shape[::-1], np.uint8), np.diag([*sizes[::-1], 1])), path)
    return {"bytes": None, "path": str(path)}


def test_positions_are_distances_in_millimetres(tmp_path):
    """The center of a patch is as far from that of the first as in the patient, in units of the training grid."""
    config = LiereViTConfig(image_size=(8, 16, 32), patch_size=(2, 4, 8), num_channels=1)
    spacing, size = (3.0, 2.0, 1.0), (8, 16, 32)
    rows = [
        nifti(tmp_path / "same.nii", spacing, size),
        nifti(tmp_path / "other.nii.gz", (1.5, 4.0, 0.7), (20, 10, 50)),
    ]
    positions = MillimetrePositions(config, size, spacing)(rows)
    assert positions.shape == (2, 4 * 4 * 4, 3)
    assert torch.allclose(positions[0], grid_positions((4, 4, 4), (4, 4, 4)))
    # Of the resized volume, a patch is a quarter of the extent along each axis.
    pitch = torch.tensor([1.5 * 20 / 4, 4.0 * 10 / 4, 0.7 * 50 / 4])
    reference = torch.tensor([3.0 * 8 / 4, 2.0 * 16 / 4, 1.0 * 32 / 4]) * 3
    assert torch.allclose(positions[1], index_grid((4, 4, 4)) * pitch / reference)
    # At twice the size, patches are half as far from each other.
    larger = MillimetrePositions(config, (16, 32, 64), spacing)([rows[0]])[0]
    assert torch.allclose(larger, index_grid((8, 8, 8)) / 2 / 3)


def index_grid(size: tuple[int, int, int]) -> torch.Tensor:
    return torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij"), -1).flatten(0, -2).float()
