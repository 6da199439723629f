import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from selection import mostly_extensive
from video_files import (
    H264,
    NO_HEADER_COUNT,
    NUM_FRAMES,
    PACKED,
    VIDEOS,
    VOP,
    full_decode,
    needs_x264,
    numbers_of,
    row,
    write_video,
)

from liere_hf.data.decoding.videos import check_video, count_frames, decode_frames
from liere_hf.data.draws import Draws
from liere_hf.data.resizing.clips import EvaluationClips, TrainingClips
from liere_hf.errors import InputError
from liere_hf.modeling.video_processing_liere_vit import LiereViTVideoProcessor

every_video = pytest.mark.parametrize(
    "name", mostly_extensive([*VIDEOS, *PACKED], ["b_frames.mp4", "open_gop.mp4", "h264.ts", "packed_one.avi"])
)


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
    assert count_frames(row(path)) == count_frames(content) == (NUM_FRAMES, NUM_FRAMES)
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
    assert check_video(row(path), (8,), 1).fault
    with pytest.raises(InputError, match=r"video .*broken\.avi"):
        decode_frames(row(path), [0])


def test_audio_is_not_video(tmp_path):
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000))
    assert "has no video stream that can be decoded" in check_video(row(path), (8,), 1).fault
    with pytest.raises(InputError, match=r"sound\.wav has no video stream"):
        decode_frames(row(path), [0])


def test_a_header_without_frames_is_not_a_video(video, tmp_path):
    content = bytearray(video("plain.avi")[0].read_bytes())
    content[content.index(b"movi") + 4 :] = bytes(1000)
    path = tmp_path / "header.avi"
    path.write_bytes(content)
    assert check_video(row(path), (8,), 1) == ("it has no frame that can be decoded", None)
    with pytest.raises(InputError, match=r"header\.avi has no frame that can be decoded"):
        decode_frames(row(path), [0, 4])


@every_video
@pytest.mark.parametrize("share", [0.6, pytest.param(0.83, marks=pytest.mark.extensive)])
def test_cut_videos_end_with_their_last_whole_frame(video, tmp_path, name, share):
    """What the header announces is not believed: clips end before the cut, and no frame is repeated."""
    path, whole = video(name)
    content = path.read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: int(len(content) * share)])
    if path.suffix == ".mov":
        # The index is at the end of the file.
        assert "Invalid data" in check_video(row(path), (8,), 1).fault
        return
    available, announced = count_frames(row(path))
    assert count_frames({"bytes": path.read_bytes(), "path": None}) == (available, announced)
    assert announced == (available if path.suffix in (".mkv", ".webm", ".ts", ".h264") else NUM_FRAMES)
    decoded = full_decode(path)
    # At most the frames that B-frames are missing before, or that the cut goes through.
    assert len(decoded) - 5 <= available <= len(decoded)
    if announced == NUM_FRAMES:
        indices = list(range(available - 8, available))
        frames = decode_frames(row(path), indices)
        assert numbers_of(frames) == indices
        assert frames.equal(decoded[indices])
        assert frames.equal(whole[indices])
        check = check_video(row(path), (8,), 1)
        assert check == (None, f"used as far as it goes: it has {available} frames, of 60 before it was cut")
    assert check_video(row(path), (available + 1,), 1).fault.startswith(f"it has {available} frames")


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
    assert count_frames(row(path)).available == NUM_FRAMES
    frames = decode_frames(row(path), [18, 22, 26, 30])
    assert frames[[0, 2, 3]].equal(expected[[18, 26, 30]])
    assert numbers_of(frames)[1] in range(18, 27)


def quarters(number: int, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[: height // 2, : width // 2] = 255, 0, 0
    pixels[: height // 2, width // 2 :] = 0, 255, 0
    return pixels


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_videos_are_turned_upright(tmp_path, suffix, degrees):
    """As phones store them: the frames lie on their side, and the file says how they are shown."""
    path = write_video(tmp_path / f"phone.{suffix}", 12, size=(32, 64), pictures=quarters, rotation=(degrees, False))
    frames = decode_frames(row(path), [0, 7])
    assert frames.shape == (2, 3, *((64, 32) if degrees in (90, -90) else (32, 64)))
    # numpy turns counterclockwise, too.
    expected = np.rot90(quarters(0, (32, 64)), degrees // 90).transpose(2, 0, 1)
    difference = np.abs(frames.numpy().astype(int) - expected).mean()
    assert difference < 15


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_mirrored_videos(tmp_path, degrees):
    path = write_video(tmp_path / "selfie.mp4", 3, size=(32, 64), pictures=quarters, rotation=(degrees, True))
    (frame,) = decode_frames(row(path), [1])
    with av.open(str(path)) as container:
        shown = next(container.decode(video=0))
        matrix = np.frombuffer(shown.side_data["DISPLAYMATRIX"], np.int32).reshape(3, 3)[:2, :2] / 65536
    # Each quarter goes where FFmpeg's matrix takes its center, in coordinates from the middle of the picture.
    for center, color in (((-1, -1), 0), ((1, -1), 1)):
        x, y = np.array(center) @ matrix
        height, width = frame.shape[1:]
        row_, column = (height // 4 if y < 0 else 3 * height // 4), (width // 4 if x < 0 else 3 * width // 4)
        assert frame[:, row_, column].argmax() == color and frame[color, row_, column] > 150


def test_evaluation_and_training_clips_are_turned(tmp_path):
    path = write_video(tmp_path / "phone.mp4", 12, size=(32, 64), pictures=quarters, rotation=(-90, False))
    training = TrainingClips((4, 32, 32), 1, None)([row(path)], Draws(0, 0, [0]))
    evaluation = EvaluationClips((4, 32, 32), 1, 1, 1, (0.0,) * 3, (1 / 255,) * 3)([row(path)], [0])
    for clip in (training[0].float(), evaluation[0]):
        # Of the 64 x 32 picture, whose upper half is red on the right and black on the left, the middle is kept.
        assert clip[0, 0, 8, 24] > 150 and clip[0, :, 8, 8].max() < 60


@pytest.mark.parametrize("rotation", [(90, False), (-90, False), (180, True), None])
def test_the_processor_turns_videos_as_training_does(tmp_path, rotation):
    """`pipeline` gives it a path."""
    path = write_video(tmp_path / "phone.mp4", 12, size=(32, 64), pictures=quarters, rotation=rotation)
    processor = LiereViTVideoProcessor(do_resize=False, do_center_crop=False, do_normalize=False, do_rescale=False)
    frames, metadata = processor.fetch_videos(str(path), sample_indices_fn=lambda metadata: [0, 7])
    assert torch.from_numpy(frames).permute(0, 3, 1, 2).equal(decode_frames(row(path), [0, 7]))
    assert (metadata.height, metadata.width) == frames.shape[1:3]
    pixels = processor([str(path)], num_frames=2, do_sample_frames=True, return_tensors="pt")["pixel_values"]
    assert pixels.shape[-2:] == frames.shape[1:3]
