"""How far encodings are from relative ones, whose scores depend on positions by their offset alone."""

import textwrap
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForImageClassification, PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..configuration import compared_encodings
from ..modeling.modeling_liere_vit import LiereViTRotations
from ..modeling.positions import grid_positions
from .experiments import CHOSEN, CHOSEN_START, STARTS, Scale, commuting_shapes
from .runner import ExperimentRunner, Setting
from .tables import table_lines

TEXT = """\
A score between a query at p and a key at q depends on R(p)^T R(q). Where generators commute, that is R(q - p), equal
for all pairs with the same offset. Measured is the rest: 1 - |mean of R(p)^T R(q)|^2 / b over the pairs of an offset,
with the squared Frobenius norm of blocks of width b, averaged over all offsets of the training grid that two or more
pairs have, over blocks, heads and layers. It is 0% for a relative encoding and at most 100%.
"""
# Shares of the training after which it is measured, and how often checkpoints are saved for that.
DURING = {0.25: "after a quarter, %", 0.5: "after half, %", 0.75: "after three quarters, %"}
SAVED = {"save_strategy": "steps", "save_steps": 0.25, "save_total_limit": 4}


def beyond_offsets(rotations: torch.Tensor, grid_size: tuple[int, ...]) -> torch.Tensor:
    """The share of R(p)^T R(q) that the offset q - p does not determine.

    Args:
        rotations: of the patches of a grid, (patches, heads, blocks, b, b).

    Returns:
        Tensor of shape (heads, blocks), 0 to 1.
    """
    places = torch.cartesian_prod(*map(torch.arange, grid_size)).reshape(len(rotations), -1)
    offsets = (places[None] - places[:, None]).flatten(0, 1)
    _, offset_of_pair, counts = offsets.unique(dim=0, return_inverse=True, return_counts=True)
    products = torch.einsum("phnji,qhnjk->pqhnik", rotations.double(), rotations.double()).flatten(0, 1)
    sums = products.new_zeros(len(counts), *products.shape[1:]).index_add_(0, offset_of_pair, products)
    means = sums[counts > 1] / counts[counts > 1].view(-1, 1, 1, 1, 1)
    return (1 - means.square().sum((-1, -2)) / rotations.shape[-1]).mean(0)


def of_model(model: PreTrainedModel) -> list[float]:
    """`beyond_offsets` of each layer at the training size, the mean of heads and blocks."""
    (module,) = (module for module in model.modules() if isinstance(module, LiereViTRotations))
    grid_size, prefix = model.config.grid_size, model.config.num_prefix_tokens
    with torch.no_grad():
        layers = module.eval()(grid_positions(grid_size, grid_size)[None], torch.float32)
    return [beyond_offsets(layer[0, prefix:], grid_size).mean().item() for layer in layers]


def measure_equivariance(scale: Scale, runner: ExperimentRunner, console: Console) -> list[dict[str, Any]]:
    """Every encoding with learned generators over its training on the task of the experiment `start`."""
    task = scale.tasks[scale["start"]]
    seed = scale.seeds_of(task)[0]
    rows = []
    for title, start, options in _settings():
        setting = Setting(task, {"start": start, "encoding": title}, options | SAVED)
        console.print(f"{title}, {start}: its model, trained now if it is not there")
        before = of_model(runner.untrained_model(setting, seed))
        directory = runner.wait_for(setting, seed)
        during = [of_model(_load(path)) for path in _checkpoints(directory)]
        rows.append(
            {
                "encoding": title,
                "start": start,
                "before": before,
                "during": during,
                "after": of_model(_load(directory)),
            }
        )
    return rows


def _load(directory: Path) -> PreTrainedModel:
    return AutoModelForImageClassification.from_pretrained(directory)


def _checkpoints(directory: Path) -> list[Path]:
    """Those that are nearest to the shares `DURING` of a training."""
    steps = {int(path.name.rpartition("-")[2]): path for path in directory.glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
    return [steps[min(steps, key=lambda step: abs(step - share * max(steps)))] for share in DURING]


def _settings() -> list[tuple[str, str, dict[str, Any]]]:
    """Title, start and options: those of the experiment `start`, then encodings that commute by their structure."""
    found = [
        (compared.title, start, compared.options | options)
        for compared in compared_encodings().values()
        if compared.encoding.has_free_generators
        for start, options in STARTS.items()
        if compared.encoding.block_size != 2 or start == "published"
    ]
    for title, options in commuting_shapes().items():
        found.append((title, CHOSEN_START, options | CHOSEN))
    return found


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown."""
    lines = ["# How far encodings are from relative ones", "", *textwrap.wrap(TEXT, 118), ""]
    header = ["encoding", "start", "before training, %", *DURING.values(), "after, %", "after, by layer"]
    body = []
    for row in rows:
        means = [_percent(sum(layers) / len(layers)) for layers in (row["before"], *row["during"], row["after"])]
        body.append([row["encoding"], row["start"], *means, ", ".join(map(_percent, row["after"]))])
    return lines + table_lines(header, body)


def _percent(share: float) -> str:
    # Rounding makes some shares negative that are zero.
    return f"{100 * max(share, 0):.1f}"
