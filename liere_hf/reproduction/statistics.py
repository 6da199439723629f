"""Intervals over seeds, and the test that the paper uses."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Estimate(NamedTuple):
    """A mean and the ends of its 95% interval, which are None for a single value."""

    mean: float
    low: float | None
    high: float | None


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean of independent runs with Student's t interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, None, None)
    spread = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return Estimate(mean, mean - spread, mean + spread)


def two_proportion_z_test(successes: tuple[int, int], trials: tuple[int, int]) -> tuple[float, float]:
    """z and two-sided p value of the hypothesis that two shares are equal, with pooled variance (the paper's test)."""
    shares = [count / total for count, total in zip(successes, trials, strict=True)]
    pooled = sum(successes) / sum(trials)
    error = math.sqrt(pooled * (1 - pooled) * sum(1 / total for total in trials))
    if error == 0:
        return 0.0, 1.0
    z = (shares[0] - shares[1]) / error
    return z, float(2 * stats.norm.sf(abs(z)))
