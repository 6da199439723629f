import numpy as np
import pytest
from volume_files import read_channel

from liere_hf import LiereViTConfig
from liere_hf.configuration import DataArguments, parse_recipe
from liere_hf.data import load_splits
from liere_hf.data.data_sets.moving_squares import BLOCK_SIZE, BRIGHT, DIRECTIONS, NOISE, SIDE, clips
from liere_hf.data.decoding.videos import decode_frames
from liere_hf.errors import InputError

NAMES = list(DIRECTIONS)


def motion(clip):
    """Displacement of the center of the moving brightness from the first frame to the last."""
    bright = clip >= BRIGHT
    moving = bright & ~bright.all(axis=0)
    centers = [np.argwhere(frame).mean(axis=0) for frame in moving if frame.any()]
    return centers[-1] - centers[0]


def test_the_label_is_the_direction():
    right = 0
    for index, clip in enumerate(clips(0, 200)):
        right += np.array_equal(np.sign(np.round(motion(clip) / 7)), DIRECTIONS[NAMES[index % len(NAMES)]])
    # Sometimes a still square hides the moving one at the start or the end.
    assert right >= 180


def test_a_single_frame_does_not_reveal_the_label():
    """Frames of all classes look alike: the same number and distribution of bright pixels."""
    frames = clips(0, 800)[:, 4] >= BRIGHT
    by_class = np.array([frames[label :: len(NAMES)].mean() for label in range(len(NAMES))])
    assert by_class == pytest.approx(by_class.mean(), rel=0.1)


def test_nothing_moves_within_a_patch_of_the_recipe():
    frames, *_ = parse_recipe("clips")[0].patch_size
    bright = (clips(0, 50) >= BRIGHT).reshape(50, -1, frames, SIDE, SIDE)
    assert (bright == bright[:, :, :1]).all()
    assert (bright[:, 0] != bright[:, 1]).any(axis=(1, 2, 3)).all()


def test_clips_do_not_depend_on_their_number():
    many = clips(0, 2 * BLOCK_SIZE)
    assert np.array_equal(clips(BLOCK_SIZE - 3, 6), many[BLOCK_SIZE - 3 : BLOCK_SIZE + 3])
    assert many.dtype == np.uint8
    assert set(np.unique(many)) == {*range(NOISE), BRIGHT}


def test_loader():
    data = load_splits(DataArguments(dataset="clips", train_examples=20, eval_examples=10), seed=5)
    assert (len(data.train), len(data.test), data.label_names) == (20, 10, NAMES)
    assert np.array_equal(read_channel(data.train[3]["volume"]), clips(3, 1)[0])
    assert data.train[3]["label"] == 3
    assert not np.array_equal(read_channel(data.test[0]["volume"]), clips(0, 1)[0])


def test_a_model_of_three_channels_gets_the_same_clips_as_videos():
    config = LiereViTConfig(image_size=[8, 32, 32], patch_size=[2, 8, 8], num_channels=3)
    data = load_splits(DataArguments(dataset="clips", train_examples=20, eval_examples=10, frame_stride=1), 5, config)
    assert data.train.column_names == ["video", "label"]
    for number in (0, 3, 19):
        frames = decode_frames(data.train[number]["video"], range(8))
        assert np.array_equal(frames, np.repeat(clips(number, 1)[0][:, None], 3, axis=1))


def test_the_recipe_of_videos_shows_every_frame():
    model_arguments, data_arguments, _ = parse_recipe("clips_video")
    frames, *_ = model_arguments.image_size
    assert (frames, data_arguments.frame_stride, data_arguments.intensity_window) == (8, 1, None)


@pytest.mark.parametrize(
    ("frames", "options", "advice"),
    [
        (8, {"frame_stride": 4}, "set frame_stride to 1"),
        (16, {"frame_stride": 1}, "at least 16 are needed"),
        (8, {"frame_stride": 1, "input_size": [12, 32, 32]}, "at least 12 are needed"),
    ],
)
def test_videos_are_not_repeated_to_fill_a_clip(frames, options, advice):
    config = LiereViTConfig(image_size=[frames, 32, 32], patch_size=[2, 8, 8], num_channels=3)
    with pytest.raises(InputError, match=f"data set clips is too short: it has 8 frames; .*{advice}"):
        load_splits(DataArguments(dataset="clips", train_examples=20, **options), 5, config)
