"""Table rows from the results of runs: means over seeds with intervals, and the paper's results."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .curves import Curve, examples_to_reach
from .experiments import Experiment, Measure, Scale, accuracy_of
from .runner import Setting
from .statistics import MANY_SEEDS, Estimate, over_seeds, paired_permutation_test, two_proportion_z_test

Results = dict[tuple[str, int], dict[str, Any]]
ENCODING = "encoding"


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        values: one value per seed, by column.
        estimates: their means, by column.
        counts: correct test examples of all seeds, and all of them.
        p_values: of the comparison with the reference's row, by column. With few seeds, only of the first column, by
            `counts`.
    """

    task: str
    labels: dict[str, str]
    num_parameters: int
    seeds: list[int]
    values: dict[str, list[float]]
    estimates: dict[str, Estimate]
    counts: tuple[int, int]
    x: float | None = None
    paper: float | None = None
    p_values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PairedDifference:
    """How an encoding differs from another one, in pairs of runs with equal seeds.

    Attributes:
        labels: of the encoding.
        estimates: of the differences, by column.
        p_values: of the exact permutation test, by column.
    """

    task: str
    labels: dict[str, str]
    estimates: dict[str, Estimate]
    p_values: dict[str, float]


def summarize(experiment: Experiment, scale: Scale, results: Results) -> list[Row]:
    """Rows in the order of the settings."""
    rows = []
    for setting in experiment.settings(scale):
        runs = [results[setting.name, seed] for seed in scale.seeds_of(setting.task)]
        if not experiment.by_evaluation:
            rows.append(_row(experiment, setting, runs, "training"))
            continue
        for name, title in {"training": setting.evaluated, **{name: name for name in setting.evaluations}}.items():
            labels = dict(zip(experiment.by_evaluation, title.split(", "), strict=True))
            rows.append(_row(experiment, setting, runs, name, labels))
    return [_with_p_values(experiment, row, rows) for row in rows]


def _row(
    experiment: Experiment, setting: Setting, runs: list[dict[str, Any]], evaluation: str, labels: Any = None
) -> Row:
    measures = (Measure("accuracy, %", accuracy_of(evaluation)),) if labels else experiment.measures
    measured = {measure: [measure.of_run(run) for run in runs] for measure in measures}
    measured = {measure: each for measure, each in measured.items() if None not in each}
    values = {measure.title: each for measure, each in measured.items()}
    estimates = {
        measure.title: _within_bounds(over_seeds(each)) if measure.is_proportion else over_seeds(each)
        for measure, each in measured.items()
    }
    metrics = [run["metrics"][evaluation] for run in runs]
    first = next(iter(estimates))
    if len(runs) == 1:
        # With one seed, the interval is over the test examples, not over seeds.
        low, high = (100 * metrics[0][f"accuracy_{end}"] for end in ("low", "high"))
        estimates[first] = Estimate(estimates[first].mean, low, high)
    trials = [_num_examples(each) for each in metrics]
    successes = [round(each["accuracy"] * total) for each, total in zip(metrics, trials, strict=True)]
    return Row(
        task=setting.task.title,
        labels=setting.labels | (labels or {}),
        num_parameters=runs[0]["num_parameters"],
        seeds=[run["seed"] for run in runs],
        values=values,
        estimates=estimates,
        counts=(sum(successes), sum(trials)),
        x=setting.x,
        paper=setting.paper if evaluation == "training" else None,
    )


def _within_bounds(estimate: Estimate) -> Estimate:
    """An estimate of a share in per cent, its interval cut at 0 and 100."""
    low, high = (None if end is None else min(max(end, 0.0), 100.0) for end in (estimate.low, estimate.high))
    return Estimate(estimate.mean, low, high)


def _num_examples(metrics: dict[str, float]) -> int:
    if "examples" in metrics:
        return metrics["examples"]
    return round(metrics["runtime"] * metrics["samples_per_second"])


def _with_p_values(experiment: Experiment, row: Row, rows: list[Row]) -> Row:
    first = next(iter(row.labels))
    if experiment.reference is None or row.labels[first] == experiment.reference:
        return row
    for other in rows:
        same = {**row.labels, first: experiment.reference}
        if other.task == row.task and other.labels == same:
            return replace(row, p_values=_p_values(row, other))
    return row


def _p_values(row: Row, reference: Row) -> dict[str, float]:
    if len(row.seeds) >= MANY_SEEDS and row.seeds == reference.seeds:
        columns = [name for name in row.values if name in reference.values]
        return {name: paired_permutation_test(row.values[name], reference.values[name]) for name in columns}
    successes, trials = zip(row.counts, reference.counts, strict=True)
    return {next(iter(row.values)): two_proportion_z_test(successes, trials)[1]}


def paired_differences(baseline: str, rows: list[Row]) -> list[PairedDifference]:
    """Of each encoding to the one with the title `baseline` that is otherwise equal, in the order of the rows.

    Only from `MANY_SEEDS` pairs on.
    """
    found = []
    for row in (row for row in rows if len(row.seeds) >= MANY_SEEDS):
        sought = (row.task, {**row.labels, ENCODING: baseline}, row.seeds)
        for other in rows:
            if other is not row and (other.task, other.labels, other.seeds) == sought:
                pairs = {name: (row.values[name], other.values[name]) for name in row.values if name in other.values}
                estimates = {name: over_seeds(np.subtract(*pair)) for name, pair in pairs.items()}
                p_values = {name: paired_permutation_test(*pair) for name, pair in pairs.items()}
                found.append(PairedDifference(row.task, row.labels, estimates, p_values))
    return found


def curves_by_encoding(label: str, results: Results) -> dict[str, dict[str, list[Curve]]]:
    """Learning curves with several points by encoding and by the value of another label, one for each seed."""
    curves: dict[str, dict[str, list[Curve]]] = {}
    for result in results.values():
        if len(result["curve"]) > 1:
            named = curves.setdefault(result["labels"].get(ENCODING, ""), {})
            named.setdefault(result["labels"][label], []).append(result["curve"])
    return curves


def full_curves(results: Results) -> dict[str, list[Curve]]:
    """Learning curves with all data by encoding, one for each seed."""
    curves: dict[str, list[Curve]] = {}
    for result in results.values():
        if result["labels"]["share of the data"] == "100%":
            curves.setdefault(result["labels"][ENCODING], []).append(result["curve"])
    return curves


def training_saved(baseline: str, results: Results) -> dict[str, Estimate | None]:
    """How many times less training each encoding needs for the baseline's final accuracy (figure 9).

    None if a seed never reaches it.
    """
    curves = full_curves(results)
    saved: dict[str, Estimate | None] = {}
    for encoding in curves:
        if encoding == baseline:
            continue
        factors = []
        for curve, reference in zip(curves[encoding], curves[baseline], strict=True):
            examples = examples_to_reach(curve, reference[-1]["accuracy"])
            factors.append(reference[-1]["examples"] / examples if examples else None)
        saved[encoding] = over_seeds(factors) if None not in factors else None
    return saved
