import pytest

from liere_hf.reproduction.experiments import EXPERIMENTS, read_scale
from liere_hf.reproduction.statistics import over_seeds
from liere_hf.reproduction.summary import Row, curves_by_encoding, paired_differences, training_saved
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


def test_differences_are_of_pairs_with_equal_seeds_and_labels():
    """Five pairs that all differ in one direction have p = 2 / 2^5, whatever the spread between seeds."""

    def row(encoding, start, values, seeds=(0, 1, 2, 3, 4)):
        labels = {"start": start, "encoding": encoding}
        values = {"accuracy, %": values}
        return Row("task", labels, 1, [*seeds], values, {"accuracy, %": over_seeds(values["accuracy, %"])}, (1, 2))

    base = [50.0, 60.0, 70.0, 80.0, 90.0]
    rows = [
        row("RoPE-Mixed", "published", base),
        row("LieRE8", "published", [value + 1 for value in base]),
        row("LieRE64", "published", base[::-1]),
        row("LieRE8", "planar", base),
        row("LieRE8", "published", base, seeds=(5, 6, 7, 8, 9)),
    ]
    better, mixed = paired_differences("RoPE-Mixed", rows)
    assert (better.labels, mixed.labels) == (rows[1].labels, rows[2].labels)
    assert better.estimates["accuracy, %"] == pytest.approx((1, 1, 1))
    assert better.p_values["accuracy, %"] == 2 / 2**5
    assert mixed.estimates["accuracy, %"].mean == 0
    assert mixed.p_values["accuracy, %"] == 1


def test_curves_are_those_with_several_points():
    curve = [{"examples": 100, "accuracy": 0.3}, {"examples": 200, "accuracy": 0.6}]
    results = {
        (str(number), seed): {"labels": {"start": start, "encoding": "LieRE8"}, "curve": curve[:length]}
        for number, (start, length) in enumerate([("published", 2), ("planar", 2), ("planar", 1)])
        for seed in range(3)
    }
    assert curves_by_encoding("start", results) == {"LieRE8": {"published": [curve] * 3, "planar": [curve] * 3}}
