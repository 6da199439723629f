import io

import numpy as np
import pytest
from image_files import encoded, noise, planes
from PIL import Image

from liere_hf.data.data_sets.png import encode_png
from liere_hf.data.decoding.images import decode_image
from liere_hf.data.decoding.pnm import encode_pnm
from liere_hf.errors import InputError


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "I;16"])
def test_every_mode_and_format_becomes_rgb(kind, mode):
    image = Image.fromarray(noise(6, 5)).convert(mode.replace("I;16", "L")).convert(mode)
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


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    row = encoded(Image.fromarray(noise(16, 24)), "PNG", exif=exif)
    assert decode_image(row).shape == (3, 24, 16)


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
