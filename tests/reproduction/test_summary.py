import pytest

from liere_hf.reproduction.experiments import EXPERIMENTS, read_scale
from liere_hf.reproduction.statistics import over_seeds
from liere_hf.reproduction.summary import Row, training_saved
from liere_hf.reproduction.tables import markdown


def row(task: str, num_seeds: int) -> Row:
    values = [90.0 + seed for seed in range(num_seeds)]
    labels, column = {"encoding": "LieRE8", "tested at": "9 x 9"}, "accuracy, %"
    return Row(task, labels, 1, [*range(num_seeds)], {column: values}, {column: over_seeds(values)}, (9, 10))


def test_the_table_says_which_task_has_which_seeds():
    experiment, scale = EXPERIMENTS["spatial"], read_scale("cpu")
    rows = [row("small", 3), row("small", 3), row("large", 1), row("huge", 1), row("many", 5)]
    assert markdown(experiment, scale, rows, "a CPU").splitlines()[-4:] == [
        "Seeds of small: 0, 1, 2. Intervals: Student's t over the seeds.",
        "Seeds of large; huge: 0. Intervals: Wilson, over the test examples.",
        "Seeds of many: 0, 1, 2, 3, 4. Intervals: bootstrap over the seeds.",
        "Measured on a CPU.",
    ]
    assert markdown(experiment, scale, rows[:2], "a CPU").splitlines()[-2:] == [
        "Seeds: 0, 1, 2. Intervals: Student's t over the seeds.",
        "Measured on a CPU.",
    ]


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
