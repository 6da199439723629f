import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from transformers import ViTImageProcessor

from liere_hf import LiereViTConfig
from liere_hf.configuration import DataArguments
from liere_hf.data.data_sets.png import encode_png
from liere_hf.data.decoding.images import decode_image
from liere_hf.data.decoding.pnm import encode_pnm
from liere_hf.data.draws import Draws
from liere_hf.data.resizing.images import TrainingImages
from liere_hf.data.resizing.processors import build_processor, input_size
from liere_hf.errors import InputError

CONFIG = LiereViTConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=(8, 12), patch_size=4
)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def planes(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


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


def test_photographs_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    row = encoded(Image.fromarray(noise(16, 24)), "PNG", exif=exif)
    assert decode_image(row).shape == (3, 24, 16)


@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 3)])
def test_our_pnm_is_a_pnm(shape):
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


@pytest.mark.parametrize("fit", ["resize", "crop", "pad"])
@pytest.mark.parametrize("height, width", [(8, 12), (20, 17), (5, 30), (4, 6)])
def test_without_random_crop_training_sees_what_the_processor_gives(fit, height, width):
    arguments = DataArguments(fit=fit, crop_fraction=1.0)
    row = encoded(Image.fromarray(noise(height, width)), "PNG")
    trained = TrainingImages((8, 12), fit)([row], Draws(0, 0, [0]))[0]
    processor = build_processor("image", CONFIG, arguments)
    evaluated = processor([decode_image(row)], return_tensors="pt", do_normalize=False)["pixel_values"][0] * 255
    assert trained.shape == (3, 8, 12)
    assert torch.allclose(trained.float(), evaluated, atol=1.01)


def test_padding_centres_small_images():
    pixels = noise(28, 28)
    trained = TrainingImages((32, 32), "pad")([encoded(Image.fromarray(pixels), "PNG")], Draws(0, 0, [0]))[0]
    assert trained[:, 2:30, 2:30].equal(planes(pixels))
    assert trained.sum() == planes(pixels).long().sum()


def test_random_resized_crops_are_crops_of_the_image():
    ramp = np.stack([*np.meshgrid(np.arange(64), np.arange(48)), np.zeros((48, 64))], -1).astype(np.uint8)
    rows = [encoded(Image.fromarray(ramp), "PNG")] * 200
    crops = TrainingImages((8, 12), "crop", (0.1, 0.5))(rows, Draws(0, 0, range(200))).float()
    slope = (crops[:, 0, :, -1] - crops[:, 0, :, 0]).mean(1) / 11
    # A crop of a tenth to half of the 64 columns' area, on 12 columns.
    assert 0.8 < slope.min() < slope.max() < 5.4
    assert crops[:, 0, 0, 0].std() > 5


def test_a_checkpoint_keeps_its_normalization(tmp_path):
    ViTImageProcessor(image_mean=(0.1, 0.2, 0.3), size={"height": 99, "width": 99}).save_pretrained(tmp_path)
    processor = build_processor("image", CONFIG, DataArguments(), str(tmp_path))
    assert tuple(processor.image_mean) == (0.1, 0.2, 0.3)
    assert processor.size == {"height": 8, "width": 12}
    processor = build_processor("image", CONFIG, DataArguments(), str(tmp_path / "none"))
    assert tuple(processor.image_mean) == (0.4914, 0.4822, 0.4465)


def test_evaluation_crops_the_middle():
    config = LiereViTConfig(image_size=224, patch_size=16)
    processor = build_processor("image", config, DataArguments(fit="crop"))
    pixels = planes(noise(300, 400))
    ours = processor([pixels], return_tensors="pt", do_normalize=False)["pixel_values"][0]
    expected = v2.functional.center_crop(v2.functional.resize(pixels, 256), [224, 224]) / 255
    assert torch.allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize(
    "size, message",
    [([7, 12], "which patch_size 4 does not divide"), ([8, 8, 8], "the model has 2 axes"), ([0], "does not divide")],
)
def test_input_sizes_that_do_not_fit(size, message):
    with pytest.raises(InputError, match=message):
        input_size(CONFIG, DataArguments(input_size=size))


def test_input_size():
    assert input_size(CONFIG, DataArguments()) == (8, 12)
    assert input_size(CONFIG, DataArguments(input_size=[16])) == (16, 16)
    assert input_size(CONFIG, DataArguments(input_size=[16, 24])) == (16, 24)


@pytest.mark.parametrize("column", ["image", "video", "volume"])
def test_models_for_other_inputs(column):
    config = LiereViTConfig(image_size=(4, 8, 8), patch_size=(2, 4, 4), num_channels=2)
    with pytest.raises(InputError, match=f"{column}s need . axes and . channel"):
        build_processor(column, config, DataArguments())
