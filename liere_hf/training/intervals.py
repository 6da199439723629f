"""95% confidence intervals."""

from collections.abc import Callable

import numpy as np

# Standard normal quantile of a two-sided interval.
Z_95 = 1.959963984540054
NUM_RESAMPLES = 1000
# Numbers that are drawn at a time, which limits memory.
_DRAWS = 1_000_000


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Interval of a proportion (Wilson, 1927), within [0, 1]."""
    proportion = successes / trials
    center = proportion + Z_95**2 / (2 * trials)
    spread = Z_95 * np.sqrt(proportion * (1 - proportion) / trials + (Z_95 / (2 * trials)) ** 2)
    scale = 1 + Z_95**2 / trials
    return float(max((center - spread) / scale, 0)), float(min((center + spread) / scale, 1))


def mean_with_interval(name: str, values: np.ndarray) -> dict[str, float]:
    """`name`, the mean of some values, and `name_low` and `name_high`, which a single value does not have."""
    mean = float(values.mean())
    if len(values) < 2:
        return {name: mean}
    spread = float(Z_95 * values.std(ddof=1) / np.sqrt(len(values)))
    return {name: mean, f"{name}_low": mean - spread, f"{name}_high": mean + spread}


def bootstrap_intervals(
    statistics: Callable[[np.ndarray], np.ndarray], counts: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap of statistics of counted examples.

    Examples in one cell are alike; where all differ, each has a cell of its own. To draw as many examples with
    replacement is to draw the counts of all cells from a multinomial distribution.

    Args:
        statistics: from counts (samples, cells) to (samples, statistics).
        counts: of the examples, (cells,), all above 0.

    Returns:
        The lower and the upper ends, each (statistics,).
    """
    generator, total = np.random.default_rng(seed), int(counts.sum())
    step = max(_DRAWS // len(counts), 1)
    samples = [
        statistics(generator.multinomial(total, counts / total, size=min(step, NUM_RESAMPLES - start)))
        for start in range(0, NUM_RESAMPLES, step)
    ]
    low, high = np.percentile(np.concatenate(samples), (2.5, 97.5), axis=0)
    return low, high
