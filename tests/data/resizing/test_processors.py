import pytest
import torch
from image_files import noise, planes
from torchvision.transforms import v2
from transformers import ViTImageProcessor

from liere_hf import LiereViTConfig
from liere_hf.configuration import DataArguments
from liere_hf.data.resizing.processors import build_processor, input_size
from liere_hf.errors import InputError

CONFIG = LiereViTConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=(8, 12), patch_size=4
)


def test_a_checkpoint_keeps_its_normalization(tmp_path):
    ViTImageProcessor(image_mean=(0.1, 0.2, 0.3), size={"height": 99, "width": 99}).save_pretrained(tmp_path)
    processor = build_processor("image", CONFIG, DataArguments(), str(tmp_path))
    assert tuple(processor.image_mean) == (0.1, 0.2, 0.3)
    assert processor.size == {"height": 8, "width": 12}
    processor = build_processor("image", CONFIG, DataArguments(), str(tmp_path / "none"))
    assert tuple(processor.image_mean) == (0.4914, 0.4822, 0.4465)


def test_evaluation_takes_the_center_crop():
    config = LiereViTConfig(image_size=224, patch_size=16)
    processor = build_processor("image", config, DataArguments(fit="crop"))
    pixels = planes(noise(300, 400))
    ours = processor([pixels], return_tensors="pt", do_normalize=False)["pixel_values"][0]
    expected = v2.functional.center_crop(v2.functional.resize(pixels, 256), [224, 224]) / 255
    assert torch.allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize(
    "size, message",
    [
        ([7, 12], "which patch_size 4 does not divide"),
        ([8, 8, 8], "the model has 2 axes"),
        ([0], "allowed is 1 or more"),
    ],
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
    if column == "volume":
        # Volumes have any number of channels.
        assert build_processor(column, config, DataArguments(image_mean=[0.5, 0.4], image_std=[1, 1]))
        config = LiereViTConfig(image_size=(8, 8), patch_size=(4, 4), num_channels=2)
    with pytest.raises(InputError, match=f"{column}s need . axes"):
        build_processor(column, config, DataArguments())
