"""From encoded videos to clips of the frames and size that a model takes."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from torchvision.transforms import v2

from ..errors import InputError
from .augmentation import RESIZED_CROP_NUMBERS, normalize, random_resized_crop
from .draws import Draws

# How many frames before the wanted one a seek aims, the next where the key frame found is still too late: a time base
# that counts frames in the order of decoding finds key frames too early by as much as the codec reorders, which is
# up to three frames as a rule, and 16 by H.264.
_SEEK_LEADS = (1, 4, 17)


def minimum_frames(size: Sequence[int], frame_stride: int) -> int:
    """How many frames a video must have for a clip of `size[0]` frames, every `frame_stride`-th."""
    return (size[0] - 1) * frame_stride + 1


def count_frames(video: dict[str, Any]) -> int:
    """How many frames a video has, by its header or else by its packets.

    Args:
        video: `bytes`, or None and the `path` of a file: a row of a `datasets.Video(decode=False)` column.

    Returns:
        0 for what is no video or has no frame that can be decoded.
    """
    try:
        with _open(video) as stream:
            if next(_decode(stream), None) is None:
                return 0
        return _count(video)
    except InputError:
        return 0


def decode_frames(video: dict[str, Any], indices: Sequence[int]) -> torch.Tensor:
    """Frames by their numbers, from the key frame before the first to the last of them.

    Where a number has no frame, as in a stream of variable rate, it is the next one; after the end, the last one.

    Args:
        video: as in `count_frames`.
        indices: increasing.

    Returns:
        uint8 (len(indices), 3, height, width).

    Raises:
        InputError: no frame can be decoded.
    """
    # One for all frames sets its tables up once. Should a stream change its size, the first frame's is kept.
    reformatter, size, images = VideoReformatter(), {}, []
    frame = None
    for number, frame in _numbered_frames(video, indices[0]):
        if number < indices[len(images)]:
            continue
        size = size or {"width": frame.width, "height": frame.height}
        image = reformatter.reformat(frame, **size, format="rgb24").to_ndarray()
        images += [image] * int(np.searchsorted(indices[len(images) :], number, side="right"))
        if len(images) == len(indices):
            break
    if frame is None:
        raise InputError(f"video {_name(video)} has no frame that can be decoded")
    if len(images) < len(indices):
        image = reformatter.reformat(frame, **size, format="rgb24").to_ndarray()
        images += [image] * (len(indices) - len(images))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


class TrainingClips:
    """A clip of each video, at a random start: cropped at random, or in the middle after resizing the shorter side.

    Args:
        size: (frames, height, width).
        frame_stride: every how many frames one is taken.
        crop_scale: range of the share of the frames' area in a random crop; None for none.
    """

    def __init__(self, size: tuple[int, int, int], frame_stride: int, crop_scale: tuple[float, float] | None):
        self.size = tuple(size)
        self.frame_stride = frame_stride
        self.crop_scale = crop_scale

    def __call__(self, videos: Sequence[dict[str, Any]], draws: Draws) -> torch.Tensor:
        """uint8 of shape (batch, frames, 3, height, width).

        Raises:
            InputError: a video without a frame that can be decoded.
        """
        starts = draws.next(1)[:, 0]
        clips = [self._decode(video, start) for video, start in zip(videos, starts, strict=True)]
        if self.crop_scale is None:
            return torch.stack([_crop(_cover(clip, self.size[1:]), self.size[1:], 1) for clip in clips])
        numbers = draws.next(RESIZED_CROP_NUMBERS)
        return torch.stack([self._crop_at_random(clip, row) for clip, row in zip(clips, numbers, strict=True)])

    def _decode(self, video: dict[str, Any], number: float) -> torch.Tensor:
        start = int(number * (_last_start(video, self.size, self.frame_stride) + 1))
        return decode_frames(video, _clip_indices(start, self.size, self.frame_stride))

    def _crop_at_random(self, clip: torch.Tensor, numbers: np.ndarray) -> torch.Tensor:
        box = random_resized_crop(*clip.shape[-2:], numbers, self.crop_scale)
        return v2.functional.resized_crop(clip, *box, list(self.size[1:]))


class EvaluationClips:
    """Normalized views of videos: clips at evenly spaced starts, each cropped at one or three places.

    View `segment * num_crops + crop`. The first clip starts with the video and the last one ends with it; a single
    one is in the middle. Three crops are along the axis that is too long after resizing the shorter side.

    Args:
        size: (frames, height, width).
        frame_stride: every how many frames one is taken.
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
            InputError: a video without a frame that can be decoded.
        """
        segments = [view // self.num_crops for view in views]
        clips = []
        rows = zip(videos, segments, views, strict=True)
        for (video, segment), group in groupby(rows, key=lambda row: row[:2]):
            frames = _cover(self._decode(video, segment), self.size[1:])
            # The middle one is the only one.
            places = [view % self.num_crops if self.num_crops > 1 else 1 for _, _, view in group]
            clips += [_crop(frames, self.size[1:], place) for place in places]
        return normalize(torch.stack(clips), self.image_mean, self.image_std)

    def _decode(self, video: dict[str, Any], segment: int) -> torch.Tensor:
        last = _last_start(video, self.size, self.frame_stride)
        start = round(last * segment / (self.num_segments - 1)) if self.num_segments > 1 else last // 2
        return decode_frames(video, _clip_indices(start, self.size, self.frame_stride))


def _last_start(video: dict[str, Any], size: tuple[int, ...], frame_stride: int) -> int:
    return max(_count(video) - minimum_frames(size, frame_stride), 0)


def _clip_indices(start: int, size: tuple[int, ...], frame_stride: int) -> range:
    return range(start, start + minimum_frames(size, frame_stride), frame_stride)


def _cover(frames: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Frames resized so that one axis has its size and the other has it at least."""
    scale = max(least / side for least, side in zip(size, frames.shape[-2:], strict=True))
    resized = [max(round(side * scale), least) for side, least in zip(frames.shape[-2:], size, strict=True)]
    return v2.functional.resize(frames, resized)


def _crop(frames: torch.Tensor, size: tuple[int, ...], place: int) -> torch.Tensor:
    """The window at the begin (0), in the middle (1) or at the end (2) of the axis that is too long."""
    margins = [side - least for side, least in zip(frames.shape[-2:], size, strict=True)]
    top, left = (round(margin * place / 2) for margin in margins)
    return frames[..., top : top + size[0], left : left + size[1]]


def _name(video: dict[str, Any]) -> str:
    return video["path"] or "without a name"


@contextmanager
def _open(video: dict[str, Any]) -> Iterator[VideoStream]:
    """The first video stream of a file.

    Raises:
        InputError: there is none, or the decoder for it is missing.
    """
    source = video["path"] if video["bytes"] is None else io.BytesIO(video["bytes"])
    try:
        # Titles in old encodings are no reason to refuse a video.
        container = av.open(source, metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"video {_name(video)} cannot be read: {error}") from error
    with container:
        stream = next((stream for stream in container.streams.video if stream.codec_context is not None), None)
        if stream is None:
            raise InputError(f"video {_name(video)} has no video stream that can be decoded")
        # The processes of a DataLoader are parallel already.
        stream.codec_context.thread_count = 1
        yield stream


def _count(video: dict[str, Any]) -> int:
    with _open(video) as stream:
        return stream.frames or sum(packet is not None and packet.size > 0 for packet in _packets(stream))


def _packets(stream: VideoStream) -> Iterator[av.Packet | None]:
    """Packets of a stream from where its container is; the last one is empty or None, which flushes the decoder."""
    try:
        yield from stream.container.demux(stream)
    except av.FFmpegError:
        yield None


def _decode(stream: VideoStream) -> Iterator[VideoFrame]:
    """Frames in the order of presentation, without those that cannot be decoded."""
    for packet in _packets(stream):
        try:
            frames = stream.decode(packet)
        except av.FFmpegError:
            continue
        yield from frames


class _Clock(NamedTuple):
    """Numbers of frames by their times: `origin` is the time of frame 0, None where times tell nothing."""

    origin: int | None
    frames_per_tick: float
    by_decoding: bool

    @classmethod
    def of(cls, stream: VideoStream, first: VideoFrame) -> "_Clock":
        # AVI has no times of presentation, those that FFmpeg makes up for B-frames are wrong. Those of decoding are
        # those of presentation but for an offset, as a decoder gives one frame for each that it takes.
        by_decoding = stream.container.format.name == "avi"
        rate = stream.average_rate or stream.guessed_rate
        clock = cls(None, float(rate * stream.time_base) if rate else 0.0, by_decoding)
        return clock._replace(origin=clock.time(first)) if rate else clock

    def time(self, frame: VideoFrame) -> int | None:
        return frame.dts if self.by_decoding else frame.pts

    def number(self, frame: VideoFrame, previous: int | None) -> int | None:
        """A frame's number, one more than that of the frame before it if it has no time; None if it has neither."""
        time = self.time(frame)
        if time is not None and self.origin is not None:
            return round((time - self.origin) * self.frames_per_tick)
        return previous + 1 if previous is not None else None

    def numbered(
        self, frames: Iterator[VideoFrame], previous: int | None = None
    ) -> Iterator[tuple[int | None, VideoFrame]]:
        for frame in frames:
            previous = self.number(frame, previous)
            yield previous, frame


def _numbered_frames(video: dict[str, Any], first: int) -> Iterator[tuple[int, VideoFrame]]:
    """Frames with their numbers, from the start of the video or from a key frame before number `first`."""
    with _open(video) as stream:
        frames = _decode(stream)
        start = next(frames, None)
        if start is None:
            return
        clock = _Clock.of(stream, start)
        leads = [lead for lead in _SEEK_LEADS if lead < first and clock.origin is not None]
        if not leads:
            yield 0, start
            yield from clock.numbered(frames, 0)
            return
        for lead in leads:
            try:
                stream.container.seek(clock.origin + int((first - lead) / clock.frames_per_tick), stream=stream)
            except av.FFmpegError:
                continue
            numbered = clock.numbered(_decode(stream))
            number, frame = next(numbered, (None, None))
            # A frame of number `first` itself may follow another one of that number, if the rate varies.
            if number is not None and number < first and frame.key_frame:
                yield number, frame
                yield from numbered
                return
    with _open(video) as stream:
        yield from clock.numbered(_decode(stream), -1)
