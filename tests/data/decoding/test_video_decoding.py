import itertools
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from liere_hf.data.decoding.videos import count_frames, decode_frames, minimum_frames
from liere_hf.data.draws import Draws
from liere_hf.data.resizing.clips import EvaluationClips, TrainingClips
from liere_hf.data.resizing.random_boxes import NUMBERS_PER_BOX, random_resized_crop
from liere_hf.errors import InputError

NUM_FRAMES = 60
X264 = "libx264" in av.codecs_available
needs_x264 = pytest.mark.skipif(not X264, reason="this PyAV cannot encode H.264")
H264 = {"b_frames": 3, "codec": "libx264", "size": (120, 160)}
# By file name: how it is encoded.
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
        # Pyramids of B-frames, the first of which refer to the key frame and to the frames before it.
        "open_gop.mp4": H264 | {"options": {"x264-params": "open-gop=1:b-adapt=0:b-pyramid=2:scenecut=0"}},
        # No times of presentation, those of decoding with an offset of two frames.
        "h264.avi": H264,
        # Starts at 1.4 seconds, and has no index.
        "h264.ts": H264,
        # No times at all.
        "h264.h264": H264,
    }
    if X264
    else {}
)
PACKED = ("packed_one.avi", "packed_two.avi")
NO_HEADER_COUNT = ("b_frames.mkv", "vp8.webm")


def picture(number: int, size: tuple[int, int]) -> np.ndarray:
    """A moving pattern below the eight bits of the number, bright for one, dark for zero."""
    height, width = size
    rows, columns = np.indices(size)
    pixels = 30 * np.sin((columns + 2 * number) / 9) + 20 * np.cos((rows - number) / 7) + 110
    for bit in range(8):
        pixels[: height // 4, bit * width // 8 : (bit + 1) * width // 8] = 220 if number >> bit & 1 else 20
    return np.stack([pixels, 0.9 * pixels, 255 - pixels], axis=-1).astype(np.uint8)


def numbers_of(frames: torch.Tensor) -> list[int]:
    """The numbers that are drawn on frames, (frames, 3, height, width), or the upper left part of frames."""
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
) -> Path:
    """
    Args:
        times: of the frames, in units of 1 / rate.
    """
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(pictures(number, size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


VOP = b"\0\0\1\xb6"


def write_packed(path: Path, b_frames: int, count: int = NUM_FRAMES, size: tuple[int, int] = (240, 320)) -> Path:
    """MPEG-4 as DivX and Xvid write it into AVI: a frame shares its packet with the B-frame that follows it.

    An empty frame fills the gap that this leaves behind the B-frames, so that there is one packet a frame.
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
    """A frame that is not coded, at the time of another: type P, no whole seconds, the time, no content, padding."""
    start = frame.index(VOP) + 4
    bits = "".join(f"{byte:08b}" for byte in frame[start : start + 4])
    time = bits.index("0", 2) + 2
    content = "01" + "0" + "1" + bits[time : time + 5] + "1" + "0"
    content += "0" + "1" * (-(len(content) + 1) % 8)
    return VOP + int(content, 2).to_bytes(len(content) // 8, "big")


def full_decode(path: Path) -> torch.Tensor:
    """All frames, from front to end, by PyAV alone."""
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def video(folder):
    """Writes a video of `VIDEOS` or `PACKED` once; its path and all its frames."""
    written = {}

    def get(name: str) -> tuple[Path, torch.Tensor]:
        if name not in written:
            if name in PACKED:
                path = write_packed(folder / name, PACKED.index(name) + 1)
            else:
                path = write_video(folder / name, **VIDEOS[name])
            written[name] = path, full_decode(path)
        return written[name]

    return get


every_video = pytest.mark.parametrize("name", [*VIDEOS, *PACKED])


@every_video
def test_every_start_is_exact(video, name):
    path, expected = video(name)
    assert numbers_of(expected) == list(range(NUM_FRAMES))
    # Two and a half groups of frames, and the end.
    for start in (*range(30), *range(54, NUM_FRAMES - 1)):
        indices = [start, start + 1, min(start + 5, NUM_FRAMES - 1)]
        assert decode_frames(row(path), indices).equal(expected[indices]), start


@every_video
def test_every_combination_is_exact(video, name):
    path, expected = video(name)

    @settings(max_examples=10, deadline=None, derandomize=True)
    @given(st.sets(st.integers(0, NUM_FRAMES - 1), min_size=1, max_size=6).map(sorted))
    def check(indices):
        assert decode_frames(row(path), indices).equal(expected[indices])

    check()


@every_video
def test_count_and_bytes(video, name):
    path, expected = video(name)
    content = {"bytes": path.read_bytes(), "path": None}
    assert count_frames(row(path)) == count_frames(content) == NUM_FRAMES
    assert decode_frames(content, [3, 40]).equal(expected[[3, 40]])
    with av.open(str(path)) as container:
        assert (container.streams.video[0].frames == 0) >= (name in NO_HEADER_COUNT)


def test_packed_frames_share_packets(video):
    for name, num_empty in zip(PACKED, (30, 20), strict=True):
        path, _ = video(name)
        with av.open(str(path)) as container:
            contents = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        assert len(contents) == NUM_FRAMES
        assert abs(sum(len(content) < 10 for content in contents) - num_empty) <= 1
        assert {content.count(VOP) for content in contents} == {1, 2}


@needs_x264
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rate_gives_the_first_frame_at_or_after(folder, suffix):
    gaps = np.random.default_rng(0).integers(1, 8, NUM_FRAMES)
    # So that a key frame may have the number of the frame before it.
    gaps[12::12] = 1
    times = np.cumsum(gaps)
    path = write_video(folder / f"variable.{suffix}", **H264 | {"rate": 100, "times": times.tolist()})
    expected = full_decode(path)
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
    numbers = [round((time - times[0]) * rate / 100) for time in times.tolist()]
    # Matroska's header says 100 frames a second, MP4's the mean.
    assert (numbers[24] == numbers[23]) == (suffix == "mp4")
    assert len(set(np.diff(numbers))) > 2
    for index in sorted({*numbers, *range(0, numbers[-1], 7)}):
        position = next(position for position, number in enumerate(numbers) if number >= index)
        assert decode_frames(row(path), [index])[0].equal(expected[position]), index


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux's count of the bytes that are read")
@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv"])
def test_a_late_clip_reads_little_of_the_file(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(256, size=(240, 320, 3), dtype=np.uint8)
    path = write_video(
        tmp_path / f"long.{suffix}", 120, b_frames=2, pictures=lambda number, size: np.roll(noise, number * 7, 0)
    )

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = bytes_read()
    decode_frames(row(path), [85, 89])
    late = bytes_read() - before
    full_decode(path)
    assert late < 0.4 * (bytes_read() - before - late)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda path: b"", id="empty"),
        pytest.param(lambda path: b"This is no video.\n" * 100, id="text"),
        pytest.param(lambda path: path.read_bytes()[:100], id="part of the header"),
        pytest.param(lambda path: None, id="missing"),
    ],
)
def test_what_is_no_video(video, tmp_path, content):
    path, content = tmp_path / "broken.avi", content(video("plain.avi")[0])
    if content is not None:
        path.write_bytes(content)
    assert count_frames(row(path)) == 0
    with pytest.raises(InputError, match=r"video .*broken\.avi"):
        decode_frames(row(path), [0])


def test_sound_is_no_video(tmp_path):
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000))
    assert count_frames(row(path)) == 0
    with pytest.raises(InputError, match=r"sound\.wav has no video stream"):
        decode_frames(row(path), [0])


def test_a_header_without_frames_is_no_video(video, tmp_path):
    content = bytearray(video("plain.avi")[0].read_bytes())
    content[content.index(b"movi") + 4 :] = bytes(1000)
    path = tmp_path / "header.avi"
    path.write_bytes(content)
    assert count_frames(row(path)) == 0
    with pytest.raises(InputError, match=r"header\.avi has no frame that can be decoded"):
        decode_frames(row(path), [0, 4])


@pytest.mark.parametrize(
    "name", ["plain.avi", "one_gop.avi", "packed_two.avi", "b_frames.mp4", "vp8.webm"] + ["h264.mkv"] * X264
)
def test_truncated_videos_repeat_their_last_frame(video, tmp_path, name):
    path, _ = video(name)
    content = path.read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: len(content) * 6 // 10])
    expected = full_decode(path)
    last = len(expected) - 1
    assert 20 < last < 45
    assert count_frames(row(path)) > last
    for indices in ([2, last - 1, last + 1, 59], [last - 4, last, last + 3], [last + 1, last + 2], [57, 59]):
        frames = decode_frames(row(path), indices)
        for frame, index in zip(frames, indices, strict=True):
            assert frame.equal(expected[min(index, last)])


def test_a_gap_is_passed_over(video, tmp_path):
    path, expected = video("plain.avi")
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = list(container.demux(video=0))
        for packet in packets[20:24]:
            start = content.index(bytes(packet), packet.pos)
            content[start : start + packet.size] = bytes(packet.size)
    path = tmp_path / "gap.avi"
    path.write_bytes(content)
    assert count_frames(row(path)) == NUM_FRAMES
    frames = decode_frames(row(path), [18, 22, 26, 30])
    assert frames[[0, 2, 3]].equal(expected[[18, 26, 30]])
    assert numbers_of(frames)[1] in range(18, 27)


def test_training_clips_are_spaced_and_start_everywhere(video):
    path, expected = video("b_frames.avi")
    # The first of four possible starts to the last.
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
def test_training_clips_depend_on_the_draws_alone(video, crop_scale):
    rows = [row(video("plain.avi")[0]), row(video("b_frames.mp4")[0]), row(video("vp8.webm")[0])]
    clips = TrainingClips((4, 32, 32), 4, crop_scale)
    together = clips(rows, Draws(3, 1, [5, 9, 20]))
    assert together.equal(clips(rows, Draws(3, 1, [5, 9, 20])))
    assert together[1:2].equal(clips(rows[1:2], Draws(3, 1, [9])))
    assert not together.equal(clips(rows, Draws(3, 2, [5, 9, 20])))
    # As many numbers for a batch of any videos.
    first, second = Draws(0, 0, [0]), Draws(0, 0, [0])
    clips(rows[:1], first)
    clips(rows[2:], second)
    assert np.array_equal(first.next(1), second.next(1))


def test_short_videos_repeat_their_last_frame(tmp_path):
    path = write_video(tmp_path / "short.avi", 5)
    expected = full_decode(path)
    clip = TrainingClips((4, 240, 240), 2, None)([row(path)], Draws(0, 0, [3]))[0]
    assert clip.equal(expected[[0, 2, 4, 4], :, :, 40:280])
    views = EvaluationClips((4, 240, 240), 2, 2, 1, (0.0,) * 3, (1.0,) * 3)([row(path)] * 2, [0, 1])
    assert torch.equal((views * 255).round().byte(), clip.expand(2, -1, -1, -1, -1))


MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.25, 0.2)


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (pixels / 255 - mean) / std


@pytest.mark.parametrize("num_segments, starts", [(1, [15]), (2, [0, 31]), (3, [0, 16, 31]), (5, [0, 8, 16, 23, 31])])
def test_segments_are_evenly_spaced(video, num_segments, starts):
    # 60 frames, of which a clip spans 29.
    path, expected = video("b_frames.avi")
    clips = EvaluationClips((8, 48, 48), 4, num_segments, 1, MEAN, STD)
    assert clips.num_views == num_segments
    views = clips([row(path)] * num_segments, list(range(num_segments)))
    assert (views.shape, views.dtype) == ((num_segments, 8, 3, 48, 48), torch.float32)
    for view, start in zip(views, starts, strict=True):
        frames = v2.functional.resize(expected[start : start + 29 : 4], [48, 64])[..., 8:56]
        assert torch.allclose(view, normalized(frames), atol=1e-5)


@pytest.mark.parametrize("portrait", [False, True])
def test_crops_are_at_the_start_middle_and_end(folder, portrait):
    size, resized = ((160, 120), (64, 48)) if portrait else ((120, 160), (48, 64))
    path = write_video(folder / f"portrait_{portrait}.avi", size=size)
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
