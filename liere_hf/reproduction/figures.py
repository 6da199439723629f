"""Figures of experiments: bars or lines with intervals, in colours that colour-blind people tell apart."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from .experiments import Experiment
from .summary import Results, Row, full_curves

# Okabe and Ito's colours.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"


def draw(path: Path, experiment: Experiment, rows: list[Row], results: Results) -> None:
    """Write the figure of an experiment: one panel a task, and learning curves where it has them."""
    # All but the last part of an evaluation's name has panels of its own, the last is the horizontal axis.
    parts = experiment.by_evaluation[:-1]
    by_panel: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        by_panel.setdefault((row.task, *(row.labels[part] for part in parts)), []).append(row)
    num_panels = len(by_panel) + bool(experiment.curves_against)
    figure, panels = plt.subplots(1, num_panels, figsize=(6.4 * num_panels, 4.4), layout="constrained", squeeze=False)
    for axes, (name, chosen) in zip(panels[0], by_panel.items(), strict=False):
        if experiment.by_evaluation:
            _lines_by_evaluation(axes, chosen, experiment.by_evaluation)
        elif experiment.line is not None:
            _lines(axes, chosen, experiment)
        else:
            _bars(axes, chosen)
        axes.set(title=", ".join(name), ylabel=axes.get_ylabel() or "accuracy, %")
    if experiment.curves_against:
        _curves(panels[0][-1], results)
    figure.suptitle(f"{experiment.title} (95% intervals)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _errors(rows: list[Row], column: str) -> np.ndarray:
    """Lengths of the error bars, (2, rows)."""
    estimates = [row.estimates[column] for row in rows]
    return np.array([[e.mean - (e.low if e.low is not None else e.mean) for e in estimates],
                     [(e.high if e.high is not None else e.mean) - e.mean for e in estimates]]).clip(0)  # fmt: skip


def _bars(axes: Axes, rows: list[Row]) -> None:
    columns = list(rows[0].estimates)
    places = np.arange(len(rows))
    width = 0.8 / len(columns)
    for index, column in enumerate(columns):
        means = [row.estimates[column].mean for row in rows]
        axes.bar(
            places + (index - (len(columns) - 1) / 2) * width,
            means,
            width,
            yerr=_errors(rows, column),
            capsize=3,
            color=COLORS[index],
            label=column,
        )
    if len(columns) > 1:
        axes.legend()
        axes.set_ylabel("%")
    names = ["\n".join(row.labels.values()) for row in rows]
    axes.set_xticks(places, names, rotation=30 if len(rows) > 5 else 0, ha="right" if len(rows) > 5 else "center")
    lows = [row.estimates[column].mean for row in rows for column in columns]
    # Differences of a few points are what is to be seen; the axis says where it starts.
    if len(columns) == 1 and min(lows) > 20:
        axes.set_ylim(bottom=max(0, min(lows) - 10))


def _lines(axes: Axes, rows: list[Row], experiment: Experiment) -> None:
    column = next(iter(rows[0].estimates))
    series = experiment.line.series
    for index, name in enumerate(dict.fromkeys(row.labels[series] if series else "" for row in rows)):
        of_series = sorted((row for row in rows if not series or row.labels[series] == name), key=lambda row: row.x)
        axes.errorbar(
            [row.x for row in of_series],
            [row.estimates[column].mean for row in of_series],
            _errors(of_series, column),
            color=COLORS[index],
            marker=MARKERS[index],
            capsize=3,
            label=name or None,
        )
    if experiment.line.log_x:
        axes.set_xscale("log")
        ticks = sorted({row.x for row in rows})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    axes.set_xlabel(experiment.line.x_label)
    if series:
        axes.legend(title=series)


def _lines_by_evaluation(axes: Axes, rows: list[Row], parts: tuple[str, ...]) -> None:
    """One line a model, over what it was tested at; what goes on from another has that one's colour."""
    column, last = next(iter(rows[0].estimates)), parts[-1]
    places = sorted({row.labels[last] for row in rows}, key=lambda name: int(name.split()[0]))
    by_model: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        model = tuple(value for key, value in row.labels.items() if key not in parts)
        by_model.setdefault(model, []).append(row)
    colors = list(dict.fromkeys(model[0] for model in by_model))
    for model, chosen in by_model.items():
        chosen = sorted(chosen, key=lambda row: places.index(row.labels[last]))
        index = colors.index(model[0])
        axes.errorbar(
            [places.index(row.labels[last]) for row in chosen],
            [row.estimates[column].mean for row in chosen],
            _errors(chosen, column),
            color=COLORS[index],
            marker=MARKERS[index],
            markerfacecolor=COLORS[index] if len(model) == 1 else "white",
            capsize=3,
            label=" ".join(model),
        )
    axes.set_xticks(range(len(places)), places)
    axes.set_xlabel(last)
    axes.legend(fontsize="small")


def _curves(axes: Axes, results: Results) -> None:
    """Accuracy over training examples with all data, mean of the seeds."""
    for index, (name, curves) in enumerate(full_curves(results).items()):
        examples = [point["examples"] for point in curves[0]]
        accuracy = np.mean([[100 * point["accuracy"] for point in curve] for curve in curves], axis=0)
        axes.plot(examples, accuracy, color=COLORS[index], marker=MARKERS[index], label=name)
    axes.set(xlabel="training examples", ylabel="accuracy, %", title="All data")
    axes.legend()
