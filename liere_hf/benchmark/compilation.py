"""Speed of compiled models against eager ones, with and without frozen rotations, and of two image sizes in turn."""

import functools
import itertools
import os
import statistics
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ..configuration import encoding_options
from ..configuration.allowed_values import require_allowed
from ..configuration.arguments import PRESETS
from ..hardware import hardware
from ..modeling.configuration_liere_vit import LiereViTConfig
from ..modeling.modeling_liere_vit import LiereViTForImageClassification
from ..progress import tracked
from .models import checked_device
from .timing import median_ratio, ratio_with_interval, timed_in_turn

BLOCK_SIZES = (8, 64)
BATCH_SIZES = (1, 16)
# Two layers of the base model, which compile faster than twelve.
DIMENSIONS = PRESETS["base"] | {"num_hidden_layers": 2, "image_size": 224, "patch_size": 16, "num_labels": 1000}
OTHER_SIZE = 256
# What all others are compared with.
EAGER = "eager"
# Ways to compute a forward pass, and whether they are compiled and frozen.
INFERENCE = {
    EAGER: (False, False),
    "compiled": (True, False),
    "frozen": (False, True),
    "compiled, frozen": (True, True),
}
TRAINING = {EAGER: (False, False), "compiled": (True, False)}


def benchmark_compilation(device: str | None = None, rounds: int = 9) -> dict[str, Any]:
    """Time inference and training of LieRE8 and LieRE64 at batch sizes 1 and 16, each way in turn, in float32.

    A training step is forward and backward pass. Two image sizes in turn are compared with each one repeated.

    Returns:
        For each way the median seconds, and their ratio to eager mode with the 95% interval of its median; the
        settings, the hardware and the load of the machine.

    Raises:
        InputError: the device does not exist, or rounds is below 1.
    """
    require_allowed({"rounds": rounds})
    device = checked_device(device)
    load = os.getloadavg()[0]
    rows = []
    cases = list(itertools.product(BLOCK_SIZES, BATCH_SIZES))
    for block_size, batch_size in tracked(cases, "Compilation"):
        case = {"model": f"liere{block_size}", "batch_size": batch_size}
        steps = {
            "inference": {way: _inference(block_size, batch_size, device, *how) for way, how in INFERENCE.items()},
            "training": {
                way: _training(block_size, batch_size, device, compiled) for way, (compiled, _) in TRAINING.items()
            },
            "two sizes": _two_sizes(block_size, batch_size, device),
        }
        for step, ways in steps.items():
            rows += [{**case, "step": step, **row} for row in _timed(ways, rounds, device)]
    _print(rows)
    return {
        "dimensions": DIMENSIONS,
        "rounds": rounds,
        "rows": rows,
        "threads": torch.get_num_threads(),
        "load_before": load,
        "hardware": hardware(),
    }


def _model(block_size: int, device: torch.device) -> LiereViTForImageClassification:
    torch.manual_seed(0)
    # The published start has the largest norms, which cost most.
    further = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "generator_init": "uniform"}
    config = LiereViTConfig(**DIMENSIONS | further | encoding_options("liere", block_size))
    return LiereViTForImageClassification(config).to(device).eval()


def _images(batch_size: int, device: torch.device, size: int = DIMENSIONS["image_size"]) -> torch.Tensor:
    return torch.randn(batch_size, 3, size, size, device=device)


def _inference(
    block_size: int, batch_size: int, device: torch.device, compiled: bool, frozen: bool
) -> Callable[[], None]:
    model, pixel_values = _model(block_size, device), _images(batch_size, device)
    if frozen:
        model.freeze_rotations()
    forward = torch.compile(model) if compiled else model
    return torch.no_grad()(functools.partial(forward, pixel_values))


def _training(block_size: int, batch_size: int, device: torch.device, compiled: bool) -> Callable[[], None]:
    model, pixel_values = _model(block_size, device).train(), _images(batch_size, device)
    labels = torch.zeros(batch_size, dtype=torch.long, device=device)
    forward = torch.compile(model) if compiled else model

    def step() -> None:
        forward(pixel_values, labels=labels).loss.backward()
        model.zero_grad()

    return step


def _two_sizes(block_size: int, batch_size: int, device: torch.device) -> dict[str, Callable[[], None]]:
    """Each size twice, one after the other or in turn."""
    model = _model(block_size, device)
    first, second = _images(batch_size, device), _images(batch_size, device, OTHER_SIZE)

    @torch.no_grad()
    def forward(*batches: torch.Tensor) -> None:
        for pixel_values in batches:
            model(pixel_values)

    return {
        EAGER: functools.partial(forward, first, first, second, second),
        "in turn": functools.partial(forward, first, second, first, second),
    }


def _timed(ways: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """All ways in turn, after one round that compiles and one that warms up."""
    seconds = timed_in_turn(ways, rounds, device, warm_up_rounds=2)
    return [
        {"way": way, "seconds": statistics.median(times), **median_ratio("ratio", times, seconds[EAGER])}
        for way, times in seconds.items()
    ]


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table("model", "batch size", "step", "way", "s", "ratio to eager", title="Compiled models")
    for row in rows:
        names = (row["model"], str(row["batch_size"]), row["step"], row["way"])
        table.add_row(*names, f"{row['seconds']:.4f}", ratio_with_interval(row, "ratio"))
    Console().print(table)
