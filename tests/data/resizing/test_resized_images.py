import numpy as np
import pytest
import torch
from image_files import encoded, noise, planes
from PIL import Image

from liere_hf import LiereViTConfig
from liere_hf.configuration import DataArguments
from liere_hf.data.decoding.images import decode_image
from liere_hf.data.draws import Draws
from liere_hf.data.resizing.images import TrainingImages
from liere_hf.data.resizing.processors import build_processor

CONFIG = LiereViTConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=(8, 12), patch_size=4
)


@pytest.mark.parametrize("fit", ["resize", "crop", "pad"])
@pytest.mark.parametrize("height, width", [(8, 12), (20, 17), (5, 30), (4, 6)])
def test_training_without_random_crop_equals_the_processor(fit, height, width):
    arguments = DataArguments(fit=fit, crop_fraction=1.0)
    row = encoded(Image.fromarray(noise(height, width)), "PNG")
    trained = TrainingImages((8, 12), fit)([row], Draws(0, 0, [0]))[0]
    processor = build_processor("image", CONFIG, arguments)
    evaluated = processor([decode_image(row)], return_tensors="pt", do_normalize=False)["pixel_values"][0] * 255
    assert trained.shape == (3, 8, 12)
    assert torch.allclose(trained.float(), evaluated, atol=1.01)


def test_padding_centers_small_images():
    pixels = noise(28, 28)
    trained = TrainingImages((32, 32), "pad")([encoded(Image.fromarray(pixels), "PNG")], Draws(0, 0, [0]))[0]
    assert trained[:, 2:30, 2:30].equal(planes(pixels))
    assert trained.sum() == planes(pixels).long().sum()


def test_random_resized_crops_are_crops_of_the_image():
    ramp = np.stack([*np.meshgrid(np.arange(64), np.arange(48)), np.zeros((48, 64))], -1).astype(np.uint8)
    rows = [encoded(Image.fromarray(ramp), "PNG")] * 200
    crops = TrainingImages((8, 12), "crop", (0.1, 0.5))(rows, Draws(0, 0, range(200))).float()
    slope = (crops[:, 0, :, -1] - crops[:, 0, :, 0]).mean(1) / 11
    # A crop of 10% to 50% of the area, from 64 columns to 12.
    assert 0.8 < slope.min() < slope.max() < 5.4
    assert crops[:, 0, 0, 0].std() > 5
