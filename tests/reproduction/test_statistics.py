"""Confidence intervals and tests against SciPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from liere_hf.reproduction.statistics import over_seeds, two_proportion_z_test


@given(st.lists(st.floats(0, 100), min_size=2, max_size=6).filter(lambda values: np.std(values) > 1e-3))
def test_interval_over_seeds_is_students_t(values):
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    estimate = over_seeds(values)
    assert estimate == pytest.approx((np.mean(values), low, high))


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
