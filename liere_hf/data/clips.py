"""Generated clips: which way does the one moving square go? Data for three axes where no video is at hand."""

import io

import datasets
import numpy as np

from ..configuration import DataArguments
from .sources import Data

# Rows and columns a frame, by class.
DIRECTIONS = {
    "up": (-1, 0),
    "up right": (-1, 1),
    "right": (0, 1),
    "down right": (1, 1),
    "down": (1, 0),
    "down left": (1, -1),
    "left": (0, -1),
    "up left": (-1, -1),
}
NUM_FRAMES, SIDE, SQUARE = 8, 32, 5
# Frames from one step to the next: those that a patch joins look the same, so that no patch alone tells the way.
HOLD = 2
NUM_STILL_SQUARES = 6
NOISE, BRIGHT = 40, 215
BLOCK = 1000
# Clips from here on are those of the evaluation.
EVALUATION_START = 10_000_000
TRAIN_EXAMPLES, EVAL_EXAMPLES = 10_000, 2_000


def load_clips(arguments: DataArguments, seed: int) -> Data:
    """`train_examples` and `eval_examples` clips, the same ones for every seed, as volumes of one channel."""
    splits = {}
    for split, start, count in (
        ("train", 0, arguments.train_examples or TRAIN_EXAMPLES),
        ("test", EVALUATION_START, arguments.eval_examples or EVAL_EXAMPLES),
    ):
        labels = [index % len(DIRECTIONS) for index in range(start, start + count)]
        features = datasets.Features(
            {
                "volume": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
                "label": datasets.ClassLabel(names=list(DIRECTIONS)),
            }
        )
        volumes = [{"bytes": _npy(clip), "path": None} for clip in clips(start, count)]
        splits[split] = datasets.Dataset.from_dict({"volume": volumes, "label": labels}, features=features)
    return Data.of(splits["train"], splits["test"])


def clips(first: int, count: int) -> np.ndarray:
    """Clips number `first` to `first + count - 1`, uint8 (clips, frames, height, width).

    Each has a moving square among still ones, in noise. Its direction is the clip's number modulo that of the
    directions; a single frame does not tell which square it is that moves.
    """
    blocks = range(first // BLOCK, (first + count - 1) // BLOCK + 1)
    frames = np.concatenate([_block(number) for number in blocks])
    return frames[first % BLOCK :][:count]


def _block(number: int) -> np.ndarray:
    """The clips number `number * BLOCK` and on; one generator for all is fifty times faster than one for each."""
    rng = np.random.default_rng(number)
    directions = np.array([*DIRECTIONS.values()])[(number * BLOCK + np.arange(BLOCK)) % len(DIRECTIONS)]
    steps = directions * rng.integers(2, 8, (BLOCK, 1))
    # The whole way lies in the frame.
    times = np.arange(NUM_FRAMES)[:, None] // HOLD
    ways = steps * times[-1]
    starts = rng.integers(np.maximum(0, -ways), SIDE - SQUARE + 1 - np.maximum(0, ways))
    still = rng.integers(0, SIDE - SQUARE + 1, (BLOCK, NUM_STILL_SQUARES, 2))
    clips = rng.integers(0, NOISE, (BLOCK, NUM_FRAMES, SIDE, SIDE), dtype=np.uint8)
    for clip, squares, start, step in zip(clips, still, starts, steps, strict=True):
        for row, column in squares:
            clip[:, row : row + SQUARE, column : column + SQUARE] = BRIGHT
        for frame, (row, column) in zip(clip, start + times * step, strict=True):
            frame[row : row + SQUARE, column : column + SQUARE] = BRIGHT
    return clips


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()
