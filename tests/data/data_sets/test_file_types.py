"""Every type of file that is taken for an example can be read, and what is told of files that can be read in part."""

import gzip
import re
from pathlib import Path

import av
import nibabel
import numpy as np
import pytest
from image_files import writable_images, write_image
from media_files import load_folder, write_files
from video_files import CODECS, write_video

from liere_hf.data.data_sets.class_folders import SPLIT_FOLDERS
from liere_hf.data.data_sets.folders import VIDEO_SUFFIXES, VOLUME_SUFFIXES
from liere_hf.data.decoding.images import decode_image, image_suffixes
from liere_hf.data.decoding.videos import count_frames, decode_frames
from liere_hf.data.summary import summary


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_video(tmp_path, suffix):
    codec = CODECS.get(suffix, "mpeg4")
    path = write_video(tmp_path / f"video{suffix}", 20, codec=codec, size=(144, 176))
    row = {"bytes": None, "path": str(path)}
    assert count_frames(row) == (20, 20)
    frames = decode_frames(row, [0, 5, 19])
    assert frames.shape == (3, 3, 144, 176)
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for frame, index in zip(frames, (0, 5, 19), strict=True):
        assert np.array_equal(frame.permute(1, 2, 0), expected[index])


@pytest.mark.parametrize("suffix", writable_images())
def test_image(tmp_path, suffix):
    path = write_image(tmp_path / f"image{suffix}", (32, 32))
    pixels = decode_image({"bytes": None, "path": str(path)})
    assert pixels.shape[0] == 3 and pixels.shape[1] >= 16 and pixels.min() > 240


@pytest.mark.parametrize("suffix", VOLUME_SUFFIXES)
def test_volume(tmp_path, suffix):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(5):
            path = tmp_path / label / f"{number}{suffix}"
            volume = np.random.default_rng(0).integers(0, 9, (2, 3, 4)).astype(np.int16)
            if suffix.startswith(".nii"):
                nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)
            elif suffix == ".npy":
                np.save(path, volume)
            else:
                with gzip.open(path, "wb") as file:
                    np.save(file, volume)
    assert load_folder(tmp_path, "volumes").facts()["splits"]["train"] == {"a": 4, "b": 4}


def test_cut_videos_are_told(tmp_path):
    write_files(tmp_path, "videofolder", [f"{name}/{number}" for name in ("run", "jump") for number in range(5)])
    whole = write_video(tmp_path / "whole.mp4", 40, size=(64, 64)).read_bytes()
    (tmp_path / "whole.mp4").unlink()
    (tmp_path / "run" / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    splits = load_folder(tmp_path, "videofolder")
    available, announced = count_frames({"bytes": None, "path": str(tmp_path / "run" / "cut.mp4")})
    assert 10 < available < 35 and announced == 40
    reason = f"used as far as it goes: it has {available} frames, of 40 before it was cut"
    assert splits.facts()["remarks"] == [{"file": str(tmp_path / "run" / "cut.mp4"), "reason": reason}]
    assert summary(splits.facts())[-1] == "used as far as it goes: 1 (run/cut.mp4)"
    # Too short for the clips: not used.
    splits = load_folder(tmp_path, "videofolder", input_size=[4, 16, 16], frame_stride=2, skip_corrupt_files=True)
    assert len(splits.remarks) == 1
    (tmp_path / "run" / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 5])
    splits = load_folder(tmp_path, "videofolder", skip_corrupt_files=True)
    assert not splits.remarks and "frames, of 40 before it was cut" in splits.left_out[0].reason


def test_the_documentation_lists_the_types_and_the_names_of_splits():
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("|")}
    assert re.findall(r"`(\.[^`]+)`", rows["videos"]) == list(VIDEO_SUFFIXES)
    assert re.findall(r"`(\.[^`]+)`", rows["volumes"]) == list(VOLUME_SUFFIXES)
    named, refused = rows["images"].split("; not ")
    assert {*re.findall(r"`(\.[^`]+)`", named)} <= {*image_suffixes()}
    assert not {*re.findall(r"`(\.[^`]+)`", refused)} & {*image_suffixes()}
    (sentence,) = re.findall(r"Split folders are called (.*?); in upper", page, re.DOTALL)
    assert re.findall("`(.*?)`", sentence) == [name for names in SPLIT_FOLDERS.values() for name in names]
