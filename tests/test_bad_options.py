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
from PIL import Image
from preloaded import preloaded
from tiny_run import QUIET, TINY_MODEL, as_flags

from liere_hf.configuration import (
    DataArguments,
    ModelArguments,
    RunArguments,
    build_model_config,
    parse_flags,
    parse_recipe,
)
from liere_hf.configuration.allowed_values import ALLOWED, Text
from liere_hf.configuration.prediction_options import PredictionOptions
from liere_hf.conversion import ConversionOptions
from liere_hf.errors import InputError
from liere_hf_cli.main import _parser, main

pytestmark = pytest.mark.xdist_group("preloaded")

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "liere-fashion-mnist"
# Every dataclass whose fields are flags: tests/test_option_names.py compares them with those of the commands.
DATACLASSES = (ModelArguments, DataArguments, RunArguments, ConversionOptions, PredictionOptions)
OPTIONS = {
    field.name: hint
    for kind in DATACLASSES
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
# Numbers whose allowed values depend on more than the option.
ELSEWHERE = {
    "effective_batch_size": "the number of devices",
    "generator_block_size": "head_dim",
}
# Neither numbers nor names out of a set, with what checks a value.
FREE = {
    **dict.fromkeys(
        ("output_dir", "data_dir", "train_file", "validation_file", "test_file", "predict_paths"),
        "a path, which is looked for before anything is written",
    ),
    **dict.fromkeys(("model_name_or_path", "hub_id"), "a path or a Hub id, which is looked for likewise"),
    **dict.fromkeys(("resume_from_checkpoint", "deepspeed"), "true or false, or a path that is looked for likewise"),
    **dict.fromkeys(
        ("image_column_name", "label_column_name", "group_column"), "columns, which are looked for in the data"
    ),
    **dict.fromkeys(("freeze", "train_only", "optim_target_modules"), "names, which are looked for in the model"),
    **dict.fromkeys(("label_separator", "run_name", "project", "note", "hub_revision"), "any text will do"),
    **dict.fromkeys(
        ("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "hub_token", "hub_model_id"),
        "the server knows which are allowed",
    ),
    "group_pattern": "a regular expression, which is compiled",
    "timm_model": "a model of timm, which knows its models",
    "length_column_name": "of sampling by length, which is not allowed",
    "liger_kernel_config": "of kernels that are not allowed",
    **dict.fromkeys(
        ("optim_args", "lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
        "options of what is built and tried before the run, below",
    ),
    **dict.fromkeys(("accelerator_config", "parallelism_config", "fsdp", "fsdp_config"), "accelerate checks them"),
}
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
    "log_level_replica",
    "generator_init",
    "final_layernorm",
    "class_weights",
    "problem_type",
    "include_for_metrics",
    "include_num_input_tokens_seen",
    "train_sampling_strategy",
    "dataset",
    "model_preset",
    "fit",
]


ARGUMENTS = [
    (command, action.dest)
    for group in _parser()._subparsers._group_actions
    for command, parser in group.choices.items()
    for action in parser._actions
    if action.type in (int, float)
]
# Options whose empty text would be taken for something, such as the current directory.
NOT_EMPTY = [
    *("output_dir", "data_dir", "train_file", "validation_file", "test_file", "predict_paths", "hub_id"),
    *("image_column_name", "label_column_name", "group_column", "group_pattern", "label_separator"),
]
# What comes before the option in a command that would otherwise work.
WORDS = {
    "explain": [CHECKPOINT, "."],
    "rotations": [CHECKPOINT],
    "info": [CHECKPOINT],
    "app": [CHECKPOINT],
    "benchmark": [],
}


def parse(name: str, value: str) -> object:
    """The value of an option that was given by a flag, checked as before a run."""
    if name in {field.name for field in dataclasses.fields(PredictionOptions)}:
        return getattr(parse_flags(PredictionOptions, [f"--{name}", value]), name)
    values = [value] * 3 if name in ("image_mean", "image_std") else [value]
    arguments = parse_recipe("digits", [f"--{name}", *values, "--use_cpu", "true"])
    build_model_config(arguments[0])
    return next(getattr(part, name) for part in arguments if hasattr(part, name))


def test_all_numeric_options_are_in_the_table():
    assert len(NUMERIC) > 70
    assert set(NUMERIC) - set(ALLOWED) == set(ELSEWHERE)


def test_every_other_option_has_a_rule_or_a_reason():
    """Of transformers' too: an option that a new version adds fails here until it is known what it allows."""
    switches = {name for name, hint in OPTIONS.items() if kinds(hint) <= {bool, type(None)}}
    names = {name for name, rule in ALLOWED.items() if not isinstance(rule, Text)}
    assert set(OPTIONS) - switches - set(NUMERIC) - names - set(BAD_NAMES) == set(FREE)
    # A rule of an option that is gone is a mistake in its name.
    assert set(ALLOWED) - set(OPTIONS) == {"rounds", "port"}
    assert set(BAD_NAMES) <= set(OPTIONS)


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


@pytest.mark.parametrize("name", NOT_EMPTY)
def test_empty_text(name):
    with pytest.raises(InputError, match=rf"{name} is .*''.*, allowed is text that is not empty"):
        parse(name, "")


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
        (["--optim_args", "foo"], "optim is 'adamw_torch_fused', with optim_args 'foo': "),
        (["--optim", "sgd", "--optim_args", "momentum=-1"], "with optim_args 'momentum=-1': Invalid momentum value"),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "lr_scheduler_type is 'cosine_with_min_lr', with lr_"),
        (
            ["--lr_scheduler_type", "polynomial", "--lr_scheduler_kwargs", '{"lr_end": -1}'],
            "of the steps the learning rate is -0.0",
        ),
        (
            ["--lr_scheduler_type", "polynomial", "--lr_scheduler_kwargs", '{"power": NaN}'],
            "the learning rate is nan, allowed are 0 or more",
        ),
        (
            ["--lr_scheduler_type", "polynomial", "--lr_scheduler_kwargs", '{"power": -1}'],
            "with lr_scheduler_kwargs {'power': -1}: ",
        ),
        (
            ["--gradient_checkpointing", "true", "--gradient_checkpointing_kwargs", '{"foo": 1}'],
            "gradient_checkpointing_kwargs is {'foo': 1}, allowed are options of torch.utils.checkpoint: ",
        ),
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


@pytest.mark.parametrize(("command", "argument"), ARGUMENTS)
@pytest.mark.parametrize("value", [-1, 0, 10**30])
def test_numbers_of_commands(fails, tmp_path, command, argument, value):
    Image.new("RGB", (4, 4)).save(tmp_path / "picture.png")
    error = fails(command, *WORDS[command], f"--{argument}", value)
    assert argument.removesuffix("s") in error
    assert str(value) in error
    assert "allowed" in error or "does not divide" in error


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
