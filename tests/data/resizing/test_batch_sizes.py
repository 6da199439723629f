import numpy as np
import pytest
import torch
from media_files import load_folder, write_files
from transformers import TrainingArguments

from liere_hf import LiereViTConfig
from liere_hf.configuration import DataArguments
from liere_hf.data import Splits, load_splits, prepare
from liere_hf.data.batching import TrainingExamples
from liere_hf.errors import InputError

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
IMAGES = LiereViTConfig(**SMALL, image_size=(8, 12), patch_size=4)
CLIPS = LiereViTConfig(**SMALL, image_size=(2, 8, 8), patch_size=(2, 4, 4))
BATCHES = [list(range(start, start + 4)) for start in range(0, 40, 4)]


def examples_of(medium: str, directory, **options) -> TrainingExamples:
    if medium == "image":
        config, splits = IMAGES, load_splits(DataArguments(dataset="digits", train_examples=40), seed=0)
    else:
        config, options = CLIPS, options | {"frame_stride": 1}
        files = [f"train/{name}/{number}" for name in "ab" for number in range(25)]
        splits = load_folder(write_files(directory, "videofolder", files), "videofolder")
    return prepare(splits, config, DataArguments(**options), TrainingArguments(use_cpu=True)).train


def batches(examples: TrainingExamples, epoch: int = 0) -> list[torch.Tensor]:
    examples.transform.epoch = epoch
    return [torch.stack([row["pixel_values"] for row in examples.__getitems__(batch)]) for batch in BATCHES]


@pytest.mark.parametrize("medium", ["image", "video"])
def test_every_batch_has_one_of_the_sizes_and_the_pixels_of_that_size(medium, tmp_path):
    sides = [4, 8, 16]
    found = batches(examples_of(medium, tmp_path, train_input_sizes=sides))
    alone = {side: batches(examples_of(medium, tmp_path, train_input_sizes=[side, side])) for side in sides}
    assert {batch.shape[-1] for batch in found} == set(sides)
    for number, batch in enumerate(found):
        side = batch.shape[-1]
        assert batch.shape[-2:] == (side, side)
        assert batch.shape[1:-2] == ((3,) if medium == "image" else (2, 3))
        assert batch.equal(alone[side][number])


def test_sizes_depend_on_seed_epoch_and_index_and_are_about_equally_frequent(tmp_path):
    examples = examples_of("image", tmp_path, train_input_sizes=[4, 8])
    sizes = [[batch.shape[-1] for batch in batches(examples, epoch)] for epoch in (*range(20), 0)]
    assert sizes[0] == sizes[-1] != sizes[1]
    assert 0.35 < np.mean(np.array(sizes[:-1]) == 4) < 0.65


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ([8, 10], r"train_input_sizes is \[8, 10\], which patch_size 4 does not divide"),
        ([0], r"train_input_sizes is \[0\], allowed is 1 or more"),
    ],
)
def test_sizes_that_do_not_fit(sides, message, tmp_path):
    with pytest.raises(InputError, match=message):
        examples_of("image", tmp_path, train_input_sizes=sides)


def test_sizes_of_a_training_do_not_matter_to_an_evaluation():
    """A recipe's options are also those of an evaluation, of models with other patches."""
    rows = load_splits(DataArguments(dataset="digits", eval_examples=4), seed=0).validation
    arguments = DataArguments(train_input_sizes=[6], random_resized_crop=[0.5, 1.0])
    data = prepare(Splits.of(validation=rows), IMAGES, arguments, TrainingArguments(use_cpu=True))
    assert (data.train, data.evaluation[0]["pixel_values"].shape) == (None, (3, 8, 12))


def test_volumes_have_one_size(tmp_path):
    config = LiereViTConfig(**SMALL, image_size=(4, 8, 8), patch_size=4, num_channels=1)
    splits = load_folder(write_files(tmp_path, "volumes", ["train/a/1", "train/b/2", "val/a/3", "val/b/4"]), "volumes")
    arguments = DataArguments(train_input_sizes=[8], image_mean=[0.5], image_std=[0.5])
    with pytest.raises(InputError, match=r"volumes take neither .* nor train_input_sizes"):
        prepare(splits, config, arguments, TrainingArguments(use_cpu=True))
