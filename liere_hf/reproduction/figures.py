"""Figures of experiments: points or lines with intervals."""

import math
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import offset_copy

from ..configuration import compared_encodings
from .curves import Curve
from .experiments import Experiment, Measure
from .statistics import Estimate
from .summary import Results, Row, curves_by_encoding, full_curves

# Okabe and Ito's colors, for series that are not encodings.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
# Inches of a figure of one, two or three panels side by side: no wider than a page shows legibly.
WIDTHS = (6.4, 10.0, 11.0)
PANEL_HEIGHT = 3.6
# Typographic points between series at one place, so that neither markers nor intervals cover one another, and the most
# that all series take together.
SPACING, MAX_SPREAD = 10, 34
# About as many characters of a legend's labels stand side by side, its handles taking as much as some of them.
LEGEND_CHARACTERS_PER_INCH, HANDLE_CHARACTERS = 12, 6
# Labels of places that are longer than this together are slanted.
MAX_LABEL_CHARACTERS = 60


class Panel(NamedTuple):
    """A part of a figure: what it shows of some rows."""

    title: str
    measures: tuple[Measure, ...]
    rows: list[Row]


class Series(NamedTuple):
    """Points of one color.

    Attributes:
        index: its place beside others at the same coordinate.
        further: by what the models differ from those of the same name without it, in the legend of its hollow
            markers. Empty: nothing.
    """

    name: str
    index: int
    points: list[tuple[float, Estimate]]
    further: str = ""


def draw(path: Path, experiment: Experiment, rows: list[Row], results: Results) -> None:
    """Write the figure of an experiment: its panels, and learning curves if it has them."""
    figure = build_figure(experiment, rows, results)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def build_figure(experiment: Experiment, rows: list[Row], results: Results) -> Figure:
    """The figure, with one legend below all panels."""
    panels = _panels(experiment, rows)
    count = len(panels) + bool(experiment.curves_against)
    columns = 2 if count == 4 else min(count, len(WIDTHS))
    lines, shares = math.ceil(count / columns), bool(experiment.by_evaluation)
    size = (WIDTHS[columns - 1], PANEL_HEIGHT * lines + 0.6)
    figure, grid = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False, sharey=shares)
    for axes in grid.flat[count:]:
        axes.remove()
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, panel, experiment)
    if shares:
        for axes in grid[:, 1:].flat:
            axes.set_ylabel("")
    if experiment.curves_against:
        _draw_curves(grid.flat[count - 1], results)
    _add_legend(figure, _legend_title(experiment, rows))
    figure.suptitle(f"{experiment.title} (95% intervals)")
    return figure


def draw_curves(path: Path, experiment: Experiment, results: Results) -> None:
    """Write the figure of learning curves of an experiment with `curves_by`."""
    figure = build_curves(experiment, results)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def build_curves(experiment: Experiment, results: Results) -> Figure:
    """Accuracy over training examples, the mean of the seeds; 90% is where `examples until 90%` are measured."""
    curves = curves_by_encoding(experiment.curves_by, results)
    size = (WIDTHS[min(len(curves), len(WIDTHS)) - 1], PANEL_HEIGHT + 1.0)
    figure, (panels,) = plt.subplots(1, len(curves), figsize=size, layout="constrained", squeeze=False, sharey=True)
    for axes, (encoding, named) in zip(panels, curves.items(), strict=True):
        # A part after a comma is a variant, dashed in the same color.
        kinds = list(dict.fromkeys(name.partition(", ")[0] for name in named))
        for name, of_seeds in named.items():
            kind, variant, _ = name.partition(", ")
            style = {"color": f"C{kinds.index(kind)}", "linestyle": "--" if variant else "-"}
            axes.plot(*_mean_curve(of_seeds), **style, linewidth=1.2, label=name)
        axes.axhline(90, color="0.6", linewidth=0.8, zorder=0)
        axes.set(xlabel="training examples", title=encoding)
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("accuracy, %")
    _add_legend(figure, experiment.curves_by)
    figure.suptitle(f"{experiment.title} (mean of the seeds)")
    return figure


def _mean_curve(curves: list[Curve]) -> tuple[list[float], np.ndarray]:
    """Examples, and the accuracy in per cent averaged over seeds."""
    examples = [point["examples"] for point in curves[0]]
    return examples, np.mean([[100 * point["accuracy"] for point in curve] for curve in curves], axis=0)


def _panels(experiment: Experiment, rows: list[Row]) -> list[Panel]:
    """One for each task, each value of `panels_by` and each evaluation, whose name's last part is the horizontal axis.

    Points with two labels have a panel for each measure.
    """
    grouped: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        parts = (row.task, row.labels.get(experiment.panels_by, ""))
        parts += tuple(row.labels[part] for part in experiment.by_evaluation[:-1])
        grouped.setdefault(parts, []).append(row)
    panels = []
    for parts, chosen in grouped.items():
        title = ", ".join(filter(None, parts))
        measures = [each for each in experiment.measures if each.title in chosen[0].values]
        if experiment.by_evaluation or experiment.line is not None:
            panels.append(Panel(title, (measures[0],), chosen))
        elif len(chosen[0].labels) > 1:
            panels += [Panel(title, (measure,), chosen) for measure in measures]
        else:
            panels.append(Panel(title, tuple(each for each in measures if each.is_proportion), chosen))
    return panels


def _draw_panel(axes: Axes, panel: Panel, experiment: Experiment) -> None:
    if experiment.by_evaluation:
        series, is_line = _by_evaluation(axes, panel.rows, experiment), True
    elif experiment.line is not None:
        series, is_line = _along_line(axes, panel.rows, experiment), True
    else:
        series, is_line = _by_place(axes, panel), False
    _draw_series(axes, series, is_line)
    axes.set_title(panel.title)
    axes.set_ylabel(panel.measures[0].title if len(panel.measures) == 1 else "accuracy, %")
    axes.grid(axis="y", alpha=0.3)


def _draw_series(axes: Axes, series: list[Series], is_line: bool) -> None:
    """Points with whole intervals. Those of different series at one coordinate stand side by side."""
    count = len({each.index for each in series})
    spacing = min(SPACING, MAX_SPREAD / max(count - 1, 1))
    is_alone = all(len({each.index for each in series if x in dict(each.points)}) < 2 for x in _coordinates(series))
    for each in series:
        shift = 0 if is_alone else spacing * (each.index + bool(each.further) / 2 - (count - 1) / 2)
        style = _style(each.name, each.index)
        estimates = [estimate for _, estimate in each.points]
        drawn = axes.errorbar(
            [x for x, _ in each.points],
            [estimate.mean for estimate in estimates],
            _errors(estimates),
            **style,
            markerfacecolor="white" if each.further else style["color"],
            linestyle="-" if is_line else "none",
            linewidth=1.2,
            markersize=5,
            capsize=2.5,
            label=None if each.further or (is_alone and not is_line) else each.name or None,
        )
        # Afterwards, as the limits of the axes follow from data without a shift only.
        for artist in (drawn.lines[0], *drawn.lines[1], *drawn.lines[2]):
            artist.set_transform(offset_copy(axes.transData, axes.figure, x=shift, units="points"))

    for further in {each.further for each in series} - {""}:
        axes.plot([], [], "o", color="0.4", markerfacecolor="white", label=further)


def _coordinates(series: list[Series]) -> set[float]:
    return {x for each in series for x, _ in each.points}


def _style(name: str, index: int) -> dict[str, str]:
    """Of a series: an encoding looks the same in every panel of every figure."""
    compared = compared_encodings()
    if name in compared:
        return {"color": compared[name].color, "marker": MARKERS[[*compared].index(name) % len(MARKERS)]}
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}


def _errors(estimates: list[Estimate]) -> np.ndarray:
    """Lengths of the error bars, (2, estimates)."""
    return np.array([[e.mean - (e.low if e.low is not None else e.mean) for e in estimates],
                     [(e.high if e.high is not None else e.mean) - e.mean for e in estimates]]).clip(0)  # fmt: skip


def _by_place(axes: Axes, panel: Panel) -> list[Series]:
    """Places by the first label. At each, a point for each second label or each measure; else one of its own color."""
    first, *others = panel.rows[0].labels
    places = list(dict.fromkeys(row.labels[first] for row in panel.rows))
    points: dict[str, list[tuple[float, Estimate]]] = {}
    for row in panel.rows:
        for measure in panel.measures:
            name = measure.title if len(panel.measures) > 1 else row.labels[others[0] if others else first]
            points.setdefault(name, []).append((places.index(row.labels[first]), row.estimates[measure.title]))
    _name_places(axes, places, first)
    return [Series(name, index, each) for index, (name, each) in enumerate(points.items())]


def _along_line(axes: Axes, rows: list[Row], experiment: Experiment) -> list[Series]:
    """Coordinates are the settings' own, or the values of the label that the line is over."""
    line, column = experiment.line, next(iter(rows[0].estimates))
    if rows[0].x is None:
        places = list(dict.fromkeys(row.labels[line.x_label] for row in rows))
        coordinates = [float(places.index(row.labels[line.x_label])) for row in rows]
        _name_places(axes, places, line.x_label)
    else:
        coordinates = [row.x for row in rows]
        axes.set_xlabel(line.x_label)
        axes.margins(x=0.1)
    if line.log_x:
        axes.set_xscale("log")
        ticks = sorted(set(coordinates))
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.minorticks_off()
    points: dict[str, list[tuple[float, Estimate]]] = {}
    for x, row in zip(coordinates, rows, strict=True):
        points.setdefault(row.labels[line.series] if line.series else "", []).append((x, row.estimates[column]))
    return [
        Series(name, index, sorted(each, key=lambda point: point[0]))
        for index, (name, each) in enumerate(points.items())
    ]


def _by_evaluation(axes: Axes, rows: list[Row], experiment: Experiment) -> list[Series]:
    """A series for each model, over its evaluations. One with further labels is the hollow one of its encoding."""
    column, last = next(iter(rows[0].estimates)), experiment.by_evaluation[-1]
    apart = {*experiment.by_evaluation, experiment.panels_by}
    places = sorted({row.labels[last] for row in rows}, key=lambda name: int(name.split()[0]))
    points: dict[tuple[str, ...], list[tuple[float, Estimate]]] = {}
    for row in rows:
        model = tuple(value for key, value in row.labels.items() if key not in apart)
        points.setdefault(model, []).append((places.index(row.labels[last]), row.estimates[column]))
    _name_places(axes, places, last)
    names = list(dict.fromkeys(name for name, *_ in points))
    return [
        Series(name, names.index(name), sorted(each, key=lambda point: point[0]), " ".join(further))
        for (name, *further), each in points.items()
    ]


def _name_places(axes: Axes, places: list[str], title: str) -> None:
    if sum(map(len, places)) > MAX_LABEL_CHARACTERS:
        axes.set_xticks(range(len(places)), places, rotation=30, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(range(len(places)), places)
    axes.tick_params(axis="x", labelsize=9)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_xlabel(title)


def _draw_curves(axes: Axes, results: Results) -> None:
    """Learning curves with all data, averaged over seeds."""
    for index, (name, curves) in enumerate(full_curves(results).items()):
        axes.plot(*_mean_curve(curves), **_style(name, index), linewidth=1.2, markersize=5, label=name)
    axes.set(xlabel="training examples", ylabel="accuracy, %", title="All data, mean of the seeds")
    axes.grid(axis="y", alpha=0.3)


def _legend_title(experiment: Experiment, rows: list[Row]) -> str | None:
    """The label whose values the colors are, unless they are encodings, which need none."""
    _, *others = rows[0].labels
    return None if experiment.line or experiment.by_evaluation or others in ([], ["encoding"]) else others[0]


def _add_legend(figure: Figure, title: str | None) -> None:
    entries: dict[str, Artist | Container] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        # Plain lines stand for what the hollow markers mean, after the models themselves.
        entries = dict(sorted(entries.items(), key=lambda entry: isinstance(entry[1], Line2D)))
        fitting = int(
            LEGEND_CHARACTERS_PER_INCH * figure.get_figwidth() / (max(map(len, entries)) + HANDLE_CHARACTERS)
        )
        columns = min(len(entries), fitting, 4 if figure.get_figwidth() == WIDTHS[0] else 6)
        figure.legend(entries.values(), entries, title=title, loc="outside lower center", ncols=columns)
