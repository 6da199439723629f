"""Confidence intervals and tests against SciPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from liere_hf.reproduction.statistics import over_seeds, paired_permutation_test, two_proportion_z_test


@given(st.lists(st.floats(0, 100), min_size=2, max_size=4).filter(lambda values: np.std(values) > 1e-3))
def test_interval_over_seeds_is_students_t(values):
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    estimate = over_seeds(values)
    assert estimate == pytest.approx((np.mean(values), low, high))


@given(st.lists(st.floats(0, 100), min_size=5, max_size=9))
def test_with_many_seeds_the_interval_stays_within_the_values(values):
    estimate = over_seeds(values)
    assert estimate.mean == pytest.approx(np.mean(values))
    assert min(values) - 1e-9 <= estimate.low <= estimate.mean + 1e-9
    assert estimate.mean - 1e-9 <= estimate.high <= max(values) + 1e-9


def test_a_bootstrap_interval_covers_the_mean():
    """Nearly as often as it says: with 8 values of a normal distribution, percentiles cover 88 to 93%."""
    rng = np.random.default_rng(1)
    estimates = [over_seeds(rng.normal(50, 5, 8)) for _ in range(200)]
    assert 0.82 < np.mean([estimate.low < 50 < estimate.high for estimate in estimates]) < 0.98


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=5, max_size=8))
def test_permutation_test_counts_all_signs(pairs):
    values, reference = zip(*pairs, strict=True)
    differences = np.subtract(values, reference)
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(pairs))).reshape(len(pairs), -1)
    sums = differences @ signs
    larger, smaller = np.mean(sums >= differences.sum()), np.mean(sums <= differences.sum())
    assert paired_permutation_test(values, reference) == pytest.approx(min(1, 2 * min(larger, smaller)))


def test_one_seed_has_no_interval():
    assert over_seeds([70.0]) == (70.0, None, None)


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.data())
def test_z_test_equals_the_chi_squared_test_of_the_two_by_two_table(first, second, data):
    """Without Yates's correction, chi squared is z squared."""
    successes = data.draw(st.integers(0, first)), data.draw(st.integers(0, second))
    z, p_value = two_proportion_z_test(successes, (first, second))
    failures = (first - successes[0], second - successes[1])
    if sum(successes) == 0 or sum(failures) == 0:
        assert (z, p_value) == (0, 1)
        return
    chi_squared, expected, _, _ = stats.chi2_contingency([successes, failures], correction=False)
    assert z**2 == pytest.approx(chi_squared, rel=1e-6, abs=1e-9)
    assert p_value == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert np.sign(z) == np.sign(round(successes[0] / first - successes[1] / second, 12))
