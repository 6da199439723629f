"""Files beyond the limits of the page are refused by their headers, in one sentence, in every format that it takes."""

import gzip
import io
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from image_files import writable_images, write_image
from PIL import Image, ImageFile
from shown_models import CHECKPOINT, write_clip_model, write_volume_model
from video_files import CODECS, write_video

from liere_hf.app import limits
from liere_hf.app.models import ShownModel
from liere_hf.data.data_sets.folders import VIDEO_SUFFIXES, VOLUME_SUFFIXES
from liere_hf.data.decoding import videos
from liere_hf.errors import InputError

VOLUME_KINDS = {
    "NIfTI-1": lambda shape: nibabel.Nifti1Header.from_header(_nifti(shape)).binaryblock + bytes(4),
    "NIfTI-2": lambda shape: nibabel.Nifti2Header.from_header(_nifti(shape)).binaryblock + bytes(4),
    "npy 1.0": lambda shape: _npy(shape, (1, 0)),
    "npy 2.0": lambda shape: _npy(shape, (2, 0)),
}


def _nifti(shape) -> nibabel.Nifti2Header:
    header = nibabel.Nifti2Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.int16)
    return header


def _npy(shape, version) -> bytes:
    file = io.BytesIO()
    write = {(1, 0): np.lib.format.write_array_header_1_0, (2, 0): np.lib.format.write_array_header_2_0}[version]
    write(file, {"descr": "<i2", "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.fixture(scope="module")
def shown_models(tmp_path_factory) -> dict[str, ShownModel]:
    directory = tmp_path_factory.mktemp("models")
    names = {
        "image": CHECKPOINT,
        "video": write_clip_model(directory / "clips"),
        "volume": write_volume_model(directory / "volumes"),
    }
    return {column: ShownModel(str(name), use_cpu=True) for column, name in names.items()}


def refusal(model: ShownModel, path: Path) -> str:
    with pytest.raises(InputError) as caught:
        model.explain({"bytes": None, "path": str(path)}, "mine", model.training_width, 1)
    assert str(path) not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", writable_images())
def test_pictures(shown_models, tmp_path, monkeypatch, suffix):
    path = write_image(tmp_path / f"image{suffix}", (40, 32))
    with Image.open(path) as opened:
        width, height = opened.size
    monkeypatch.setattr(limits, "MAX_PIXELS", width * height)
    limits.require_moderate({"bytes": None, "path": str(path)}, "image", 1)
    monkeypatch.setattr(limits, "MAX_PIXELS", width * height - 1)
    if suffix != ".ico":  # Pillow decodes icons when it opens them.
        monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    expected = f"the picture has {width:,} x {height:,} pixels, the page takes {width * height - 1:,} in all"
    assert refusal(shown_models["image"], path) == expected


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
@pytest.mark.parametrize("limit", ["MAX_FRAMES", "MAX_VIDEO_PIXELS", "MAX_CLIP_PIXELS"])
def test_clips(shown_models, tmp_path, monkeypatch, suffix, limit):
    path = write_video(tmp_path / f"clip{suffix}", 20, codec=CODECS.get(suffix, "mpeg4"), size=(144, 176))
    frames, height, width = videos.announced_extent({"bytes": None, "path": str(path)})
    assert (height, width) == (144, 176)
    # By duration, where no frames are counted: FFmpeg does not see the last quarter of a second of program streams.
    assert 14 <= frames <= 21
    exact = {
        "MAX_FRAMES": frames,
        "MAX_VIDEO_PIXELS": frames * height * width,
        "MAX_CLIP_PIXELS": 4 * height * width,
    }
    monkeypatch.setattr(limits, limit, exact[limit])
    limits.require_moderate({"bytes": None, "path": str(path)}, "video", 4)
    monkeypatch.setattr(limits, limit, exact[limit] - 1)
    monkeypatch.setattr(videos, "_decode", None)
    assert re.fullmatch(
        rf"the clip has {frames} frames of 176 x 144 pixels, the page takes [\d,]+ frames, [\d,]+ pixels in each and "
        r"[\d,]+ in all",
        refusal(shown_models["video"], path),
    )


@pytest.mark.parametrize("suffix", VOLUME_SUFFIXES)
@pytest.mark.parametrize("kind", VOLUME_KINDS)
def test_volumes(shown_models, tmp_path, suffix, kind):
    """Headers alone: there are no voxels to decode."""
    path = tmp_path / f"volume{suffix}"
    compress = gzip.compress if suffix.endswith(".gz") else bytes
    path.write_bytes(compress(VOLUME_KINDS[kind]((1000, 1000, 269))))
    sentence = "the volume has 1,000 x 1,000 x 269 voxels, the page takes 268,435,456 in all"
    assert refusal(shown_models["volume"], path) == sentence
    path.write_bytes(compress(VOLUME_KINDS[kind]((1000, 1000, 268))))
    assert refusal(shown_models["volume"], path).startswith("volume mine cannot be read: ")


@pytest.mark.parametrize("members", [1, 3])
def test_volumes_that_unfold(shown_models, tmp_path, monkeypatch, members):
    monkeypatch.setattr(limits, "MAX_DECOMPRESSED_BYTES", 2**20)
    header = gzip.compress(VOLUME_KINDS["npy 1.0"]((8, 9, 10)))
    path = tmp_path / "large.npy.gz"
    path.write_bytes(header + gzip.compress(bytes(2**20 // members + 1)) * members)
    assert path.stat().st_size < 10_000
    assert "the volume is larger than" in refusal(shown_models["volume"], path)


@pytest.mark.parametrize("content", [b"", b"no such file"])
@pytest.mark.parametrize("column", ["image", "video", "volume"])
def test_files_without_a_header(shown_models, tmp_path, column, content):
    (tmp_path / "broken").write_bytes(content)
    assert refusal(shown_models[column], tmp_path / "broken").startswith(f"{column} mine cannot be read: ")
