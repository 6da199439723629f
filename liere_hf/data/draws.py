"""Random numbers for examples that do not depend on batches, workers or processes."""

from collections.abc import Sequence

import numpy as np

# The increment of splitmix64, 2**64 divided by the golden ratio.
_GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)


class Draws:
    """Uniform numbers in [0, 1) for some examples, by a counter-based generator (splitmix64).

    The numbers of an example depend only on the seed, the epoch, its index, and how many were drawn for it before.

    Args:
        seed: of the run.
        epoch: of the training.
        indices: of the examples in their data set.
    """

    def __init__(self, seed: int, epoch: int, indices: Sequence[int]):
        key = _mix(_mix(np.array(seed, np.uint64)) + np.uint64(epoch))
        self._keys = _mix(key + np.asarray(indices, np.uint64))
        self._num_drawn = 0

    def next(self, count: int) -> np.ndarray:
        """The next numbers of each example, float64 of shape (examples, count)."""
        counters = np.arange(self._num_drawn + 1, self._num_drawn + count + 1, dtype=np.uint64)
        self._num_drawn += count
        bits = _mix(self._keys[:, None] + counters * _GOLDEN_RATIO)
        return (bits >> np.uint64(11)) * 2.0**-53


def _mix(bits: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer (Steele, Lea and Flood, 2014), with its increment put in front."""
    with np.errstate(over="ignore"):
        bits = bits + _GOLDEN_RATIO
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))
