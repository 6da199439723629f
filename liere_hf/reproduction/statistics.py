"""Intervals over seeds, and tests between methods."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

# With fewer seeds, a bootstrap is too narrow, and the smallest p value of a permutation test above 0.06.
MANY_SEEDS = 5


class Estimate(NamedTuple):
    """A mean and the ends of its 95% interval, which are None for a single value."""

    mean: float
    low: float | None
    high: float | None


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean of independent runs, with Student's t interval or, from `MANY_SEEDS` runs, a bootstrap interval.

    The latter, of percentiles, stays within the range of the values: accuracies within 0 and 100%.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, None, None)
    if len(values) >= MANY_SEEDS:
        random_state = np.random.default_rng(0)
        found = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=9999, random_state=random_state)
        return Estimate(mean, float(found.confidence_interval.low), float(found.confidence_interval.high))
    spread = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return Estimate(mean, mean - spread, mean + spread)


def paired_permutation_test(values: Sequence[float], reference: Sequence[float]) -> float:
    """Two-sided p value of the hypothesis that two methods differ by chance, from runs with the same seeds.

    Exact, over all signs of the differences.
    """
    differences = np.subtract(values, reference)
    found = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    return float(found.pvalue)


def two_proportion_z_test(successes: tuple[int, int], trials: tuple[int, int]) -> tuple[float, float]:
    """z and two-sided p value of the hypothesis that two shares are equal, with pooled variance (the paper's test)."""
    shares = [count / total for count, total in zip(successes, trials, strict=True)]
    pooled = sum(successes) / sum(trials)
    error = math.sqrt(pooled * (1 - pooled) * sum(1 / total for total in trials))
    if error == 0:
        return 0.0, 1.0
    z = (shares[0] - shares[1]) / error
    return z, float(2 * stats.norm.sf(abs(z)))
