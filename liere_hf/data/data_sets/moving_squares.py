"""Generated clips: in which direction does the one moving square go? Data for three axes."""

import io

import datasets
import numpy as np

from ...configuration import DataArguments
from ...errors import InputError
from ...modeling.configuration_liere_vit import LiereViTConfig
from .splits import Splits

# (row, column) signs of the steps, by class.
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
# Frames between two steps. A patch of two frames shows the square at rest, so no single patch shows the direction.
HOLD = 2
NUM_STILL_SQUARES = 6
# Intensities: the background is below NOISE and squares have BRIGHT, so that they are clearly visible in every frame.
NOISE, BRIGHT = 40, 215
# Clips are drawn in blocks of this size with one random generator each, so another size would give other clips.
BLOCK_SIZE = 1000
# Evaluation clips start at this index.
EVALUATION_START = 10_000_000
TRAIN_EXAMPLES, EVALUATION_EXAMPLES = 10_000, 2_000


def load_clips(arguments: DataArguments, config: LiereViTConfig | None) -> Splits:
    """`train_examples` and `eval_examples` clips, the same ones for every seed.

    They are volumes of one channel, or for a model of three channels videos of 8 frames, 32 x 32 pixels, in grey.

    Raises:
        InputError: another number of channels, or videos that are too short for the model's frames and
            `frame_stride`.
    """
    if config is not None and config.num_channels not in (1, 3):
        raise InputError(f"num_channels is {config.num_channels}, clips take 1 (volumes) or 3 (videos)")
    column, encode = "volume", _npy
    if config is not None and config.num_channels == 3:
        column, encode = "video", _video
        _require_long_enough(arguments, config)
    encoded = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({column: encoded, "label": datasets.ClassLabel(names=list(DIRECTIONS))})
    splits = {}
    for split, start, count in (
        ("train", 0, arguments.train_examples or TRAIN_EXAMPLES),
        ("test", EVALUATION_START, arguments.eval_examples or EVALUATION_EXAMPLES),
    ):
        labels = [index % len(DIRECTIONS) for index in range(start, start + count)]
        files = [{"bytes": encode(clip), "path": None} for clip in clips(start, count)]
        splits[split] = datasets.Dataset.from_dict({column: files, "label": labels}, features=features)
    return Splits.of(**splits)


def clips(first: int, count: int) -> np.ndarray:
    """Clips number `first` to `first + count - 1`, uint8 (clips, frames, height, width).

    Each has a moving square among still ones, in noise. Its direction is the clip's number modulo the number of
    directions. A single frame does not show which square moves.
    """
    blocks = range(first // BLOCK_SIZE, (first + count - 1) // BLOCK_SIZE + 1)
    frames = np.concatenate([_block(number) for number in blocks])
    return frames[first % BLOCK_SIZE :][:count]


def _block(number: int) -> np.ndarray:
    """Block number `number`; one generator for a block is fifty times faster than one for each clip."""
    rng = np.random.default_rng(number)
    directions = np.array([*DIRECTIONS.values()])[(number * BLOCK_SIZE + np.arange(BLOCK_SIZE)) % len(DIRECTIONS)]
    steps = directions * rng.integers(2, 8, (BLOCK_SIZE, 1))
    # The square stays within the frame.
    times = np.arange(NUM_FRAMES)[:, None] // HOLD
    distances = steps * times[-1]
    starts = rng.integers(np.maximum(0, -distances), SIDE - SQUARE + 1 - np.maximum(0, distances))
    still = rng.integers(0, SIDE - SQUARE + 1, (BLOCK_SIZE, NUM_STILL_SQUARES, 2))
    clips = rng.integers(0, NOISE, (BLOCK_SIZE, NUM_FRAMES, SIDE, SIDE), dtype=np.uint8)
    for clip, squares, start, step in zip(clips, still, starts, steps, strict=True):
        for row, column in squares:
            clip[:, row : row + SQUARE, column : column + SQUARE] = BRIGHT
        for frame, (row, column) in zip(clip, start + times * step, strict=True):
            frame[row : row + SQUARE, column : column + SQUARE] = BRIGHT
    return clips


def _require_long_enough(arguments: DataArguments, config: LiereViTConfig) -> None:
    """
    Raises:
        InputError: see `load_clips`.
    """
    # Only videos need PyAV.
    from ..decoding.videos import check_video

    video = {"bytes": _video(clips(0, 1)[0]), "path": None}
    fault = check_video(video, arguments.input_size or config.spatial_image_size, arguments.frame_stride).fault
    if fault:
        raise InputError(f"every video of the data set clips is too short: {fault}")


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def _video(clip: np.ndarray) -> bytes:
    """Without loss, and fast to decode: uncompressed frames in NUT, FFmpeg's own container."""
    # Only videos need PyAV.
    import av

    content = io.BytesIO()
    with av.open(content, "w", format="nut") as container:
        stream = container.add_stream("rawvideo", rate=NUM_FRAMES)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "gray"
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode(None))
    return content.getvalue()
