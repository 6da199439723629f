"""What the directory of a run or of a converted model holds: names of files, recipe, checkpoints, results, curve."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
from transformers.utils import CONFIG_NAME

from .configuration import DataArguments
from .configuration.metric_names import ENDS, MEASURES_OF, measured, problem_type
from .errors import InputError
from .hub_access import hub_or_cache, is_path
from .modeling.configuration_liere_vit import LiereViTConfig
from .modeling.position_encodings import POSITION_ENCODINGS

RECIPE_FILE = "recipe.yaml"
TRAINING_FILE = "train_results.json"
METRICS_FILE = "eval_results.json"
# The final evaluation on a test split, where the data has one beside the split that chose the checkpoint.
TEST_FILE = "test_results.json"
# What the examples are, written at the first step: classes, counts, which ones were held out, and what was left out.
# Resuming the run and evaluating the model depend on it.
DATA_FILE = "training_data.json"
CONVERSION_FILE = "conversion.json"
# Evaluations at other input sizes than the training size.
OTHER_SIZES = "eval_results_*.json"
# A directory for what is being saved, until that is complete.
UNFINISHED = "unfinished"
# Options that do not change what a run computes: where it ran, and how it reported. They may change when it is
# resumed, are not published, and do not distinguish two runs.
LOCAL_OPTIONS = {
    "output_dir",
    "data_dir",
    "data_num_proc",
    "logging_dir",
    "resume_from_checkpoint",
    "predict_paths",
    "disable_tqdm",
    "report_to",
    "run_name",
    "local_rank",
}
# Options that a resumed run may also change: how long it trains, and when it logs, evaluates and saves. They change no
# step that has been made.
HARMLESS_OPTIONS = {
    *("num_train_epochs", "max_steps", "early_stopping_patience", "load_best_model_at_end"),
    *("logging_strategy", "logging_steps", "logging_first_step", "log_level", "log_level_replica", "log_on_each_node"),
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "eval_accumulation_steps", "batch_eval_metrics"),
    *("per_device_eval_batch_size", "do_train", "do_eval", "do_predict", "skip_memory_metrics", "project"),
    *("save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node"),
    *("dataloader_num_workers", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
    *("dataloader_pin_memory", "dataloader_multiprocessing_context", "torch_empty_cache_steps", "ddp_timeout"),
}
# Of a checkpoint: written by Trainer alone or with FSDP, and by DeepSpeed.
OPTIMIZER_STATES = ("optimizer*", "global_step*")
# What do_predict says of files or of the evaluation examples.
PREDICTIONS_FILE = "predictions.csv"
# The last evaluation's, a table and a figure.
CONFUSION_MATRIX = "confusion_matrix"


@dataclass(frozen=True)
class Checkpoint:
    """A saved model; `config` is its config.json."""

    directory: Path
    config: dict[str, Any]


@dataclass(frozen=True)
class Run(Checkpoint):
    """A finished run of `liere-hf train`.

    Attributes:
        recipe: every option.
        training: content of train_results.json.
        metrics: of the final evaluation, without the prefix `eval_`.
        test_metrics: of the test split beside that of `metrics`, None if there is none.
        other_sizes: what `liere-hf evaluate --input_size ...` measured, by increasing size.
    """

    recipe: dict[str, Any]
    training: dict[str, Any]
    metrics: dict[str, float]
    test_metrics: dict[str, float] | None
    other_sizes: list[dict[str, Any]]

    @property
    def published_recipe(self) -> dict[str, Any]:
        """The recipe without options and paths that only make sense on the machine where it ran."""
        recipe = {name: value for name, value in self.recipe.items() if name not in LOCAL_OPTIONS}
        source = recipe.get("model_name_or_path")
        if source and is_path(source):
            recipe["model_name_or_path"] = Path(source).name
        return without_paths(recipe)

    @property
    def input_size(self) -> list[int]:
        """Pixels per axis at which it was evaluated at the end."""
        size, num_axes = self.recipe.get("input_size"), len(pixels_per_axis(self.config, "image_size"))
        if not size:
            return pixels_per_axis(self.config, "image_size")
        return size * num_axes if len(size) == 1 else size

    @property
    def starts_from_directory(self) -> bool:
        """Whether it fine-tunes a model of the machine where it ran; a published recipe has only the model's name."""
        source = self.recipe.get("model_name_or_path")
        return bool(source) and (is_path(source) or "/" not in source)


@dataclass(frozen=True)
class Conversion(Checkpoint):
    """A model of `liere-hf convert`; `record` is the content of conversion.json."""

    record: dict[str, Any]


def encoding_title(config: dict[str, Any]) -> str:
    """What people call a model's position encoding: LieRE8 for LieRE with blocks of 8."""
    return POSITION_ENCODINGS[config["position_encoding"]].title.format(block_size=config["generator_block_size"])


def read_checkpoint(directory: Path) -> Run | Conversion:
    """Read all files of a finished run or of a converted model, except its weights.

    Raises:
        InputError: the directory holds neither, or a metric is missing.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory")
    if not (directory / CONFIG_NAME).is_file():
        raise InputError(
            f"{directory} holds no config.json: it is neither a finished run of liere-hf train nor a model of "
            "liere-hf convert"
        )
    config = read_json(directory / CONFIG_NAME)
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
        return Conversion(directory, config, read_json(directory / CONVERSION_FILE))
    for name in (RECIPE_FILE, TRAINING_FILE, METRICS_FILE):
        if not (directory / name).is_file():
            raise InputError(f"{directory} is not a finished run, it has no {name}; {how_to_resume(directory)}")
    metrics = _read_metrics(directory / METRICS_FILE, "eval_", config)
    has_test = (directory / TEST_FILE).is_file()
    test_metrics = _read_metrics(directory / TEST_FILE, "test_", config) if has_test else None
    other_sizes = [require_own_metrics(read_json(path), config, path) for path in directory.glob(OTHER_SIZES)]
    return Run(
        directory=directory,
        config=config,
        recipe=yaml.safe_load((directory / RECIPE_FILE).read_text()),
        training=read_json(directory / TRAINING_FILE),
        metrics=metrics,
        test_metrics=test_metrics,
        other_sizes=sorted(other_sizes, key=lambda metrics: metrics["input_size"]),
    )


def pixels_per_axis(config: dict[str, Any], name: str) -> list[int]:
    """`image_size` or `patch_size` of a config.json. One number stands for all axes: those of the other size, or 2."""
    value = config[name]
    if isinstance(value, list):
        return value
    other = config["patch_size" if name == "image_size" else "image_size"]
    return [value] * (len(other) if isinstance(other, list) else 2)


def recipe_options(
    model_arguments: Any, data_arguments: DataArguments, training_arguments: TrainingArguments
) -> dict[str, Any]:
    """Every option of a run that is set, as a recipe: plain data, without options for the Hub, such as its token."""
    options = {**vars(model_arguments), **vars(data_arguments)}
    options |= {name: value for name, value in training_arguments.to_dict().items() if "hub" not in name.split("_")}
    options = json.loads(json.dumps(options, default=str))
    return {name: value for name, value in options.items() if value is not None and value != []}


def training_data(name: str) -> dict[str, Any]:
    """What is known of the data that a model was trained on: its training_data.json; empty if there is none.

    Args:
        name: a directory of a run, one of its checkpoints, or a Hub id.
    """
    directory = Path(name)
    is_checkpoint = directory.is_dir() and directory.name.startswith(PREFIX_CHECKPOINT_DIR)
    path = file_of_model(str(directory.parent) if is_checkpoint else name, DATA_FILE)
    return read_json(path) if path is not None else {}


def file_of_model(name: str, file: str) -> Path | None:
    """The path of a file beside a model's weights; None where there is none, or where the Hub is out of reach.

    Args:
        name: a directory or Hub id.
    """
    if Path(name).is_dir():
        return Path(name) / file if (Path(name) / file).is_file() else None
    try:
        with hub_or_cache("model", name):
            return Path(hf_hub_download(name, file))
    except (EntryNotFoundError, OSError, InputError):
        return None


def trained_on(name: str) -> str | None:
    """The data set that a run's recipe names; None where there is no recipe.

    Args:
        name: a directory of a run, or another model.
    """
    path = Path(name) / RECIPE_FILE
    return yaml.safe_load(path.read_text()).get("dataset") if path.is_file() else None


def checkpoint_to_resume(directory: Path, resume: str | bool | None, options: dict[str, Any]) -> str | None:
    """The checkpoint from which a run continues; None for a new run.

    Args:
        directory: output directory of the run.
        resume: Trainer's `resume_from_checkpoint`: a directory, true for the last checkpoint of the run, or false.
        options: of the run, as from `recipe_options`.

    Raises:
        InputError: a new run whose directory is not empty; no checkpoint to resume from, one without optimizer
            state, or one of a run with other options.
    """
    if resume is None or str(resume).lower() == "false":
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise InputError(
                f"output_dir {directory} already holds another run or other files: choose a new one, or continue the "
                "run with --resume_from_checkpoint true"
            )
        return None
    if str(resume).lower() == "true":
        checkpoint = _last_checkpoint(directory)
        if checkpoint is None:
            raise InputError(f"output_dir {directory} holds no checkpoint to resume from")
    else:
        checkpoint = str(resume)
        if not Path(checkpoint).is_dir():
            raise InputError(f"resume_from_checkpoint {checkpoint} is not a directory")
    if not has_optimizer_state(Path(checkpoint)):
        raise InputError(f"{checkpoint} cannot be resumed: {how_to_start_from(Path(checkpoint))}")
    _require_same_options(Path(checkpoint).parent / RECIPE_FILE, options)
    _require_steps_left(Path(checkpoint), options)
    return checkpoint


def has_optimizer_state(checkpoint: Path) -> bool:
    """Whether a checkpoint has what a run needs to continue from it."""
    return any(any(checkpoint.glob(pattern)) for pattern in OPTIMIZER_STATES)


def how_to_resume(directory: Path) -> str:
    """Second half of an error message: the last checkpoint of a run, if there is one, and how to continue from it."""
    checkpoint = _last_checkpoint(directory)
    if checkpoint is None:
        return "no checkpoint was saved before"
    if not has_optimizer_state(Path(checkpoint)):
        return f"the last checkpoint is {checkpoint}, {how_to_start_from(Path(checkpoint))}"
    return f"the last checkpoint is {checkpoint}, continue from it with --resume_from_checkpoint true"


def how_to_start_from(checkpoint: Path) -> str:
    """What to do with a checkpoint that a run cannot continue from."""
    return (
        "it has no state of the optimizer, which save_only_model leaves out: start a new run with "
        f"--model_name_or_path {checkpoint}"
    )


def train_seconds(training: dict[str, Any]) -> float:
    """Seconds of training over all sessions of a run, from its train_results.json."""
    return training.get("train_seconds", training["train_runtime"])


def train_examples_seen(training: dict[str, Any]) -> float:
    """Number of training examples that a run has seen in all its sessions, from its train_results.json.

    Files that lack it have the rate of the last session.
    """
    rate = training["train_samples_per_second"]
    return training.get("train_examples_seen", training["train_runtime"] * rate)


def learning_curve(directory: Path) -> list[dict[str, float]]:
    """The number of training `examples` seen and the `accuracy` at each evaluation of a finished run."""
    state = TrainerState.load_from_json(str(directory / TRAINER_STATE_NAME))
    examples_per_step = train_examples_seen(read_json(directory / TRAINING_FILE)) / state.max_steps
    return [
        {"examples": round(entry["step"] * examples_per_step), "accuracy": entry["eval_accuracy"]}
        for entry in state.log_history
        if "eval_accuracy" in entry
    ]


def without_paths(content: Any) -> Any:
    """The same data with absolute paths replaced by their last component."""
    if isinstance(content, dict):
        return {name: without_paths(value) for name, value in content.items()}
    if isinstance(content, list):
        return [without_paths(value) for value in content]
    if isinstance(content, str) and (Path(content).is_absolute() or content.startswith("~")):
        return Path(content).name
    return content


def read_json(path: Path) -> dict[str, Any]:
    """
    Raises:
        InputError: the file cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {' '.join(str(error).split())}") from error


def _last_checkpoint(directory: Path) -> str | None:
    return get_last_checkpoint(directory) if directory.is_dir() else None


def _require_same_options(recipe_file: Path, options: dict[str, Any]) -> None:
    if not recipe_file.is_file():
        raise InputError(f"{recipe_file} is missing, so the run to resume is not one of liere-hf train")
    before = yaml.safe_load(recipe_file.read_text())
    names = sorted((before.keys() | options.keys()) - LOCAL_OPTIONS - HARMLESS_OPTIONS)
    changed = [
        f"{name} is {options.get(name)!r}, but the run to resume was started with {before.get(name)!r}"
        for name in names
        if before.get(name) != options.get(name)
    ]
    if changed:
        raise InputError("; ".join(changed))


def _require_steps_left(checkpoint: Path, options: dict[str, Any]) -> None:
    """
    Raises:
        InputError: the checkpoint has seen more steps than the run is to have.
    """
    steps = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step
    if 0 < options["max_steps"] < steps:
        raise InputError(
            f"max_steps is {options['max_steps']}, but {checkpoint} has made {steps}: allowed is {steps} or more, "
            "or -1"
        )


def _read_metrics(path: Path, prefix: str, config: dict[str, Any]) -> dict[str, Any]:
    metrics = {name.removeprefix(prefix): value for name, value in read_json(path).items()}
    return require_own_metrics(metrics, config, path)


def require_own_metrics(metrics: dict[str, Any], config: dict[str, Any], path: Path) -> dict[str, Any]:
    """As `require_metrics`, of the model itself: a file of a model for other classes or axes is refused."""
    require_metrics(metrics, config, path)
    names = {*config.get("id2label", {}).values()}
    others = [name for name in metrics.get("per_class", {}) if name not in names]
    if names and others:
        raise InputError(f"{path} has the class {others[0]!r}, which the model does not have: it is of another model")
    num_axes = len(pixels_per_axis(config, "image_size"))
    if len(metrics.get("input_size", [0] * num_axes)) != num_axes:
        raise InputError(
            f"{path} has input_size {metrics['input_size']}, the model has {num_axes} axes: it is of another model"
        )
    return metrics


def require_metrics(metrics: dict[str, Any], config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The metrics. The main one and the loss must be there, and all must be finite; one example has no interval."""
    main = MEASURES_OF[problem_type(config)][0]
    required = (main, *(main + end for end in ENDS if main == "accuracy"), "loss")
    for name in (*required, *measured(metrics)):
        value = metrics.get(name)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{path} has {name} {value!r}, a card needs a finite number there")
    return metrics
