"""What the directory of a run, or of a converted model, holds: names of files, recipe, results, learning curve."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments
from transformers.trainer_callback import TrainerState

from .configuration import DataArguments
from .errors import InputError
from .modeling.configuration_liere_vit import LiereViTConfig
from .modeling.position_encodings import POSITION_ENCODINGS

RECIPE_FILE = "recipe.yaml"
TRAINING_FILE = "train_results.json"
METRICS_FILE = "eval_results.json"
CONVERSION_FILE = "conversion.json"
# Evaluations at other input sizes than the training size.
OTHER_SIZES = "eval_results_*.json"
# Options of a recipe that say where and how visibly it ran, not what it did.
LOCAL_OPTIONS = {
    "output_dir",
    "data_dir",
    "data_num_proc",
    "logging_dir",
    "resume_from_checkpoint",
    "disable_tqdm",
    "report_to",
    "run_name",
    "local_rank",
}
METRICS = ("accuracy", "top5_accuracy", "loss")


@dataclass(frozen=True)
class Checkpoint:
    """A saved model; `config` is its config.json."""

    directory: Path
    config: dict[str, Any]


@dataclass(frozen=True)
class Run(Checkpoint):
    """A finished run of `liere-hf train`.

    `recipe` has every option, `training` how the training went, `metrics` the final evaluation (without the prefix
    `eval_`), `other_sizes` what `liere-hf evaluate --input_size ...` measured.
    """

    recipe: dict[str, Any]
    training: dict[str, Any]
    metrics: dict[str, float]
    other_sizes: list[dict[str, Any]]

    @property
    def published_recipe(self) -> dict[str, Any]:
        """The recipe without what belongs to the machine that it ran on."""
        recipe = {name: value for name, value in self.recipe.items() if name not in LOCAL_OPTIONS}
        source = recipe.get("model_name_or_path")
        if source and Path(source).exists():
            recipe["model_name_or_path"] = Path(source).name
        return without_paths(recipe)


@dataclass(frozen=True)
class Conversion(Checkpoint):
    """A model of `liere-hf convert`; `record` says from what it was made."""

    record: dict[str, Any]


def encoding_title(config: dict[str, Any]) -> str:
    """What people call a model's position encoding: LieRE8 for LieRE with blocks of 8."""
    return POSITION_ENCODINGS[config["position_encoding"]].title.format(block_size=config["generator_block_size"])


def read_checkpoint(directory: Path) -> Run | Conversion:
    """
    Raises:
        InputError: not a finished run or a converted model, or with results that lack a metric; the weights are not
            looked at.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory")
    if not (directory / "config.json").is_file():
        raise InputError(
            f"{directory} holds no config.json: it is neither a finished run of liere-hf train nor a model of "
            "liere-hf convert"
        )
    config = _read_json(directory / "config.json")
    if config.get("model_type") != LiereViTConfig.model_type:
        raise InputError(
            f"{directory} has model_type {config.get('model_type')!r}, allowed is {LiereViTConfig.model_type!r}"
        )
    if config.get("position_encoding") not in POSITION_ENCODINGS:
        raise InputError(
            f"{directory} has position_encoding {config.get('position_encoding')!r}, allowed are "
            f"{', '.join(POSITION_ENCODINGS)}"
        )
    if (directory / CONVERSION_FILE).is_file():
        return Conversion(directory, config, _read_json(directory / CONVERSION_FILE))
    for name in (RECIPE_FILE, TRAINING_FILE, METRICS_FILE):
        if not (directory / name).is_file():
            raise InputError(
                f"{directory} is not a finished run, it has no {name}; go on with it by --resume_from_checkpoint true"
            )
    evaluation = _read_json(directory / METRICS_FILE)
    return Run(
        directory=directory,
        config=config,
        recipe=yaml.safe_load((directory / RECIPE_FILE).read_text()),
        training=_read_json(directory / TRAINING_FILE),
        metrics=_require_metrics(
            {name.removeprefix("eval_"): value for name, value in evaluation.items()}, directory / METRICS_FILE
        ),
        other_sizes=sorted(
            (_require_metrics(_read_json(path), path) for path in directory.glob(OTHER_SIZES)),
            key=lambda metrics: metrics["input_size"],
        ),
    )


def recipe_options(
    model_arguments: Any, data_arguments: DataArguments, training_arguments: TrainingArguments
) -> dict[str, Any]:
    """Every option of a run that is set, as plain data that is a recipe again; without secrets and publication."""
    options = {**vars(model_arguments), **vars(data_arguments)}
    options |= {name: value for name, value in training_arguments.to_dict().items() if "hub" not in name.split("_")}
    options = json.loads(json.dumps(options, default=str))
    return {name: value for name, value in options.items() if value is not None and value != []}


def learning_curve(directory: Path) -> list[dict[str, float]]:
    """Number of training `examples` seen, and `accuracy`, at each evaluation of a finished run."""
    state = TrainerState.load_from_json(str(directory / "trainer_state.json"))
    training = _read_json(directory / TRAINING_FILE)
    examples_per_step = training["train_runtime"] * training["train_samples_per_second"] / state.max_steps
    return [
        {"examples": round(entry["step"] * examples_per_step), "accuracy": entry["eval_accuracy"]}
        for entry in state.log_history
        if "eval_accuracy" in entry
    ]


def without_paths(content: Any) -> Any:
    """Plain data with absolute paths cut to their last part."""
    if isinstance(content, dict):
        return {name: without_paths(value) for name, value in content.items()}
    if isinstance(content, list):
        return [without_paths(value) for value in content]
    if isinstance(content, str) and (Path(content).is_absolute() or content.startswith("~")):
        return Path(content).name
    return content


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {' '.join(str(error).split())}") from error


def _require_metrics(metrics: dict[str, Any], path: Path) -> dict[str, Any]:
    for name in (f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")):
        value = metrics.get(name)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{path} has {name} {value!r}, a card needs a finite number there")
    return metrics
