"""Figures of experiments: points or lines with intervals."""

import math
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from ..configuration import compared_encodings
from .experiments import Experiment, Measure
from .summary import Results, Row, full_curves

# Okabe and Ito's colors, for series that are not encodings.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"


# Panels side by side.
MAX_COLUMNS = 3


class Panel(NamedTuple):
    """A part of a figure: what it shows of some rows."""

    title: str
    measures: tuple[Measure, ...]
    rows: list[Row]


def draw(path: Path, experiment: Experiment, rows: list[Row], results: Results) -> None:
    """Write the figure of an experiment: its panels, and learning curves if it has them."""
    panels = _panels(experiment, rows)
    count = len(panels) + bool(experiment.curves_against)
    columns = min(count, MAX_COLUMNS)
    lines = math.ceil(count / columns)
    size, shares = (6.4 * columns, 4.4 * lines), len(experiment.by_evaluation) > 1
    figure, grid = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False, sharey=shares)
    for axes in grid.flat[count:]:
        axes.remove()
    for axes, panel in zip(grid.flat, panels, strict=False):
        if experiment.by_evaluation:
            _lines_by_evaluation(axes, panel.rows, experiment.by_evaluation)
        elif experiment.line is not None:
            _lines(axes, panel.rows, experiment)
        else:
            _points(axes, panel)
        low, high = axes.get_ylim()
        is_proportion = panel.measures[0].is_proportion
        axes.set(title=panel.title, ylim=(max(low, 0), min(high, 101) if is_proportion else high))
        axes.set_ylabel(panel.measures[0].title if len(panel.measures) == 1 else "accuracy, %")
        axes.grid(axis="y", alpha=0.3)
    if experiment.by_evaluation:
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside right upper")
    if experiment.curves_against:
        _curves(grid.flat[count - 1], results)
    figure.suptitle(f"{experiment.title} (95% intervals)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _panels(experiment: Experiment, rows: list[Row]) -> list[Panel]:
    """One for each task and each evaluation, whose name's last part is the horizontal axis.

    Points with two labels have a panel for each measure.
    """
    grouped: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        parts = (row.task, *(row.labels[part] for part in experiment.by_evaluation[:-1]))
        grouped.setdefault(parts, []).append(row)
    panels = []
    for parts, chosen in grouped.items():
        title, measures = ", ".join(parts), [each for each in experiment.measures if each.title in chosen[0].values]
        if experiment.by_evaluation or experiment.line is not None:
            panels.append(Panel(title, (measures[0],), chosen))
        elif len(chosen[0].labels) > 1:
            panels += [Panel(title, (measure,), chosen) for measure in measures]
        else:
            panels.append(Panel(title, tuple(each for each in measures if each.is_proportion), chosen))
    return panels


def _style(name: str, index: int) -> dict[str, str]:
    """Of a series: an encoding looks the same in every panel of every figure."""
    compared = compared_encodings()
    if name in compared:
        return {"color": compared[name].color, "marker": MARKERS[[*compared].index(name) % len(MARKERS)]}
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}


def _errors(rows: list[Row], column: str) -> np.ndarray:
    """Lengths of the error bars, (2, rows)."""
    estimates = [row.estimates[column] for row in rows]
    return np.array([[e.mean - (e.low if e.low is not None else e.mean) for e in estimates],
                     [(e.high if e.high is not None else e.mean) - e.mean for e in estimates]]).clip(0)  # fmt: skip


def _points(axes: Axes, panel: Panel) -> None:
    """Points grouped by the first label. Within a group, one point for each second label or each measure."""
    first, *others = panel.rows[0].labels
    places = list(dict.fromkeys(row.labels[first] for row in panel.rows))
    series = {}
    for row in panel.rows:
        for measure in panel.measures:
            name = row.labels[others[0]] if others else measure.title
            series.setdefault(name, []).append((places.index(row.labels[first]), row, measure.title))
    for index, (name, points) in enumerate(series.items()):
        axes.errorbar(
            [place + 0.6 * ((index + 0.5) / len(series) - 0.5) for place, _, _ in points],
            [row.estimates[title].mean for _, row, title in points],
            np.hstack([_errors([row], title) for _, row, title in points]),
            **_style(name, index),
            linestyle="none",
            capsize=3,
            label=name,
        )
    axes.set_xticks(range(len(places)), places)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_xlabel(first)
    if len(series) > 1:
        axes.legend(title=others[0] if others else None)


def _lines(axes: Axes, rows: list[Row], experiment: Experiment) -> None:
    column = next(iter(rows[0].estimates))
    series = experiment.line.series
    for index, name in enumerate(dict.fromkeys(row.labels[series] if series else "" for row in rows)):
        of_series = sorted((row for row in rows if not series or row.labels[series] == name), key=lambda row: row.x)
        axes.errorbar(
            [row.x for row in of_series],
            [row.estimates[column].mean for row in of_series],
            _errors(of_series, column),
            **_style(name, index),
            capsize=3,
            label=name or None,
        )
    if experiment.line.log_x:
        axes.set_xscale("log")
        ticks = sorted({row.x for row in rows})
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.minorticks_off()
    axes.set_xlabel(experiment.line.x_label)
    if series:
        axes.legend(title=series)


def _lines_by_evaluation(axes: Axes, rows: list[Row], parts: tuple[str, ...]) -> None:
    """One line per model, over its evaluations. A fine-tuned model has the color of the one it started from."""
    column, last = next(iter(rows[0].estimates)), parts[-1]
    places = sorted({row.labels[last] for row in rows}, key=lambda name: int(name.split()[0]))
    by_model: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        model = tuple(value for key, value in row.labels.items() if key not in parts)
        by_model.setdefault(model, []).append(row)
    for model, chosen in by_model.items():
        chosen = sorted(chosen, key=lambda row: places.index(row.labels[last]))
        style = _style(model[0], 0)
        axes.errorbar(
            [places.index(row.labels[last]) for row in chosen],
            [row.estimates[column].mean for row in chosen],
            _errors(chosen, column),
            **style,
            markerfacecolor=style["color"] if len(model) == 1 else "white",
            capsize=3,
            label=" ".join(model),
        )
    axes.set_xticks(range(len(places)), places)
    axes.set_xlabel(last)


def _curves(axes: Axes, results: Results) -> None:
    """Learning curves with all data, averaged over seeds."""
    for index, (name, curves) in enumerate(full_curves(results).items()):
        examples = [point["examples"] for point in curves[0]]
        accuracy = np.mean([[100 * point["accuracy"] for point in curve] for curve in curves], axis=0)
        axes.plot(examples, accuracy, **_style(name, index), label=name)
    axes.set(xlabel="training examples", ylabel="accuracy, %", title="All data")
    axes.legend()
