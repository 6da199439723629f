import wave
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from video_files import (
    H264,
    NO_HEADER_COUNT,
    NUM_FRAMES,
    PACKED,
    VIDEOS,
    VOP,
    X264,
    full_decode,
    needs_x264,
    numbers_of,
    row,
    write_video,
)

from liere_hf.data.decoding.videos import count_frames, decode_frames
from liere_hf.errors import InputError

every_video = pytest.mark.parametrize("name", [*VIDEOS, *PACKED])


@every_video
def test_every_start_is_exact(video, name):
    path, expected = video(name)
    assert numbers_of(expected) == list(range(NUM_FRAMES))
    # Two and a half groups of pictures, and the end.
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
def test_variable_rate_gives_the_first_frame_at_or_after(video_folder, suffix):
    gaps = np.random.default_rng(0).integers(1, 8, NUM_FRAMES)
    # So a key frame may have the number of the frame before it.
    gaps[12::12] = 1
    times = np.cumsum(gaps)
    path = write_video(video_folder / f"variable.{suffix}", **H264 | {"rate": 100, "times": times.tolist()})
    expected = full_decode(path)
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
    numbers = [round((time - times[0]) * rate / 100) for time in times.tolist()]
    # Matroska's header says 100 frames per second, MP4's the mean.
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
def test_files_that_are_not_videos(video, tmp_path, content):
    path, content = tmp_path / "broken.avi", content(video("plain.avi")[0])
    if content is not None:
        path.write_bytes(content)
    assert count_frames(row(path)) == 0
    with pytest.raises(InputError, match=r"video .*broken\.avi"):
        decode_frames(row(path), [0])


def test_audio_is_not_video(tmp_path):
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000))
    assert count_frames(row(path)) == 0
    with pytest.raises(InputError, match=r"sound\.wav has no video stream"):
        decode_frames(row(path), [0])


def test_a_header_without_frames_is_not_a_video(video, tmp_path):
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


def test_a_gap_is_skipped(video, tmp_path):
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
