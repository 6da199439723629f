import itertools

import av
import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from video_files import NUM_FRAMES, full_decode, row, write_video

from liere_hf.data.decoding.videos import check_video, minimum_frames
from liere_hf.data.draws import Draws
from liere_hf.data.resizing.clips import EvaluationClips, TrainingClips
from liere_hf.data.resizing.random_boxes import NUMBERS_PER_BOX, random_resized_crop
from liere_hf.errors import InputError


def test_training_clips_are_spaced_and_start_everywhere(video):
    path, expected = video("b_frames.avi")
    # From the first to the last of four possible starts.
    stride = 8
    clips = TrainingClips((8, 240, 320), stride, None)([row(path)] * 40, Draws(0, 0, range(40)))
    assert (clips.shape, clips.dtype) == ((40, 8, 3, 240, 320), torch.uint8)
    assert minimum_frames((8, 240, 320), stride) == 57
    draws = Draws(0, 0, range(40)).next(1)[:, 0]
    starts = [int(4 * draw) for draw in draws]
    assert set(starts) == {0, 1, 2, 3}
    for clip, start in zip(clips, starts, strict=True):
        assert clip.equal(
            v2.functional.center_crop(v2.functional.resize(expected[start::stride][:8], [320]), [240, 320])
        )


def test_training_crops_are_the_same_for_all_frames(video):
    path, expected = video("plain.avi")
    crops = TrainingClips((4, 48, 64), 3, (0.1, 0.5))([row(path)] * 5, Draws(7, 2, range(5)))
    draws = Draws(7, 2, range(5))
    starts, numbers = draws.next(1)[:, 0], draws.next(NUMBERS_PER_BOX)
    for crop, start, row_numbers in zip(crops, starts, numbers, strict=True):
        start = int(start * (NUM_FRAMES - 9))
        top, left, height, width = random_resized_crop(240, 320, row_numbers, (0.1, 0.5))
        window = expected[start : start + 10 : 3, :, top : top + height, left : left + width]
        assert crop.equal(v2.functional.resize(window, [48, 64], antialias=True))


@pytest.mark.parametrize("crop_scale", [None, (0.08, 1.0)])
def test_training_clips_depend_only_on_the_draws(video, crop_scale):
    rows = [row(video("plain.avi")[0]), row(video("b_frames.mp4")[0]), row(video("vp8.webm")[0])]
    clips = TrainingClips((4, 32, 32), 4, crop_scale)
    together = clips(rows, Draws(3, 1, [5, 9, 20]))
    assert together.equal(clips(rows, Draws(3, 1, [5, 9, 20])))
    assert together[1:2].equal(clips(rows[1:2], Draws(3, 1, [9])))
    assert not together.equal(clips(rows, Draws(3, 2, [5, 9, 20])))
    # The number of draws does not depend on the videos.
    first, second = Draws(0, 0, [0]), Draws(0, 0, [0])
    clips(rows[:1], first)
    clips(rows[2:], second)
    assert np.array_equal(first.next(1), second.next(1))


@pytest.mark.parametrize(
    "num_frames, stride, advice",
    [
        (1, 1, "it has 1 frame; a clip of 4 with frame_stride 1 takes 4: at least 4 are needed"),
        (3, 1, "it has 3 frames; a clip of 4 with frame_stride 1 takes 4: at least 4 are needed"),
        (4, 1, None),
        (5, 2, "it has 5 frames; a clip of 4 with frame_stride 2 takes 7: set frame_stride to 1"),
        (7, 2, None),
        (9, 3, "it has 9 frames; a clip of 4 with frame_stride 3 takes 10: set frame_stride to 2 or less"),
    ],
)
def test_short_videos_are_refused_as_before_training(tmp_path, num_frames, stride, advice):
    """No frame is repeated to fill a clip: neither in training nor in evaluations and predictions."""
    path, size = write_video(tmp_path / "short.avi", num_frames), (4, 240, 240)
    assert check_video(row(path), size, stride).fault == advice
    ways = (
        lambda: TrainingClips(size, stride, None)([row(path)], Draws(0, 0, [3])),
        lambda: EvaluationClips(size, stride, 2, 1, MEAN, STD)([row(path)] * 2, [0, 1]),
    )
    for read in ways:
        if advice is None:
            assert read().shape[1:] == (4, 3, 240, 240)
        else:
            with pytest.raises(InputError) as caught:
                read()
            assert str(caught.value) == f"video {path} cannot be read: {advice}"


MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.25, 0.2)


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (pixels / 255 - mean) / std


@pytest.mark.parametrize("num_segments, starts", [(1, [15]), (2, [0, 31]), (3, [0, 16, 31]), (5, [0, 8, 16, 23, 31])])
def test_segments_are_evenly_spaced(video, num_segments, starts):
    # A clip spans 29 of the 60 frames.
    path, expected = video("b_frames.avi")
    clips = EvaluationClips((8, 48, 48), 4, num_segments, 1, MEAN, STD)
    assert clips.num_views == num_segments
    views = clips([row(path)] * num_segments, list(range(num_segments)))
    assert (views.shape, views.dtype) == ((num_segments, 8, 3, 48, 48), torch.float32)
    for view, start in zip(views, starts, strict=True):
        frames = v2.functional.resize(expected[start : start + 29 : 4], [48, 64])[..., 8:56]
        assert torch.allclose(view, normalized(frames), atol=1e-5)


@pytest.mark.parametrize("portrait", [False, True])
def test_crops_are_at_the_start_middle_and_end(video_folder, portrait):
    size, resized = ((160, 120), (64, 48)) if portrait else ((120, 160), (48, 64))
    path = write_video(video_folder / f"portrait_{portrait}.avi", size=size)
    expected = v2.functional.resize(full_decode(path), resized)
    clips = EvaluationClips((2, 48, 48), 4, 2, 3, MEAN, STD)
    assert clips.num_views == 6
    views = clips([row(path)] * 6, range(6))
    for view, (start, offset) in zip(views, itertools.product((0, 55), (0, 8, 16)), strict=True):
        frames = expected[[start, start + 4]]
        frames = frames[..., offset : offset + 48, :] if portrait else frames[..., offset : offset + 48]
        assert torch.allclose(view, normalized(frames), atol=1e-5)


def test_views_of_a_clip_are_decoded_once(video, monkeypatch):
    rows = [row(video("plain.avi")[0]), row(video("b_frames.avi")[0])]
    clips = EvaluationClips((4, 48, 48), 4, 2, 3, MEAN, STD)
    opened = []
    open_container = av.open
    monkeypatch.setattr(av, "open", lambda *args, **options: opened.append(1) or open_container(*args, **options))
    alone = torch.stack([clips(rows[:1], [view])[0] for view in (1, 2, 3)] + [clips(rows[1:], [0])[0]])
    num_opened_alone = len(opened)
    opened.clear()
    together = clips([rows[0], rows[0], rows[0], rows[1]], [1, 2, 3, 0])
    assert together.equal(alone)
    assert len(opened) == num_opened_alone * 3 // 4
