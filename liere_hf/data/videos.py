"""From encoded videos to clips of the frames and size that a model takes."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
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
    images, to_rgb, frame = [], _RGB(), None
    for number, frame in _numbered_frames(video, indices[0]):
        if number >= indices[len(images)]:
            count = int(np.searchsorted(indices[len(images) :], number, side="right"))
            images += [to_rgb(frame)] * count
            if len(images) == len(indices):
                break
    if frame is None:
        raise InputError(f"video {_name(video)} has no frame that can be decoded")
    if len(images) < len(indices):
        images += [to_rgb(frame)] * (len(indices) - len(images))
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
            return torch.stack([_crop(_resize(clip, self.size[1:]), self.size[1:], 1) for clip in clips])
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
    one is in the middle. Three crops are at the start, in the middle and at the end of the frames' longer axis.

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
            frames = _resize(self._decode(video, segment), self.size[1:])
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


def _resize(frames: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Frames whose shorter side is the longer one of `size`, as the model's video processor has it."""
    return v2.functional.resize(frames, [max(size)])


def _crop(frames: torch.Tensor, size: tuple[int, ...], place: int) -> torch.Tensor:
    """The window at the start (0), in the middle (1) or at the end (2) of the longer axis, in the other's middle."""
    height, width = frames.shape[-2:]
    places = (place, 1) if height > width else (1, place)
    top, left = (
        round((side - window) * position / 2)
        for side, window, position in zip((height, width), size, places, strict=True)
    )
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


def _decode(
    stream: VideoStream, needs_references_only: Callable[[av.Packet], bool] = lambda packet: False
) -> Iterator[VideoFrame]:
    """Frames in the order of presentation, without those that cannot be decoded.

    Args:
        needs_references_only: whether the frames of a packet are of use only if others are predicted from them.
    """
    for packet in _packets(stream):
        skips = packet is not None and needs_references_only(packet)
        stream.codec_context.skip_frame = "NONREF" if skips else "DEFAULT"
        try:
            frames = stream.decode(packet)
        except av.FFmpegError:
            continue
        yield from frames


class _RGB:
    """Frames to uint8 (height, width, 3), all of the size of the first, should a stream change its size."""

    def __init__(self):
        self.reformatter = VideoReformatter()
        self.size = {}

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        self.size = self.size or {"width": frame.width, "height": frame.height}
        return self.reformatter.reformat(frame, **self.size, format="rgb24", threads=1).to_ndarray()


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

    def time(self, frame: VideoFrame | av.Packet) -> int | None:
        return frame.dts if self.by_decoding else frame.pts

    def number(self, frame: VideoFrame | av.Packet) -> int | None:
        time = self.time(frame)
        return None if time is None or self.origin is None else round((time - self.origin) * self.frames_per_tick)

    def numbered(
        self, frames: Iterator[VideoFrame], previous: int | None = None
    ) -> Iterator[tuple[int | None, VideoFrame]]:
        """Frames with their numbers: without a time one more than the frame before; None where that is unknown."""
        for frame in frames:
            number = self.number(frame)
            if number is None and previous is not None:
                number = previous + 1
            yield number, frame
            previous = number


def _numbered_frames(video: dict[str, Any], first: int) -> Iterator[tuple[int, VideoFrame]]:
    """Frames with their numbers, from the start of the video or from a key frame before number `first`.

    Of those before `first` the ones that no other is predicted from may be left out.
    """
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
            numbered = clock.numbered(_decode(stream, partial(_is_early_mpeg4, clock, first)))
            number, frame = next(numbered, (None, None))
            # A frame of number `first` itself may follow another one of that number, if the rate varies.
            if number is not None and number < first and frame.key_frame:
                yield number, frame
                yield from numbered
                return
    with _open(video) as stream:
        yield from clock.numbered(_decode(stream), -1)


def _is_early_mpeg4(clock: _Clock, first: int, packet: av.Packet) -> bool:
    """Whether a packet's B-frames are before number `first`, in the codec where leaving them out is exact and pays.

    They are shown at the packet's time, or one frame later where two frames share a packet ("packed B-frames"), and
    are never the last ones of a video.
    """
    number = clock.number(packet)
    return packet.stream.codec_context.name == "mpeg4" and number is not None and number + 1 < first
