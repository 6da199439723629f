"""What a saved model is: parameters, FLOPs, encoding, training, results, files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedModel

from .configuration import DataArguments
from .configuration.metric_names import measured
from .data.resizing.processors import input_size as checked_input_size
from .flops import count_flops
from .hub_access import hub_or_cache
from .metric_display import measure_rows
from .model_loading import load_config, saved_class
from .modeling.configuration_liere_vit import LiereViTConfig
from .run_directory import (
    CONVERSION_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    TEST_FILE,
    TRAINING_FILE,
    encoding_title,
    file_of_model,
    read_json,
    train_seconds,
)

# Options of a recipe that say how a model was trained.
_RECIPE_OPTIONS = (
    *("dataset", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("learning_rate", "lr_scheduler_type", "model_name_or_path", "seed"),
)


def model_info(name: str, input_size: Sequence[int] | None = None) -> dict[str, Any]:
    """What is known of a model; its weights are not read.

    Args:
        name: a directory or Hub id.
        input_size: pixels at which FLOPs are counted, one value or one per axis; the training size by default.

    Returns:
        `model`, `class`, `encoding`, `architecture`, `parameters`, and `flops` of one input of `input_size`, without
        those of rotations, which are kept. As far as there are files that say so, `training`, `conversion`, `results`
        by part of the data, and `files` with their sizes in bytes.

    Raises:
        InputError: the model has no readable configuration, or patches do not divide the size.
    """
    config = load_config(name)
    size = checked_input_size(config, DataArguments(input_size=None if input_size is None else list(input_size)))
    model = _without_weights(config)
    info = {
        "model": name,
        "class": type(model).__name__,
        "encoding": encoding_title(config.to_dict()),
        "architecture": _architecture(config),
        "parameters": _parameters(model),
        "flops": {"input_size": list(size), "flops": count_flops(model, _no_pixels(config, size))},
    }
    optional = {
        "training": _training(name),
        "conversion": _json(name, CONVERSION_FILE),
        "results": _results(name),
        "files": _files(name),
    }
    return info | {key: value for key, value in optional.items() if value}


def print_info(info: dict[str, Any]) -> None:
    """One table of what `model_info` gives."""
    table = Table(show_header=False, title=escape(info["model"]))
    flops, parameters = info["flops"], info["parameters"]
    _section(table, {"class": info["class"], "position_encoding": info["encoding"]} | info["architecture"])
    _section(
        table,
        {
            "parameters": f"{parameters['all']:,}",
            "of these, of positions": f"{parameters['positions']:,}",
            f"GFLOPs of an input of {_joined(flops['input_size'])}": f"{flops['flops'] / 1e9:.3g}",
        },
    )
    _section(table, info.get("training", {}) | info.get("conversion", {}))
    for part, metrics in info.get("results", {}).items():
        _section(table, {f"{part}: {title}": value for title, value in measure_rows(metrics)})
    _section(table, {name: f"{size:,} bytes" for name, size in info.get("files", {}).items()})
    Console().print(table)


def _section(table: Table, rows: dict[str, Any]) -> None:
    for name, value in rows.items():
        text = _joined(value) if isinstance(value, list | tuple) else str(value)
        table.add_row(escape(name), escape(text))
    table.add_section()


def _joined(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _without_weights(config: LiereViTConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return saved_class(config)._from_config(config, attn_implementation="eager").eval()


def _no_pixels(config: LiereViTConfig, size: tuple[int, ...]) -> torch.Tensor:
    frames, plane = (size[:1], size[1:]) if config.num_axes >= 3 else ((), size)
    return torch.empty(1, *frames, config.num_channels, *plane, device="meta")


def _architecture(config: LiereViTConfig) -> dict[str, Any]:
    return {
        "training_size": list(config.spatial_image_size),
        "patch_size": list(config.spatial_patch_size),
        "grid_size": list(config.grid_size),
        "num_channels": config.num_channels,
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "pooling": config.pooling,
        "num_register_tokens": config.num_register_tokens,
        "num_labels": config.num_labels,
    }


def _parameters(model: PreTrainedModel) -> dict[str, int]:
    """All parameters, and those of rotations and of the table of positions."""
    positions = [
        parameter.numel()
        for name, parameter in model.named_parameters()
        if ".rotations." in f".{name}" or name.endswith("embeddings.position_embeddings")
    ]
    return {"all": model.num_parameters(), "positions": sum(positions)}


def _training(name: str) -> dict[str, Any]:
    recipe_file, training = file_of_model(name, RECIPE_FILE), _json(name, TRAINING_FILE)
    recipe = yaml.safe_load(recipe_file.read_text()) or {} if recipe_file is not None else {}
    found = {option: recipe[option] for option in _RECIPE_OPTIONS if option in recipe}
    if training:
        found["train_seconds"] = train_seconds(training)
        found["device"] = training.get("hardware", {}).get("device", "not recorded")
    return found


def _results(name: str) -> dict[str, dict[str, float]]:
    """Metrics of the final `evaluation`, and of the `test` split where there was one beside it."""
    found = {}
    for part, file, prefix in (("evaluation", METRICS_FILE, "eval_"), ("test", TEST_FILE, "test_")):
        metrics = measured({key.removeprefix(prefix): value for key, value in _json(name, file).items()})
        if metrics:
            found[part] = metrics
    return found


def _files(name: str) -> dict[str, int]:
    """Sizes of files in bytes, by name; none where the Hub is out of reach."""
    if Path(name).is_dir():
        return {path.name: path.stat().st_size for path in sorted(Path(name).iterdir()) if path.is_file()}
    try:
        with hub_or_cache("model", name):
            return {entry.path: entry.size for entry in HfApi().list_repo_tree(name) if isinstance(entry, RepoFile)}
    except (HfHubHTTPError, OSError, ValueError):
        return {}


def _json(name: str, file: str) -> dict[str, Any]:
    path = file_of_model(name, file)
    return read_json(path) if path is not None else {}
