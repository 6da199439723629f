"""The video processor against PyAV's frames and NumPy arithmetic."""

import json

import av
import numpy as np
import pytest
import torch
from factory import write_clip
from transformers import AutoVideoProcessor

from liere_hf import LiereViTVideoProcessor


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.fixture(scope="module")
def frames(clip):
    with av.open(str(clip)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_decoded_frames_are_pyavs(clip, frames):
    decoded, metadata = LiereViTVideoProcessor().fetch_videos(str(clip))
    assert frames.shape == (12, 32, 48, 3)
    np.testing.assert_array_equal(np.asarray(decoded), frames)
    assert metadata.total_num_frames == 12
    assert metadata.fps == 12


def test_only_the_frames_asked_for_are_decoded(clip, frames):
    indices = [1, 4, 11]
    decoded, metadata = LiereViTVideoProcessor().fetch_videos(
        str(clip), sample_indices_fn=lambda metadata, **kwargs: np.array(indices)
    )
    np.testing.assert_array_equal(np.asarray(decoded), frames[indices])
    assert list(metadata.frames_indices) == indices


def test_a_list_of_files_is_decoded_file_by_file(clip, frames, tmp_path):
    other = write_clip(tmp_path / "other.mp4", num_frames=5, seed=1)
    videos, metadata = LiereViTVideoProcessor().fetch_videos([str(clip), str(other)])
    np.testing.assert_array_equal(np.asarray(videos[0]), frames)
    assert np.asarray(videos[1]).shape == (5, 32, 48, 3)
    assert [each.total_num_frames for each in metadata] == [12, 5]


def test_pixel_values_are_cropped_scaled_and_normalized_frames(frames):
    """Without resizing, pixel values are arithmetic. Their layout is (batch, frames, channels, height, width)."""
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.1]
    processor = LiereViTVideoProcessor(
        do_resize=False, crop_size={"height": 16, "width": 32}, image_mean=mean, image_std=std
    )
    pixel_values = processor([frames, frames[::-1].copy()], return_tensors="pt").pixel_values
    crop = frames[:, 8:24, 8:40] / 255
    expected = np.moveaxis((crop - mean) / std, -1, 1)
    assert pixel_values.shape == (2, 12, 3, 16, 32)
    np.testing.assert_allclose(pixel_values.numpy(), np.stack([expected, expected[::-1]]), atol=1e-5)


def test_a_file_and_its_frames_give_the_same_pixels(clip, frames):
    processor = LiereViTVideoProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    from_file = processor(str(clip), return_tensors="pt").pixel_values
    assert from_file.shape == (1, 12, 3, 16, 16)
    assert torch.equal(from_file, processor(frames, return_tensors="pt").pixel_values)


def test_frames_are_sampled_evenly(clip, frames):
    processor = LiereViTVideoProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    sampled = processor(str(clip), num_frames=4, do_sample_frames=True, return_tensors="pt").pixel_values
    assert sampled.shape == (1, 4, 3, 16, 16)
    everything = processor(frames, return_tensors="pt").pixel_values
    assert torch.equal(sampled, everything[:, [0, 3, 6, 9]])


def test_saved_and_reloaded_processor_gives_the_same_pixels(clip, tmp_path):
    processor = LiereViTVideoProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    assert written["auto_map"]["AutoVideoProcessor"] == "video_processing_liere_vit.LiereViTVideoProcessor"
    loaded = AutoVideoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is LiereViTVideoProcessor
    assert torch.equal(
        loaded(str(clip), return_tensors="pt").pixel_values, processor(str(clip), return_tensors="pt").pixel_values
    )
