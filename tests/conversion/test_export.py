"""`liere-hf export`: what it writes loads in the other code and computes the same."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, DINOv3ViTConfig, DINOv3ViTModel, ViTImageProcessor

from liere_hf import LiereViTConfig, LiereViTForImageClassification, LiereViTModel
from liere_hf.conversion import ConversionOptions, convert, from_liere
from liere_hf.conversion.eva import build_eva, from_eva
from liere_hf_cli.main import main

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}


def run(*argv):
    with pytest.raises(SystemExit) as exit_:
        main([*map(str, argv)])
    return exit_.value.code


def test_to_dinov3_and_back(tmp_path):
    torch.manual_seed(0)
    source = DINOv3ViTModel(DINOv3ViTConfig(**SIZES, image_size=32, patch_size=8)).eval()
    source.save_pretrained(tmp_path / "source")
    ViTImageProcessor(image_mean=(0.1, 0.2, 0.3)).save_pretrained(tmp_path / "source")
    convert(str(tmp_path / "source"), tmp_path / "model", "dinov3", ConversionOptions())
    assert run("export", tmp_path / "model", tmp_path / "back", "--to", "dinov3") == 0
    restored = DINOv3ViTModel.from_pretrained(tmp_path / "back")
    for name, tensor in source.state_dict().items():
        assert torch.equal(restored.state_dict()[name], tensor), name
    assert tuple(AutoImageProcessor.from_pretrained(tmp_path / "back").image_mean) == (0.1, 0.2, 0.3)


def test_to_the_authors_code(tmp_path):
    sizes = {**SIZES, "head_dim": 64, "image_size": 16, "patch_size": 4, "num_labels": 3, "generator_init": "uniform"}
    config = LiereViTConfig(**sizes, position_mode="linspace", share_generators_across_layers=True)
    model = LiereViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "model")
    assert run("export", tmp_path / "model", tmp_path / "back", "--to", "liere") == 0
    restored = from_liere(load_file(tmp_path / "back" / "model.safetensors"), ConversionOptions())
    pixel_values = torch.randn(2, 3, 24, 16)
    assert torch.equal(restored(pixel_values).logits, model(pixel_values).logits)


@pytest.mark.parametrize("num_classes", [0, 3])
def test_to_timm(num_classes, tmp_path):
    torch.manual_seed(0)
    name, sizes = "vit_small_patch16_rope_mixed_224", {"depth": 2, "embed_dim": 64, "num_heads": 2, "img_size": 64}
    source = build_eva(name, num_classes=num_classes, **sizes)
    model = from_eva(source, ConversionOptions(), name)
    model.config.id2label = dict(enumerate("abc"))
    model.save_pretrained(tmp_path / "model")
    ViTImageProcessor(image_mean=(0.1, 0.2, 0.3)).save_pretrained(tmp_path / "model")
    words = ["export", tmp_path / "model", tmp_path / "back", "--to", "timm"]
    assert run(*words) == 2
    assert run(*words, "--timm_model", name) == 0
    restored = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True).eval()
    pixel_values = torch.randn(2, 3, 64, 64)
    assert torch.equal(restored(pixel_values), source(pixel_values))
    assert tuple(restored.pretrained_cfg["mean"]) == (0.1, 0.2, 0.3)
    labels = json.loads((tmp_path / "back" / "config.json").read_text()).get("label_names")
    assert labels == ([*"abc"] if num_classes else None)


@pytest.mark.parametrize("kind", ["dinov3", "timm", "liere"])
def test_what_cannot_be_exported_is_one_sentence_and_leaves_nothing(kind, tmp_path, capsys):
    LiereViTModel(LiereViTConfig(**SIZES, image_size=16, patch_size=4)).save_pretrained(tmp_path / "model")
    model, target = tmp_path / "model", ["--to", kind]
    if kind == "timm":
        target += ["--timm_model", "vit_small_patch16_rope_224"]
    for source, message in ((model, "cannot represent this model|lacks 2 weights"), (tmp_path / "no", "no")):
        capsys.readouterr()
        assert run("export", source, tmp_path / "out", *target) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("liere-hf")]
        assert any(part in line for part in message.split("|"))
        assert {path.name for path in tmp_path.iterdir()} == {"model"}
    assert run("export", model, model, *target) == 2
    assert f"output directory {model} already exists" in capsys.readouterr().err
