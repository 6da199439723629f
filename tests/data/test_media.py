"""Data for other inputs than a model takes ends in one sentence, before any file is looked for."""

import itertools

import pytest

from liere_hf import LiereViTConfig
from liere_hf.configuration import DATASETS, DataArguments
from liere_hf.data import load_evaluation, load_splits
from liere_hf.errors import InputError

SHAPES = {2: {"image_size": (8, 12), "patch_size": 4}, 3: {"image_size": (4, 8, 12), "patch_size": (2, 4, 4)}}
# (axes, channels) of the models that take the data.
TAKEN_BY = {name: {(2, 3)} for name in DATASETS} | {
    "clips": {(3, 1), (3, 3)},
    "ucf101": {(3, 3)},
    "videofolder": {(3, 3)},
    "volumes": {(3, 1), (3, 2), (3, 3)},
}
OTHERS = [
    (name, *shape)
    for name, shape in itertools.product(DATASETS, itertools.product(SHAPES, (1, 2, 3)))
    if shape not in TAKEN_BY[name]
]


@pytest.mark.parametrize("load", [load_splits, load_evaluation])
@pytest.mark.parametrize("name, num_axes, num_channels", OTHERS)
def test_data_for_other_inputs(load, name, num_axes, num_channels):
    config = LiereViTConfig(**SHAPES[num_axes], num_channels=num_channels)
    with pytest.raises(InputError) as caught:
        load(DataArguments(dataset=name), 0, config)
    if (name, num_axes) == ("clips", 3):
        assert str(caught.value) == f"num_channels is {num_channels}, clips take 1 (volumes) or 3 (videos)"
    else:
        medium = "volume" if name in ("clips", "volumes") else "video" if (3, 3) in TAKEN_BY[name] else "image"
        assert f"num_channels {num_channels}, {medium}s need {2 if medium == 'image' else 3} axes" in str(caught.value)


@pytest.mark.parametrize("name", ["arrows", "digits", "clips"])
def test_data_that_a_model_takes(name):
    """Those that need neither files nor a network."""
    for num_axes, num_channels in TAKEN_BY[name]:
        config = LiereViTConfig(**SHAPES[num_axes], num_channels=num_channels)
        arguments = DataArguments(dataset=name, train_examples=64, eval_examples=8, frame_stride=1)
        (medium,) = {(2, 3): ["image"], (3, 1): ["volume"], (3, 3): ["video"]}[num_axes, num_channels]
        assert load_splits(arguments, 0, config).column == medium


@pytest.mark.parametrize("option", ["data_dir", "hub_id"])
@pytest.mark.parametrize("name", ["arrows", "digits", "clips"])
def test_files_that_would_not_be_read(name, option):
    with pytest.raises(InputError, match=f"{option} is given, which {name} does not take: it needs no files"):
        load_splits(DataArguments(dataset=name, **{option: "organization/name"}), 0)
