"""What a release contains, and what it must not contain."""

import json

import pytest
import torch
from huggingface_hub import get_token
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

from liere_hf.errors import InputError
from liere_hf.hub.staging import MODELING, stage, stage_space
from liere_hf.run_directory import read_checkpoint

REPO_ID = "org/name"


@pytest.fixture
def target(tmp_path):
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def test_only_the_release_files_are_staged(run_dir, target):
    for name in ("optimizer.pt", "training_args.bin", "events.out.tfevents.1", "notes.py", ".env"):
        (run_dir / name).write_text("not to be published")
    (run_dir / "checkpoint-2").mkdir()
    stage(read_checkpoint(run_dir), target, REPO_ID)
    # An image model needs all modules except the video processor.
    code = {path.name for path in MODELING.glob("*.py")} - {"__init__.py", "video_processing_liere_vit.py"}
    results = {"README.md", "recipe.yaml", "training_data.json", "train_results.json", "eval_results.json"}
    assert {path.name for path in target.iterdir()} == code | results | {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert f'repo_id = "{REPO_ID}"' in (target / "README.md").read_text()


def test_large_weights_are_sharded(run_dir, target):
    stage(read_checkpoint(run_dir), target, REPO_ID, max_shard_size=2_000)
    shards = sorted(target.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert max(path.stat().st_size for path in shards) < 10_000
    assert not (target / "model.safetensors").exists()
    weights = AutoModelForImageClassification.from_pretrained(target).state_dict()
    for name, tensor in load_file(run_dir / "model.safetensors").items():
        assert torch.equal(weights[name], tensor)


def test_shards_are_uploaded_unchanged(run_dir, target, tmp_path):
    stage(read_checkpoint(run_dir), target, REPO_ID, max_shard_size=2_000)
    second = tmp_path / "second"
    second.mkdir()
    stage(read_checkpoint(target), second, REPO_ID)
    assert {path.name for path in second.iterdir()} == {path.name for path in target.iterdir()}
    next(target.glob("model-*.safetensors")).unlink()
    with pytest.raises(InputError, match=r"lacks model-.*, which model.safetensors.index.json names"):
        stage(read_checkpoint(target), second, REPO_ID)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(run_dir, target, value):
    tensors = load_file(run_dir / "model.safetensors")
    tensors["classifier.bias"][3] = value
    save_file(tensors, run_dir / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"has values in classifier.bias that are not finite"):
        stage(read_checkpoint(run_dir), target, REPO_ID)


def test_weights_of_another_architecture(run_dir, target):
    tensors = load_file(run_dir / "model.safetensors")
    save_file(tensors | {"extra": torch.zeros(3)}, run_dir / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"has extra of shape \(3,\), its LiereViTForImageClassification has None"):
        stage(read_checkpoint(run_dir), target, REPO_ID)


def test_truncated_and_missing_weights(run_dir, target):
    weights = run_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        stage(read_checkpoint(run_dir), target, REPO_ID)
    weights.unlink()
    with pytest.raises(InputError, match="has no weights"):
        stage(read_checkpoint(run_dir), target, REPO_ID)


def test_missing_code(run_dir, target):
    (run_dir / "exponential.py").unlink()
    with pytest.raises(InputError, match=r"lacks exponential.py: the model needs its code"):
        stage(read_checkpoint(run_dir), target, REPO_ID)


@pytest.mark.parametrize("way", [stage, stage_space])
def test_a_missing_processor(run_dir, target, way):
    """The card and the page read files with it."""
    (run_dir / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"run has no processor, it needs one of preprocessor_config\.json, "):
        way(read_checkpoint(run_dir), target, REPO_ID)
    assert not [*target.iterdir()]


def test_local_paths_are_not_published(run_dir, target, tmp_path):
    """Paths in known fields are shortened; a path elsewhere is refused."""
    recipe = run_dir / "recipe.yaml"
    recipe.write_text(recipe.read_text() + f"data_dir: {run_dir}\nhub_id: {run_dir}/copy\n")
    results = json.loads((run_dir / "train_results.json").read_text())
    (run_dir / "train_results.json").write_text(json.dumps(results | {"left_out": [{"file": f"{run_dir}/a.png"}]}))
    stage(read_checkpoint(run_dir), target, REPO_ID)
    for path in target.iterdir():
        assert str(run_dir.parent).encode() not in path.read_bytes()
    assert json.loads((target / "train_results.json").read_text())["left_out"] == [{"file": "a.png"}]

    code = run_dir / "positions.py"
    code.write_text(code.read_text() + f"# see {run_dir}/notes\n")
    (tmp_path / "second").mkdir()
    with pytest.raises(InputError, match=r"positions.py of .* contains .*, a directory of this machine"):
        stage(read_checkpoint(run_dir), tmp_path / "second", REPO_ID)


@pytest.mark.parametrize("token", ["hf_" + "a1B2" * 9, "an-unusual-token"])
def test_tokens_are_not_published(run_dir, target, token, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "an-unusual-token")
    assert get_token() == "an-unusual-token"
    config = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(config | {"note": f"made with {token}"}))
    with pytest.raises(InputError, match=r"config.json of .* contains a Hub token") as error:
        stage(read_checkpoint(run_dir), target, REPO_ID)
    assert token not in str(error.value)
