"""Speed and errors of the exponential of skew-symmetric matrices, against torch's exponential of general matrices."""

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
from ..modeling.exponential import skew_matrix_exp
from ..progress import tracked
from .models import checked_device
from .timing import median_ratio, ratio_with_interval, timed_in_turn

WIDTHS = (2, 4, 8, 16, 32, 64)
# 8 MiB of matrices, which is 512 of size 64: about as many as a layer of the tiny model has on a grid of 8 x 8.
NUM_ELEMENTS = 1 << 21
ERROR_WIDTHS = (8, 16, 32, 64, 96, 128)
# Spectral norms at which errors are measured: from where float32 begins to be inaccurate to the largest documented.
NORMS = (1, 10, 40, 60, 80, 100, 120, 160, 200, 250)
NUM_MATRICES_FOR_ERRORS = 8


def benchmark_exponential(device: str | None = None, rounds: int = 9) -> dict[str, Any]:
    """Time forward and backward of `skew_matrix_exp` and `torch.linalg.matrix_exp`, alternating, in float32.

    The matrices are p_1 A_1 + p_2 A_2 with generators A that start as published and p in the unit square.

    Returns:
        For each width the median seconds and the speedup with the 95% interval of its median, and the hardware.

    Raises:
        InputError: the device does not exist, or rounds is below 1.
    """
    require_allowed({"rounds": rounds})
    device = checked_device(device)
    rows = []
    for width in tracked(WIDTHS, "Exponentials"):
        raw = 2 * math.pi * torch.rand(2, NUM_ELEMENTS // width**2, width, width, device=device).triu(1)
        matrices = ((raw - raw.mT) * torch.rand(2, raw.shape[1], 1, 1, device=device)).sum(0)
        grad = torch.randn_like(matrices)
        functions = {"torch": torch.linalg.matrix_exp, "ours": skew_matrix_exp}
        steps = {
            name: functools.partial(_forward_and_backward, function, matrices, grad)
            for name, function in functions.items()
        }
        torch_times, our_times = timed_in_turn(steps, rounds, device).values()
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


def measure_errors(device: str | None = None) -> dict[str, Any]:
    """The largest errors of `skew_matrix_exp` in float32, for each width and kind of matrices, and the hardware.

    Raises:
        InputError: the device does not exist.
    """
    device = checked_device(device)
    rows = [{"width": width, **largest_errors(width, device)} for width in ERROR_WIDTHS]
    table = Table(*rows[0], title="Largest error in float32")
    for row in rows:
        table.add_row(*(f"{value:.1e}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    return {"errors": rows, "hardware": hardware()}


def largest_errors(width: int, device: torch.device) -> dict[str, float]:
    """The largest error of an entry in float32, at norms up to 250, by how the matrices are made.

    Compared with `torch.linalg.matrix_exp` in float64. Initial generators have entries uniform in [0, 1) above the
    diagonal; matrices of equal singular values are Q blockdiag([[0, 1], [-1, 0]], ...) Q^T with orthogonal Q.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_MATRICES_FOR_ERRORS, width, width)
    upper = torch.rand(shape, dtype=torch.float64, generator=generator).triu(1)
    normal = torch.randn(shape, dtype=torch.float64, generator=generator).triu(1)
    orthogonal, _ = torch.linalg.qr(torch.randn(shape, dtype=torch.float64, generator=generator))
    planes = torch.block_diag(*[torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)] * (width // 2))
    kinds = {
        "initial generators": upper - upper.mT,
        "normal entries": normal - normal.mT,
        "equal singular values": orthogonal @ planes @ orthogonal.mT,
    }
    errors = {}
    for kind, matrices in kinds.items():
        of_norm_one = matrices / torch.linalg.matrix_norm(matrices, 2)[:, None, None]
        skew = torch.cat([norm * of_norm_one for norm in NORMS]).float().to(device)
        expected = torch.linalg.matrix_exp(skew.double())
        errors[kind] = max(
            (skew_matrix_exp(some).double() - exact).abs().max().item()
            # Of one norm at a time, since matrices that are computed together share the precision.
            for some, exact in zip(skew.chunk(len(NORMS)), expected.chunk(len(NORMS)), strict=True)
        )
    return errors


def _forward_and_backward(function: Callable, matrices: torch.Tensor, grad: torch.Tensor) -> None:
    leaf = matrices.detach().requires_grad_()
    function(leaf).backward(grad)
