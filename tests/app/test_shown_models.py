"""The models behind the page: sizes, and answers and maps as those of the commands."""

import numpy as np
import pytest
import torch
from media_files import write_video
from selection import mostly_extensive
from shown_models import CHECKPOINT, write_arrows_model, write_clip_model, write_volume_model

from liere_hf import LiereViTForImageClassification
from liere_hf.app import models as models_module
from liere_hf.app.models import DEFAULT_MODELS, MAX_ATTENTION_BYTES, ShownModel, load_models
from liere_hf.configuration.prediction_options import PredictionOptions
from liere_hf.errors import InputError
from liere_hf.plots import attention_maps, offset_scores
from liere_hf.prediction import load_predictor


@pytest.fixture(scope="module")
def committed() -> ShownModel:
    return ShownModel(str(CHECKPOINT), use_cpu=True)


def file_of(path) -> dict:
    return {"bytes": None, "path": str(path)}


@pytest.mark.parametrize("width", [28, 20, 56])
def test_answers_and_maps_are_those_of_the_commands(committed, trousers, width):
    found = committed.explain(file_of(trousers), "trousers.png", width, 2)
    predictor = load_predictor(str(CHECKPOINT), PredictionOptions(use_cpu=True, input_size=[width]))
    views = predictor.read(file_of(trousers))
    assert [label for label, _ in found.prediction.values] == [label for label, _ in predictor.answer(views, 5)]
    probabilities = [value for _, value in predictor.answer(views, 5)]
    assert [value for _, value in found.prediction.values] == pytest.approx(probabilities, abs=1e-5)
    if width == 28:
        assert found.prediction.values[0][0] == "Trouser"
    model = LiereViTForImageClassification.from_pretrained(CHECKPOINT).eval()
    expected = attention_maps(model, views["pixel_values"])
    torch.testing.assert_close(found.maps.rollout, expected.rollout, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.maps.relevance, expected.relevance, rtol=1e-3, atol=1e-6)
    assert found.layers == (2,)


def test_offsets_are_those_of_the_size_layer_and_head(committed):
    found = committed.offsets(44, 3, 2).numbers
    expected = offset_scores(committed.model, [3], [2], [44])
    assert (found.layers, found.heads, found.grid_size) == ((3,), (2,), (11, 11))
    torch.testing.assert_close(found.mean, expected.mean)


def test_models_without_rotations(tmp_path):
    absolute = ShownModel(str(write_arrows_model(tmp_path / "absolute", position_encoding="absolute")), True)
    assert absolute.offsets(40, 1, 1).numbers.grid_size == (5, 5)
    none = ShownModel(str(write_arrows_model(tmp_path / "none", position_encoding="none")), True)
    with pytest.raises(InputError, match="none has no position encoding"):
        none.offsets(40, 1, 1)


@pytest.mark.parametrize("column", mostly_extensive(["video", "volume"], ["video"]))
def test_clips_and_volumes_of_every_size(column, tmp_path):
    """Sizes keep proportions as far as patches allow; clips keep their number of frames."""
    write = {"video": write_clip_model, "volume": write_volume_model}[column]
    model = ShownModel(str(write(tmp_path / "model")), use_cpu=True)
    if column == "video":
        write_video(tmp_path / "file.mp4")
    else:
        np.save(tmp_path / "file.npy", np.random.default_rng(0).normal(size=(8, 9, 10)).astype(np.float32))
    (path,) = tmp_path.glob("file*")
    assert (model.column, model.patch_width, model.training_width, model.max_width) == (column, 8, 24, 48)
    sizes = {8: [4, 8, 8], 16: [4, 8, 16], 24: [4, 16, 24], 48: [4, 32, 48]}
    if column == "volume":
        sizes |= {8: [2, 8, 8], 16: [2, 8, 16], 48: [8, 32, 48]}
    for width, size in sizes.items():
        assert model.input_size(width) == size
        found = model.explain(file_of(path), "file", width, 1)
        grid = tuple(pixels // patch for pixels, patch in zip(size, (2, 8, 8), strict=True))
        assert found.maps.relevance.shape[2:] == grid
        assert (found.animation is not None) == (column == "video")


def test_sizes_end_where_attention_takes_too_much_memory(committed, monkeypatch):
    assert committed.max_width == 56
    # Of 11 x 11 patches and CLS, in 4 layers of 8 heads: attention and its gradient.
    monkeypatch.setattr(models_module, "MAX_ATTENTION_BYTES", 2 * 4 * 122**2 * 4 * 8)
    assert committed.max_width == 44
    monkeypatch.setattr(models_module, "MAX_ATTENTION_BYTES", 0)
    assert committed.max_width == committed.training_width
    assert MAX_ATTENTION_BYTES == 2**30


@pytest.mark.parametrize(
    ("width", "layer", "message"),
    [
        (30, 1, "size is 30, allowed are multiples of 4 from 4 to 56"),
        (60, 1, "size is 60"),
        (0, 1, "size is 0"),
        (28, 0, "layer is 0, allowed are 1 to 4"),
        (28, 5, "layer is 5"),
    ],
)
def test_places_that_do_not_exist(committed, trousers, width, layer, message):
    with pytest.raises(InputError, match=message):
        committed.explain(file_of(trousers), "trousers.png", width, layer)
    with pytest.raises(InputError):
        committed.offsets(width, layer, 1)


def test_errors_name_the_file_as_its_visitor_does(committed, tmp_path):
    path = tmp_path / "secret" / "upload"
    path.parent.mkdir()
    path.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"image mine\.png cannot be read") as caught:
        committed.explain(file_of(path), "mine.png", 28, 1)
    assert "secret" not in str(caught.value)


def test_titles_show_no_path_and_differ(tmp_path):
    names = [write_arrows_model(tmp_path / place / "model") for place in "ab"]
    assert list(load_models([*map(str, names)], use_cpu=True)) == ["model", "model (2)"]


def test_default_models_are_those_of_a_clone(tmp_path, monkeypatch):
    """All of them. LieRE on the spatial task comes first, with absolute positions beside it, whatever their names."""
    assert sorted(DEFAULT_MODELS) == sorted(path.parent.name for path in CHECKPOINT.parent.glob("*/config.json"))
    monkeypatch.chdir(CHECKPOINT.parents[1])
    shown = load_models([], use_cpu=True)
    assert tuple(shown) == DEFAULT_MODELS
    first, second, *_ = shown.values()
    assert [model.task.grid_size for model in (first, second)] == [9, 9]
    assert [model.model.config.position_encoding for model in (first, second)] == ["liere", "absolute"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no model is given, and .*checkpoints has none"):
        load_models([])
