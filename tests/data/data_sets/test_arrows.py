import dataclasses
import io

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from liere_hf.data.data_sets.arrows import BLOCK_SIZE, DIRECTIONS, ArrowsTask
from liere_hf.data.data_sets.png import encode_png

ARROWS, YS, LETTERS = range(1, 5), range(5, 9), range(9, 14)
# Row indices increase downward.
STEP = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}


def follow_ray(layout: np.ndarray) -> list[int]:
    """The glyphs on the ray from the base of the Y, found by walking cell by cell."""
    ((row, column),) = np.argwhere((layout >= 5) & (layout <= 8))
    row_step, column_step = STEP[DIRECTIONS[layout[row, column] - 5]]
    glyphs = []
    while True:
        row, column = row + row_step, column + column_step
        if not (0 <= row < len(layout) and 0 <= column < len(layout)):
            return glyphs
        glyphs.append(int(layout[row, column]))


tasks = st.builds(
    ArrowsTask,
    grid_size=st.integers(4, 9),
    cell_size=st.integers(4, 12),
    num_distractor_arrows=st.integers(0, 7),
    num_distractor_letters=st.integers(0, 5),
    seed=st.integers(0, 2**32),
)


@settings(deadline=None, max_examples=20)
@given(task=tasks, block=st.integers(0, 10**6))
def test_one_arrow_on_the_ray_is_the_label(task, block):
    layouts, labels = task.layouts(block)
    for layout, label in zip(layouts[:50].reshape(-1, task.grid_size, task.grid_size), labels, strict=False):
        ray = [glyph for glyph in follow_ray(layout) if glyph]
        assert ray == [1 + label]
        assert np.isin(layout, YS).sum() == 1
        assert np.isin(layout, ARROWS).sum() == 1 + task.num_distractor_arrows
        letters = layout[np.isin(layout, LETTERS)]
        assert sorted(letters) == list(LETTERS)[: task.num_distractor_letters]


def test_labels_and_directions_are_balanced():
    layouts, labels = ArrowsTask().layouts(0)
    assert np.bincount(labels, minlength=4).min() > 0.2 * BLOCK_SIZE
    ys = layouts[np.isin(layouts, YS)]
    assert np.bincount(ys - 5, minlength=4).min() > 0.2 * BLOCK_SIZE


def test_glyphs_point_in_the_direction_of_their_name():
    """An arrow's center of mass is on the side of its head, a Y's on the side of its arms."""
    glyphs = ArrowsTask(cell_size=24)._glyphs.astype(float)
    coordinate = np.arange(24) - 11.5
    for index, (row_step, column_step) in enumerate(STEP.values()):
        for glyph, side in ((glyphs[1 + index], 1), (glyphs[5 + index], -1)):
            row = (glyph.sum(1) * coordinate).sum() / glyph.sum()
            column = (glyph.sum(0) * coordinate).sum() / glyph.sum()
            assert side * (row * row_step + column * column_step) > 0.5
            assert abs(row * column_step) + abs(column * row_step) < 0.1


@settings(deadline=None, max_examples=10)
@given(task=tasks, start=st.integers(0, 5 * BLOCK_SIZE), count=st.integers(1, 40))
def test_deterministic_by_index(task, start, count):
    pixels, labels = task.images(start, start + count)
    one_pixels, one_labels = dataclasses.replace(task).images(start + count - 1, start + count)
    assert np.array_equal(pixels[-1], one_pixels[0])
    assert labels[-1] == one_labels[0]


def test_another_seed_gives_other_examples():
    assert not np.array_equal(ArrowsTask(seed=0).images(0, 20)[0], ArrowsTask(seed=1).images(0, 20)[0])


@pytest.mark.parametrize("grid_size, image_size", [(9, 108), (14, 168), (23, 276)])
def test_larger_canvases_keep_the_objects(grid_size, image_size):
    pixels, _ = ArrowsTask(grid_size=grid_size).images(0, 5)
    assert pixels.shape == (5, image_size, image_size)
    layouts, _ = ArrowsTask(grid_size=grid_size).layouts(0)
    assert ((layouts > 0).sum(1) == 1 + 8 + 5).all()


def test_dataset_has_images_and_label_names():
    task = ArrowsTask(grid_size=5, cell_size=8, num_distractor_arrows=3, num_distractor_letters=2)
    dataset = task.dataset(990, 1010, num_proc=2)
    assert isinstance(dataset.features["image"], datasets.Image)
    assert dataset.features["label"].names == ["up", "right", "down", "left"]
    pixels, labels = task.images(990, 1010)
    assert dataset["label"][:] == labels.tolist()
    for row, expected in zip(dataset, pixels, strict=True):
        assert np.array_equal(np.asarray(row["image"]), expected)


@settings(deadline=None, max_examples=20)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 100))
def test_png_is_read_by_pillow(height, width, seed):
    pixels = np.random.default_rng(seed).integers(256, size=(height, width), dtype=np.uint8)
    image = Image.open(io.BytesIO(encode_png(pixels)))
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"grid_size": 1}, "grid_size is 1, allowed is 2 or more"),
        ({"cell_size": 3}, "cell_size is 3, allowed is 4 or more"),
        ({"num_distractor_arrows": -1}, "num_distractor_arrows is -1"),
        ({"num_distractor_letters": 6}, "num_distractor_letters is 6, allowed is 0 to 5"),
        ({"grid_size": 3}, "is 12, a grid of 3 x 3 cells has room for 6"),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(ValueError, match=message):
        ArrowsTask(**options)
