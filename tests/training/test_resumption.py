"""Runs that go on: with other options, with other data, and when all steps are done."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from selection import mostly_extensive
from tiny_run import TINY_RUN, write_recipe

from liere_hf.configuration import parse_recipe
from liere_hf.errors import InputError, TrainingInterruptedError
from liere_hf.run_directory import how_to_resume
from liere_hf.training.interruption import InterruptionCallback
from liere_hf.training.run import train

RECIPE = TINY_RUN | {"lr_scheduler_type": "constant", "max_steps": 6, "save_steps": 3}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml", RECIPE)


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> Path:
    """A run of six steps with checkpoints after three and six. Copy it before changing it."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    train(*parse_recipe(str(recipe), ["--output_dir", str(directory)]))
    return directory


@pytest.fixture
def half(finished, tmp_path) -> Path:
    """The run as it was after three steps."""
    shutil.copytree(finished / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
    for name in ("recipe.yaml", "training_data.json"):
        shutil.copy(finished / name, tmp_path / "run")
    return tmp_path / "run"


def resume(recipe: Path, directory: Path, *flags: object) -> list[dict]:
    """The log of a resumed run."""
    words = ["--output_dir", directory, "--resume_from_checkpoint", "true", *flags]
    train(*parse_recipe(str(recipe), list(map(str, words))))
    return json.loads((directory / "trainer_state.json").read_text())["log_history"]


def test_more_steps(recipe, half, tmp_path):
    """As if they had been asked for from the start, since the learning rate is constant."""
    resume(recipe, half, "--max_steps", 9)
    train(*parse_recipe(str(recipe), ["--output_dir", str(tmp_path / "whole"), "--max_steps", "9"]))
    resumed, whole = (load_file(path / "model.safetensors") for path in (half, tmp_path / "whole"))
    assert all(tensor.equal(resumed[name]) for name, tensor in whole.items())
    assert yaml.safe_load((half / "recipe.yaml").read_text())["max_steps"] == 9


@pytest.mark.extensive
def test_another_cadence_takes_effect(recipe, half):
    flags = ["--logging_steps", 1, "--eval_strategy", "steps", "--eval_steps", 2, "--save_steps", 2]
    history = resume(recipe, half, *flags, "--per_device_eval_batch_size", 3, "--dataloader_num_workers", 1)
    assert [entry["step"] for entry in history if "loss" in entry] == [4, 5, 6]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [4, 6]
    assert {path.name for path in half.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (3, 4, 6)}


def test_options_that_change_the_steps_are_named(recipe, half):
    before = sorted(half.rglob("*"))
    with pytest.raises(InputError) as caught:
        resume(recipe, half, "--learning_rate", 0.5, "--seed", 3, "--max_steps", 9, "--logging_steps", 1)
    assert str(caught.value).startswith(
        "learning_rate is 0.5, but the run to resume was started with 5e-05; seed is 3"
    )
    assert "max_steps" not in str(caught.value)
    assert sorted(half.rglob("*")) == before


def test_fewer_steps_than_made(recipe, half):
    with pytest.raises(
        InputError, match=r"max_steps is 2, but .*checkpoint-3 has made 3: allowed is 3 or more, or -1"
    ):
        resume(recipe, half, "--max_steps", 2)


@pytest.mark.parametrize("strategy", mostly_extensive(["steps", "epoch"], ["steps"]))
@pytest.mark.extensive
def test_no_step_is_made_when_all_are_done(recipe, finished, tmp_path, strategy):
    """The checkpoint of the last step, in the middle of an epoch, is there, the final model is not."""
    run = tmp_path / "run"
    flags = ["--save_strategy", strategy, "--eval_strategy", strategy, "--eval_steps", "3"]
    train(*parse_recipe(str(recipe), ["--output_dir", str(run), *flags]))
    weights, state = ((run / name).read_bytes() for name in ("model.safetensors", "trainer_state.json"))
    (run / "model.safetensors").unlink()
    last = (run / "checkpoint-6" / "optimizer.pt").stat().st_mtime_ns
    history = resume(recipe, run, *flags)
    assert (run / "model.safetensors").read_bytes() == weights
    assert (run / "checkpoint-6" / "optimizer.pt").stat().st_mtime_ns == last
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [
        entry["step"] for entry in json.loads(state)["log_history"] if "eval_loss" in entry
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train_examples", 48], "train_examples is 48, but the run to resume was started with 64"),
        (["--dataset", "arrows"], "dataset is 'arrows'"),
    ],
)
def test_other_data_by_its_options(recipe, half, flags, message):
    with pytest.raises(InputError, match=message):
        resume(recipe, half, *flags)


def test_other_data_in_another_directory(recipe, half):
    facts = json.loads((half / "training_data.json").read_text())
    assert facts["train_examples"] == 64
    assert facts["classes"] == list("0123456789")
    for change, message in (
        ({"train_examples": 63}, r"other examples than .* \(64, before 63\)"),
        ({"classes": ["a", "b"]}, "other classes than"),
        ({"digest": "0"}, "other files or labels than the run to resume was started with"),
    ):
        (half / "training_data.json").write_text(json.dumps(facts | change))
        with pytest.raises(InputError, match=f"data_dir holds {message}"):
            resume(recipe, half)


def test_a_model_alone_is_not_resumed(recipe, tmp_path, monkeypatch):
    def interrupt(callback, args, state, control, **kwargs):
        callback.interrupted = state.global_step == 0

    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(TrainingInterruptedError) as caught:
        patch.setattr(InterruptionCallback, "on_step_begin", interrupt)
        train(*parse_recipe(str(recipe), ["--output_dir", str(run), "--save_only_model", "true"]))
    assert not caught.value.can_resume
    advice = f"start a new run with --model_name_or_path {run / 'checkpoint-1'}"
    assert str(caught.value).endswith(advice)
    assert how_to_resume(run).endswith(advice)
    with pytest.raises(InputError, match=f"cannot be resumed: it has no state of the optimizer.*{advice}"):
        resume(recipe, run, "--save_only_model", "true")


@pytest.mark.extensive
def test_early_stopping_and_its_resumption(recipe, tmp_path):
    """A learning rate of almost nothing improves nothing: two evaluations after the first one end the run."""
    run = tmp_path / "run"
    flags = ["--early_stopping_patience", "2", "--learning_rate", "1e-30", "--max_steps", "20", "--eval_strategy"]
    flags += ["steps", "--eval_steps", "2", "--save_steps", "2", "--metric_for_best_model", "accuracy"]
    train(*parse_recipe(str(recipe), ["--output_dir", str(run), *flags]))
    state = json.loads((run / "trainer_state.json").read_text())
    assert state["global_step"] == 6
    assert state["best_global_step"] == 2
    assert (run / "README.md").is_file()
    (run / "model.safetensors").unlink()
    resume(recipe, run, *flags)
    assert json.loads((run / "trainer_state.json").read_text())["global_step"] == 6
    assert (run / "model.safetensors").is_file()


def test_early_stopping_needs_evaluations(recipe, tmp_path):
    with pytest.raises(InputError, match="eval_strategy is 'no', allowed are steps and epoch with early_stopping"):
        parse_recipe(str(recipe), ["--early_stopping_patience", "2"])
