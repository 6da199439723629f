"""Figures of experiments: points or lines with intervals."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from ..configuration import compared_encodings
from .experiments import Experiment
from .summary import Results, Row, full_curves

# Okabe and Ito's colors, for series that are not encodings.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"


def draw(path: Path, experiment: Experiment, rows: list[Row], results: Results) -> None:
    """Write the figure of an experiment: one panel per task, and learning curves if it has them."""
    # The last part of an evaluation's name is the horizontal axis, the other parts are the panels.
    parts = experiment.by_evaluation[:-1]
    by_panel: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        by_panel.setdefault((row.task, *(row.labels[part] for part in parts)), []).append(row)
    num_panels = len(by_panel) + bool(experiment.curves_against)
    figure, panels = plt.subplots(
        1, num_panels, figsize=(6.4 * num_panels, 4.4), layout="constrained", squeeze=False, sharey=bool(parts)
    )
    for axes, (name, chosen) in zip(panels[0], by_panel.items(), strict=False):
        if experiment.by_evaluation:
            _lines_by_evaluation(axes, chosen, experiment.by_evaluation)
        elif experiment.line is not None:
            _lines(axes, chosen, experiment)
        else:
            _points(axes, chosen, experiment)
        low, high = axes.get_ylim()
        axes.set(title=", ".join(name), ylabel="accuracy, %", ylim=(max(low, 0), min(high, 101)))
        axes.grid(axis="y", alpha=0.3)
    if experiment.by_evaluation:
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right upper")
    if experiment.curves_against:
        _curves(panels[0][-1], results)
    figure.suptitle(f"{experiment.title} (95% intervals)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


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


def _points(axes: Axes, rows: list[Row], experiment: Experiment) -> None:
    """Points grouped by the first label. Within a group, one point for each second label or each measure."""
    first, *others = rows[0].labels
    places = list(dict.fromkeys(row.labels[first] for row in rows))
    measures = [measure.title for measure in experiment.measures if measure.is_proportion]
    series = {}
    for row in rows:
        for title in measures:
            name = row.labels[others[0]] if others else title
            series.setdefault(name, []).append((places.index(row.labels[first]), row, title))
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
