"""Figures of experiments: bars or lines with intervals, in colours that colour-blind people tell apart."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from .experiments import Experiment
from .summary import AT_TRAINING_SIZE, Results, Row, full_curves

# Okabe and Ito's colours.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"


def draw(path: Path, experiment: Experiment, rows: list[Row], results: Results) -> None:
    """Write the figure of an experiment: one panel a task, and learning curves where it has them."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    num_panels = len(tasks) + bool(experiment.curves_against)
    figure, panels = plt.subplots(1, num_panels, figsize=(6.4 * num_panels, 4.4), layout="constrained", squeeze=False)
    for axes, task in zip(panels[0], tasks, strict=False):
        of_task = [row for row in rows if row.task == task]
        if experiment.by_evaluation:
            _lines_by_evaluation(axes, of_task)
        elif experiment.line is not None:
            _lines(axes, of_task, experiment)
        else:
            _bars(axes, of_task)
        axes.set(title=task, ylabel=axes.get_ylabel() or "accuracy, %")
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


def _lines_by_evaluation(axes: Axes, rows: list[Row]) -> None:
    """One line a model, over what it was tested at."""
    column = next(iter(rows[0].estimates))
    names = list(dict.fromkeys(row.labels["tested at"] for row in rows))
    models = dict.fromkeys(tuple(value for key, value in row.labels.items() if key != "tested at") for row in rows)
    for index, model in enumerate(models):
        chosen = [row for row in rows if tuple(v for k, v in row.labels.items() if k != "tested at") == model]
        axes.errorbar(
            [names.index(row.labels["tested at"]) for row in chosen],
            [row.estimates[column].mean for row in chosen],
            _errors(chosen, column),
            color=COLORS[index % len(COLORS)],
            marker=MARKERS[index % len(MARKERS)],
            linestyle="-" if index < len(COLORS) else ":",
            capsize=3,
            label=", ".join(model),
        )
    axes.set_xticks(range(len(names)), [name.replace(AT_TRAINING_SIZE, "training\nsize") for name in names])
    axes.tick_params(axis="x", rotation=45 if len(names) > 5 else 0)
    axes.set_xlabel("tested at")
    axes.legend(fontsize="small")


def _curves(axes: Axes, results: Results) -> None:
    """Accuracy over training examples with all data, mean of the seeds."""
    for index, (name, curves) in enumerate(full_curves(results).items()):
        examples = [point["examples"] for point in curves[0]]
        accuracy = np.mean([[100 * point["accuracy"] for point in curve] for curve in curves], axis=0)
        axes.plot(examples, accuracy, color=COLORS[index], marker=MARKERS[index], label=name)
    axes.set(xlabel="training examples", ylabel="accuracy, %", title="All data")
    axes.legend()
