"""`liere-hf explain`, `rotations` and `info` on saved models of every medium."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import write_picture, write_video
from PIL import Image
from plotted_models import PATCH, classifier
from transformers import ViTImageProcessor

from liere_hf import LiereViTBackbone, LiereViTForMaskedImageModeling, LiereViTModel
from liere_hf.model_loading import load_saved_model
from liere_hf.modeling.video_processing_liere_vit import LiereViTVideoProcessor
from liere_hf.plots import attention_maps, offset_scores
from liere_hf_cli.main import main

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "checkpoints" / "liere-fashion-mnist"


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([*map(str, words)])
    return exit_.value.code


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Directories `image`, `video` and `volume`, and `bare`, which has no classifier."""
    directory = tmp_path_factory.mktemp("models")
    labels = {"id2label": {number: f"class {number}" for number in range(5)}}
    for name, num_axes, channels in (("image", 2, 3), ("video", 3, 3), ("volume", 3, 1)):
        classifier(num_axes, num_channels=channels, **labels).save_pretrained(directory / name)
    ViTImageProcessor(size={"height": 6, "width": 10}).save_pretrained(directory / "image")
    size = {"height": 6, "width": 10}
    LiereViTVideoProcessor(size={"shortest_edge": 10}, crop_size=size).save_pretrained(directory / "video")
    (directory / "video" / "recipe.yaml").write_text("{frame_stride: 1, eval_segments: 2, eval_crops: 1}")
    LiereViTVideoProcessor(size=size, image_mean=[0.5], image_std=[0.25]).save_pretrained(directory / "volume")
    classifier(2).base_model.save_pretrained(directory / "bare")
    return directory


@pytest.fixture
def files(tmp_path) -> Path:
    write_picture(tmp_path / "one.png")
    (tmp_path / "more").mkdir()
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(256, size=(20, 30, 3), dtype=np.uint8)).save(tmp_path / "more" / "one.jpg")
    write_video(tmp_path / "clip.mp4")
    np.save(tmp_path / "scan.npy", random.normal(size=(8, 9, 10)).astype(np.float32))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return tmp_path


def test_explain_pictures(models, files, capsys):
    """Two files of one name, and maps after two layers: the numbers are the model's on the processor's pixels."""
    output = files / "results"
    words = [files / "one.png", files / "more", "--layers", 1, 3, "--output_dir", output, "--use_cpu"]
    assert run("explain", models / "image", *words) == 0
    names = ["one_attention.png", "one_2_attention.png", "explanations.json"]
    assert capsys.readouterr().out.splitlines()[-3:] == [str(output / name) for name in names]
    assert sorted(path.name for path in output.iterdir()) == sorted(names)
    content = json.loads((output / "explanations.json").read_text())
    record = content["files"][1]
    model = classifier(2)
    processor = ViTImageProcessor.from_pretrained(models / "image")
    with Image.open(files / "more" / "one.jpg") as picture:
        inputs = processor(picture, return_tensors="pt")["pixel_values"]
    maps = attention_maps(model, inputs)
    assert record["file"] == str(files / "more" / "one.jpg")
    assert record["explained"] == record["predictions"][0]["label"] == f"class {maps.labels[0]}"
    assert record["predictions"][0]["probability"] == pytest.approx(maps.logits.softmax(1).max().item(), abs=1e-5)
    assert [layer["layer"] for layer in record["layers"]] == [1, 3]
    for kind in ("rollout", "relevance"):
        np.testing.assert_allclose(record["layers"][1][kind], getattr(maps, kind)[2, 0], rtol=1e-3, atol=1e-6)
    with Image.open(output / "one_attention.png") as figure:
        assert min(figure.size) > 300


def test_explain_clips_and_volumes(models, files):
    assert run("explain", models / "video", files / "clip.mp4", "--output_dir", files / "clips", "--use_cpu") == 0
    with Image.open(files / "clips" / "clip_attention.gif") as animation:
        # Frames that look alike are one that stays longer.
        durations = []
        for number in range(animation.n_frames):
            animation.seek(number)
            durations.append(animation.info["duration"])
        assert sum(durations) == 4 * 250
    (record,) = json.loads((files / "clips" / "explanations.json").read_text())["files"]
    assert record["view"] == 2
    assert np.shape(record["layers"][0]["relevance"]) == (2, 3, 5)
    assert run("explain", models / "volume", files / "scan.npy", "--output_dir", files / "scans", "--use_cpu") == 0
    assert [path.name for path in sorted((files / "scans").iterdir())] == ["explanations.json", "scan_attention.png"]


def test_rotations(models, tmp_path):
    size = [PATCH * 4, PATCH * 2]
    words = ["--layers", 2, "--heads", 1, 2, "--input_size", *size, "--output_dir", tmp_path]
    assert run("rotations", models / "bare", *words) == 0
    names = ["rotations_offsets.png", "rotations_spectrum.png", "rotations_commutators.png", "rotations.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    content = json.loads((tmp_path / "rotations.json").read_text())
    expected = offset_scores(classifier(2), [2], [1, 2], size)
    assert content["offsets"]["grid_size"] == [4, 2]
    np.testing.assert_allclose(content["offsets"]["mean"], expected.mean, atol=1e-5)
    np.testing.assert_allclose(content["offsets"]["spread"], expected.spread, atol=1e-5)
    assert content["spectrum"]["layers"] == [2]


KINDS = {
    "classifier": lambda model: model,
    "base model": lambda model: model.base_model,
    "base model with pooler": lambda model: LiereViTModel(model.config, add_pooling_layer=True),
    "backbone": lambda model: LiereViTBackbone(model.config),
    "masked image modeling": lambda model: LiereViTForMaskedImageModeling(model.config),
    "base model of masked image modeling": lambda model: LiereViTForMaskedImageModeling(model.config).base_model,
}


@pytest.mark.parametrize("num_axes", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_rotations_of_every_kind_of_checkpoint(kind, num_axes, tmp_path, caplog, monkeypatch):
    """Those of the model that was saved, and no report about a head that it has or lacks."""
    saved = KINDS[kind](classifier(num_axes))
    saved.save_pretrained(tmp_path)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    scores = offset_scores(load_saved_model(str(tmp_path)))
    assert not caplog.records
    torch.testing.assert_close(scores.mean, offset_scores(saved).mean)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["explain", "image", "missing.png"], "missing.png does not exist"),
        (["explain", "image", "broken.png"], "broken.png"),
        (["explain", "image", "one.png", "--layers", "4"], "layer is 4, allowed are 1 to 3"),
        (["explain", "image", "one.png", "--input_size", "7"], "input_size is [7], which patch_size [2, 2] does not"),
        (["explain", "image", "one.png", "--output_dir", "one.png"], "output_dir is one.png"),
        (["explain", "bare", "one.png"], "lacks 2 weights of a LiereViT classifier"),
        (["rotations", "image", "--heads", "3"], "head is 3, allowed are 1 to 2"),
        (["rotations", "image", "--input_size", "8", "7"], "input_size is [8, 7], which patch_size [2, 2] does not"),
        (["rotations", "missing"], "missing"),
        (["info", "image", "--input_size", "0"], "input_size is [0]"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_leaves_nothing(models, files, monkeypatch, capsys, words, message):
    monkeypatch.chdir(files)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("image", "bare"):
        (files / name).symlink_to(models / name)
    before = sorted(files.rglob("*"))
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert error.splitlines()[-1].startswith(f"liere-hf {words[0]}: error: ")
    assert "Traceback" not in error
    assert sorted(files.rglob("*")) == before


def test_info_of_a_trained_model(tmp_path, capsys):
    assert run("info", CHECKPOINT, "--json", tmp_path / "info.json") == 0
    info = json.loads((tmp_path / "info.json").read_text())
    assert info["parameters"]["all"] == 676_106
    assert info["encoding"] == "LieRE8"
    assert info["training"]["dataset"] == "fashion_mnist"
    results = json.loads((CHECKPOINT / "eval_results.json").read_text())
    assert info["results"]["evaluation"]["accuracy"] == results["eval_accuracy"]
    assert info["files"]["model.safetensors"] == (CHECKPOINT / "model.safetensors").stat().st_size
    printed = capsys.readouterr().out
    assert "676,106" in printed
    assert "91.86 (91.31 to 92.38)" in printed


def test_info_counts_flops_and_parameters(tmp_path, capsys):
    """By hand for an absolute model, whose files say nothing of training."""
    model = classifier(2, position_encoding="absolute")
    model.save_pretrained(tmp_path / "model")
    assert run("info", tmp_path / "model", "--input_size", 8, 12, "--json", tmp_path / "info.json") == 0
    info = json.loads((tmp_path / "info.json").read_text())
    assert info["parameters"] == {"all": model.num_parameters(), "positions": 15 * 24}
    patches, width, inner, tokens = 24, 24, 48, 25
    per_layer = 4 * tokens * width * inner + 2 * tokens**2 * inner + 2 * tokens * width * 16
    expected = 2 * (patches * 12 * width + 3 * per_layer + width * 5)
    # Positions at another size are interpolated.
    interpolation = 2 * patches * 15 * width
    assert info["flops"] == {"input_size": [8, 12], "flops": expected + interpolation}
    assert "training" not in info
    assert "results" not in info
