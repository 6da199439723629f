import numpy as np
import pytest
import torch
from transformers import TrainingArguments, ViTImageProcessor, default_data_collator
from volume_files import load_volume_folders

from liere_hf import LiereViTConfig
from liere_hf.configuration import DataArguments
from liere_hf.data import Splits, load_splits, prepare
from liere_hf.data.augmentation.batch_augmentation import BatchAugmentation
from liere_hf.data.batching import TrainingExamples, TrainingTransform
from liere_hf.data.draws import Draws
from liere_hf.data.resizing.volumes import TrainingVolumes
from liere_hf.errors import InputError

CONFIG = LiereViTConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=(8, 12), patch_size=4
)
EVERYTHING = list(range(40))


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load_splits(DataArguments(dataset="digits", train_examples=40, eval_examples=9), seed=0)


def training(splits: Splits, seed: int = 0, **options) -> TrainingExamples:
    return prepare(splits, CONFIG, DataArguments(**options), TrainingArguments(seed=seed, use_cpu=True)).train


def pixels(examples: TrainingExamples, indices: list[int]) -> torch.Tensor:
    return torch.stack([example["pixel_values"] for example in examples.__getitems__(indices)])


def test_without_augmentation_both_equal_the_processor(digits):
    processor = ViTImageProcessor(
        size={"height": 8, "width": 12}, image_mean=(0.4914, 0.4822, 0.4465), image_std=(0.2023, 0.1994, 0.2010)
    )
    data = prepare(digits, CONFIG, DataArguments(), TrainingArguments(use_cpu=True))
    for examples, rows in ((data.train, digits.train), (data.evaluation, digits.validation)):
        assert len(examples) == len(rows)
        for index in (0, 7):
            example, row = examples[index], rows[index]
            expected = processor(row["image"].convert("RGB"), return_tensors="pt")["pixel_values"][0]
            # Training rounds resized pixels to bytes, in steps of 1/51 of the standard deviation.
            assert torch.allclose(example["pixel_values"], expected, atol=0.02)
            assert example["labels"] == row["label"]


def test_augmentation_depends_only_on_seed_epoch_and_index(digits):
    options = {"random_crop_padding": 2, "horizontal_flip": True, "rand_augment_num_ops": 2, "random_erasing": 0.5}
    examples = training(digits, **options)
    state = torch.random.get_rng_state()
    together = pixels(examples, [3, 5, 9])
    assert torch.random.get_rng_state().equal(state)
    assert together[1].equal(examples[5]["pixel_values"])

    first = pixels(examples, EVERYTHING)
    examples.transform.epoch = 1
    second = pixels(examples, EVERYTHING)
    examples.transform.epoch = 0
    assert pixels(examples, EVERYTHING).equal(first)
    for different in (second, pixels(training(digits, seed=1, **options), EVERYTHING)):
        assert (different != first).flatten(1).any(1).float().mean() > 0.9


def test_persistent_workers_see_the_next_epoch(digits):
    examples = training(digits, random_crop_padding=2)
    loader = torch.utils.data.DataLoader(examples, batch_size=8, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        examples.transform.epoch = epoch
        first, *_ = list(loader)
        assert first["pixel_values"].equal(pixels(examples, list(range(8))))


def test_mixed_labels_are_probabilities(digits):
    examples = training(digits, mixup_alpha=0.8, cutmix_alpha=1.0)
    batch = default_data_collator(examples.__getitems__(EVERYTHING[:16]))
    again = default_data_collator(examples.__getitems__(EVERYTHING[:16]))
    assert batch["labels"].shape == (16, 10)
    assert torch.allclose(batch["labels"].sum(1), torch.ones(16))
    assert batch["pixel_values"].equal(again["pixel_values"])
    plain = np.array(digits.train["label"])[:16]
    assert (batch["labels"][torch.arange(16), plain] > 0).float().mean() > 0.8


def test_labels_out_of_range_are_named(digits):
    examples = training(digits)
    examples.transform.num_labels = 4
    with pytest.raises(InputError, match=r"label [4-9] is out of range, allowed are 0 to 3"):
        examples.__getitems__(EVERYTHING)


def training_on_volumes(splits, seed=0):
    augmentation = BatchAugmentation((0.5,), (0.25,), random_crop_padding=2, horizontal_flip=True)
    to_pixels = TrainingVolumes((4, 10, 6), (-1000, 1000))
    transform = TrainingTransform("volume", to_pixels, augmentation, None, seed, len(splits.label_names))
    return TrainingExamples(splits.train, transform)


def test_volumes_depend_only_on_seed_and_epoch(volume_directory):
    data = load_volume_folders(volume_directory)
    examples = training_on_volumes(data)
    together = pixels(examples, list(range(16)))
    assert together.shape == (16, 4, 1, 10, 6) and together.dtype == torch.float32
    assert [row["labels"] for row in examples.__getitems__(list(range(16)))] == data.train["label"][:]
    assert pixels(examples, [9, 2, 5]).equal(together[[9, 2, 5]])
    assert pixels(training_on_volumes(data), [7]).equal(together[[7]])
    assert not pixels(training_on_volumes(data, seed=1), list(range(16))).equal(together)
    examples.transform.epoch = 1
    assert not pixels(examples, list(range(16))).equal(together)
    examples.transform.epoch = 0
    assert pixels(examples, list(range(16))).equal(together)


def test_augmentation_moves_all_slices_alike(volume_directory):
    """Each example is a window of the padded volume or of its mirror image, the same in every slice."""
    data = load_volume_folders(volume_directory)
    resized = TrainingVolumes((4, 10, 6), (-1000, 1000))(data.train["volume"][:], Draws(0, 0, range(16)))
    padded = torch.nn.functional.pad(resized, (2,) * 4)
    for example, volume in zip(pixels(training_on_volumes(data), list(range(16))), padded, strict=True):
        windows = [volume[..., y : y + 10, x : x + 6] for y in range(5) for x in range(5)]
        uint8 = ((example * 0.25 + 0.5) * 255).round().to(torch.uint8)
        assert any(uint8.equal(window) or uint8.equal(window.flip(-1)) for window in windows)
