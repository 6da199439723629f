"""Speed of the exponential of skew-symmetric matrices, against torch's exponential of general matrices."""

import functools
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..configuration.allowed_values import require_allowed
from ..hardware import hardware
from ..modeling.exponential import skew_matrix_exp
from .models import checked_device
from .timing import elapsed, median_ratio, ratio_with_interval

WIDTHS = (2, 4, 8, 16, 32, 64)
# 8 MiB of matrices, which is 512 of size 64: about as many as a layer of the tiny model has on a grid of 8 x 8.
NUM_ELEMENTS = 1 << 21


def benchmark_exponential(device: str | None = None, rounds: int = 9) -> dict[str, Any]:
    """Time forward and backward of `skew_matrix_exp` and `torch.linalg.matrix_exp`, alternating, in float32.

    The matrices are p_1 A_1 + p_2 A_2 with generators A as in a new model and p uniform in the unit square.

    Returns:
        For each width the median seconds and the speedup with the 95% interval of its median, and the hardware.

    Raises:
        InputError: the device does not exist, or rounds is below 1.
    """
    require_allowed({"rounds": rounds})
    device = checked_device(device)
    rows = []
    for width in track(WIDTHS, description="Exponentials"):
        raw = 2 * math.pi * torch.rand(2, NUM_ELEMENTS // width**2, width, width, device=device).triu(1)
        matrices = ((raw - raw.mT) * torch.rand(2, raw.shape[1], 1, 1, device=device)).sum(0)
        grad = torch.randn_like(matrices)
        seconds = {torch.linalg.matrix_exp: [], skew_matrix_exp: []}
        for round_number in range(rounds + 1):
            for function, times in seconds.items():
                taken = elapsed(functools.partial(_forward_and_backward, function, matrices, grad), device)
                if round_number:
                    times.append(taken)
        torch_times, our_times = seconds.values()
        rows.append(
            {
                "width": width,
                "matrices": len(matrices),
                "torch_seconds": statistics.median(torch_times),
                "seconds": statistics.median(our_times),
                **median_ratio("speedup", torch_times, our_times),
            }
        )
    table = Table("width", "matrices", "torch, s", "ours, s", "times faster", title="Exponential and gradient")
    for row in rows:
        seconds = (f"{row[key]:.4f}" for key in ("torch_seconds", "seconds"))
        table.add_row(
            str(row["width"]), f"{row['matrices']:,}", *seconds, ratio_with_interval(row, "speedup", digits=1)
        )
    Console().print(table)
    return {"widths": rows, "rounds": rounds, "threads": torch.get_num_threads(), "hardware": hardware()}


def _forward_and_backward(function: Callable, matrices: torch.Tensor, grad: torch.Tensor) -> None:
    leaf = matrices.detach().requires_grad_()
    function(leaf).backward(grad)
