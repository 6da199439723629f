import gzip
import itertools
from pathlib import Path

import datasets
import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from liere_hf.configuration import DataArguments
from liere_hf.data.augmentation.batch_augmentation import BatchAugmentation
from liere_hf.data.batching import EvaluationExamples, TrainingExamples, TrainingTransform
from liere_hf.data.data_sets.tables import table_of_paths
from liere_hf.data.data_sets.volume_folders import load_volumes
from liere_hf.data.decoding.volumes import read_volume, to_uint8
from liere_hf.data.draws import Draws
from liere_hf.data.resizing.volumes import EvaluationVolumes, TrainingVolumes, resize
from liere_hf.errors import InputError

FLOATS = st.floats(-1e6, 1e6, width=32)


def from_path(path):
    return {"bytes": None, "path": str(path)}


def from_bytes(content):
    return {"bytes": content, "path": None}


def random_volume(shape, dtype=np.int16, seed=0):
    """(depth, height, width)."""
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(dtype)


def save_nifti(path, volume, affine=None, kind=nibabel.Nifti1Image):
    """A volume (depth, height, width) as a file whose axes are right, anterior and superior."""
    nibabel.save(kind(volume.T, np.eye(4) if affine is None else affine), path)
    return path


def save_npy(path, volume):
    np.save(path, volume)
    return path


def nifti_bytes(dtype=np.int16, shape=(5, 6, 7)):
    return nibabel.Nifti1Image(random_volume(shape, dtype).T, np.eye(4)).to_bytes()


def npy_bytes(path, volume):
    return save_npy(path, volume).read_bytes()


def test_every_orientation_gives_the_same_array(tmp_path):
    """Each voxel holds a code of where in the patient its affine puts it."""
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
            assert np.array_equal(read_volume(from_path(path)), 100 * z + 10 * y + x), (axes, flips)


def test_oblique_axes_are_turned_to_the_nearest(tmp_path):
    volume = random_volume((5, 6, 7))
    cosine, sine = np.cos(np.pi / 6), np.sin(np.pi / 6)
    affine = np.array([[-2 * cosine, -sine, 0, 9], [-2 * sine, cosine, 0, -4], [0, 0, 3, 1], [0, 0, 0, 1]])
    path = save_nifti(tmp_path / "volume.nii.gz", volume, affine)
    assert np.array_equal(read_volume(from_path(path)), volume[:, :, ::-1])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, ">i2", ">f4"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_nifti_is_what_nibabel_reads(tmp_path, dtype, suffix, kind):
    path = save_nifti(tmp_path / f"volume{suffix}", random_volume((5, 6, 7), dtype), kind=kind)
    volume = read_volume(from_path(path))
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
    volume = read_volume(from_path(path))
    assert np.allclose(volume, stored * 0.37 - 1024, rtol=1e-6, atol=1e-3)
    assert np.allclose(volume, nibabel.load(path).get_fdata().T, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("trailing", [(1,), (1, 1)])
def test_trailing_axes_of_one_are_dropped(tmp_path, trailing):
    volume = random_volume((5, 6, 7))
    path = tmp_path / "volume.nii"
    nibabel.save(nibabel.Nifti1Image(volume.T.reshape(7, 6, 5, *trailing), np.diag([-1, 1, 1, 1])), path)
    assert np.array_equal(read_volume(from_path(path)), volume[:, :, ::-1])


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, ">i2", np.float16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_is_read_as_it_is(tmp_path, dtype, order):
    volume = np.asarray(random_volume((5, 6, 7), dtype), order=order)
    read = read_volume(from_path(save_npy(tmp_path / "volume.npy", volume)))
    assert read.dtype == np.float32 and read.flags.c_contiguous
    assert np.array_equal(read, volume)


@pytest.mark.parametrize("suffix", [".nii", ".npy"])
def test_what_is_not_finite_becomes_the_smallest_value(tmp_path, suffix):
    volume = np.array([[[3.0, np.nan], [-2.5, np.inf]], [[-np.inf, 8], [1e300, 0]]])
    path = tmp_path / f"volume{suffix}"
    (save_nifti if suffix == ".nii" else save_npy)(path, volume)
    expected = [[[3, -2.5], [-2.5, -2.5]], [[-2.5, 8], [-2.5, 0]]]
    assert read_volume(from_path(path)).tolist() == expected


@pytest.mark.parametrize("name", ["volume.nii", "volume.nii.gz", "volume.npy"])
def test_bytes_are_as_good_as_a_path(tmp_path, name):
    volume = random_volume((5, 6, 7))
    path = (save_npy if name.endswith("npy") else save_nifti)(tmp_path / name, volume)
    assert np.array_equal(read_volume(from_bytes(path.read_bytes())), volume)
    assert np.array_equal(read_volume(from_path(path)), volume)
    assert np.array_equal(read_volume({"bytes": path.read_bytes(), "path": "elsewhere"}), volume)


def bad_files(tmp_path):
    """Files that are no volumes by name, each with what is said about it."""
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
        "series.npy": (npy_bytes(npy, np.zeros((3, 4, 5, 1))), r"its shape is \(3, 4, 5, 1\)"),
        "nothing.npy": (npy_bytes(npy, np.zeros((3, 0, 5))), r"its shape is \(3, 0, 5\)"),
        "complex.npy": (npy_bytes(npy, np.zeros((3, 4, 5), complex)), "its dtype is complex128"),
        "text.npy": (npy_bytes(npy, np.full((3, 4, 5), "a")), "its dtype is <U1"),
        "object.npy": (npy_bytes(npy, np.full((3, 4, 5), Unpicklable())), "allow_pickle"),
    }
    npy.unlink()
    return contents


class Unpicklable:
    """Says so if it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("an .npy file was unpickled",)


def test_bad_files_are_named_with_what_is_wrong(tmp_path):
    for name, (content, message) in bad_files(tmp_path).items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"volume {path} cannot be read: .*{message}"):
            read_volume(from_path(path))
        with pytest.raises(InputError, match=rf"volume without a name cannot be read: .*{message}"):
            read_volume(from_bytes(content))
    with pytest.raises(InputError, match=f"volume {tmp_path}/missing.nii cannot be read: .*No such file"):
        read_volume(from_path(tmp_path / "missing.nii"))


@given(
    content=st.sampled_from([nifti_bytes(), gzip.compress(nifti_bytes(np.float32), mtime=0)]),
    changes=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=4),
)
@settings(max_examples=200, deadline=None)
def test_changed_bytes_end_in_a_volume_or_an_input_error(content, changes):
    content = bytearray(content)
    for position, value in changes:
        content[position] = value
    try:
        volume = read_volume(from_bytes(bytes(content)))
    except InputError:
        return
    assert volume.ndim == 3 and volume.dtype == np.float32 and np.isfinite(volume).all()


@given(
    volume=arrays.arrays(np.float32, (2, 3, 4), elements=FLOATS),
    ends=st.tuples(FLOATS, FLOATS).filter(lambda e: e[0] < e[1]),
)
@settings(max_examples=200, deadline=None)
def test_window_ends_order_and_distances(volume, ends):
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
    # (-159 + 160) / 400 * 255 = 0.64, and 127.5 goes to the even neighbour.
    assert to_uint8(volume, (-160, 240)).tolist() == [[[0, 0, 1, 128, 255, 255]]]


def test_the_widest_window_does_not_overflow():
    volume = np.array([[[-3e38, 0, 3e38]]], np.float32)
    assert to_uint8(volume, None).tolist() == [[[0, 128, 255]]]


def test_without_a_window_percentiles_are_the_ends():
    volume = np.random.default_rng(0).permutation(np.arange(1001.0)).astype(np.float32).reshape(7, 11, 13)
    # Of 0, 1, ..., 1000, the percentiles are 5 and 995.
    assert np.array_equal(to_uint8(volume, None), np.rint((volume.astype(float).clip(5, 995) - 5) / 990 * 255))


@given(FLOATS)
def test_constant_volumes_become_zero(value):
    assert not to_uint8(np.full((2, 3, 4), value, np.float32), None).any()


def test_few_voxels_above_a_constant_are_kept():
    volume = np.full((10, 10, 10), 7, np.float32)
    volume[5, 5, 5] = 9
    assert np.array_equal(to_uint8(volume, None), np.where(volume == 9, 255, 0))


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
def test_resizing_mirrors_with_the_volume(old, new, seed):
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
    """A chessboard of 16 voxels a side, whose every second voxel is one colour."""
    board = torch.from_numpy((np.indices((16, 16, 16)).sum(0) % 2 * 255).astype(np.uint8))
    assert ((resize(board, size).float() - 127.5).abs() <= 5).all()


@pytest.mark.parametrize("axis", range(3))
def test_stripes_do_not_alias_between_integer_ratios(axis):
    """Of 16 stripes, 6 new ones cover 3 or 4 each: the mean of these is 1/3, 1/2 or 2/3 of white."""
    stripes = torch.from_numpy((np.indices((16, 16, 16))[axis] % 2 * 255).astype(np.uint8))
    size = [16, 16, 16]
    size[axis] = 6
    assert set(resize(stripes, tuple(size)).unique().tolist()) <= {85, 128, 170}


@pytest.fixture
def volume_directory(tmp_path):
    """Class folders with ten volumes each, of three formats, several types and sizes."""
    for label_index, label in enumerate(("ct", "mr")):
        folder = tmp_path / "volumes" / label
        folder.mkdir(parents=True)
        for number in range(10):
            shape = (4 + number, 9, 12 - number)
            dtype = (np.int16, np.float64, np.uint8)[number % 3]
            volume = random_volume(shape, dtype, seed=10 * label_index + number)
            suffix = (".nii", ".nii.gz", ".npy", ".NII.GZ")[number % 4]
            (save_npy if suffix == ".npy" else save_nifti)(folder / f"{number}{suffix}", volume)
        (folder / "notes.txt").write_text("no volume")
    return tmp_path / "volumes"


def load(directory, **options):
    return load_volumes(DataArguments(dataset="volumes", data_dir=str(directory), data_num_proc=1, **options), seed=0)


def test_class_folders_without_a_split(volume_directory):
    data = load(volume_directory)
    assert data.column == "volume"
    assert data.label_names == ["ct", "mr"]
    assert (len(data.train), len(data.test), data.num_train, data.skipped_files) == (16, 4, 16, [])
    assert data.test["label"][:].count(0) == 2
    rows = [*data.train, *data.test]
    assert len({row["volume"]["path"] for row in rows}) == 20
    for row in rows:
        assert f"/{data.label_names[row['label']]}/" in row["volume"]["path"]


@pytest.mark.parametrize("test_folder", ["test", "validation", "val"])
def test_class_folders_with_a_split(volume_directory, tmp_path, test_folder):
    directory = tmp_path / "split"
    directory.mkdir()
    (directory / "train").symlink_to(volume_directory)
    only_mr = directory / test_folder
    only_mr.mkdir()
    (only_mr / "mr").symlink_to(volume_directory / "mr")
    data = load(directory)
    assert (len(data.train), len(data.test)) == (20, 10)
    assert data.label_names == ["ct", "mr"]
    assert set(data.test["label"]) == {1}


def test_bad_files_are_named_or_left_out_and_counted(volume_directory, tmp_path):
    good = {str(path) for path in volume_directory.glob("*/[0-9]*")}
    bad = bad_files(tmp_path)
    for name, (content, _) in bad.items():
        (volume_directory / "mr" / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"mr/broken\.nii\.gz.* and {len(bad) - 3} more.*skip_corrupt_files"):
        load(volume_directory)
    data = load(volume_directory, skip_corrupt_files=True)
    assert sorted(data.skipped_files) == sorted(str(volume_directory / "mr" / name) for name in bad)
    assert {row["volume"]["path"] for row in (*data.train, *data.test)} == good


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: path.rmdir(), "is not a directory"),
        (lambda path: None, "is empty"),
        (lambda path: (path / "ct").mkdir(), "holds no volumes in class folders"),
        (lambda path: save_npy(path / "1.npy", np.zeros((2, 2, 2))), "holds no volumes in class folders"),
    ],
)
def test_directories_without_volumes(tmp_path, make, message):
    directory = tmp_path / "volumes"
    directory.mkdir()
    make(directory)
    with pytest.raises(InputError, match=f"data_dir {directory} {message}"):
        load(directory)


def test_directory_is_needed():
    with pytest.raises(InputError, match="data_dir is not given"):
        load_volumes(DataArguments(dataset="volumes"), seed=0)


def test_test_classes_are_those_of_training(volume_directory, tmp_path):
    directory = tmp_path / "split"
    (directory / "test" / "pet").mkdir(parents=True)
    (directory / "train").symlink_to(volume_directory)
    with pytest.raises(InputError, match="pet is a class that the training data does not have"):
        load(directory)


def test_mixed_files_become_one_batch(volume_directory):
    rows = [row["volume"] for row in load(volume_directory).train]
    size, window = (4, 10, 6), (-500, 700)
    pixels = TrainingVolumes(size, window)(rows, Draws(0, 0, range(16)))
    assert pixels.shape == (16, 4, 1, 10, 6) and pixels.dtype == torch.uint8
    for row, each in zip(rows, pixels, strict=True):
        assert each[:, 0].equal(resize(torch.from_numpy(to_uint8(read_volume(row), window)), size))


@pytest.mark.parametrize("window", [None, (-500, 700)])
def test_evaluation_has_the_pixels_of_training(volume_directory, window):
    data = load(volume_directory)
    inputs = EvaluationVolumes((4, 10, 6), window, (0.4,), (0.3,))
    examples = EvaluationExamples(data.test, data.column, inputs)
    assert len(examples) == 4
    batch = examples.__getitems__([0, 1, 2, 3])
    pixels = TrainingVolumes((4, 10, 6), window)(data.test["volume"][:], Draws(0, 0, range(4)))
    for index, example in enumerate(batch):
        assert example["labels"] == data.test[index]["label"]
        assert example["pixel_values"].dtype == torch.float32
        assert torch.allclose(example["pixel_values"], (pixels[index] / 255 - 0.4) / 0.3, atol=1e-5)
        assert example["pixel_values"].equal(examples[index]["pixel_values"])


def training_examples(data, seed=0):
    augmentation = BatchAugmentation((0.5,), (0.25,), random_crop_padding=2, horizontal_flip=True)
    inputs = TrainingVolumes((4, 10, 6), (-1000, 1000))
    transform = TrainingTransform("volume", inputs, augmentation, None, seed, len(data.label_names))
    return TrainingExamples(data.train, transform)


def pixels_of(examples, indices):
    return torch.stack([row["pixel_values"] for row in examples.__getitems__(indices)])


def test_training_examples_depend_on_seed_and_epoch_alone(volume_directory):
    data = load(volume_directory)
    examples = training_examples(data)
    together = pixels_of(examples, list(range(16)))
    assert together.shape == (16, 4, 1, 10, 6) and together.dtype == torch.float32
    assert [row["labels"] for row in examples.__getitems__(list(range(16)))] == data.train["label"][:]
    assert pixels_of(examples, [9, 2, 5]).equal(together[[9, 2, 5]])
    assert pixels_of(training_examples(data), [7]).equal(together[[7]])
    assert not pixels_of(training_examples(data, seed=1), list(range(16))).equal(together)
    examples.transform.epoch = 1
    assert not pixels_of(examples, list(range(16))).equal(together)
    examples.transform.epoch = 0
    assert pixels_of(examples, list(range(16))).equal(together)


def test_augmentation_moves_all_slices_alike(volume_directory):
    """Each example is a window of the padded volume, or of its mirror image, the same one in every slice."""
    data = load(volume_directory)
    pixels = TrainingVolumes((4, 10, 6), (-1000, 1000))(data.train["volume"][:], Draws(0, 0, range(16)))
    padded = torch.nn.functional.pad(pixels, (2,) * 4)
    for example, volume in zip(pixels_of(training_examples(data), list(range(16))), padded, strict=True):
        windows = [volume[..., y : y + 10, x : x + 6] for y in range(5) for x in range(5)]
        uint8 = ((example * 0.25 + 0.5) * 255).round().to(torch.uint8)
        assert any(uint8.equal(window) or uint8.equal(window.flip(-1)) for window in windows)


def test_a_column_of_bytes_gives_what_a_column_of_paths_gives(volume_directory):
    train = load(volume_directory).train
    paths = [row["path"] for row in train["volume"]]
    content = [from_bytes(Path(path).read_bytes()) for path in paths]
    features = table_of_paths("volume", paths, train["label"][:], ["ct", "mr"]).features
    stored = datasets.Dataset.from_dict({"volume": content, "label": train["label"][:]}, features=features)
    prepare = TrainingVolumes((4, 10, 6), None)
    draws = Draws(0, 0, range(16))
    assert prepare(stored["volume"][:], draws).equal(prepare(train["volume"][:], draws))
