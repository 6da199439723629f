import numpy as np
import pytest
import torch
from transformers import TrainingArguments, ViTImageProcessor, default_data_collator

from liere_hf import LiereViTConfig
from liere_hf.configuration import DataArguments
from liere_hf.data import Splits, load_splits, prepare
from liere_hf.data.batching import TrainingExamples
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


def test_without_augmentation_both_are_the_processor(digits):
    processor = ViTImageProcessor(
        size={"height": 8, "width": 12}, image_mean=(0.4914, 0.4822, 0.4465), image_std=(0.2023, 0.1994, 0.2010)
    )
    data = prepare(digits, CONFIG, DataArguments(), TrainingArguments(use_cpu=True))
    for examples, rows in ((data.train, digits.train), (data.evaluation, digits.test)):
        assert len(examples) == len(rows)
        for index in (0, 7):
            example, row = examples[index], rows[index]
            expected = processor(row["image"].convert("RGB"), return_tensors="pt")["pixel_values"][0]
            # Training rounds resized pixels to a byte, a 51st of the deviation.
            assert torch.allclose(example["pixel_values"], expected, atol=0.02)
            assert example["labels"] == row["label"]


def test_augmentation_depends_on_seed_epoch_and_index_alone(digits):
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


def test_workers_that_outlive_an_epoch_see_the_next_one(digits):
    examples = training(digits, random_crop_padding=2)
    loader = torch.utils.data.DataLoader(examples, batch_size=8, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        examples.transform.epoch = epoch
        first, *_ = list(loader)
        assert first["pixel_values"].equal(pixels(examples, list(range(8))))


def test_mixed_labels_are_shares(digits):
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
