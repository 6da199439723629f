"""What a reader can see in the figures of the committed results: whole intervals, points apart, one legend."""

import functools
import itertools
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Affine2D, Bbox

from liere_hf.configuration import compared_encodings
from liere_hf.reproduction.experiments import EXPERIMENTS, Experiment, read_scale
from liere_hf.reproduction.figures import build_curves, build_figure
from liere_hf.reproduction.summary import Results, Row, summarize

RESULTS = Path(__file__).parents[2] / "results"
COMMITTED = [name for name in EXPERIMENTS if (RESULTS / name / "cpu" / "table.md").is_file()]
# One of each way of drawing.
FAST = ("accuracy", "resolution", "model_size")
every_figure = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.extensive) for name in COMMITTED]
)
# Of a page, at which figures are shown.
PAGE_WIDTH_PIXELS = 830


def committed_results(name: str) -> Results:
    experiment, scale, runs = EXPERIMENTS[name], read_scale("cpu"), RESULTS / name / "cpu" / "runs"
    return {
        (setting.name, seed): json.loads((runs / f"{setting.name}-seed{seed}.json").read_text())
        for setting in experiment.settings(scale)
        for seed in scale.seeds_of(setting.task)
    }


@functools.cache
def drawn(name: str) -> tuple[Figure, list[Row]]:
    """The figure with its rows, drawn as for a file, so that everything has its place."""
    experiment, scale, results = EXPERIMENTS[name], read_scale("cpu"), committed_results(name)
    rows = summarize(experiment, scale, results)
    figure = build_figure(experiment, rows, results)
    figure.canvas.draw()
    plt.close(figure)
    return figure, rows


def bars(figure: Figure) -> list[tuple[LineCollection, np.ndarray]]:
    """The intervals of each series, (points, 2 ends, 2 coordinates) in pixels."""
    containers = [each for axes in figure.axes for each in axes.containers if isinstance(each, ErrorbarContainer)]
    collections = [collection for each in containers for collection in each.lines[2]]
    return [
        (each, np.array([each.get_transform().transform(segment) for segment in each.get_segments()]))
        for each in collections
    ]


@every_figure
def test_every_interval_is_shown_as_a_whole(name):
    figure, rows = drawn(name)
    num_drawn = 0
    for collection, segments in bars(figure):
        box = collection.axes.get_window_extent()
        assert (segments[..., 0] > box.x0).all() and (segments[..., 0] < box.x1).all()
        assert (segments[..., 1] >= box.y0).all() and (segments[..., 1] <= box.y1).all()
        num_drawn += len(segments)
    assert num_drawn == sum(num_shown(EXPERIMENTS[name], row) for row in rows)


def num_shown(experiment: Experiment, row: Row) -> int:
    """Measures of a row that the figure shows. Only rows with two labels have a panel for what is no share."""
    if experiment.by_evaluation or experiment.line:
        return 1
    has_panels = len(row.labels) > 1
    return sum(each.title in row.values and (each.is_proportion or has_panels) for each in experiment.measures)


@every_figure
def test_no_interval_covers_another(name):
    figure, _ = drawn(name)
    for axes in figure.axes:
        places = [
            (segment[0, 0], segment[:, 1].min(), segment[:, 1].max())
            for collection, segments in bars(figure)
            if collection.axes is axes
            for segment in segments
        ]
        for (x, low, high), (other, other_low, other_high) in itertools.combinations(places, 2):
            overlap = low <= other_high and other_low <= high
            assert not overlap or abs(x - other) >= 4 * figure.dpi / 72


@every_figure
def test_one_legend_beside_the_panels_names_every_series(name):
    figure, rows = drawn(name)
    series = {id(collection) for collection, _ in bars(figure)}
    assert not [axes for axes in figure.axes if axes.get_legend()]
    if len(series) > 1 and name != "accuracy":
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y0 >= figure.bbox.y0
        assert not any(axes.get_tightbbox().overlaps(box) for axes in figure.axes)
        labels = [text.get_text() for text in legend.get_texts()]
        assert len(labels) == len(set(labels)) <= 6
        values = {value for row in rows for value in row.labels.values()} | {
            each.title for each in EXPERIMENTS[name].measures
        }
        assert set(labels) <= values


@pytest.mark.parametrize("name", [name for name in COMMITTED if EXPERIMENTS[name].curves_by])
def test_learning_curves_end_at_the_mean_accuracy(name):
    """Each line of a panel has its entry in a legend that is inside the figure."""
    experiment, results = EXPERIMENTS[name], committed_results(name)
    figure = build_curves(experiment, results)
    figure.canvas.draw()
    rows, (legend,) = drawn(name)[1], figure.legends
    box, labels = legend.get_window_extent(), {text.get_text() for text in legend.get_texts()}
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y0 >= figure.bbox.y0
    num_lines = 0
    for axes in figure.axes:
        for line in (line for line in axes.lines if line.get_label() in labels):
            (row,) = (
                row
                for row in rows
                if row.labels[experiment.curves_by] == line.get_label()
                and row.labels.get("encoding", "") == axes.get_title()
                and "examples until 90%" in row.values
            )
            assert line.get_ydata()[-1] == pytest.approx(row.estimates["accuracy, %"].mean, abs=0.01)
            num_lines += 1
    assert num_lines == sum("examples until 90%" in row.values for row in rows)
    plt.close(figure)


@every_figure
def test_texts_are_legible_at_the_width_of_a_page_and_do_not_cover_each_other(name):
    figure, _ = drawn(name)
    shrinkage = min(1, PAGE_WIDTH_PIXELS / (120 * figure.get_figwidth()))
    for axes in figure.axes:
        labels = [label for label in axes.get_xticklabels() if label.get_text()]
        assert all(label.get_fontsize() * 120 / 72 * shrinkage >= 9 for label in labels)
        boxes = [oriented_box(label) for label in labels]
        assert not any(box.overlaps(other) for box, other in itertools.combinations(boxes, 2))


def oriented_box(label: Text) -> Bbox:
    """The box of a slanted text, turned about the origin until the text is horizontal."""
    degrees, anchor = label.get_rotation(), label.get_transform().transform(label.get_position())
    label.set_rotation(0)
    box = label.get_window_extent()
    label.set_rotation(degrees)
    return Bbox(box.get_points() - anchor + Affine2D().rotate_deg(-degrees).transform(anchor))


@pytest.mark.extensive
def test_an_encoding_has_one_color_everywhere():
    encodings, colors = {*compared_encodings()}, {}
    for figure in (drawn(name)[0] for name in COMMITTED):
        for axes in figure.axes:
            for each in axes.containers:
                if each.get_label() in encodings:
                    colors.setdefault(each.get_label(), set()).add(each.lines[0].get_color())
    assert colors.keys() == encodings
    assert all(len(found) == 1 for found in colors.values())
    assert len(set.union(*colors.values())) == len(encodings)
