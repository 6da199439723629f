"""The spatial-reasoning task of the LieRE paper (section 5.3): in which direction does the arrow below the Y point?

A square canvas of cells holds arrows, letters and one Y, which is turned at random. Exactly one arrow lies on the ray
that leaves the base of the Y; its direction is the label. A model with absolute positions has to learn this for each
pair of cells, a model with relative positions does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import datasets
import numpy as np

from ...configuration import DataArguments
from ...errors import InputError
from ...modeling.configuration_liere_vit import LiereViTConfig
from .png import encode_png
from .splits import Splits

# Evaluation examples start at this index, so that no training set reaches them.
EVALUATION_START = 1_000_000_000
# Defaults; the paper trains on 800,000 examples.
TRAIN_EXAMPLES, EVALUATION_EXAMPLES = 800_000, 10_000

DIRECTIONS = ("up", "right", "down", "left")
# Steps (row, column) in these directions.
STEPS = ((-1, 0), (0, 1), (1, 0), (0, -1))
# Examples are drawn in blocks of this size, large enough that NumPy's overhead per call does not matter. A block has
# one random generator, so another size would give other examples.
BLOCK_SIZE = 1000

# Strokes as polylines of (x, y) in the unit square, y growing downwards.
ARROW_UP = [[(0.5, 0.9), (0.5, 0.1)], [(0.2, 0.4), (0.5, 0.1), (0.8, 0.4)]]
LETTER_Y = [[(0.2, 0.1), (0.5, 0.5), (0.8, 0.1)], [(0.5, 0.5), (0.5, 0.9)]]
LETTERS = {
    "A": [[(0.2, 0.9), (0.5, 0.1), (0.8, 0.9)], [(0.3, 0.65), (0.7, 0.65)]],
    "B": [[(0.25, 0.1), (0.25, 0.9), (0.75, 0.7), (0.25, 0.5), (0.75, 0.3), (0.25, 0.1)]],
    "C": [[(0.8, 0.2), (0.5, 0.1), (0.2, 0.35), (0.2, 0.65), (0.5, 0.9), (0.8, 0.8)]],
    "D": [[(0.25, 0.1), (0.25, 0.9), (0.75, 0.65), (0.75, 0.35), (0.25, 0.1)]],
    "E": [[(0.75, 0.1), (0.25, 0.1), (0.25, 0.9), (0.75, 0.9)], [(0.25, 0.5), (0.65, 0.5)]],
}
# What a cell of a layout can hold, by identifier.
GLYPHS = (
    "empty",
    *(f"arrow {direction}" for direction in DIRECTIONS),
    *(f"Y, base {direction}" for direction in DIRECTIONS),
    *LETTERS,
)
FIRST_ARROW, FIRST_Y, FIRST_LETTER = 1, 5, 9


def draw_glyph(strokes: Sequence[Sequence[tuple[float, float]]], cell_size: int) -> np.ndarray:
    """Anti-aliased white strokes on black: uint8 of shape (cell_size, cell_size)."""
    center = (np.arange(cell_size) + 0.5) / cell_size
    point = np.stack(np.meshgrid(center, center, indexing="xy"), axis=-1)
    distance = np.full((cell_size, cell_size), np.inf)
    for stroke in np.asarray(strokes, dtype=object):
        for start, end in zip(np.asarray(stroke[:-1], float), np.asarray(stroke[1:], float), strict=True):
            along = ((point - start) @ (end - start)) / ((end - start) @ (end - start))
            nearest = start + np.clip(along, 0, 1)[..., None] * (end - start)
            distance = np.minimum(distance, np.linalg.norm(point - nearest, axis=-1))
    # Strokes are 12% of a cell wide.
    half_width = 0.06
    return np.round(255 * np.clip((half_width - distance) * cell_size + 0.5, 0, 1)).astype(np.uint8)


@dataclass(frozen=True)
class ArrowsTask:
    """One setting of the task; the paper's is 9 x 9 cells of 12 pixels with eight arrows and the letters A to E.

    Args:
        grid_size: cells along each side of the canvas (paper: 9, 14 and 23).
        cell_size: pixels along each side of a cell.
        num_distractor_arrows: arrows that do not lie on the ray.
        num_distractor_letters: letters A, B, ... in addition to the Y, at most 5.
        seed: together with the index of an example it determines that example.
    """

    grid_size: int = 9
    cell_size: int = 12
    num_distractor_arrows: int = 7
    num_distractor_letters: int = 5
    seed: int = 0

    def __post_init__(self):
        if self.grid_size < 2:
            raise ValueError(f"grid_size is {self.grid_size}, allowed is 2 or more")
        if self.cell_size < 4:
            raise ValueError(f"cell_size is {self.cell_size}, allowed is 4 or more")
        if self.num_distractor_arrows < 0:
            raise ValueError(f"num_distractor_arrows is {self.num_distractor_arrows}, allowed is 0 or more")
        if not 0 <= self.num_distractor_letters <= len(LETTERS):
            raise ValueError(
                f"num_distractor_letters is {self.num_distractor_letters}, allowed is 0 to {len(LETTERS)}"
            )
        # The longest ray leaves grid_size * (grid_size - 1) cells free.
        num_distractors = self.num_distractor_arrows + self.num_distractor_letters
        free = self.grid_size * (self.grid_size - 1)
        if num_distractors > free:
            raise ValueError(
                f"num_distractor_arrows + num_distractor_letters is {num_distractors}, a grid of {self.grid_size} x "
                f"{self.grid_size} cells has room for {free}"
            )

    @property
    def image_size(self) -> int:
        """Pixels along each side of the canvas."""
        return self.grid_size * self.cell_size

    @cached_property
    def _glyphs(self) -> np.ndarray:
        """Pixels of `GLYPHS`."""
        arrow = draw_glyph(ARROW_UP, self.cell_size)
        base_down = draw_glyph(LETTER_Y, self.cell_size)
        letters = [draw_glyph(strokes, self.cell_size) for strokes in LETTERS.values()]
        arrows = [np.rot90(arrow, -turn) for turn in range(4)]
        ys = [np.rot90(base_down, 2 - turn) for turn in range(4)]
        return np.stack([np.zeros_like(arrow), *arrows, *ys, *letters])

    @cached_property
    def _rays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Placements of the Y that leave its ray some cells: the Y's cell, the direction, the length of the ray."""
        last = self.grid_size - 1
        cell, direction = np.divmod(np.arange(4 * self.grid_size**2), 4)
        row, column = np.divmod(cell, self.grid_size)
        length = np.choose(direction, [row, last - column, last - row, column])
        return tuple(values[length > 0] for values in (cell, direction, length))

    def layouts(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Block number `block`: glyph identifiers (BLOCK_SIZE, grid_size**2) and labels (BLOCK_SIZE,)."""
        random = np.random.default_rng([self.seed, block])
        examples = np.arange(BLOCK_SIZE)
        cell, direction, length = (
            values[choice]
            for choice in (random.integers(len(self._rays[0]), size=BLOCK_SIZE),)
            for values in self._rays
        )
        arrows = FIRST_ARROW + random.integers(4, size=(BLOCK_SIZE, 1 + self.num_distractor_arrows))
        step = np.array([row * self.grid_size + column for row, column in STEPS])[direction]
        target = cell + step * random.integers(1, length + 1)

        # A random order of the cells; the Y and its ray come last.
        order = random.random((BLOCK_SIZE, self.grid_size**2))
        for distance in range(self.grid_size):
            on_ray = distance <= length
            order[examples[on_ray], (cell + step * distance)[on_ray]] = 2
        num_distractors = self.num_distractor_arrows + self.num_distractor_letters
        elsewhere = np.argsort(order, axis=1)[:, :num_distractors]

        layouts = np.zeros((BLOCK_SIZE, self.grid_size**2), dtype=np.uint8)
        layouts[examples, cell] = FIRST_Y + direction
        layouts[examples, target] = arrows[:, 0]
        layouts[examples[:, None], elsewhere] = np.concatenate(
            (
                arrows[:, 1:],
                np.broadcast_to(
                    FIRST_LETTER + np.arange(self.num_distractor_letters), (BLOCK_SIZE, self.num_distractor_letters)
                ),
            ),
            axis=1,
        )
        return layouts, arrows[:, 0] - FIRST_ARROW

    def images(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Examples `start` to `stop` - 1: pixels, uint8 (examples, image_size, image_size), and labels (examples,)."""
        blocks = range(start // BLOCK_SIZE, -(-stop // BLOCK_SIZE))
        layouts, labels = (np.concatenate(parts) for parts in zip(*map(self.layouts, blocks), strict=True))
        chosen = slice(start - blocks.start * BLOCK_SIZE, stop - blocks.start * BLOCK_SIZE)
        return self.draw(layouts[chosen]), labels[chosen]

    def draw(self, layouts: np.ndarray) -> np.ndarray:
        """Glyph identifiers (examples, grid_size**2) to pixels, uint8 (examples, image_size, image_size)."""
        cells = self._glyphs[layouts.reshape(-1, self.grid_size, self.grid_size)]
        return cells.swapaxes(2, 3).reshape(-1, self.image_size, self.image_size)

    def label_of(self, layout: np.ndarray) -> int | None:
        """The label of a layout, glyph identifiers (grid_size**2,): where the only arrow on the ray points.

        Returns:
            None if the layout has no or several Ys, or no or several arrows on the ray.
        """
        canvas = layout.reshape(self.grid_size, self.grid_size)
        ys = np.argwhere((canvas >= FIRST_Y) & (canvas < FIRST_LETTER))
        if len(ys) != 1:
            return None
        row, column = ys[0]
        ray = (canvas[row::-1, column], canvas[row, column:], canvas[row:, column], canvas[row, column::-1])
        on_ray = ray[canvas[row, column] - FIRST_Y]
        arrows = on_ray[(on_ray >= FIRST_ARROW) & (on_ray < FIRST_Y)]
        return int(arrows[0]) - FIRST_ARROW if len(arrows) == 1 else None

    def _draw(self, indices: list[int]) -> dict[str, list]:
        images, labels = self.images(indices[0], indices[-1] + 1)
        return {"image": [{"bytes": encode_png(image), "path": None} for image in images], "label": labels}

    def dataset(self, start: int, stop: int, num_proc: int | None = None) -> datasets.Dataset:
        """Examples `start` to `stop` - 1 with columns `image` (PNG) and `label`.

        Args:
            num_proc: processes that draw them; few examples are drawn in this one.
        """
        return datasets.Dataset.from_dict({"index": range(start, stop)}).map(
            self._draw,
            batched=True,
            batch_size=BLOCK_SIZE,
            input_columns="index",
            remove_columns="index",
            features=datasets.Features(
                {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(DIRECTIONS))}
            ),
            # Processes take longer to start than a block to draw.
            num_proc=num_proc if stop - start > BLOCK_SIZE else None,
            desc="Drawing arrows",
        )


def arrows_task(arguments: DataArguments) -> ArrowsTask:
    """The setting of the task that the arguments describe.

    Raises:
        InputError: values that do not fit together.
    """
    try:
        return ArrowsTask(
            grid_size=arguments.arrows_grid_size,
            cell_size=arguments.arrows_cell_size,
            num_distractor_arrows=arguments.arrows_num_distractor_arrows,
            num_distractor_letters=arguments.arrows_num_distractor_letters,
            seed=arguments.arrows_seed,
        )
    except ValueError as error:
        raise InputError(f"arrows: {error}") from error


def load_arrows(arguments: DataArguments, config: LiereViTConfig | None) -> Splits:
    """`train_examples` and `eval_examples` of the task, drawn by worker processes."""
    task, num_proc = arrows_task(arguments), arguments.num_processes
    stop = EVALUATION_START + (arguments.eval_examples or EVALUATION_EXAMPLES)
    return Splits.of(
        task.dataset(0, arguments.train_examples or TRAIN_EXAMPLES, num_proc),
        test=task.dataset(EVALUATION_START, stop, num_proc),
    )
