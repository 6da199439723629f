"""timm's rotary models: the same outputs and gradients as timm's own modules, for every family and architecture."""

import copy
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from selection import mostly_extensive
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

import liere_hf.conversion
from liere_hf import LiereViTConfig, LiereViTModel
from liere_hf.conversion import ConversionOptions, convert, widen_generators
from liere_hf.conversion.eva import build_eva, from_eva, representable_models
from liere_hf.conversion.eva_export import to_eva
from liere_hf.errors import InputError
from liere_hf_cli.main import main

LISTED = yaml.safe_load((Path(liere_hf.conversion.__file__).parent / "timm_models.yaml").read_text())
EXACT = [name for name, reasons in LISTED.items() if not reasons]
ROPE_MIXED = "vit_small_patch16_rope_mixed_ape_224"
# One of each family, with a classifier or without.
FAMILIES = {
    "eva02_tiny_patch14_224": 5,
    "vit_small_patch16_rope_224": 5,
    "vit_small_patch16_rope_ape_224": 0,
    ROPE_MIXED: 5,
    "vit_medium_patch16_rope_reg1_gap_256": 5,
    "vit_pe_lang_gigantic_patch14_448": 5,
    "vit_pe_spatial_tiny_patch16_512": 0,
    "vit_small_patch16_dinov3": 5,
    "vit_small_plus_patch16_dinov3_qkvb": 0,
    "vit_small_patch16_lingbot": 5,
}
# Fixed and learned frequencies.
one_of_each_kind = pytest.mark.parametrize("name", mostly_extensive(FAMILIES, ["eva02_tiny_patch14_224", ROPE_MIXED]))


def small_source(name, num_classes=5, **options):
    """A model of timm at a small width, depth and size: norms, scales, biases and frequencies all matter."""
    torch.manual_seed(0)
    sizes = {"depth": 2, "embed_dim": 64, "num_heads": 2, "img_size": 4 * patch_of(name)}
    source = build_eva(name, num_classes=num_classes, **{**sizes, **options})
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.12 * torch.randn_like(parameter))
    return source


def patch_of(name):
    return 14 if "patch14" in name else 16


def answer(model, pixel_values):
    """Logits or pooled features, and the gradient of the input."""
    pixel_values = pixel_values.clone().requires_grad_()
    output = model(pixel_values)
    if not isinstance(output, torch.Tensor):
        output = output.logits if "logits" in output else output.pooler_output
    (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).sum().backward()
    return output.detach(), pixel_values.grad


def assert_same(source, model, size, atol=2e-5, gradient_atol=1e-4):
    if not source.dynamic_img_size:
        # It resizes the table of positions, always the original one.
        source = copy.deepcopy(source)
        source.set_input_size(img_size=size)
    dtype = next(model.parameters()).dtype
    pixel_values = torch.randn(2, 3, *size, dtype=dtype)
    (expected, expected_grad), (found, found_grad) = answer(source, pixel_values), answer(model, pixel_values)
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    torch.testing.assert_close(found_grad, expected_grad, rtol=1e-4, atol=gradient_atol)


@pytest.mark.parametrize(
    "name",
    [
        *FAMILIES,
        *(pytest.param(name, marks=pytest.mark.extensive) for name in EXACT if name not in FAMILIES),
    ],
)
def test_the_same_function_at_every_size(name):
    source = small_source(name, FAMILIES.get(name, 5))
    model = from_eva(source, ConversionOptions(), name)
    patch = patch_of(name)
    for rows, columns in [(4, 4), (6, 6), (2, 3), (5, 3)]:
        assert_same(source, model, (rows * patch, columns * patch))


@one_of_each_kind
def test_in_float64_they_agree_to_the_frequencies_rounding(name):
    """timm keeps frequencies and coordinates in float32, and the converted weights are float32."""
    source = small_source(name)
    model = from_eva(source, ConversionOptions(), name).double()
    assert_same(source.double(), model, (4 * patch_of(name), 4 * patch_of(name)), atol=5e-6, gradient_atol=1e-5)


@one_of_each_kind
def test_hidden_states_of_every_layer(name):
    source = small_source(name, 0)
    model = from_eva(source, ConversionOptions(), name)
    pixel_values = torch.randn(1, 3, 4 * patch_of(name), 4 * patch_of(name))
    with torch.no_grad():
        has_prefix = source.num_prefix_tokens > 0
        features = source.forward_intermediates(
            pixel_values, output_fmt="NLC", return_prefix_tokens=has_prefix, intermediates_only=True
        )
        hidden_states = model(pixel_values, output_hidden_states=True).hidden_states[1:]
    assert len(features) == len(hidden_states) == 2
    for feature, ours in zip(features, hidden_states, strict=True):
        patches, prefix = feature if isinstance(feature, tuple) else (feature, feature[:, :0])
        torch.testing.assert_close(ours, torch.cat((prefix, patches), 1), rtol=0, atol=2e-5)


@one_of_each_kind
def test_there_and_back_and_trained_in_between(name):
    """Weights come back as they were. Changed ones make timm compute what the changed model computes."""
    source = small_source(name, FAMILIES.get(name, 5))
    model = from_eva(source, ConversionOptions(), name)
    restored = to_eva(model, name)
    has_rows = source.pos_embed is not None and not source.no_embed_class
    for key, tensor in source.state_dict().items():
        if not (has_rows and key in ("cls_token", "reg_token", "pos_embed")):
            torch.testing.assert_close(restored.state_dict()[key], tensor, rtol=1e-6, atol=0)
    is_learned = type(source.rope).__name__ == "RotaryEmbeddingMixed"
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "generators" in key and is_learned:
                parameter.mul_(1.1)
            # What the source lacks stays as it is.
            elif "generators" not in key and parameter.unique().numel() > 1:
                parameter.add_(0.02 * torch.randn_like(parameter))
    patch = patch_of(name)
    assert_same(to_eva(model, name), model, (4 * patch, 4 * patch))


def test_what_timm_cannot_represent():
    name = "vit_small_patch16_rope_224"
    model = from_eva(small_source(name), ConversionOptions(), name)
    changes = {
        "its rotations are no longer those of": lambda model: model.liere_vit.rotations.generators.mul_(1.01),
        "position_mode is 'rescaled', there it is 'sequential'": lambda model: setattr(
            model.config, "position_mode", "rescaled"
        ),
    }
    for message, change in changes.items():
        changed = copy.deepcopy(model)
        with torch.no_grad():
            change(changed)
        with pytest.raises(InputError, match=f"{name} cannot represent this model: {message}"):
            to_eva(changed, name)
    wide = widen_generators(model, 8)
    assert_same(to_eva(wide, name), model, (64, 64))
    with torch.no_grad():
        wide.liere_vit.rotations.generators[..., 0, 7] = 0.1
    with pytest.raises(InputError, match="entries outside of planes"):
        to_eva(wide, name)
    without_bias = "vit_pe_spatial_tiny_patch16_512"
    with pytest.raises(InputError, match="timm has no model 'vit_rope', did you mean"):
        to_eva(model, "vit_rope")
    with pytest.raises(InputError, match=f"{without_bias} cannot represent this model: "):
        to_eva(model, without_bias)


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": [64], "patch_size": [16]},
        {"image_size": [4, 64, 64], "patch_size": [2, 16, 16]},
        {"image_size": 64, "patch_size": 16, "num_attention_heads": 3, "head_dim": 16},
        {"image_size": 60, "patch_size": 12},
        {"image_size": 64, "patch_size": 16, "position_encoding": "absolute"},
        {"image_size": 64, "patch_size": 16, "position_encoding": "visionllama"},
    ],
    ids=str,
)
def test_other_axes_sizes_and_encodings_are_one_sentence(options):
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 96}
    model = LiereViTModel(LiereViTConfig(**sizes | options))
    with pytest.raises(InputError, match=f"{ROPE_MIXED} cannot represent this model"):
        to_eva(model, ROPE_MIXED)


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_small_patch16_dinov3"])
def test_grown_it_computes_the_same(name):
    source = small_source(name)
    model = widen_generators(from_eva(source, ConversionOptions(), name), 16)
    assert model.config.position_encoding == "liere"
    assert_same(source, model, (5 * patch_of(name), 3 * patch_of(name)))


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_patch16_rope_224"])
def test_a_local_file_from_the_command_line(name, tmp_path):
    torch.manual_seed(0)
    classes = {"num_classes": 3} if "rope" in name else {}
    source = build_eva(name, **classes)
    file = tmp_path / "source.safetensors"
    save_file(source.state_dict(), file)
    with pytest.raises(SystemExit) as exit_:
        main(["convert", str(file), str(tmp_path / "model"), "--from", "timm", "--timm_model", name])
    assert exit_.value.code == 0
    auto_class = AutoModelForImageClassification if classes else AutoModel
    model, info = auto_class.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values())
    assert_same(source, model, (64, 96) if not classes else (224, 224))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    assert tuple(processor.image_mean) == pytest.approx(source.pretrained_cfg["mean"])
    assert tuple(processor.image_std) == pytest.approx(source.pretrained_cfg["std"])


# ----- The list -----


@pytest.mark.end_to_end
def test_the_list_is_what_timm_has(monkeypatch):
    # The models are built without values, and drawing those takes most of the time.
    monkeypatch.setattr("timm.models.eva.trunc_normal_", lambda tensor, **options: tensor)
    assert representable_models() == LISTED


def test_the_list_is_printed(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["convert", "--list", "timm"])
    assert exit_.value.code == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines.keys() == LISTED.keys() <= set(timm.list_models())
    assert lines["vit_base_patch16_dinov3"] == "exact"
    assert lines["eva02_base_patch14_224"] == "not: normalization inside the MLP"


# ----- Bad input -----


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("eva02_base_patch14_224", "has normalization inside the MLP, which LiereViT does not have"),
        ("vit_pe_core_tiny_patch16_384", "has map pooling, which LiereViT does not have"),
        ("resnet18", "has no rotary positions, which LiereViT does not have"),
        ("vit_smal_patch16_dinov3", "timm has no model 'vit_smal_patch16_dinov3', did you mean vit_small_patch16_din"),
        ("nothing_like_it", "timm has no model 'nothing_like_it'"),
    ],
)
def test_what_cannot_be_converted_is_said(name, message, tmp_path):
    file = tmp_path / "source.safetensors"
    save_file({"head.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(InputError, match=message):
        convert(str(file), tmp_path / "model", "timm", ConversionOptions(timm_model=name))
    assert not (tmp_path / "model").exists()


def test_other_weights_are_named(tmp_path):
    weights = small_source("vit_small_patch16_dinov3").state_dict()
    del weights["blocks.1.norm1.bias"]
    with pytest.raises(InputError, match=r"weights are not those of vit_small_patch16_dinov3: .*blocks.1.norm1.bias"):
        build_eva("vit_small_patch16_dinov3", weights, depth=2, embed_dim=64, num_heads=2)


@pytest.mark.parametrize("options", [{"patch_size": [8]}, {"position_encoding": "liere"}, {"pooling": "cls"}])
def test_options_that_the_model_determines(options):
    source = small_source("vit_small_patch16_dinov3")
    with pytest.raises(InputError, match=f"{next(iter(options))} is .*, but timm's model determines it: leave it out"):
        from_eva(source, ConversionOptions(**options), "it")
