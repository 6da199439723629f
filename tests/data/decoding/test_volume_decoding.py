import gzip
import itertools

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from volume_files import (
    bad_files,
    from_bytes,
    from_path,
    nifti_bytes,
    random_volume,
    read_channel,
    save_nifti,
    save_npy,
)

from liere_hf.data.decoding.volumes import read_extent, read_volume, to_uint8
from liere_hf.errors import InputError

FLOATS = st.floats(-1e6, 1e6, width=32)


def test_every_orientation_gives_the_same_array(tmp_path):
    """Each voxel's value encodes the patient position that its affine gives it."""
    shape = np.array([3, 4, 5])
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            affine = np.zeros((4, 4))
            affine[3, 3] = 1
            for axis, (world, flip) in enumerate(zip(axes, flips, strict=True)):
                affine[world, axis] = flip
                affine[world, 3] = 0 if flip == 1 else shape[world] - 1
            voxels = np.moveaxis(np.indices(shape[list(axes)]), 0, -1)
            codes = nibabel.affines.apply_affine(affine, voxels) @ [1, 10, 100]
            path = tmp_path / "volume.nii"
            nibabel.save(nibabel.Nifti1Image(codes.astype(np.int16), affine), path)
            z, y, x = np.indices((5, 4, 3))
            assert np.array_equal(read_channel(from_path(path)), 100 * z + 10 * y + x), (axes, flips)


def test_oblique_axes_are_aligned_with_the_nearest(tmp_path):
    volume = random_volume((5, 6, 7))
    cosine, sine = np.cos(np.pi / 6), np.sin(np.pi / 6)
    affine = np.array([[-2 * cosine, -sine, 0, 9], [-2 * sine, cosine, 0, -4], [0, 0, 3, 1], [0, 0, 0, 1]])
    path = save_nifti(tmp_path / "volume.nii.gz", volume, affine)
    assert np.array_equal(read_channel(from_path(path)), volume[:, :, ::-1])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, ">i2", ">f4"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_nifti_equals_nibabel(tmp_path, dtype, suffix, kind):
    path = save_nifti(tmp_path / f"volume{suffix}", random_volume((5, 6, 7), dtype), kind=kind)
    volume = read_channel(from_path(path))
    assert volume.dtype == np.float32
    assert volume.flags.c_contiguous and volume.flags.writeable
    assert np.array_equal(volume, nibabel.load(path).get_fdata().T.astype(np.float32))


def test_scaling_is_applied(tmp_path):
    stored = random_volume((5, 6, 7))
    image = nibabel.Nifti1Image(stored.T, np.eye(4))
    image.header.set_slope_inter(0.37, -1024)
    # nibabel scales what it writes; the array proxy keeps the stored values.
    path = tmp_path / "volume.nii"
    content = bytearray(image.to_bytes())
    content[352:] = stored.tobytes()
    content[112:120] = np.array([0.37, -1024], np.float32).tobytes()
    path.write_bytes(content)
    assert nibabel.load(path).dataobj.slope == pytest.approx(0.37)
    volume = read_channel(from_path(path))
    assert np.allclose(volume, stored * 0.37 - 1024, rtol=1e-6, atol=1e-3)
    assert np.allclose(volume, nibabel.load(path).get_fdata().T, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("trailing", [(1,), (1, 1)])
def test_trailing_axes_of_one_are_dropped(tmp_path, trailing):
    volume = random_volume((5, 6, 7))
    path = tmp_path / "volume.nii"
    nibabel.save(nibabel.Nifti1Image(volume.T.reshape(7, 6, 5, *trailing), np.diag([-1, 1, 1, 1])), path)
    assert np.array_equal(read_channel(from_path(path)), volume[:, :, ::-1])


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, ">i2", np.float16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_is_read_unchanged(tmp_path, dtype, order):
    volume = np.asarray(random_volume((5, 6, 7), dtype), order=order)
    read = read_channel(from_path(save_npy(tmp_path / "volume.npy", volume)))
    assert read.dtype == np.float32 and read.flags.c_contiguous
    assert np.array_equal(read, volume)


@pytest.mark.parametrize("suffix", [".nii", ".npy"])
def test_nonfinite_voxels_become_the_smallest_value(tmp_path, suffix):
    volume = np.array([[[3.0, np.nan], [-2.5, np.inf]], [[-np.inf, 8], [1e300, 0]]])
    path = tmp_path / f"volume{suffix}"
    (save_nifti if suffix == ".nii" else save_npy)(path, volume)
    expected = [[[3, -2.5], [-2.5, -2.5]], [[-2.5, 8], [-2.5, 0]]]
    assert read_channel(from_path(path)).tolist() == expected


@pytest.mark.parametrize("name", ["volume.nii", "volume.nii.gz", "volume.npy"])
def test_bytes_give_the_same_as_a_path(tmp_path, name):
    volume = random_volume((5, 6, 7))
    path = (save_npy if name.endswith("npy") else save_nifti)(tmp_path / name, volume)
    assert np.array_equal(read_channel(from_bytes(path.read_bytes())), volume)
    assert np.array_equal(read_channel(from_path(path)), volume)
    assert np.array_equal(read_channel({"bytes": path.read_bytes(), "path": "elsewhere"}), volume)


def test_bad_files_are_named_with_the_reason(tmp_path):
    for name, (content, message) in bad_files(tmp_path).items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"volume {path} cannot be read: .*{message}"):
            read_channel(from_path(path))
        with pytest.raises(InputError, match=rf"volume without a name cannot be read: .*{message}"):
            read_channel(from_bytes(content))
    with pytest.raises(InputError, match=f"volume {tmp_path}/missing.nii cannot be read: .*No such file"):
        read_channel(from_path(tmp_path / "missing.nii"))


@given(
    content=st.sampled_from([nifti_bytes(), gzip.compress(nifti_bytes(np.float32), mtime=0)]),
    changes=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=4),
)
@settings(max_examples=200, deadline=None)
def test_corrupted_bytes_give_a_volume_or_an_input_error(content, changes):
    content = bytearray(content)
    for position, value in changes:
        content[position] = value
    try:
        volume = read_channel(from_bytes(bytes(content)))
    except InputError:
        return
    assert volume.ndim == 3 and volume.dtype == np.float32 and np.isfinite(volume).all()


@given(
    volume=arrays.arrays(np.float32, (2, 3, 4), elements=FLOATS),
    ends=st.tuples(FLOATS, FLOATS).filter(lambda e: e[0] < e[1]),
)
@settings(max_examples=200, deadline=None)
def test_window_is_linear_inside_and_clamps_outside(volume, ends):
    low, high = ends
    volume[0, 0, :2] = low, high
    pixels = to_uint8(volume, ends)
    assert pixels.dtype == np.uint8
    assert pixels[0, 0, :2].tolist() == [0, 255]
    assert not pixels[volume <= low].any()
    assert (pixels[volume >= high] == 255).all()
    assert (np.diff(pixels.ravel()[np.argsort(volume, axis=None)].astype(int)) >= 0).all()
    inside = (volume >= low) & (volume <= high)
    shares = (volume[inside].astype(np.longdouble) - low) / (np.longdouble(high) - low)
    assert (np.abs(pixels[inside] - 255 * shares) <= 0.5 + 1e-9).all()


def test_window_in_numbers():
    volume = np.array([[[-2000, -160, -159, 40, 240, 3000]]], np.float32)
    # (-159 + 160) / 400 * 255 = 0.64, and 127.5 rounds to even.
    assert to_uint8(volume, (-160, 240)).tolist() == [[[0, 0, 1, 128, 255, 255]]]


def test_the_widest_window_does_not_overflow():
    volume = np.array([[[-3e38, 0, 3e38]]], np.float32)
    assert to_uint8(volume, None).tolist() == [[[0, 128, 255]]]


def test_without_a_window_percentiles_are_the_ends():
    volume = np.random.default_rng(0).permutation(np.arange(1001.0)).astype(np.float32).reshape(7, 11, 13)
    # The percentiles of 0, 1, ..., 1000 are 5 and 995.
    assert np.array_equal(to_uint8(volume, None), np.rint((volume.astype(float).clip(5, 995) - 5) / 990 * 255))


@given(FLOATS)
def test_constant_volumes_become_zero(value):
    assert not to_uint8(np.full((2, 3, 4), value, np.float32), None).any()


def test_few_voxels_above_a_constant_are_kept():
    volume = np.full((10, 10, 10), 7, np.float32)
    volume[5, 5, 5] = 9
    assert np.array_equal(to_uint8(volume, None), np.where(volume == 9, 255, 0))


CHANNELS = np.random.default_rng(1).integers(-99, 99, (2, 5, 6, 7)).astype(np.int16)


@pytest.mark.parametrize("layout", ["first", "last", "fourth axis", "fifth axis"])
def test_channels(tmp_path, layout):
    """Of NIfTI behind the axes of space, also with the vector axis of its standard; of .npy before or behind them."""
    path = tmp_path / ("volume.npy" if layout in ("first", "last") else "volume.nii.gz")
    if layout == "first":
        np.save(path, CHANNELS)
    elif layout == "last":
        np.save(path, np.moveaxis(CHANNELS, 0, -1))
    else:
        # nibabel's axes are (width, height, depth, channels); the affine's first axis goes from right to left.
        stored = CHANNELS.T if layout == "fourth axis" else CHANNELS.T[:, :, :, None]
        nibabel.save(nibabel.Nifti1Image(stored, np.diag([-1, 1, 1, 1])), path)
    expected = CHANNELS if path.suffix == ".npy" else CHANNELS[..., ::-1]
    volume = read_volume(from_path(path), num_channels=2)
    assert volume.dtype == np.float32 and volume.flags.c_contiguous
    assert np.array_equal(volume, expected)
    with pytest.raises(InputError, match=r"its shape is .*, allowed are three axes .*; for channels in a further one"):
        read_volume(from_path(path))
    with pytest.raises(InputError, match=r"allowed are three axes .*, and a .* of num_channels 3"):
        read_volume(from_path(path), num_channels=3)


def test_channels_that_are_not_clear(tmp_path):
    path = save_npy(tmp_path / "volume.npy", np.zeros((2, 5, 6, 2)))
    with pytest.raises(InputError, match=r"its shape is \(2, 5, 6, 2\): whether its first or its last axis"):
        read_volume(from_path(path), num_channels=2)
    path = save_npy(tmp_path / "volume.npy", np.zeros((5, 6, 7)))
    with pytest.raises(
        InputError, match=r"its shape is \(5, 6, 7\), allowed .* and a first or last one of num_channels 2"
    ):
        read_volume(from_path(path), num_channels=2)


@pytest.mark.parametrize("shape", [(5, 6, 7, 1), (1, 5, 6, 7)])
def test_an_axis_of_one_channel(tmp_path, shape):
    volume = CHANNELS[0].reshape(shape)
    assert np.array_equal(read_channel(from_path(save_npy(tmp_path / "volume.npy", volume))), CHANNELS[0])


def test_nonfinite_voxels_become_the_smallest_value_of_their_channel(tmp_path):
    volume = np.array([[[[1, np.nan, 3]]], [[[np.inf, -7.0, 0]]]])
    path = save_npy(tmp_path / "volume.npy", volume)
    assert read_volume(from_path(path), 2).tolist() == [[[[1, 1, 3]]], [[[-7, -7, 0]]]]
    with pytest.raises(InputError, match="no voxel is finite"):
        read_volume(from_path(save_npy(path, np.array([[[[1.0]]], [[[np.nan]]]]))), 2)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("unit, scale", [("mm", 1), ("micron", 0.001), ("meter", 1000), ("unknown", 1)])
def test_extent_in_millimetres(tmp_path, suffix, kind, unit, scale):
    """Whatever the order of the axes in the file: the size of the voxels is that of the affine's columns."""
    sizes = {"depth": 2.5, "height": 1.25, "width": 0.5}
    voxels = {"depth": 5, "height": 6, "width": 7}
    world = {"width": 0, "height": 1, "depth": 2}
    for order in itertools.permutations(sizes):
        affine = np.zeros((4, 4))
        affine[3, 3] = 1
        for axis, name in enumerate(order):
            affine[world[name], axis] = -sizes[name] if axis == 1 else sizes[name]
        image = kind(np.zeros([voxels[name] for name in order], np.uint8), affine)
        image.header.set_xyzt_units(unit)
        path = tmp_path / f"volume{suffix}"
        nibabel.save(image, path)
        expected = [sizes[name] * voxels[name] * scale for name in ("depth", "height", "width")]
        for row in (from_path(path), from_bytes(path.read_bytes())):
            assert read_extent(row) == pytest.approx(expected)
        assert read_volume(from_path(path)).shape == (1, 5, 6, 7)


def test_oblique_volumes_have_an_extent(tmp_path):
    cosine, sine = np.cos(np.pi / 6), np.sin(np.pi / 6)
    affine = np.array([[2 * cosine, -sine, 0, 9], [2 * sine, cosine, 0, -4], [0, 0, 3, 1], [0, 0, 0, 1]])
    path = save_nifti(tmp_path / "volume.nii", random_volume((5, 6, 7)), affine)
    assert read_extent(from_path(path)) == pytest.approx((15, 6, 14))


@pytest.mark.parametrize("name", ["volume.npy", "text.nii", "empty.nii.gz", "missing.nii"])
def test_extents_that_are_not_known(tmp_path, name):
    path = tmp_path / name
    if name == "volume.npy":
        save_npy(path, np.zeros((2, 2, 2)))
    elif name != "missing.nii":
        path.write_text("text" if name == "text.nii" else "")
    with pytest.raises(InputError, match=f"volume {path} cannot be read: "):
        read_extent(from_path(path))
