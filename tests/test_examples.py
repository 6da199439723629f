"""The programs in examples/ run to their end, with less data and fewer steps than for their committed results."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from liere_hf.configuration import DataArguments

pytestmark = pytest.mark.end_to_end
ROOT = Path(__file__).parents[1]
FASHION_MNIST = ROOT / ".cache" / "fashion-mnist"
needs_fashion_mnist = pytest.mark.skipif(
    not (FASHION_MNIST / "t10k-labels-idx1-ubyte.gz").is_file(), reason="needs Fashion-MNIST: make fashion-mnist"
)


@pytest.fixture
def example(request) -> ModuleType:
    spec = importlib.util.spec_from_file_location(request.param, ROOT / "examples" / f"{request.param}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of(name: str):
    return pytest.mark.parametrize("example", [name], indirect=True)


@of("animate_clips")
def test_clips_are_animated(example, tmp_path):
    example.main(tmp_path / "clips.gif")
    with Image.open(tmp_path / "clips.gif") as made, Image.open(ROOT / "docs" / "images" / "clips.gif") as committed:
        assert (made.size, made.n_frames) == (committed.size, committed.n_frames)


@of("fine_tune_on_few_pictures")
def test_few_pictures_are_fine_tuned_on(example, tmp_path, monkeypatch):
    monkeypatch.setattr(example, "FLAGS", [*example.FLAGS, "--max_steps", "2"])
    example.main(tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())["fine_tuning"]
    assert [(row["pictures"], row["tested_on"]) for row in rows] == [(120, 45), (20, 60)]


@of("fine_tune_checkpoint")
def test_a_checkpoint_is_fine_tuned(example, tmp_path, monkeypatch):
    monkeypatch.setattr(example, "SEEDS", range(2))
    monkeypatch.setattr(example, "FLAGS", [*example.FLAGS, "--max_steps", "2"])
    monkeypatch.setattr(example, "CLIPS", {"train": 20, "test": 4})
    example.main("clips", tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())["accuracy, %"]
    first, second, gain = (rows[name]["seeds"] for name in ("checkpoint", "new weights", "gain"))
    assert gain == [one - other for one, other in zip(first, second, strict=True)]
    # Nothing is trained again, and the results are the same.
    monkeypatch.setattr(example, "train", None)
    example.main("clips", tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["accuracy, %"] == rows


@of("tune_converted_dinov3")
def test_a_converted_dinov3_is_tuned(example, tmp_path, monkeypatch):
    monkeypatch.setattr(example, "SEEDS", range(2))
    monkeypatch.setattr(example, "SOURCE_EXAMPLES", 64)
    monkeypatch.setattr(example, "TUNING_EXAMPLES", 16)
    flags_for = example.flags_for
    monkeypatch.setattr(example, "flags_for", lambda *arguments: [*flags_for(*arguments), "--eval_examples", "64"])
    monkeypatch.setattr(example, "evaluate_on", lambda *arguments: 0.25)
    chosen = {name: example.TUNINGS[name] for name in ("rotations and classifier", "LoRA, rank 8")}
    monkeypatch.setattr(example, "TUNINGS", chosen)
    # Memory and threads need not be each one's own here.
    monkeypatch.setattr(example, "in_new_process", lambda function, *arguments: function(*arguments))
    example.main(tmp_path)
    tuned = json.loads((tmp_path / "results.json").read_text())["tuned"]
    committed = json.loads((ROOT / "results" / "tuning_converted_dinov3" / "results.json").read_text())["tuned"]
    assert {name: row["trained_parameters"] for name, row in tuned.items()} == {
        name: committed[name]["trained_parameters"] for name in chosen
    }


@of("offsets_to_scores")
def test_offsets_are_turned_into_scores(example, tmp_path, monkeypatch):
    monkeypatch.setattr(example, "FLAGS", example.FLAGS | {"max_steps": 2})
    monkeypatch.setattr("sys.argv", ["offsets_to_scores.py", str(tmp_path), "--train"])
    example.main()
    spreads = {
        name: row["spread"] for name, row in json.loads((tmp_path / "scores.json").read_text())["encodings"].items()
    }
    # Planar rotations depend on offsets alone.
    assert spreads["RoPE-Mixed"] == 0 < min(spreads["absolute"], spreads["LieRE8"])
    assert (tmp_path / "figure.png").is_file()


@of("fine_tune_converted_vit")
@needs_fashion_mnist
def test_a_converted_vit_is_fine_tuned(example, tmp_path, monkeypatch):
    monkeypatch.setattr(example, "VIT_STEPS", 2)
    monkeypatch.setattr(example, "SEEDS", 2)
    monkeypatch.setattr(example, "IMAGES_PER_CLASS", 5)
    data = example.load_splits(DataArguments(dataset="fashion_mnist", data_dir=str(FASHION_MNIST)), seed=0)
    few = data._replace(train=data.train.select(range(500)), test=data.test.select(range(100)), num_train=500)
    monkeypatch.setattr(example, "load_splits", lambda *arguments, **options: few)
    fine_tune = example.fine_tune
    monkeypatch.setattr(example, "fine_tune", lambda *arguments: fine_tune(*arguments, "--max_steps", "2"))
    monkeypatch.setattr(example, "ANNEALING_STEPS", 1)
    example.main(str(FASHION_MNIST), tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())["fine_tuning"]
    committed = json.loads((ROOT / "results" / "fine_tuning" / "results.json").read_text())["fine_tuning"]
    assert rows.keys() == committed.keys()


@of("inflate_image_model")
@needs_fashion_mnist
def test_an_inflated_model_is_compared(example, tmp_path, monkeypatch):
    monkeypatch.setattr(example, "NUM_IMAGES", 4)
    example.main(FASHION_MNIST, tmp_path / "results.json", [ROOT / "checkpoints" / "liere-fashion-mnist"])
    assert (
        json.loads((tmp_path / "results.json").read_text()).keys()
        == json.loads((ROOT / "results" / "inflation.json").read_text()).keys()
    )
