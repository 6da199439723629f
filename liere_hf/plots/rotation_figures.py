"""What a model's rotations, or its table of absolute positions, do to scores between patches, as figures."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from transformers import PreTrainedModel

from ..errors import InputError
from ..output_files import write_bytes, write_json
from .plot import Plot, as_record, captioned, new_figure
from .rotations import (
    OffsetScores,
    chosen,
    commutators,
    has_rotations,
    has_table,
    offset_scores,
    spectrum,
    table_scores,
)

# In a figure, where none are chosen: the first, the middle and the last layer, and the first heads.
MAX_LAYERS, MAX_HEADS = 3, 4
# Of panels with scores, beside as many with spreads.
MAX_WIDE_COLUMNS = 3
# The end of the scale of spreads, at least. Spreads of float64's rounding are called 0.
SMALLEST_SCALE, ROUNDING = 0.01, 1e-9
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
AXES = {1: ("position",), 2: ("vertical", "horizontal"), 3: ("time or depth", "vertical", "horizontal")}
OFFSETS_TEXT = (
    "Score: between two patches with the same content, averaged over contents, by the offset between them. It is 1 at "
    "offset 0; where it is lower, the head tells the two places apart by position alone. Spread: how much the score "
    "varies among pairs of patches with the same offset. 0 means that only the offset counts, as in a relative "
    "encoding; the largest spread here is {spread}."
)
TABLE_TEXT = (
    "Similarity: the cosine between the position vectors of two patches, averaged over the pairs with an offset. "
    "Spread: how much it varies among these pairs, at most {spread} here. An absolute encoding learns a vector "
    "for each patch, so that nothing forces it to depend on the offset alone."
)
SPECTRUM_TEXT = (
    "Each point is a plane that a head turns, at the angle by which it turns from one patch to the next along an "
    "axis. Slow planes (below) compare places that are far apart, fast ones (above) neighbours. Beyond pi, dashed, "
    "a turn cannot be told from a smaller one the other way round."
)
COMMUTATORS_TEXT = (
    "How far the generators A and B of two axes are from commuting: |AB - BA| / (|A| |B|), mean of the blocks, at "
    "most 1.41. 0 means that the order of the axes does not matter, and that scores depend on the offset alone, as in "
    "RoPE."
)


class _Plane(NamedTuple):
    """Two axes of a grid of offsets, which a panel shows where the offsets along the others are 0."""

    first: int
    second: int

    def cut(self, values: torch.Tensor) -> np.ndarray:
        index = tuple(
            slice(None) if axis in (self.first, self.second) else extent // 2
            for axis, extent in enumerate(values.shape)
        )
        return values[index].numpy()


def plot_offset_scores(
    model: PreTrainedModel,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    input_size: Sequence[int] | None = None,
) -> Plot:
    """Scores between equal contents by offset, and their spread over places: see `offset_scores`.

    Args:
        layers: counted from 1; the first, the middle and the last one by default.
        heads: counted from 1; the first four by default.
        input_size: pixels, one value or one per axis; the training size by default.

    Returns:
        The figure, and `OffsetScores`.

    Raises:
        InputError: a model without rotations, no such layer or head, or a size that patches do not divide.
    """
    layers, heads = _some(model, layers, heads)
    scores = offset_scores(model, layers, heads, input_size)
    return _plot_scores(scores, "score between equal contents", OFFSETS_TEXT)


def plot_table_scores(model: PreTrainedModel, input_size: Sequence[int] | None = None) -> Plot:
    """The same for a table of absolute positions: see `table_scores`.

    Returns:
        The figure, and `OffsetScores`.

    Raises:
        InputError: a model without such a table, or a size that patches do not divide.
    """
    return _plot_scores(table_scores(model, input_size), "similarity of position vectors", TABLE_TEXT)


def plot_spectrum(
    model: PreTrainedModel,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    input_size: Sequence[int] | None = None,
) -> Plot:
    """Frequencies of generators in radians per patch: see `spectrum`.

    Args:
        layers: counted from 1; the first, the middle and the last one by default.
        heads: counted from 1; all by default.
        input_size: as in `plot_offset_scores`; it matters where `position_mode` stretches coordinates.

    Returns:
        The figure, and a `Spectrum`.

    Raises:
        InputError: as in `plot_offset_scores`.
    """
    layers, _ = _some(model, layers, heads)
    found = spectrum(model, layers, heads, input_size)
    names = axis_names(found.frequencies.shape[2])
    figure = new_figure(max(1.5 + 0.55 * len(found.heads), 3.2) * len(layers) + 1, 4.6)
    panels = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    for axes, layer, frequencies in zip(panels, layers, found.frequencies, strict=True):
        for axis, name in enumerate(names):
            # Side by side within a head.
            shift = 0.6 * ((axis + 0.5) / len(names) - 0.5)
            for place, of_head in enumerate(frequencies[:, axis]):
                label = name if place == 0 else None
                style = {"color": COLORS[axis % len(COLORS)], "alpha": 0.6, "linewidths": 0}
                axes.scatter(np.full(len(of_head), place + shift), of_head, s=14, label=label, **style)
        axes.axhline(np.pi, color="gray", linestyle="--", linewidth=1)
        axes.set_xticks(range(len(found.heads)), [str(head) for head in found.heads])
        axes.set(title=f"layer {layer}", xlabel="head", ylim=(0, None), xlim=(-0.5, len(found.heads) - 0.5))
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("radians per patch")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", title="along")
    figure.suptitle("Frequencies of the generators")
    return captioned(figure, found, SPECTRUM_TEXT)


def plot_commutators(
    model: PreTrainedModel, layers: Sequence[int] | None = None, heads: Sequence[int] | None = None
) -> Plot:
    """How far the generators of every two axes are from commuting: see `commutators`.

    Args:
        layers: counted from 1; all by default.
        heads: counted from 1; all by default.

    Returns:
        The figure, and `Commutators`.

    Raises:
        InputError: a model without rotations or with one axis, or no such layer or head.
    """
    found = commutators(model, layers, heads)
    names = axis_names(model.config.num_axes)
    rows, columns = len(found.layers), len(found.heads)
    figure = new_figure((0.6 * columns + 1.6) * len(found.axes) + 2, max(0.5 * rows + 2, 3.2))
    panels = figure.subplots(1, len(found.axes), squeeze=False)[0]
    for number, (axes, (first, second)) in enumerate(zip(panels, found.axes, strict=True)):
        values = found.norms[..., number].numpy()
        image = axes.imshow(values, cmap="viridis", vmin=0, vmax=np.sqrt(2), aspect="auto")
        axes.set_xticks(range(columns), [str(head) for head in found.heads])
        axes.set_yticks(range(rows), [str(layer) for layer in found.layers])
        axes.set(title=f"{names[first]}, {names[second]}", xlabel="head", ylabel="layer" if number == 0 else "")
        for (row, column), value in np.ndenumerate(values):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=_ink(value))
    figure.colorbar(image, ax=list(panels))
    figure.suptitle("Commutators")
    return captioned(figure, found, COMMUTATORS_TEXT)


class RotationPlots(NamedTuple):
    """Figures by name, and why a figure has no meaning for a model, by name."""

    plots: dict[str, Plot]
    missing: dict[str, str]

    def write(self, directory: Path, model: str) -> list[Path]:
        """Write `rotations_NAME.png` for every figure, and `rotations.json`.

        Returns:
            Their paths.
        """
        paths = [directory / f"rotations_{name}.png" for name in self.plots]
        for path, plot in zip(paths, self.plots.values(), strict=True):
            write_bytes(path, plot.png())
        records = {name: as_record(plot.numbers) | {"caption": plot.caption} for name, plot in self.plots.items()}
        write_json(directory / "rotations.json", {"model": model, **records, "missing": self.missing})
        return [*paths, directory / "rotations.json"]


def rotation_plots(
    model: PreTrainedModel,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    input_size: Sequence[int] | None = None,
) -> RotationPlots:
    """All figures that a model's positions have: `offsets`, `spectrum`, `commutators`, `table`.

    Args:
        layers: counted from 1; by default those of each figure's function.
        heads: counted from 1; by default those of each figure's function.
        input_size: pixels, one value or one per axis; the training size by default.

    Raises:
        InputError: a model with neither rotations nor a table of positions, no such layer or head, or a size that
            patches do not divide.
    """
    config = model.config
    if not has_rotations(model) and not has_table(model):
        raise InputError(
            f"position_encoding is {config.position_encoding!r}: the model has neither rotations nor a table of "
            "positions, so that all places are alike and there is nothing to draw"
        )
    if not has_rotations(model) and (layers is not None or heads is not None):
        raise InputError(
            f"position_encoding is {config.position_encoding!r}, which has no rotations: leave out layers and heads"
        )
    plots, missing = {}, {}
    if has_rotations(model):
        plots["offsets"] = plot_offset_scores(model, layers, heads, input_size)
        plots["spectrum"] = plot_spectrum(model, layers, heads, input_size)
        if config.num_axes > 1:
            plots["commutators"] = plot_commutators(model, layers, heads)
        else:
            missing["commutators"] = "the model has one axis, whose rotations all commute"
    else:
        missing |= dict.fromkeys(
            ("offsets", "spectrum", "commutators"),
            f"position_encoding is {config.position_encoding!r}, which rotates nothing",
        )
    if has_table(model):
        plots["table"] = plot_table_scores(model, input_size)
    return RotationPlots(plots, missing)


def axis_names(num_axes: int) -> tuple[str, ...]:
    return AXES.get(num_axes) or tuple(f"axis {number}" for number in range(1, num_axes + 1))


def _some(
    model: PreTrainedModel, layers: Sequence[int] | None, heads: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Layers and heads for a figure; a few where none are chosen."""
    all_layers, all_heads = chosen(model, None, None)
    count = len(all_layers)
    few_layers = sorted({1, (count + 1) // 2, count})[:MAX_LAYERS]
    few_heads = all_heads[: MAX_HEADS if model.config.num_axes < 3 else 1]
    return chosen(model, few_layers if layers is None else layers, few_heads if heads is None else heads)


def _plot_scores(scores: OffsetScores, name: str, text: str) -> Plot:
    num_axes = len(scores.grid_size)
    figure = _lines(scores, name) if num_axes == 1 else _maps(scores, name)
    spread = scores.spread.max().item()
    return captioned(figure, scores, text.format(spread=f"{spread:.3g}" if spread > ROUNDING else "0"))


def _title(layer: int, head: int) -> str:
    return f"layer {layer}, head {head}" if layer else ""


def _lines(scores: OffsetScores, name: str) -> Figure:
    """One axis: a panel above and below for each layer, a line for each head."""
    columns = len(scores.layers)
    figure = new_figure(max(3.4 * columns, 5.5) + 1, 5.6)
    panels = figure.subplots(2, columns, sharex=True, sharey="row", squeeze=False)
    offsets = np.arange(scores.mean.shape[-1]) - scores.grid_size[0] + 1
    for column, layer in enumerate(scores.layers):
        for number, head in enumerate(scores.heads):
            style = {"color": COLORS[number % len(COLORS)], "label": f"head {head}" if head else None}
            panels[0][column].plot(offsets, scores.mean[column, number].numpy(), **style)
            panels[1][column].plot(offsets, scores.spread[column, number].numpy(), **style)
        panels[0][column].set(title=f"layer {layer}" if layer else "", ylim=(-1.05, 1.05))
        panels[1][column].set(xlabel="offset, patches", ylim=(0, max(1.05 * scores.spread.max().item(), 0.05)))
        for axes in panels[:, column]:
            axes.grid(alpha=0.3)
    panels[0][0].set_ylabel(name)
    panels[1][0].set_ylabel("spread over places")
    if scores.heads[0]:
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def _maps(scores: OffsetScores, name: str) -> Figure:
    """Two axes or more: a map for each layer, head and plane of two axes."""
    planes = [_Plane(*pair) for pair in combinations(range(len(scores.grid_size)), 2)]
    names = axis_names(len(scores.grid_size))
    if len(planes) == 1:
        rows, columns = len(scores.layers), len(scores.heads)
    else:
        rows, columns = len(scores.layers) * len(scores.heads), len(planes)
    # Score and spread are side by side where there is room.
    side, is_wide = (2.1 if columns > 1 else 3.2), columns <= MAX_WIDE_COLUMNS
    width, height = side * columns + 1.3, side * rows + 0.6
    figure = new_figure(2 * width if is_wide else width, (height if is_wide else 2 * height) + 1)
    one, other = figure.subfigures(1, 2) if is_wide else figure.subfigures(2, 1)
    largest = max(scores.spread.max().item(), SMALLEST_SCALE)
    for part, values, title, style in (
        (one, scores.mean, name, {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}),
        (other, scores.spread, "spread over places", {"cmap": "viridis", "vmin": 0, "vmax": largest}),
    ):
        panels = part.subplots(rows, columns, squeeze=False)
        for axes, (layer, head, plane, panel) in zip(panels.flat, _panels(scores, planes, values), strict=True):
            image = _draw_map(axes, panel, style)
            axes.set_title(_title(layer, head), fontsize=10)
            axes.set_xlabel(names[plane.second])
            axes.set_ylabel(names[plane.first])
        for axes in panels.flat if len(planes) == 1 else ():
            axes.label_outer()
        part.colorbar(image, ax=panels, shrink=0.9)
        part.suptitle(f"{title}, by offset in patches", fontsize=11)
    return figure


def _panels(
    scores: OffsetScores, planes: Sequence[_Plane], values: torch.Tensor
) -> Iterator[tuple[int, int, _Plane, np.ndarray]]:
    for layer, of_layer in zip(scores.layers, values, strict=True):
        for head, of_head in zip(scores.heads, of_layer, strict=True):
            for plane in planes:
                yield layer, head, plane, plane.cut(of_head)


def _draw_map(axes: Axes, values: np.ndarray, style: dict):
    height, width = (extent / 2 for extent in values.shape)
    extent = (-width, width, height, -height)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, integer=True))
    return axes.imshow(values, extent=extent, interpolation="nearest", aspect="auto", **style)


def _ink(value: float) -> str:
    return "black" if value > 1 else "white"
