"""Every numeric or enumerated option: a bad value is one sentence that names it, and nothing is written."""

import dataclasses
import math
import os
import subprocess
import typing
from enum import Enum
from pathlib import Path

import pytest
import yaml
from preloaded import preloaded
from tiny_run import QUIET, TINY_MODEL, as_flags

from liere_hf.configuration import DataArguments, ModelArguments, RunArguments, build_model_config, parse_recipe
from liere_hf.configuration.allowed_values import ALLOWED
from liere_hf.conversion import ConversionOptions
from liere_hf.errors import InputError
from liere_hf_cli.main import main

pytestmark = pytest.mark.xdist_group("preloaded")

OPTIONS = {
    field.name: hint
    for kind in (ModelArguments, DataArguments, RunArguments, ConversionOptions)
    for field in dataclasses.fields(kind)
    for hint in [typing.get_type_hints(kind)[field.name]]
}


def kinds(hint: object) -> set[object]:
    """The types that an annotation names: int and None for `list[int] | None`."""
    parts = typing.get_args(hint)
    return set().union(*map(kinds, parts)) if parts else {hint}


def is_enumerated(hint: object) -> bool:
    return any(isinstance(kind, type) and issubclass(kind, Enum) for kind in kinds(hint))


NUMERIC = [name for name, hint in OPTIONS.items() if kinds(hint) & {int, float} and not kinds(hint) & {dict}]
# Values out of all numbers that are allowed, with the reason.
ACCEPTED = {
    ("max_steps", "-1"): "the default: num_train_epochs decides",
    ("local_rank", "-1"): "the default: one process",
    ("image_mean", "-1"): "intensities of volumes may be negative",
    ("intensity_window", "-1"): "likewise; it needs two",
    ("prefix_attention_bias", "-1"): "a bias has any sign",
    ("layer_scale_init_value", "-1"): "a factor has any sign",
    # Very large finite numbers have no natural limit.
    **{
        (name, "1e30"): "no natural limit"
        for name in (
            "num_train_epochs",
            "learning_rate",
            "weight_decay",
            "adam_epsilon",
            "max_grad_norm",
            "eval_delay",
            "warmup_steps",
            "logging_steps",
            "eval_steps",
            "save_steps",
            "image_mean",
            "image_std",
            "intensity_window",
            "rand_augment_magnitude_std",
            "mixup_alpha",
            "cutmix_alpha",
            "layer_scale_init_value",
            "initializer_range",
            "layer_norm_eps",
            "prefix_attention_bias",
            "generator_init_scale",
            "generator_max_frequency",
            "generator_learning_rate_factor",
            "head_learning_rate_factor",
            "pos_embed_shift",
            "pos_embed_jitter",
            "pos_embed_rescale",
        )
    },
}
BAD_NAMES = [
    *(name for name, hint in OPTIONS.items() if is_enumerated(hint)),
    "hidden_act",
    "pooler_act",
    "pooling",
    "position_encoding",
    "position_mode",
    "position_embedding_interpolation",
    "attn_implementation",
    "report_to",
    "metric_for_best_model",
    "log_level",
    "torch_compile_backend",
    "torch_compile_mode",
    "dataloader_multiprocessing_context",
    "ddp_backend",
    "include_for_metrics",
    "include_num_input_tokens_seen",
    "train_sampling_strategy",
    "dataset",
    "model_preset",
    "fit",
]


def parse(name: str, value: str) -> object:
    """The value of an option that was given by a flag, checked as before a run."""
    if name in {field.name for field in dataclasses.fields(ConversionOptions)} - set(ALLOWED):
        pytest.skip("not a number")
    values = [value] * 3 if name in ("image_mean", "image_std") else [value]
    arguments = parse_recipe("digits", [f"--{name}", *values, "--use_cpu", "true"])
    build_model_config(arguments[0])
    return next(getattr(part, name) for part in arguments if hasattr(part, name))


def test_all_numeric_options_are_in_the_table():
    assert len(NUMERIC) > 70
    elsewhere = {
        "effective_batch_size": "it depends on the number of devices",
        "generator_block_size": "it depends on head_dim",
    }
    assert set(NUMERIC) - set(ALLOWED) == set(elsewhere)


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "1e30", str(10**30)])
@pytest.mark.parametrize("name", [name for name in NUMERIC if name != "effective_batch_size"])
def test_numbers_out_of_range(name, value):
    try:
        accepted = parse(name, value)
    except InputError as error:
        assert name in str(error)
        assert "\n" not in str(error)
        # Values that argparse cannot read at all are named by it.
        assert "allowed" in str(error) or "invalid int value" in str(error)
    else:
        assert (name, value.replace(str(10**30), "1e30")) in ACCEPTED, accepted
        assert all(map(math.isfinite, accepted if isinstance(accepted, list) else [accepted]))


@pytest.mark.parametrize("name", BAD_NAMES)
def test_unknown_names(name):
    with pytest.raises(InputError, match=rf"{name}\W.*foo.*(allowed|choose from|expected one of)") as caught:
        parse(name, "foo")
    assert "\n" not in str(caught.value)


@pytest.fixture
def fails(capsys, tmp_path, monkeypatch):
    """The one sentence of a command that must fail and leave nothing in the current directory."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object, code: int = 2) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as exit_:
            main([str(word) for word in words])
        assert exit_.value.code == code
        (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("liere-hf")]
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return run


TRAIN = ["train", "digits", *as_flags(TINY_MODEL | QUIET), "--max_steps", 2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_train_epochs", -3], "num_train_epochs is -3.0, allowed is more than 0"),
        (["--max_steps", 0], "max_steps is 0, allowed is 1 or more, or -1"),
        (["--learning_rate", "nan"], "learning_rate is nan, allowed is more than 0"),
        (["--per_device_train_batch_size", 0], "per_device_train_batch_size is 0, allowed is 1 or more"),
        (["--dataloader_num_workers", -1], "dataloader_num_workers is -1, allowed is 0 to 1024"),
        (["--adam_beta1", 2], "adam_beta1 is 2.0, allowed is 0 or more and less than 1"),
        (["--seed", -1], "seed is -1, allowed is 0 to 4294967295"),
        (["--generator_init_scale", -1], "generator_init_scale is -1.0, allowed is 0 or more"),
        (["--hidden_act", "foo"], "hidden_act is 'foo', allowed are gelu, "),
        (
            ["--save_steps", 0],
            "save_steps is 0.0, allowed is a number of steps, 1 or more, or a share of them below 1",
        ),
        (["--logging_steps", 2.5], "logging_steps is 2.5, allowed is a number of steps"),
        (["--warmup_steps", -1], "warmup_steps is -1.0, allowed is a number of steps, 0 or more, or a share"),
        (["--save_total_limit", 0], "save_total_limit is 0, allowed is 1 or more"),
        (["--label_smoothing_factor", 2], "label_smoothing_factor is 2.0, allowed is 0 or more and less than 1"),
        (["--random_resized_crop", 0.5, 2], "random_resized_crop is [0.5, 2.0], allowed is 0 to 1"),
        (["--hidden_size", 10**9, "--head_dim", 8], "this machine has"),
        (["--attn_implementation", "flash_attention_3"], "attn_implementation is 'flash_attention_3': "),
        (["--optim", "galore_adamw"], "optim is 'galore_adamw': "),
        (["--optim_args", "foo"], "optim is 'adamw_torch_fused': "),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "lr_scheduler_type is 'cosine_with_min_lr', with lr_"),
        (["--accelerator_config", "missing.json"], "missing.json"),
        (["--load_best_model_at_end", "true", "--save_strategy", "steps"], "strategy"),
        (["--train_examples", 10**6], "train_examples is 1000000, the data set has 1437"),
        (["--output_dir", "/proc/run"], "output_dir is /proc/run, which cannot be written to"),
        (["--output_dir", "/dev/null/run"], "output_dir is /dev/null/run, but /dev/null is not a directory"),
        (["--output_dir", "n" * 300], "which cannot be written to (File name too long)"),
    ],
    ids=lambda value: " ".join(map(str, value))[:40] if isinstance(value, list) else "",
)
def test_a_run_that_cannot_start_leaves_nothing(fails, flags, message):
    assert message in fails(*TRAIN, *flags)


# Memory runs out after Trainer has made its directory and TensorBoard its logs.
LITTLE_MEMORY = """
import resource, sys
from transformers import TrainerCallback
from liere_hf.training import run
from liere_hf_cli.main import main


class Limit(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, -1))


build = run.build_trainer
run.build_trainer = lambda *arguments: (trainer := build(*arguments), trainer.add_callback(Limit))[0]
main(sys.argv[1:])
"""


@pytest.mark.end_to_end
def test_a_run_that_fails_in_its_first_step_leaves_nothing(tmp_path):
    words = [*TRAIN, "--image_size", 512, "--patch_size", 4, "--train_examples", 64, "--report_to", "tensorboard"]
    words += ["--output_dir", tmp_path / "runs" / "large"]
    program = [preloaded("python"), "-c", LITTLE_MEMORY, *map(str, words)]
    result = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    error = result.stderr.strip().splitlines()[-1]
    assert "the memory of cpu ran out; take a smaller per_device_train_batch_size or model; no checkpoint" in error
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("exists", [False, True])
def test_a_failed_start_does_not_block_the_next(fails, tmp_path, exists):
    if exists:
        (tmp_path / "run").mkdir()
    fails(*TRAIN, "--output_dir", "run", "--optim", "galore_adamw", "--report_to", "tensorboard")
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in [*TRAIN, "--output_dir", "run", "--max_steps", 1]])
    assert exit_.value.code == 0
    assert (tmp_path / "run" / "recipe.yaml").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "nothing", "digits", "--results_file", "/proc/results.json"],
        ["benchmark", "data", "--results_file", "/proc/results.json"],
        ["benchmark", "exponential", "--results_file", "/proc/results.json"],
    ],
)
def test_results_files_are_checked_before_the_work(fails, words):
    assert "results_file is /proc/results.json, which cannot be written to" in fails(*words)


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["demo", "--output_dir", "/proc/demo"], "output_dir"),
        (["convert", "vit", "/proc/model", "--from", "vit"], "output_dir"),
        (["benchmark", "--output_dir", "/proc/benchmark"], "output_dir"),
        (["reproduce", "rope", "--results_dir", "/proc/results"], "results_dir"),
        (["reproduce", "rope", "--work_dir", "/proc/work"], "work_dir"),
    ],
)
def test_output_directories_are_checked_before_the_work(fails, words, option):
    assert f"{option} is {words[-1] if words[0] != 'convert' else words[2]}, which cannot be written to" in fails(
        *words
    )


def test_a_directory_is_no_results_file(fails, tmp_path):
    error = fails("evaluate", "nothing", "digits", "--results_file", tmp_path)
    assert f"results_file is {tmp_path}, which is a directory" in error


@pytest.mark.parametrize("length", [1, 2, 3])
def test_recipes_that_extend_each_other(fails, tmp_path, length):
    for number in range(length):
        following = tmp_path / f"{(number + 1) % length}.yaml"
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump({"extends": str(following)}))
    error = fails("train", tmp_path / "0.yaml")
    names = " extends ".join(f"{number}.yaml" for number in range(length))
    assert f"recipe 0.yaml extends itself: {names}" in error


@pytest.mark.parametrize("base", [["cifar100"], 3, {"cifar100": None}])
def test_extends_names_one_recipe(fails, tmp_path, base):
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"extends": base}))
    assert f"has extends {base!r}, allowed is the name or the path of one recipe" in fails("train", "own.yaml")


def test_read_only_directory(fails, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("the superuser may write anywhere")
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    assert "cannot be written to (Permission denied)" in fails(*TRAIN, "--output_dir", Path("locked") / "run")
