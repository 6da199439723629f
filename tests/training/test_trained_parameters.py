"""What is trained and how fast: frozen parameters, learning rates by depth, LoRA, and epochs of little data."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_run import TINY_RUN, write_recipe
from transformers import AutoModelForImageClassification

from liere_hf.configuration import RunArguments, parse_recipe
from liere_hf.data.augmentation.batch_augmentation import BatchAugmentation
from liere_hf.data.draws import Draws
from liere_hf.errors import InputError
from liere_hf.model_loading import build_model
from liere_hf.training.optimizer import learning_rate_factors
from liere_hf.training.run import train
from liere_hf.training.trained_parameters import choose_trained_parameters
from liere_hf.training.trainer import LiereTrainer

RECIPE = TINY_RUN | {"num_hidden_layers": 3, "learning_rate": 0.01, "max_steps": 4, "save_strategy": "no"}
LABELS = list("0123456789")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml", RECIPE)


@pytest.fixture(scope="module")
def pretrained(recipe, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("pretrained") / "run"
    train(*parse_recipe(str(recipe), ["--output_dir", str(directory)]))
    return directory


def arguments_of(recipe: Path, *flags: object):
    return parse_recipe(str(recipe), list(map(str, flags)))


@pytest.mark.parametrize(
    ("flags", "is_trained"),
    [
        pytest.param(
            ["--train_only", "classifier"], lambda name: name.startswith("classifier."), marks=pytest.mark.extensive
        ),
        (["--train_only", "classifier", "rotations"], lambda name: "classifier." in name or ".rotations." in name),
        pytest.param(
            ["--freeze", "liere_vit"], lambda name: name.startswith("classifier."), marks=pytest.mark.extensive
        ),
        (
            ["--freeze", "embeddings", "layers.[01]"],
            lambda name: not any(part in name for part in ("embed", ".0.", ".1.")),
        ),
        pytest.param(
            ["--freeze", "generators"], lambda name: not name.endswith(".generators"), marks=pytest.mark.extensive
        ),
        pytest.param(["--freeze", "*.bias"], lambda name: not name.endswith(".bias"), marks=pytest.mark.extensive),
    ],
)
def test_frozen_parameters_do_not_move(recipe, pretrained, tmp_path, flags, is_trained):
    flags = [*flags, "--model_name_or_path", pretrained, "--weight_decay", 0.1, "--max_steps", 2]
    train(*arguments_of(recipe, "--output_dir", tmp_path / "run", *flags))
    before, after = (load_file(path / "model.safetensors") for path in (pretrained, tmp_path / "run"))
    assert {name for name in before if not before[name].equal(after[name])} == set(filter(is_trained, before))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--freeze", "layer"], "freeze has 'layer', allowed are names of parameters or parts: bias, classifier"),
        (["--train_only", "head"], "train_only has 'head', allowed are names of parameters or parts"),
        (["--freeze", "*"], "freeze is ['*'], which leaves nothing to train"),
        (["--freeze", "classifier", "--lora_rank", 2], "freeze and lora_rank are set, allowed is one of them"),
        (["--lora_rank", 0], "lora_rank is 0, allowed is 1 or more"),
        (["--layer_learning_rate_decay", 2], "layer_learning_rate_decay is 2.0, allowed is more than 0 and at most 1"),
        (["--head_learning_rate_factor", -1], "head_learning_rate_factor is -1.0, allowed is 0 or more"),
        (["--min_steps", 0], "min_steps is 0, allowed is 1 or more"),
    ],
)
def test_bad_choices(recipe, tmp_path, flags, message):
    with pytest.raises(InputError) as caught:
        train(*arguments_of(recipe, "--output_dir", tmp_path / "run", *flags))
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_learning_rates_fall_from_layer_to_layer(recipe, tmp_path, lora_rank):
    flags = ["--layer_learning_rate_decay", 0.5, "--head_learning_rate_factor", 3]
    flags += ["--generator_learning_rate_factor", 7, *(["--lora_rank", lora_rank] if lora_rank else [])]
    model_arguments, _, run_arguments = arguments_of(recipe, "--output_dir", tmp_path, *flags)
    model = choose_trained_parameters(build_model(model_arguments, LABELS), run_arguments)
    trainer = LiereTrainer(model=model, args=run_arguments)
    optimizer = trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(each)]: group["lr"] for group in optimizer.param_groups for each in group["params"]}
    assert rates.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = {"embeddings": 2**-4, "layers.0.": 2**-3, "layers.1.": 2**-2, "layers.2.": 2**-1}
    expected |= {"liere_vit.layernorm.": 2**-1, "classifier": 3, "rotations": 7}
    for part, factor in expected.items():
        chosen = {name: rate for name, rate in rates.items() if part in name}
        assert chosen or (lora_rank and part in ("embeddings", "liere_vit.layernorm.")), part
        assert all(rate == pytest.approx(0.01 * factor) for rate in chosen.values()), chosen


def test_without_factors_the_groups_are_those_of_trainer(recipe, tmp_path):
    model_arguments, _, run_arguments = arguments_of(recipe, "--output_dir", tmp_path)
    model = build_model(model_arguments, LABELS)
    assert set(learning_rate_factors(model, run_arguments).values()) == {1.0}
    assert len(LiereTrainer(model=model, args=run_arguments).create_optimizer().param_groups) == 2


def test_lora_trains_little_and_saves_a_plain_model(recipe, pretrained, tmp_path):
    """Weights change by a matrix of the rank; rotations and classifier are trained whole; the rest stays."""
    pytest.importorskip("peft")
    run = tmp_path / "run"
    flags = ["--lora_rank", 2, "--model_name_or_path", pretrained, "--save_strategy", "steps", "--save_steps", 2]
    train(*arguments_of(recipe, "--output_dir", run, *flags))
    before, after = (load_file(path / "model.safetensors") for path in (pretrained, run))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        change = after[name] - weight
        if name.endswith((".q_proj.weight", ".fc1.weight", ".o_proj.weight")):
            assert torch.linalg.matrix_rank(change, atol=1e-5) == 2, name
        elif "classifier" in name or "rotations" in name:
            assert change.abs().max() > 0, name
        elif name.endswith(("layernorm_before.weight", "cls_token", "fc1.bias")):
            assert change.abs().max() == 0, name
    model = AutoModelForImageClassification.from_pretrained(run)
    assert type(model).__name__ == "LiereViTForImageClassification"
    assert (run / "checkpoint-2" / "adapter_model.safetensors").is_file()
    weights = (run / "model.safetensors").read_bytes()
    for path in run.glob("checkpoint-4"):
        path.rename(tmp_path / "later")
    train(*arguments_of(recipe, "--output_dir", run, *flags, "--resume_from_checkpoint", "true"))
    assert (run / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("examples", "min_steps", "steps"),
    [
        (64, 3, 8),
        (20, 9, 10),
        *(pytest.param(*case, marks=pytest.mark.extensive) for case in ((64, 9, 12), (64, 12, 12), (5, 7, 7))),
    ],
)
def test_little_data_takes_more_epochs(recipe, tmp_path, examples, min_steps, steps):
    """Two epochs of 64 examples in batches of 16 are 8 steps; epochs stay whole."""
    flags = ["--train_examples", examples, "--min_steps", min_steps, "--num_train_epochs", 2, "--max_steps", -1]
    train(*arguments_of(recipe, "--output_dir", tmp_path / "run", *flags))
    state = yaml.safe_load((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["global_step"] == steps


@pytest.mark.parametrize(("size", "padding", "pixels"), [(224, 0.07, 16), (28, 0.1, 3), (28, 3, 3), (8, 0.01, 0)])
def test_padding_is_pixels_or_a_share(size, padding, pixels):
    """A white picture shows as much black as the crop is off."""
    augmentation = BatchAugmentation((0.0,), (1.0,), random_crop_padding=padding)
    white = torch.full((200, 1, size, size), 255, dtype=torch.uint8)
    cropped = augmentation(white, Draws(0, 0, range(200)))[:, 0]
    black = (cropped.amax(2) == 0).sum(1)
    assert int(black.max()) == pixels


def test_recipes_scale_with_the_data():
    for name in ("imagefolder", "imagefolder_finetune", "clips_finetune"):
        _, data_arguments, run_arguments = parse_recipe(name, ["--model_name_or_path", "some/model"])
        assert isinstance(run_arguments, RunArguments)
        assert 0 < run_arguments.warmup_steps < 1, name
        assert data_arguments.random_crop_padding < 1, name
