"""Help for options: every option in groups, with its value in a recipe, and the recipes themselves."""

import dataclasses
import inspect
import re
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from ..modeling.configuration_liere_vit import LiereViTConfig
from .arguments import ARCHITECTURE_OPTIONS, DataArguments, ModelArguments, RunArguments, model_overrides
from .data_sets import DATASETS
from .recipe_parsing import parse_recipe, recipe_names, recipe_path

# The look of tables with many columns, which are to fit 80 characters.
COMPACT_TABLE = {
    "box": SIMPLE_HEAD,
    "show_edge": False,
    "pad_edge": False,
    "padding": (0, 1, 0, 0),
    "caption_justify": "left",
}

# Titles of groups, each with what the names of its options begin with. The first that fits.
_TRAINING_GROUPS = {
    "Length": (
        "num_train_epochs", "max_steps", "min_steps", "early_stopping", "seed", "data_seed", "full_determinism",
    ),
    "What is trained": ("freeze", "train_only", "lora_"),
    "Learning rate": (
        "learning_rate", "lr_", "warmup", "layer_learning", "head_learning", "generator_learning",
    ),
    "Batches and losses": (
        "per_device", "effective_batch", "gradient_accumulation", "auto_find", "label_", "class_weights", "balanced_",
        "max_grad",
    ),
    "Optimizer": ("optim", "weight_decay", "adam_"),
    "Evaluation and predictions": (
        "eval_", "do_", "predict_", "metric_", "greater_", "load_best", "batch_eval", "include_for", "prediction_",
    ),
    "Saving and resumption": ("save_", "resume_", "restore_", "ignore_data", "output_dir", "enable_jit"),
    "Logging": ("log", "disable_tqdm", "report_to", "run_name", "project", "trackio", "include_num", "skip_memory"),
    "The Hub": ("push_", "hub_"),
    "Reading of data": ("dataloader",),
    "Precision, speed and devices": ("",),
}  # fmt: skip
_DATA_GROUPS = {
    "Data set": ("dataset", "data_", "hub_id", "train_", "eval_examples", "eval_fraction", "skip_", "shuffle_buffer"),
    "Inputs": ("image_", "input_", "fit", "crop_", "intensity", "shuffle_patches"),
    "Augmentation": ("random_", "horizontal", "rand_", "mixup", "cutmix"),
    "Videos": ("ucf101", "frame", "eval_segments", "eval_crops"),
    "Generated data": ("arrows",),
    "Other": ("",),
}


def print_recipe_options(recipe: str, config: str | None = None, preset: str | None = None) -> None:
    """Every option of a recipe in groups, with its value there and what it means.

    Args:
        config: path of a YAML file of options that override those of the recipe.
        preset: as of `parse_recipe`.

    Raises:
        InputError: there is no such recipe, or the file does not fit.
    """
    # Recipes for fine-tuning need a model.
    arguments = parse_recipe(recipe, ["--model_name_or_path", "MODEL"] if _needs_model(recipe) else [], config, preset)
    overrides = model_overrides(arguments[0])
    values = {**vars(LiereViTConfig()), **overrides} if not _needs_model(recipe) else overrides
    console = Console()
    console.print(f"Options of the recipe {recipe}, with their values there. {_description(recipe)}", markup=False)
    of_architecture = ARCHITECTURE_OPTIONS - {"model_preset"}
    _print_group(console, "Model", _fields(ModelArguments, of_architecture, False), vars(arguments[0]))
    architecture = _fields(ModelArguments, of_architecture)
    meanings = _documented_fields()
    _print_group(console, "Architecture", [(name, meanings.get(name, "")) for name, _ in architecture], values)
    for kind, groups, part in (
        (DataArguments, _DATA_GROUPS, arguments[1]),
        (RunArguments, _TRAINING_GROUPS, arguments[2]),
    ):
        rows = _fields(kind)
        for title, beginnings in groups.items():
            chosen = [row for row in rows if row[0].startswith(beginnings)]
            rows = [row for row in rows if row not in chosen]
            _print_group(console, title, chosen, vars(part))


def print_dataclass_options(kind: type, title: str) -> None:
    """Every option that a dataclass declares, with its default and what it means."""
    defaults = {
        field.name: None if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(kind)
    }
    _print_group(Console(), title, _fields(kind), defaults)


def print_recipes() -> None:
    """The recipes, with data and model, and how long those take that are meant for a CPU."""
    table = Table(
        *(Column(title, no_wrap=True) for title in ("recipe", "data")),
        "model",
        Column("training", no_wrap=True),
        "minutes",
        **COMPACT_TABLE,
        caption="Minutes: on two CPU cores, of the recipes that are meant for them.",
    )
    for name in recipe_names():
        model_arguments, data_arguments, run_arguments = parse_recipe(
            name, ["--model_name_or_path", "MODEL"] if _needs_model(name) else []
        )
        steps, epochs = run_arguments.max_steps, run_arguments.num_train_epochs
        length = f"{steps:,} steps" if steps > 0 else f"{epochs:g} epoch{'s' if epochs != 1 else ''}"
        model = "yours" if _needs_model(name) else _model(model_arguments)
        data = DATASETS[data_arguments.dataset].title.partition(" (")[0]
        table.add_row(name, data, model, length, _minutes(name))
    Console().print(table)


def _model(arguments: Any) -> str:
    overrides = model_overrides(arguments)
    if arguments.model_preset and overrides["hidden_size"] and arguments.hidden_size is None:
        return arguments.model_preset
    return f"{overrides['num_hidden_layers']} layers of {overrides['hidden_size']}"


def _needs_model(recipe: str) -> bool:
    return 'model_name_or_path: ""' in "".join(path.read_text() for path in _with_bases(recipe))


def _with_bases(recipe: str) -> list:
    """The files of a recipe and of those that it extends."""
    paths, name = [], recipe
    while name is not None:
        paths.append(recipe_path(name))
        found = re.search(r"^extends: (\S+)", paths[-1].read_text(), re.MULTILINE)
        name = found[1] if found else None
    return paths


def _description(recipe: str) -> str:
    """The comment that a recipe begins with."""
    lines = []
    for line in recipe_path(recipe).read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


def _minutes(recipe: str) -> str:
    """As the comment of the recipe says."""
    found = re.search(r"^# Minutes on two CPU cores: (.*)$", recipe_path(recipe).read_text(), re.MULTILINE)
    return found[1] if found else ""


def _fields(kind: type, names: frozenset[str] | None = None, within: bool = True) -> list[tuple[str, str]]:
    """Names and help of the options of a dataclass, in or not in some names."""
    return [
        (field.name, field.metadata.get("help", ""))
        for field in dataclasses.fields(kind)
        if field.init and (names is None or (field.name in names) == within)
    ]


def _documented_fields() -> dict[str, str]:
    """What LiereViTConfig says of its fields."""
    text = inspect.getdoc(LiereViTConfig).partition("Args:\n")[2].partition("\nRaises:")[0]
    entries = re.findall(r"^ {4}(\w+(?:, \w+)*): (.*?)(?=^ {4}\w|\Z)", text, re.MULTILINE | re.DOTALL)
    return {name: " ".join(meaning.split()) for names, meaning in entries for name in names.split(", ")}


def _print_group(console: Console, title: str, rows: list[tuple[str, str]], values: dict[str, Any]) -> None:
    if not rows:
        return
    table = Table("option", "value", "meaning", title=title, title_justify="left", expand=True)
    table.columns[0].no_wrap = True
    table.columns[1].max_width = 30
    for name, meaning in rows:
        value = values.get(name)
        value = getattr(value, "value", value)
        shown = "" if value is None or value == [] else str(value)
        table.add_row(f"--{name}", escape(shown), escape(" ".join(meaning.replace("%%", "%").split())))
    console.print(table)
