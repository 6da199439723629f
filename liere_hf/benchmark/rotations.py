"""What parts of the rotations' code are worth on a CPU, each against the general way."""

import functools
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ..configuration.allowed_values import require_allowed
from ..hardware import hardware
from ..modeling.exponential import exponentials
from ..modeling.rotary_application import apply_rotations, rotate_queries_and_keys
from ..progress import tracked
from .timing import median_ratio, ratio_with_interval, timed_in_turn

# The attention of the tiny model at CIFAR size.
BATCH_SIZE, SIDE, NUM_HEADS, HEAD_DIM = 64, 8, 6, 64
MULTIPLES = "multiples of a point share products"
MERGED = "small blocks are merged"
COMPLEX = "planes are turned by complex numbers"
# Parts and the widths of blocks for which each is measured.
PARTS = ((MULTIPLES, 8), (MULTIPLES, 64), (MERGED, 4), (MERGED, 8), (COMPLEX, 2))


def benchmark_rotations(rounds: int = 9) -> dict[str, Any]:
    """Time forward and backward pass with each part and without it, alternating, in float32.

    Exponentials are those of one layer, on a grid and at as many points of which none is a multiple of another.
    Queries and keys are rotated block by block instead.

    Returns:
        For each part the median seconds with it and without, the speedup with the 95% interval of its median, and the
        hardware.

    Raises:
        InputError: rounds is below 1.
    """
    require_allowed({"rounds": rounds})
    rows = []
    for part, width in tracked(PARTS, "Rotations"):
        ways = _exponentials(width) if part == MULTIPLES else _applications(width)
        seconds = timed_in_turn(ways, rounds, torch.device("cpu"))
        medians = {f"seconds_{way}": statistics.median(times) for way, times in seconds.items()}
        speedup = median_ratio("speedup", seconds["without"], seconds["with"])
        rows.append({"part": part, "width": width, **medians, **speedup})
    table = Table("part", "width of blocks", "with, s", "without, s", "times faster")
    for row in rows:
        times = (f"{row[f'seconds_{way}']:.4f}" for way in ("with", "without"))
        table.add_row(row["part"], str(row["width"]), *times, ratio_with_interval(row, "speedup"))
    Console().print(table)
    return {"parts": rows, "rounds": rounds, "threads": torch.get_num_threads(), "hardware": hardware()}


def _exponentials(width: int) -> dict[str, Callable[[], None]]:
    points, bases = _points(), _bases(width).requires_grad_()
    others = points + 1e-3 * torch.rand_like(points)
    return {
        way: functools.partial(_forward_and_backward, exponentials, chosen, bases)
        for way, chosen in (("with", points), ("without", others))
    }


def _applications(width: int) -> dict[str, Callable[[], None]]:
    with torch.no_grad():
        rotations = exponentials(_points(), _bases(width)).unflatten(1, (NUM_HEADS, -1))[None]
    rotations.requires_grad_()
    query, key = torch.randn(2, BATCH_SIZE, SIDE**2, NUM_HEADS, HEAD_DIM, requires_grad=True)
    return {
        "with": functools.partial(_forward_and_backward, rotate_queries_and_keys, query, key, rotations),
        "without": functools.partial(_forward_and_backward, _rotate_by_blocks, query, key, rotations),
    }


def _rotate_by_blocks(*states_and_rotations: torch.Tensor) -> tuple[torch.Tensor, ...]:
    *states, rotations = states_and_rotations
    return tuple(apply_rotations(each, rotations) for each in states)


def _forward_and_backward(function: Callable[..., Any], *inputs: torch.Tensor) -> None:
    results = function(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    torch.autograd.grad(results, [each for each in inputs if each.requires_grad], [*map(torch.ones_like, results)])


def _points() -> torch.Tensor:
    axis = torch.linspace(0, 1, SIDE)
    return torch.cartesian_prod(axis, axis)


def _bases(width: int) -> torch.Tensor:
    """Of generators that start as published, with two axes."""
    upper = (2 * math.pi * torch.rand(2, NUM_HEADS * HEAD_DIM // width, width, width)).triu(1)
    return upper - upper.mT
