"""Encoded videos to frames, by PyAV."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from ...errors import InputError
from ...modeling.video_processing_liere_vit import turned_upright
from .checks import Check, reason

# A seek aims this many frames before the wanted one; the next value is tried if the key frame found is not before it.
# Where timestamps follow the order of decoding, a seek lands too late by as many frames as the codec reorders: usually
# at most 3, in H.264 at most 16.
_FRAMES_BEFORE_SEEK = (1, 4, 17)


def minimum_frames(size: Sequence[int], frame_stride: int) -> int:
    """How many frames a video must have for a clip of `size[0]` frames that are `frame_stride` apart."""
    return (size[0] - 1) * frame_stride + 1


class FrameCount(NamedTuple):
    """How many frames a video has, and how many its header announces: more where the file has been cut."""

    available: int
    announced: int


class Extent(NamedTuple):
    """How many frames a video has, and how large they are in pixels, as its header says, which may be wrong."""

    frames: int
    height: int
    width: int


def announced_extent(video: dict[str, Any]) -> Extent:
    """What the header of a video says; containers that count no frames announce a duration instead.

    Raises:
        InputError: it cannot be read.
    """
    with _open(video) as stream:
        context = stream.codec_context
        return Extent(stream.frames or _frames_by_duration(stream), context.height, context.width)


def _frames_by_duration(stream: VideoStream) -> int:
    """0 if no duration is known."""
    if stream.duration is not None:
        seconds = stream.duration * stream.time_base
    else:
        seconds = Fraction(stream.container.duration or 0, av.time_base)
    return round(seconds * (stream.average_rate or stream.guessed_rate or 0))


def check_video(video: dict[str, Any], size: Sequence[int], frame_stride: int) -> Check:
    """Whether a video is long enough for clips of `size[0]` frames that are `frame_stride` apart, and complete.

    Args:
        video: `bytes`, or None and the `path` of a file: a row of a `datasets.Video(decode=False)` column.
    """
    try:
        with _open(video) as stream:
            if next(_decode(stream), None) is None:
                return Check(fault="it has no frame that can be decoded")
        count = count_frames(video)
    except InputError as error:
        return Check(fault=reason(error))
    cut = _cut(count)
    fault = _length_fault(count, size, frame_stride)
    return Check(fault, f"used as far as it goes: it has {_frames(count)}{cut}" if cut and not fault else None)


def last_start(video: dict[str, Any], size: Sequence[int], frame_stride: int) -> int:
    """The last frame at which a clip of `size[0]` frames that are `frame_stride` apart can start.

    Args:
        video: as in `check_video`.

    Raises:
        InputError: the video cannot be read, or is too short.
    """
    count = count_frames(video)
    fault = _length_fault(count, size, frame_stride)
    if fault:
        raise InputError(f"video {_name(video)} cannot be read: {fault}")
    return count.available - minimum_frames(size, frame_stride)


def _length_fault(count: FrameCount, size: Sequence[int], frame_stride: int) -> str | None:
    needed = minimum_frames(size, frame_stride)
    if count.available >= needed:
        return None
    largest = (count.available - 1) // max(size[0] - 1, 1)
    or_less = " or less" if largest > 1 else ""
    advice = f"set frame_stride to {largest}{or_less}" if largest > 0 else f"at least {size[0]} are needed"
    return (
        f"it has {_frames(count)}{_cut(count)}; a clip of {size[0]} with frame_stride {frame_stride} takes {needed}: "
        f"{advice}"
    )


def _frames(count: FrameCount) -> str:
    return f"{count.available} frame{'s' * (count.available != 1)}"


def _cut(count: FrameCount) -> str:
    return f", of {count.announced} before it was cut" if count.announced > count.available else ""


def count_frames(video: dict[str, Any]) -> FrameCount:
    """The frames of a video: by its header where the file is as long as that says, else by its packets.

    Raises:
        InputError: it cannot be read.
    """
    with _open(video) as stream:
        if stream.frames and _is_whole(stream):
            return FrameCount(stream.frames, stream.frames)
        times = [
            (packet.pts, packet.dts, packet.duration or 1)
            for packet in _packets(stream)
            if packet is not None and packet.size > 0 and not packet.is_corrupt
        ]
        return FrameCount(_num_shown(times), stream.frames) if stream.frames else FrameCount(len(times), len(times))


def _is_whole(stream: VideoStream) -> bool:
    """Whether the index of a file has all frames, and the last of them lies within the file."""
    index = stream.index_entries
    return len(index) >= stream.frames and index[-1].pos + index[-1].size <= stream.container.size


def _num_shown(times: list[tuple[int | None, int | None, int]]) -> int:
    """How many packets before a cut are shown before the first one behind it would be.

    Args:
        times: presentation time, decoding time and duration of each packet, in the order of decoding.
    """
    if not times or any(shown is None or decoded is None for shown, decoded, _ in times):
        return len(times)
    # A frame is shown when it is decoded or later, but for an offset that all frames share.
    offset = min(shown - decoded for shown, decoded, _ in times)
    _, last, duration = times[-1]
    return sum(shown < last + duration + offset for shown, _, _ in times)


def decode_frames(video: dict[str, Any], indices: Sequence[int]) -> torch.Tensor:
    """Frames by their numbers; decoding starts at a key frame before the first and ends with the last of them.

    A number without a frame, as in streams of variable rate, gives the next frame; after the end, the last one.

    Args:
        video: as in `check_video`.
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
        # Metadata in old encodings, such as titles, must not make a video unreadable.
        container = av.open(source, metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"video {_name(video)} cannot be read: {error.strerror or error}") from error
    with container:
        stream = next((stream for stream in container.streams.video if stream.codec_context is not None), None)
        if stream is None:
            raise InputError(f"video {_name(video)} has no video stream that can be decoded")
        # The processes of a DataLoader already run in parallel.
        stream.codec_context.thread_count = 1
        yield stream


def _packets(stream: VideoStream) -> Iterator[av.Packet | None]:
    """Packets from the container's position on; the last one is empty or None, which flushes the decoder."""
    try:
        yield from stream.container.demux(stream)
    except av.FFmpegError:
        yield None


def _decode(
    stream: VideoStream, only_references: Callable[[av.Packet], bool] = lambda packet: False
) -> Iterator[VideoFrame]:
    """Frames in the order of presentation, without those that cannot be decoded.

    Args:
        only_references: whether only the reference frames of a packet are needed, which others are predicted from.
    """
    for packet in _packets(stream):
        skips = packet is not None and only_references(packet)
        stream.codec_context.skip_frame = "NONREF" if skips else "DEFAULT"
        try:
            frames = stream.decode(packet)
        except av.FFmpegError:
            continue
        yield from frames


class _RGB:
    """Frames to uint8 (height, width, 3), turned upright, all of the first one's size even if a stream changes it."""

    def __init__(self):
        self.reformatter = VideoReformatter()
        self.size = {}

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        self.size = self.size or {"width": frame.width, "height": frame.height}
        pixels = self.reformatter.reformat(frame, **self.size, format="rgb24", threads=1).to_ndarray()
        return turned_upright(pixels, frame)


class _Clock(NamedTuple):
    """Numbers of frames by their timestamps: `origin` is the one of frame 0, None if it is unknown."""

    origin: int | None
    frames_per_tick: float
    by_decoding: bool

    @classmethod
    def of(cls, stream: VideoStream, first: VideoFrame) -> "_Clock":
        # AVI has no presentation timestamps, and FFmpeg makes up wrong ones for B-frames. Decoding timestamps differ
        # from the right ones by an offset only, as a decoder returns one frame for each that it takes.
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
        """Frames with their numbers. Without a timestamp: the previous number plus one, None if that is unknown."""
        for frame in frames:
            number = self.number(frame)
            if number is None and previous is not None:
                number = previous + 1
            yield number, frame
            previous = number


def _numbered_frames(video: dict[str, Any], first: int) -> Iterator[tuple[int, VideoFrame]]:
    """Frames with their numbers, from the start of the video or from a key frame before number `first`.

    Frames before `first` that no other is predicted from may be left out.
    """
    with _open(video) as stream:
        frames = _decode(stream)
        start = next(frames, None)
        if start is None:
            return
        clock = _Clock.of(stream, start)
        leads = [lead for lead in _FRAMES_BEFORE_SEEK if lead < first and clock.origin is not None]
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
            # Not number `first`: in streams of variable rate, an earlier frame may have the same number.
            if number is not None and number < first and frame.key_frame:
                yield number, frame
                yield from numbered
                return
    with _open(video) as stream:
        yield from clock.numbered(_decode(stream), -1)


def _is_early_mpeg4(clock: _Clock, first: int, packet: av.Packet) -> bool:
    """Whether a packet's B-frames come before number `first`, in the codec where skipping them is exact and faster.

    They are shown at the packet's time, or one frame later where two frames share a packet ("packed B-frames"), and
    are never the last frames of a video.
    """
    number = clock.number(packet)
    return packet.stream.codec_context.name == "mpeg4" and number is not None and number + 1 < first
