"""Videos whose frames encode their frame numbers, in many containers and codecs."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

NUM_FRAMES = 60
X264 = "libx264" in av.codecs_available
needs_x264 = pytest.mark.skipif(not X264, reason="this PyAV cannot encode H.264")
H264 = {"b_frames": 3, "codec": "libx264", "size": (120, 160)}
# Encoding by file name.
VIDEOS = {
    "plain.avi": {},
    "b_frames.avi": {"b_frames": 2},
    "one_gop.avi": {"b_frames": 2, "gop": 250},
    "b_frames.mp4": {"b_frames": 2},
    "b_frames.mkv": {"b_frames": 2},
    "vp8.webm": {"codec": "libvpx", "size": (120, 160)},
    "motion_jpeg.avi": {"codec": "mjpeg", "size": (120, 160)},
} | (
    {
        "h264.mp4": H264,
        "h264.mov": H264,
        "h264.mkv": H264 | {"rate": Fraction(30000, 1001)},
        # B-frame pyramids; the first B-frames refer to the key frame and to the frames before it.
        "open_gop.mp4": H264 | {"options": {"x264-params": "open-gop=1:b-adapt=0:b-pyramid=2:scenecut=0"}},
        # No presentation timestamps; decoding timestamps have an offset of two frames.
        "h264.avi": H264,
        # Starts at 1.4 seconds, and has no index.
        "h264.ts": H264,
        # No timestamps at all.
        "h264.h264": H264,
    }
    if X264
    else {}
)
# Codecs of the containers that do not take MPEG-4.
CODECS = {
    ".3g2": "h263",
    ".3gp": "h263",
    ".asf": "wmv2",
    ".flv": "flv1",
    ".m2ts": "mpeg2video",
    ".mpeg": "mpeg1video",
    ".mpg": "mpeg1video",
    ".mts": "mpeg2video",
    ".mxf": "mpeg2video",
    ".ogv": "libvpx",
    ".ts": "mpeg2video",
    ".vob": "mpeg2video",
    ".webm": "libvpx",
    ".wmv": "wmv2",
}
PACKED = ("packed_one.avi", "packed_two.avi")
NO_HEADER_COUNT = ("b_frames.mkv", "vp8.webm")


def picture(number: int, size: tuple[int, int]) -> np.ndarray:
    """A moving pattern below the eight bits of the frame number (1 is bright, 0 is dark)."""
    height, width = size
    rows, columns = np.indices(size)
    pixels = 30 * np.sin((columns + 2 * number) / 9) + 20 * np.cos((rows - number) / 7) + 110
    for bit in range(8):
        pixels[: height // 4, bit * width // 8 : (bit + 1) * width // 8] = 220 if number >> bit & 1 else 20
    return np.stack([pixels, 0.9 * pixels, 255 - pixels], axis=-1).astype(np.uint8)


def numbers_of(frames: torch.Tensor) -> list[int]:
    """The numbers drawn on frames (frames, 3, height, width), which may be only their upper left part."""
    height, width = frames.shape[-2:]
    row = frames[:, 0, height // 8].double()
    bits = torch.stack([row[:, (2 * bit + 1) * width // 16] > 120 for bit in range(8)], dim=1)
    return (bits.int() * 2 ** torch.arange(8)).sum(1).tolist()


def write_video(
    path: Path,
    count: int = NUM_FRAMES,
    codec: str = "mpeg4",
    size: tuple[int, int] = (240, 320),
    rate: Fraction | int = 25,
    gop: int = 12,
    b_frames: int = 0,
    times: list[int] | None = None,
    options: dict[str, str] | None = None,
    pictures=picture,
    rotation: tuple[float, bool] | None = None,
) -> Path:
    """
    Args:
        rotation: degrees by which a player turns the frames counterclockwise, and whether it mirrors them.
        times: frame times, in units of 1 / rate.
    """
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(pictures(number, size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


VOP = b"\0\0\1\xb6"


def write_packed(path: Path, b_frames: int, count: int = NUM_FRAMES, size: tuple[int, int] = (240, 320)) -> Path:
    """Write MPEG-4 in AVI as DivX and Xvid do: a frame shares its packet with the following B-frame.

    An empty frame fills the resulting gap after the B-frames, so that there is one packet per frame.
    """
    encoder = av.CodecContext.create("mpeg4", "w")
    encoder.height, encoder.width = size
    encoder.pix_fmt, encoder.framerate, encoder.time_base = "yuv420p", Fraction(25), Fraction(1, 25)
    encoder.gop_size, encoder.max_b_frames = 12, b_frames
    coded = []
    for number in range(count):
        frame = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, 25)
        coded += map(bytes, encoder.encode(frame))
    coded += map(bytes, encoder.encode(None))
    groups = []
    for frame in coded:
        if frame[frame.index(VOP) + 4] >> 6 == 2:
            groups[-1].append(frame)
        else:
            groups.append([frame])
    packets = []
    for reference, *between in groups:
        packets.append(with_divx_mark(reference) + b"".join(between[:1]))
        packets += [*between[1:], empty_frame(reference)] if between else []
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.codec_tag = "XVID"
        for number, content in enumerate(packets):
            packet = av.Packet(content)
            packet.stream, packet.time_base, packet.duration = stream, Fraction(1, 25), 1
            packet.pts = packet.dts = number
            packet.is_keyframe = content[content.index(VOP) + 4] >> 6 == 0
            container.mux(packet)
    return path


def with_divx_mark(frame: bytes) -> bytes:
    start = frame.index(VOP)
    return frame[:start] + b"\0\0\1\xb2DivX503b1393p\0" + frame[start:]


def empty_frame(frame: bytes) -> bytes:
    """An empty P-frame with the time of another: type P, no whole seconds, the time, not coded, padding."""
    start = frame.index(VOP) + 4
    bits = "".join(f"{byte:08b}" for byte in frame[start : start + 4])
    time = bits.index("0", 2) + 2
    content = "01" + "0" + "1" + bits[time : time + 5] + "1" + "0"
    content += "0" + "1" * (-(len(content) + 1) % 8)
    return VOP + int(content, 2).to_bytes(len(content) // 8, "big")


def full_decode(path: Path) -> torch.Tensor:
    """All frames from start to end, decoded only with PyAV."""
    frames = []
    with av.open(str(path)) as container:
        for packet in container.demux(container.streams.video[0]):
            try:
                frames += [frame.to_ndarray(format="rgb24") for frame in packet.decode()]
            except av.FFmpegError:
                continue
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def row(path: Path) -> dict:
    return {"bytes": None, "path": str(path)}
