"""Pictures, clips and volumes with maps of a classifier's attention laid over."""

import io
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from ..errors import InputError
from .attention import AttentionMaps
from .plot import Plot, captioned, new_figure
from .rotations import counted

COLORMAP, OPACITY = "inferno", 0.6
# Frames in a figure; an animation has them all.
MAX_FRAMES = 8
# Pixels of the longer side of a frame in an animation, and milliseconds that it stays.
ANIMATION_SIDE, ANIMATION_DURATION = 224, 250
KINDS = ("rollout", "relevance")
ROLLOUT_TEXT = (
    "Rollout: how much of the pooled token comes from each patch if attention alone mixes the tokens, whatever the "
    "answer is."
)
RELEVANCE_TEXT = (
    "Relevance: where more attention would raise the score of '{name}'. Each map has its own scale, from 0."
)


class _View(NamedTuple):
    """A plane of an input: what is seen, (height, width) or (height, width, 3), and how it is cut out of a map."""

    title: str
    picture: np.ndarray
    cut: Callable[[np.ndarray], np.ndarray]


def plot_attention(
    maps: AttentionMaps,
    picture: torch.Tensor,
    layers: Sequence[int] | None = None,
    medium: str | None = None,
    title: str | None = None,
    index: int = 0,
) -> Plot:
    """Rollout and relevance over an input: an image, frames of a clip, three slices of a volume, or a signal.

    Args:
        maps: of `attention_maps`.
        picture: the input in the layout of `pixel_values`, without the batch, values from 0 to 1.
        layers: after which ones, counted from 1; the last one by default, which is the whole model.
        medium: `image`, `video`, `volume` or `signal`; by default the first that has this number of axes.
        title: above the figure; the explained output by default.
        index: of the input in its batch.

    Returns:
        The figure, and the maps.

    Raises:
        InputError: no such layer, or a model with more than three axes.
    """
    layers = counted("layer", layers, len(maps.rollout)) if layers is not None else (len(maps.rollout),)
    relevance = maps.relevance[-1, index]
    views = _views(picture, relevance, medium)
    shown = {
        (kind, layer): getattr(maps, kind)[layer - 1, index].double().numpy() for layer in layers for kind in KINDS
    }
    draw = _draw_one_view if len(views) == 1 else _draw_views
    figure = draw(views, shown, layers, len(maps.rollout))
    figure.suptitle(title or maps.names[index])
    return captioned(figure, maps, f"{ROLLOUT_TEXT} {RELEVANCE_TEXT.format(name=maps.names[index])}")


def animate_attention(maps: AttentionMaps, picture: torch.Tensor, layer: int | None = None, index: int = 0) -> bytes:
    """An animated GIF of a clip: its frames, with rollout, and with relevance.

    Args:
        maps: of `attention_maps`.
        picture: the clip, in the layout of `pixel_values`, without the batch, values from 0 to 1.
        layer: after which one, counted from 1; the last one by default.
        index: of the input in its batch.
    """
    (layer,) = (len(maps.rollout),) if layer is None else counted("layer", [layer], len(maps.rollout))
    heat = {kind: getattr(maps, kind)[layer - 1, index].double().numpy() for kind in KINDS}
    frames = []
    for number, frame in enumerate(picture):
        pixels = _enlarged(_pixels(frame))
        panels = [("clip", _as_image(pixels))]
        for kind, values in heat.items():
            of_frame = values[number * len(values) // len(picture)]
            panels.append((kind, _as_image(_blend(pixels, of_frame, values.max()))))
        frames.append(_joined(panels))
    content = io.BytesIO()
    frames[0].save(content, format="GIF", save_all=True, append_images=frames[1:], duration=ANIMATION_DURATION, loop=0)
    return content.getvalue()


def _views(picture: torch.Tensor, relevance: torch.Tensor, medium: str | None) -> list[_View]:
    """
    Raises:
        InputError: more than three axes.
    """
    num_axes = relevance.ndim
    if num_axes > 3:
        raise InputError(f"the model has {num_axes} axes, allowed are 1 to 3: more cannot be drawn")
    if num_axes == 1:
        return [_View("signal", picture.mean(0).numpy(), lambda values: values)]
    if num_axes == 2:
        return [_View("picture", _pixels(picture), lambda values: values)]
    return _slices(picture, relevance) if medium == "volume" else _frames(picture, relevance)


def _frames(picture: torch.Tensor, relevance: torch.Tensor) -> list[_View]:
    """The first frame of steps in time, evenly spread over the clip."""
    steps = len(relevance)
    frames_per_step = len(picture) // steps
    chosen = np.unique(np.linspace(0, steps - 1, min(steps, MAX_FRAMES)).round().astype(int))
    return [
        _View(f"frame {step * frames_per_step + 1}", _pixels(picture[step * frames_per_step]), _at(0, step))
        for step in chosen.tolist()
    ]


def _slices(picture: torch.Tensor, relevance: torch.Tensor) -> list[_View]:
    """Three orthogonal slices through the middle of the most relevant patch."""
    place = np.unravel_index(int(relevance.argmax()), relevance.shape)
    volume = picture.movedim(1, 0)
    views = []
    for axis, (name, patch) in enumerate(zip(("depth", "height", "width"), place, strict=True)):
        voxels = volume.shape[axis + 1] // relevance.shape[axis]
        voxel = int(patch) * voxels + voxels // 2
        views.append(_View(f"{name} {voxel + 1}", _pixels(volume.select(axis + 1, voxel)), _at(axis, int(patch))))
    return views


def _at(axis: int, number: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: values.take(number, axis)


def _pixels(picture: torch.Tensor) -> np.ndarray:
    """(channels, height, width) to (height, width, 3) for three channels, else to (height, width), 0 to 1."""
    picture = picture.detach().cpu().double().clamp(0, 1)
    return (picture.permute(1, 2, 0) if len(picture) == 3 else picture.mean(0)).numpy()


def _draw_one_view(
    views: list[_View], shown: dict[tuple[str, int], np.ndarray], layers: Sequence[int], num_layers: int
) -> Figure:
    """A row for each layer: the picture, rollout and relevance."""
    (view,) = views
    height = 1.6 if view.picture.ndim == 1 else 2.45
    figure = new_figure(9.6, height * len(layers) + 1.3)
    panels = figure.subplots(len(layers), 1 + len(KINDS), squeeze=False)
    for row, layer in zip(panels, layers, strict=True):
        _show(row[0], view.picture)
        row[0].set_ylabel(_after(layer, num_layers))
        for axes, kind in zip(row[1:], KINDS, strict=True):
            values = shown[kind, layer]
            heat = _overlay(axes, view.picture, values, values.max())
            figure.colorbar(heat, ax=axes, shrink=0.8)
    for axes, name in zip(panels[0], (view.title, *KINDS), strict=True):
        axes.set_title(name)
    return figure


def _draw_views(
    views: list[_View], shown: dict[tuple[str, int], np.ndarray], layers: Sequence[int], num_layers: int
) -> Figure:
    """A column for each view, and a row for the picture and for each map, which has one scale for all its views."""
    width = 1.5 if len(views) > 3 else 2.4
    figure = new_figure(width * len(views) + 1.4, width * (1 + len(shown)) + 1.2)
    panels = figure.subplots(1 + len(shown), len(views), squeeze=False)
    for axes, view in zip(panels[0], views, strict=True):
        _show(axes, view.picture)
        axes.set_title(view.title, fontsize=10)
    for row, ((kind, layer), values) in zip(panels[1:], shown.items(), strict=True):
        for axes, view in zip(row, views, strict=True):
            heat = _overlay(axes, view.picture, view.cut(values), values.max())
        suffix = f"\n{_after(layer, num_layers)}" if len(layers) > 1 else ""
        row[0].set_ylabel(kind + suffix)
        figure.colorbar(heat, ax=list(row), shrink=0.8)
    return figure


def _after(layer: int, num_layers: int) -> str:
    return "whole model" if layer == num_layers else f"layers 1 to {layer}" if layer > 1 else "layer 1"


def _show(axes: Axes, picture: np.ndarray) -> None:
    if picture.ndim == 1:
        axes.plot(np.arange(len(picture)), picture, color="black", linewidth=1)
        axes.set(yticks=[], xlim=(0, len(picture)))
        return
    height, width = picture.shape[:2]
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
    axes.set(xticks=[], yticks=[])


def _overlay(axes: Axes, picture: np.ndarray, values: np.ndarray, largest: float):
    """Draw a map over a picture without its colours, and give what a colour bar needs."""
    gray = picture.mean(-1) if picture.ndim == 3 else picture
    _show(axes, gray)
    style = {"cmap": COLORMAP, "vmin": 0, "vmax": largest if largest > 0 else 1, "interpolation": "nearest"}
    if picture.ndim == 1:
        low, high = axes.get_ylim()
        heat = axes.imshow(values[None], extent=(0, len(picture), low, high), aspect="auto", alpha=OPACITY, **style)
        axes.set_ylim(low, high)
        return heat
    height, width = picture.shape[:2]
    return axes.imshow(values, extent=(0, width, height, 0), alpha=OPACITY, **style)


def _blend(pixels: np.ndarray, values: np.ndarray, largest: float) -> np.ndarray:
    """The same as an array (height, width, 3)."""
    gray = pixels.mean(-1, keepdims=True)
    rows, columns = (np.arange(size) * steps // size for size, steps in zip(gray.shape[:2], values.shape, strict=True))
    colors = matplotlib.colormaps[COLORMAP](values[rows][:, columns] / (largest if largest > 0 else 1))[..., :3]
    return (1 - OPACITY) * gray + OPACITY * colors


def _enlarged(pixels: np.ndarray) -> np.ndarray:
    """A picture whose longer side has `ANIMATION_SIDE` pixels."""
    image = _as_image(pixels)
    scale = ANIMATION_SIDE / max(image.size)
    size = [round(scale * side) for side in image.size]
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC)) / 255


def _as_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray((255 * pixels).round().astype(np.uint8)).convert("RGB")


def _joined(panels: list[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures side by side, each under its name."""
    gap, bar = 6, 18
    width, height = panels[0][1].size
    frame = Image.new("RGB", (len(panels) * (width + gap) - gap, height + bar), "white")
    draw = ImageDraw.Draw(frame)
    for number, (name, image) in enumerate(panels):
        left = number * (width + gap)
        draw.text((left + 2, 3), name, fill="black")
        frame.paste(image, (left, bar))
    return frame
