import io

import numpy as np
import pytest
import torch
from image_files import encoded, noise, planes
from PIL import Image

from liere_hf.data.data_sets.png import encode_png
from liere_hf.data.decoding.images import check_image, decode_image, image_suffixes
from liere_hf.data.decoding.pnm import encode_pnm
from liere_hf.errors import InputError


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK"])
def test_every_mode_and_format_becomes_rgb(kind, mode):
    """As torchvision's and transformers' loaders, which drop transparency."""
    image = Image.fromarray(noise(6, 5)).convert(mode)
    try:
        row = encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    except (OSError, ValueError):
        pytest.skip(f"there is no {kind} of mode {mode}")
    expected = np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB"))
    assert decode_image(row).equal(planes(expected))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg(mode, tmp_path):
    row = encoded(Image.fromarray(noise(16, 24)).convert(mode), "JPEG")
    expected = planes(np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")))
    assert decode_image(row).equal(expected)
    path = tmp_path / "image.jpg"
    path.write_bytes(row["bytes"])
    assert decode_image({"bytes": None, "path": str(path)}).equal(expected)


def test_the_color_under_transparency_is_kept():
    """As torchvision's and transformers' loaders: `convert("RGB")`."""
    palette = Image.new("P", (2, 1))
    palette.putpalette([250, 10, 20, 30, 240, 50])
    palette.putdata([0, 1])
    row = encoded(palette, "PNG", transparency=0)
    assert Image.open(io.BytesIO(row["bytes"])).info["transparency"] == 0
    assert decode_image(row)[:, 0].T.tolist() == [[250, 10, 20], [30, 240, 50]]
    for mode, color in (("LA", (77, 0)), ("RGBA", (77, 77, 77, 0))):
        assert decode_image(encoded(Image.new(mode, (1, 1), color), "PNG")).flatten().tolist() == [77] * 3


# Grey images of more than 8 bits with the values that each may hold, and the same pixels as floats in [0, 1].
SHARES = np.array([[0, 0.2, 0.4], [0.6, 0.8, 1]])
DEEP = {
    "16-bit PNG": ("PNG", (SHARES * 65535).round().astype(np.uint16)),
    "16-bit TIFF": ("TIFF", (SHARES * 65535).round().astype(np.uint16)),
    "big-endian TIFF": ("TIFF", (SHARES * 65535).round().astype(">u2")),
    "16-bit PGM": ("PPM", (SHARES * 65535).round().astype(np.int32)),
    "int32 TIFF": ("TIFF", (SHARES * 65535).round().astype(np.int32)),
    "float TIFF": ("TIFF", SHARES.astype(np.float32)),
}


def deep(kind: str, values: np.ndarray, **options) -> dict:
    """A file of grey values of more than 8 bits; Pillow writes big-endian ones only from their bytes."""
    if values.dtype == ">u2":
        height, width = values.shape
        return encoded(Image.frombytes("I;16B", (width, height), values.tobytes()), kind, **options)
    return encoded(Image.fromarray(values), kind, **options)


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_are_scaled(name):
    kind, values = DEEP[name]
    row = deep(kind, values)
    assert Image.open(io.BytesIO(row["bytes"])).mode in ("I;16", "I;16B", "I", "F")
    pixels = decode_image(row)
    assert pixels.dtype == torch.uint8
    for plane in pixels:
        assert plane.tolist() == [[0, 51, 102], [153, 204, 255]]


def test_16_bits_are_scaled_by_their_full_range():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 257).astype(np.uint8)
    assert np.array_equal(decode_image(deep("PNG", values))[1].numpy(), expected)


@pytest.mark.parametrize(
    "values, message",
    [
        (np.array([[0, 70000]], np.int32), "32-bit integers from 0 to 70000, allowed are 0 to 65535"),
        (np.array([[-1, 7]], np.int32), "32-bit integers from -1 to 7, allowed are 0 to 65535"),
        (np.array([[0, 1.5]], np.float32), "floats from 0 to 1.5, allowed are 0 to 1"),
        (np.array([[-0.5, 1]], np.float32), "floats from -0.5 to 1, allowed are 0 to 1"),
    ],
)
def test_values_without_a_range_need_a_window(values, message):
    row = deep("TIFF", values) | {"path": "scan.tif"}
    with pytest.raises(InputError, match=rf"image scan.tif cannot be read: it has {message}: set intensity_window"):
        decode_image(row)
    window = (float(values.min()), float(values.max()))
    assert decode_image(row, window)[0].tolist() == [[0, 255]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite(value):
    with pytest.raises(InputError, match="it has values that are not finite"):
        decode_image(deep("TIFF", np.array([[0, value]], np.float32)), (0, 1))


def test_a_window_is_linear_inside_and_clips_outside():
    values = np.array([[0, 99, 100, 1124, 4196, 4197, 65535]], np.uint16)
    assert decode_image(deep("PNG", values), (100, 4196))[2].tolist() == [[0, 0, 0, 64, 255, 255, 255]]
    eight_bits = np.array([[0, 99, 255]], np.uint8)
    assert decode_image(encoded(Image.fromarray(eight_bits), "PNG"), (100, 200))[0].tolist() == [[0, 99, 255]]


@pytest.mark.parametrize(
    "kind, values", [("PNG", noise(16, 24)), *(row for row in DEEP.values() if row[0] in ("PNG", "TIFF"))]
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, values, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    row = deep(kind, values, exif=exif)
    # The table of the EXIF standard: which row and column of the stored pixels is at the upper left.
    expected = decode_image(deep(kind, values)).numpy()
    if orientation in (5, 6, 7, 8):
        expected = expected.swapaxes(1, 2)
    if orientation in (3, 4, 7, 8):
        expected = expected[:, ::-1]
    if orientation in (2, 3, 6, 7):
        expected = expected[:, :, ::-1]
    assert np.array_equal(decode_image(row).numpy(), expected)


@pytest.mark.parametrize("name", ["16-bit TIFF", "float TIFF"])
def test_negatives_become_positives(name):
    """TIFF's PhotometricInterpretation 0: the smallest value is white. Pillow turns images of 8 bits only."""
    kind, values = DEEP[name]
    for plane in decode_image(deep(kind, values, tiffinfo={262: 0})):
        assert plane.tolist() == [[255, 204, 153], [102, 51, 0]]


def test_signed_8_bit_values_are_refused():
    row = deep("TIFF", np.array([[0, 251]], np.uint8), tiffinfo={339: 2}) | {"path": "scan.tif"}
    with pytest.raises(
        InputError, match=r"image scan\.tif cannot be read: it has signed 8-bit values, allowed are uns"
    ):
        decode_image(row)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_further_frames_are_told(kind):
    """The first one is used, as by torchvision and transformers. A phone's MPO is one picture with its preview."""
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime", "blue")]
    row = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(row["bytes"])).n_frames == 3
    assert (decode_image(row)[:, 3, 3].int() - torch.tensor([255, 0, 0])).abs().max() <= 2
    told = "only the first frame or page is used: it has 3"
    assert check_image(row) == (None, None if kind == "MPO" else told)
    assert check_image(encoded(frames[0], "GIF")) == (None, None)


@pytest.mark.parametrize("name", DEEP)
def test_grey_values_that_would_be_nearly_black_are_told(name):
    """Such as those of a camera of 12 bits in files of 16."""
    kind, values = DEEP[name]
    dark = (values / 16).astype(values.dtype)
    largest = f"{dark.max():g} of {values.max():g}"
    told = f"nearly black, see intensity_window: its largest value is {largest}"
    assert check_image(deep(kind, dark)) == (None, told)
    assert check_image(deep(kind, dark), (0, float(dark.max()))) == (None, None)
    assert check_image(deep(kind, values)) == (None, None)
    assert decode_image(deep(kind, dark), (0, float(dark.max()))).max() == 255


def test_the_fault_of_an_image_is_told():
    assert check_image({"bytes": b"", "path": "a.png"}) == ("it is empty", None)
    assert check_image({"bytes": None, "path": "gone.png"}).fault.startswith("[Errno 2] No such file")


def test_images_with_too_many_pixels_are_not_called_corrupt():
    row = encoded(Image.new("1", (14000, 14000)), "PNG") | {"path": "map.png"}
    with pytest.raises(InputError, match=r"map\.png cannot be read: it has more than 178,956,970 pixels, the most"):
        decode_image(row)


def test_suffixes_are_those_of_files_that_pillow_decodes():
    suffixes = image_suffixes()
    for suffix in suffixes:
        assert suffix == suffix.lower() and suffix.startswith(".")
    assert {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".jp2", ".tga"} <= {*suffixes}
    # Videos, and what needs another library.
    assert not {".mpg", ".mpeg", ".h5", ".grib", ".emf", ".pdf", ".heic", ".jxl", ".svg"} & {*suffixes}


@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 3)])
def test_our_pnm_is_valid(shape):
    pixels = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    content = encode_pnm(pixels)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels)
    expected = planes(pixels if len(shape) == 3 else pixels[..., None].repeat(3, 2))
    assert decode_image({"bytes": content, "path": None}).equal(expected)
    assert decode_image(encoded(Image.fromarray(pixels), "PPM")).equal(expected)
    commented = content.replace(b"\n", b"\n# a comment\n", 1)
    assert decode_image({"bytes": commented, "path": None}).equal(expected)
    with pytest.raises(InputError, match="cannot be read"):
        decode_image({"bytes": content[:-1], "path": None})


@pytest.mark.parametrize(
    "content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", encode_png(np.zeros((9, 9), np.uint8))[:-30]]
)
def test_unreadable_images_are_named(tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.png cannot be read"):
        decode_image({"bytes": None, "path": str(path)})
