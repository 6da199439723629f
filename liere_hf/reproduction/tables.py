"""The tables of an experiment, as Markdown, CSV and JSON."""

import csv
import io
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..metric_display import interval_text
from ..output_files import write_bytes, write_json
from .experiments import Experiment, Scale
from .statistics import MANY_SEEDS, Estimate
from .summary import PairedDifference, Results, Row, paired_differences, training_saved

# Figure 9: how many times less training the relative encodings need for the accuracy of absolute positions.
PAPER_SAVED = "3.5 to 3.9"


def write_tables(directory: Path, experiment: Experiment, scale: Scale, rows: list[Row], results: Results) -> str:
    """Write results.json, results.csv and table.md, and return the table."""
    hardware = ", ".join(sorted({result["hardware"]["device"] for result in results.values()}))
    table, content = markdown(experiment, scale, rows, hardware), _as_json(experiment, scale, rows, hardware)
    if experiment.curves_against:
        saved = training_saved(experiment.curves_against, results)
        table += _saved_markdown(experiment.curves_against, saved)
        content["training_saved"] = {name: estimate and estimate._asdict() for name, estimate in saved.items()}
    if experiment.paired_with:
        found = paired_differences(experiment.paired_with, rows)
        table += _differences_markdown(experiment.paired_with, found) if found else ""
        content["paired_differences"] = [
            asdict(each) | {"estimates": {name: one._asdict() for name, one in each.estimates.items()}}
            for each in found
        ]
    write_json(directory / "results.json", content)
    write_bytes(directory / "results.csv", _as_csv(rows).encode())
    write_bytes(directory / "table.md", table.encode())
    return table


def markdown(experiment: Experiment, scale: Scale, rows: list[Row], hardware: str) -> str:
    """The table, with its heading and the differences of the scale from the paper."""
    labels = list(dict.fromkeys(label for row in rows for label in row.labels))
    columns, tested = _columns(rows), [name for name in _columns(rows) if any(name in row.p_values for row in rows)]
    has_paper = any(row.paper is not None for row in rows)
    header = ["task", *labels, "parameters", *(f"{column} (95% interval)" for column in columns)]
    header += ["paper, %"] * has_paper
    header += [f"p, against {experiment.reference}" + (f": {name}" if len(tested) > 1 else "") for name in tested]
    lines = [
        f"# {experiment.title} ({experiment.source}), scale {scale.name}",
        "",
        *textwrap.wrap(scale.changes, 118),
        "",
    ]
    body = []
    for row in rows:
        cells = [row.task, *(row.labels.get(label, "") for label in labels), f"{row.num_parameters:,}"]
        cells += [as_text(row.estimates[column]) if column in row.estimates else "" for column in columns]
        if has_paper:
            cells.append("" if row.paper is None else f"{row.paper:g}")
        cells += [p_text(row.p_values[name]) if name in row.p_values else "" for name in tested]
        body.append(cells)
    lines += [*table_lines(header, body), "", *_seed_lines(rows), f"Measured on {hardware}."]
    tests = {len(row.seeds) >= MANY_SEEDS for row in rows if row.p_values}
    if True in tests:
        lines.append(
            "p values: exact permutation test over paired seeds, two-sided, without correction for their number."
        )
    if False in tests:
        lines.append("p values: two-proportion z-test over the test examples of all seeds, which are the same ones.")
    return "\n".join(lines) + "\n"


def _seed_lines(rows: list[Row]) -> list[str]:
    """One for all tasks with the same seeds."""
    tasks: dict[tuple[int, ...], list[str]] = {}
    for row in rows:
        tasks.setdefault(tuple(row.seeds), []).append(row.task)
    return [
        f"Seeds{' of ' + '; '.join(dict.fromkeys(names)) if len(tasks) > 1 else ''}: {', '.join(map(str, seeds))}. "
        f"Intervals: {_intervals(seeds)}."
        for seeds, names in tasks.items()
    ]


def _columns(rows: list[Row]) -> list[str]:
    """Those of all tasks, in the order of the measures."""
    return list(dict.fromkeys(column for row in rows for column in row.values))


def _intervals(seeds: Sequence[int]) -> str:
    if len(seeds) >= MANY_SEEDS:
        return "bootstrap over the seeds"
    return "Student's t over the seeds" if len(seeds) > 1 else "Wilson, over the test examples"


def _saved_markdown(baseline: str, saved: dict[str, Estimate | None]) -> str:
    lines = [
        "",
        f"Times less training for the final accuracy of {baseline} positions, with all data (paper: {PAPER_SAVED}):",
        "",
    ]
    cells = [[name, as_text(estimate) if estimate else "not reached"] for name, estimate in saved.items()]
    lines += table_lines(["encoding", "times (95% interval)"], cells)
    return "\n".join(lines) + "\n"


def _differences_markdown(baseline: str, found: list[PairedDifference]) -> str:
    columns = list(dict.fromkeys(name for each in found for name in each.estimates))
    header = ["task", *found[0].labels]
    for name in columns:
        header += [f"{name} (95% interval)", "p"]
    body = []
    for each in found:
        cells = [each.task, *each.labels.values()]
        for name in columns:
            has_it = name in each.estimates
            cells += [as_text(each.estimates[name]), p_text(each.p_values[name])] if has_it else ["", ""]
        body.append(cells)
    lines = [
        "",
        f"Differences to {baseline} in pairs of runs with equal seeds, and p values of the exact permutation test:",
        "",
        *table_lines(header, body),
    ]
    return "\n".join(lines) + "\n"


def table_lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table as lines of Markdown."""
    first, *others = (f"| {' | '.join(cells)} |" for cells in (header, *rows))
    return [first, f"|{'---|' * len(header)}", *others]


def as_text(estimate: Estimate) -> str:
    """`77.15 (74.06 to 80.24)`."""
    return interval_text(*(number for number in estimate if number is not None))


def p_text(p_value: float) -> str:
    return "< 0.0001" if p_value < 1e-4 else f"{p_value:.4f}"


def _as_json(experiment: Experiment, scale: Scale, rows: list[Row], hardware: str) -> dict[str, Any]:
    return {
        "title": experiment.title,
        "source": experiment.source,
        "scale": scale.name,
        "changes": scale.changes,
        "hardware": hardware,
        "rows": [asdict(row) | {"estimates": {k: v._asdict() for k, v in row.estimates.items()}} for row in rows],
    }


def _as_csv(rows: list[Row]) -> str:
    labels = list(dict.fromkeys(label for row in rows for label in row.labels))
    columns = _columns(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["task", *labels, "seed", "num_parameters", *columns])
    for row in rows:
        for index, seed in enumerate(row.seeds):
            values = [f"{row.values[column][index]:.4f}" if column in row.values else "" for column in columns]
            writer.writerow(
                [row.task, *(row.labels.get(label, "") for label in labels), seed, row.num_parameters, *values]
            )
    return text.getvalue()
