"""Clips of the frames and size that a model takes."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torchvision.transforms import v2

from ..decoding.videos import decode_frames, last_start, minimum_frames
from ..draws import Draws
from ..normalization import normalize
from .random_boxes import NUMBERS_PER_BOX, random_resized_crop


class TrainingClips:
    """A clip of each video from a random start: cropped at random, or in the middle after resizing the shorter side.

    Args:
        size: (frames, height, width).
        frame_stride: distance between the frames of a clip, in frames of the video.
        crop_scale: range of a random crop's share of the frames' area; None for no random crops.
    """

    def __init__(self, size: tuple[int, int, int], frame_stride: int, crop_scale: tuple[float, float] | None):
        self.size = tuple(size)
        self.frame_stride = frame_stride
        self.crop_scale = crop_scale

    def __call__(self, videos: Sequence[dict[str, Any]], draws: Draws) -> torch.Tensor:
        """uint8 of shape (batch, frames, 3, height, width).

        Raises:
            InputError: a video that is too short, or without a frame that can be decoded.
        """
        starts = draws.next(1)[:, 0]
        clips = [self._decode(video, start) for video, start in zip(videos, starts, strict=True)]
        if self.crop_scale is None:
            return torch.stack([_crop(_resize(clip, self.size[1:]), self.size[1:], 1) for clip in clips])
        numbers = draws.next(NUMBERS_PER_BOX)
        return torch.stack([self._crop_at_random(clip, row) for clip, row in zip(clips, numbers, strict=True)])

    def _decode(self, video: dict[str, Any], number: float) -> torch.Tensor:
        start = int(number * (last_start(video, self.size, self.frame_stride) + 1))
        return decode_frames(video, _clip_indices(start, self.size, self.frame_stride))

    def _crop_at_random(self, clip: torch.Tensor, numbers: np.ndarray) -> torch.Tensor:
        box = random_resized_crop(*clip.shape[-2:], numbers, self.crop_scale)
        return v2.functional.resized_crop(clip, *box, list(self.size[1:]))


class EvaluationClips:
    """Normalized views of videos: clips at evenly spaced starts, each cropped at one or three places.

    Views are numbered `segment * num_crops + crop`. The first clip starts with the video and the last one ends with
    it; a single one is in the middle. Three crops are at the start, in the middle and at the end of the frames' longer
    axis.

    Args:
        size: (frames, height, width).
        frame_stride: distance between the frames of a clip, in frames of the video.
        num_segments: clips of a video.
        num_crops: of a clip, 1 or 3.
        image_mean, image_std: per channel, of pixels in [0, 1].
    """

    def __init__(
        self,
        size: tuple[int, int, int],
        frame_stride: int,
        num_segments: int,
        num_crops: int,
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
    ):
        self.size = tuple(size)
        self.frame_stride = frame_stride
        self.num_segments = num_segments
        self.num_crops = num_crops
        self.image_mean = image_mean
        self.image_std = image_std

    @property
    def num_views(self) -> int:
        return self.num_segments * self.num_crops

    def __call__(self, videos: Sequence[dict[str, Any]], views: Sequence[int]) -> torch.Tensor:
        """float32 of shape (batch, frames, 3, height, width).

        Raises:
            InputError: a video that is too short, or without a frame that can be decoded.
        """
        segments = [view // self.num_crops for view in views]
        clips = []
        rows = zip(videos, segments, views, strict=True)
        for (video, segment), group in groupby(rows, key=lambda row: row[:2]):
            frames = _resize(self._decode(video, segment), self.size[1:])
            # With one crop, it is the center crop.
            places = [view % self.num_crops if self.num_crops > 1 else 1 for _, _, view in group]
            clips += [_crop(frames, self.size[1:], place) for place in places]
        return normalize(torch.stack(clips), self.image_mean, self.image_std)

    def _decode(self, video: dict[str, Any], segment: int) -> torch.Tensor:
        last = last_start(video, self.size, self.frame_stride)
        start = round(last * segment / (self.num_segments - 1)) if self.num_segments > 1 else last // 2
        return decode_frames(video, _clip_indices(start, self.size, self.frame_stride))


def _clip_indices(start: int, size: tuple[int, ...], frame_stride: int) -> range:
    return range(start, start + minimum_frames(size, frame_stride), frame_stride)


def _resize(frames: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Frames whose shorter side is the longer side of `size`, as the model's video processor resizes them."""
    return v2.functional.resize(frames, [max(size)])


def _crop(frames: torch.Tensor, size: tuple[int, ...], place: int) -> torch.Tensor:
    """The window at the start (0), middle (1) or end (2) of the longer axis, and in the middle of the shorter one."""
    height, width = frames.shape[-2:]
    places = (place, 1) if height > width else (1, place)
    top, left = (
        round((side - window) * position / 2)
        for side, window, position in zip((height, width), size, places, strict=True)
    )
    return frames[..., top : top + size[0], left : left + size[1]]
