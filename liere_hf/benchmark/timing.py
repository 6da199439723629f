"""Timing of steps, ratios of times, and memory."""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import stats

from ..metric_display import interval_text


def elapsed(step: Callable[[], None], device: torch.device) -> float:
    """Seconds that a step takes, including its work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def timed_in_turn(
    steps: dict[str, Callable[[], None]], rounds: int, device: torch.device, warm_up_rounds: int = 1
) -> dict[str, list[float]]:
    """Seconds of each step in each round, in which all take turns. Rounds before the first do not count."""
    seconds = {name: [] for name in steps}
    for round_number in range(warm_up_rounds + rounds):
        for name, step in steps.items():
            taken = elapsed(step, device)
            if round_number >= warm_up_rounds:
                seconds[name].append(taken)
    return seconds


def peak_resident_mib() -> float:
    """The peak memory of this process in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**10 if sys.platform == "linux" else peak / 2**20


def median_ratio(name: str, times: list[float], reference: list[float]) -> dict[str, float]:
    """The median of the rounds' ratios as `name`, and its bootstrap 95% interval as `name`_low and `name`_high."""
    ratios = np.array(times) / np.array(reference)
    median = float(np.median(ratios))
    if len(set(ratios)) == 1:
        return {name: median, f"{name}_low": median, f"{name}_high": median}
    interval = stats.bootstrap((ratios,), np.median, method="percentile", rng=np.random.default_rng(0))
    low, high = map(float, interval.confidence_interval)
    return {name: median, f"{name}_low": low, f"{name}_high": high}


def ratio_with_interval(row: dict[str, Any], name: str, digits: int = 2) -> str:
    """`name` and its 95% interval, as `1.04 (1.02 to 1.07)`."""
    return interval_text(row[name], row[f"{name}_low"], row[f"{name}_high"], digits=digits)
