"""The spatial task as a board of cells: what a click does, and how the board looks."""

import random

import numpy as np
from PIL import Image, ImageDraw

from ..data.data_sets.arrows import BLOCK_SIZE, DIRECTIONS, EVALUATION_START, GLYPHS, ArrowsTask

# Pixels of the board's longer side on the page, at least.
BOARD_SIDE = 360
LINE_COLOR = (70, 70, 90)

Layout = tuple[int, ...]


def example(task: ArrowsTask) -> Layout:
    """A random layout that no training set has."""
    layouts, _ = task.layouts(EVALUATION_START // BLOCK_SIZE)
    return tuple(layouts[random.randrange(len(layouts))].tolist())


def empty(task: ArrowsTask) -> Layout:
    return (0,) * task.grid_size**2


def placed(task: ArrowsTask, layout: Layout, place: tuple[float, float], glyph: str) -> Layout:
    """The layout with a glyph in the cell at a place.

    Args:
        place: shares of the board's width and height, from its top left corner.
        glyph: one of `GLYPHS`.
    """
    column, row = (min(int(min(max(share, 0), 1) * task.grid_size), task.grid_size - 1) for share in place)
    cell = row * task.grid_size + column
    return (*layout[:cell], GLYPHS.index(glyph), *layout[cell + 1 :])


def picture(task: ArrowsTask, layout: Layout) -> Image.Image:
    """What the model is given."""
    return Image.fromarray(task.draw(np.array([layout]))[0])


def board(task: ArrowsTask, layout: Layout) -> Image.Image:
    """The picture, enlarged, with lines between the cells."""
    cell_side = -(-BOARD_SIDE // task.grid_size)
    side = cell_side * task.grid_size
    shown = picture(task, layout).resize((side, side), Image.Resampling.BICUBIC).convert("RGB")
    pen = ImageDraw.Draw(shown)
    for place in range(0, side + 1, cell_side):
        pen.line([(place, 0), (place, side)], LINE_COLOR)
        pen.line([(0, place), (side, place)], LINE_COLOR)
    return shown


def solution(task: ArrowsTask, layout: Layout) -> str:
    """A sentence about the right answer."""
    label = task.label_of(np.array(layout))
    if label is None:
        return "No single right answer: it takes one Y, and one arrow below its base, at any distance."
    return f"Right answer: {DIRECTIONS[label]}. It is where the arrow points that the base of the Y points at."
