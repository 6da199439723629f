import pytest

from liere_hf.reproduction.summary import training_saved


def test_training_saved_in_closed_form():
    """Accuracies increase linearly, one three times as fast as the other."""

    def results(encoding, rate, seed):
        curve = [{"examples": step, "accuracy": min(1.0, rate * step)} for step in range(100, 1001, 100)]
        return {"labels": {"encoding": encoding, "share of the data": "100%"}, "curve": curve}

    rates = {"absolute": 3e-4, "fast": 9e-4, "slow": 1e-4, "at once": 5e-3}
    runs = {(name, seed): results(name, rate, seed) for name, rate in rates.items() for seed in range(3)}
    runs["fast at half", 0] = {"labels": {"encoding": "fast", "share of the data": "50%"}, "curve": []}
    saved = training_saved("absolute", runs)
    assert saved["fast"] == pytest.approx((3, 3, 3))
    assert saved["slow"] is None
    # Nothing is known before the first evaluation, so no earlier point is claimed.
    assert saved["at once"].mean == 10
    assert "absolute" not in saved
