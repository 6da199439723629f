import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor

from liere_hf import LiereViTConfig
from liere_hf.configuration import DataArguments
from liere_hf.data.loading import load_data
from liere_hf.data.transforms import TransformedImages, build_augmentation, build_image_processor, to_rgb
from liere_hf.errors import InputError

CONFIG = LiereViTConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=(8, 12), patch_size=4
)


@pytest.fixture(scope="module")
def digits():
    return load_data(DataArguments(dataset="digits", train_examples=40), seed=0).train


def transformed(digits, seed=0, **options):
    arguments = DataArguments(**options)
    processor, augmentation = build_image_processor(CONFIG, arguments), build_augmentation(CONFIG, arguments)
    return TransformedImages(digits, processor, augmentation, seed)


def test_without_augmentation_it_is_the_processor(digits):
    images = transformed(digits)
    processor = ViTImageProcessor(
        size={"height": 8, "width": 12}, image_mean=(0.4914, 0.4822, 0.4465), image_std=(0.2023, 0.1994, 0.2010)
    )
    for index in (0, 7):
        row = images[index]
        expected = processor(digits[index]["image"].convert("RGB"), return_tensors="pt")["pixel_values"][0]
        assert row["pixel_values"].equal(expected)
        assert row["labels"] == digits[index]["label"]
    assert len(images) == 40


def test_augmentation_depends_on_seed_epoch_and_index_alone(digits):
    images = transformed(digits, random_crop_padding=2, horizontal_flip=True)
    state = torch.random.get_rng_state()
    together = images.__getitems__([3, 5, 9])
    torch.rand(7)
    alone = images[5]["pixel_values"]
    assert together[1]["pixel_values"].equal(alone)
    torch.random.set_rng_state(state)
    images[5]
    assert torch.random.get_rng_state().equal(state)

    everything = list(range(40))
    first = torch.stack([row["pixel_values"] for row in images.__getitems__(everything)])
    images.set_epoch(1)
    second = torch.stack([row["pixel_values"] for row in images.__getitems__(everything)])
    images.set_epoch(0)
    again = torch.stack([row["pixel_values"] for row in images.__getitems__(everything)])
    other_seed = transformed(digits, seed=1, random_crop_padding=2, horizontal_flip=True)
    other = torch.stack([row["pixel_values"] for row in other_seed.__getitems__(everything)])
    assert again.equal(first)
    for different in (second, other):
        assert (different != first).flatten(1).any(1).float().mean() > 0.7


def test_workers_see_the_epoch(digits):
    images = transformed(digits, random_crop_padding=2)
    loader = torch.utils.data.DataLoader(images, batch_size=8, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        images.set_epoch(epoch)
        (first, *_) = list(loader)
        expected = torch.stack([row["pixel_values"] for row in images.__getitems__(list(range(8)))])
        assert first["pixel_values"].equal(expected)


def test_random_crop_is_a_window_of_the_padded_image(digits):
    arguments = DataArguments(random_crop_padding=2)
    image = torch.arange(1, 8 * 12 + 1, dtype=torch.uint8).reshape(1, 8, 12)
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
    windows = {
        padded[:, row : row + 8, column : column + 12].numpy().tobytes() for row in range(5) for column in range(5)
    }
    crops = {build_augmentation(CONFIG, arguments)(image).numpy().tobytes() for _ in range(100)}
    assert crops <= windows
    assert len(crops) > 10


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA"])
def test_every_mode_becomes_rgb(mode):
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(6, 5, 3), dtype=np.uint8)).convert(mode)
    expected = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)
    assert to_rgb(image).equal(expected)


def test_a_checkpoint_keeps_its_normalization(tmp_path):
    ViTImageProcessor(image_mean=(0.1, 0.2, 0.3), size={"height": 99, "width": 99}).save_pretrained(tmp_path)
    processor = build_image_processor(CONFIG, DataArguments(), str(tmp_path))
    assert tuple(processor.image_mean) == (0.1, 0.2, 0.3)
    assert processor.size == {"height": 8, "width": 12}
    processor = build_image_processor(CONFIG, DataArguments(), str(tmp_path / "none"))
    assert tuple(processor.image_mean) == (0.4914, 0.4822, 0.4465)


def test_models_for_other_inputs():
    config = LiereViTConfig(image_size=(4, 8, 8), patch_size=(2, 4, 4))
    with pytest.raises(InputError, match="training needs two axes and three channels"):
        build_image_processor(config, DataArguments())
