"""DINOv3 from transformers: the same outputs, hidden states and gradients, at every size."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from selection import mostly_extensive
from transformers import AutoModel, Dinov2Config, Dinov2Model, DINOv3ViTBackbone, DINOv3ViTConfig
from transformers import DINOv3ViTModel as Source
from transformers.models.dinov3_vit.modeling_dinov3_vit import get_patches_center_coordinates

from liere_hf import LiereViTBackbone, LiereViTConfig, LiereViTForMaskedImageModeling, LiereViTModel
from liere_hf.conversion import ConversionOptions, convert, from_dinov3, widen_generators
from liere_hf.conversion.dinov3 import axial_frequencies_as_generators, to_dinov3
from liere_hf.errors import InputError
from liere_hf_cli.main import main

# What tells the released sizes apart, at a smaller width and depth.
RELEASED = {
    "S": {"num_attention_heads": 3, "hidden_size": 48, "intermediate_size": 96},
    "S+": {"num_attention_heads": 3, "hidden_size": 48, "use_gated_mlp": True, "hidden_act": "silu"},
    "L": {"num_attention_heads": 4, "num_hidden_layers": 3},
    "H+": {"num_attention_heads": 5, "hidden_size": 80, "use_gated_mlp": True, "hidden_act": "silu"},
    "7B": {"use_gated_mlp": True, "hidden_act": "silu", "query_bias": False, "value_bias": False},
}
UNUSUAL = {
    "key bias": {"key_bias": True},
    "only values": {"query_bias": False},
    "no biases": {"query_bias": False, "value_bias": False, "proj_bias": False, "mlp_bias": False},
    "no registers": {"num_register_tokens": 0},
    "theta": {"rope_theta": 10.0},
    "patches": {"patch_size": [8, 4], "image_size": [32, 24]},
    "channels": {"num_channels": 1},
}
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": [8, 8],
    "patch_size": 4,
    "generator_init": "uniform",
}
SIZES = [(32, 32), (64, 64), (16, 16), (24, 48), (8, 8)]


def saved_source(directory, source_class=Source, dtype=torch.float32, **options):
    """A DINOv3 whose norms, scales and biases all matter, and whose scores are far from uniform."""
    torch.manual_seed(0)
    defaults = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 96,
        "image_size": 32,
        "patch_size": 8,
        "num_register_tokens": 4,
        "layerscale_value": 0.5,
    }
    model = source_class(DINOv3ViTConfig(**defaults | options)).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return model


def outputs(model, pixel_values, **inputs):
    pixel_values = pixel_values.clone().requires_grad_()
    output = model(pixel_values, output_hidden_states=True, **inputs)
    weights = torch.linspace(-1, 1, output.last_hidden_state.numel(), dtype=pixel_values.dtype)
    (output.last_hidden_state.flatten() * weights).sum().backward()
    return output, pixel_values.grad


def assert_same(source, model, pixel_values, atol, gradient_atol, **inputs):
    expected, expected_grad = outputs(source, pixel_values, **inputs)
    found, found_grad = outputs(model, pixel_values, **inputs)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=atol)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=atol)
    assert len(found.hidden_states) == len(expected.hidden_states)
    for ours, theirs in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)
    torch.testing.assert_close(found_grad, expected_grad, rtol=1e-4, atol=gradient_atol)


@pytest.mark.parametrize("name", mostly_extensive([*RELEASED, *UNUSUAL], [next(iter(RELEASED)), *UNUSUAL]))
def test_the_same_function_at_every_size(tmp_path, name):
    source = saved_source(tmp_path / "source", **(RELEASED | UNUSUAL)[name])
    convert(str(tmp_path / "source"), tmp_path / "model", "dinov3", ConversionOptions())
    model, info = AutoModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values())
    for size in SIZES:
        pixel_values = torch.randn(2, source.config.num_channels, *size)
        assert_same(source, model, pixel_values, atol=2e-5, gradient_atol=1e-4)


@pytest.mark.parametrize("name", RELEASED)
def test_in_float64_they_agree_to_1e_10(tmp_path, name):
    """With DINOv3's own coordinates times 2 pi and its own frequencies, both of which it rounds to float32."""
    source = saved_source(tmp_path, **RELEASED[name]).double()
    model = from_dinov3(str(tmp_path), ConversionOptions()).double()
    frequencies = source.rope_embeddings.inv_freq
    with torch.no_grad():
        for axis in range(2):
            blocks = slice(axis * len(frequencies), (axis + 1) * len(frequencies))
            model.rotations.generators[:, axis, :, blocks, 0, 1] = -frequencies
    for rows, columns in [(4, 4), (3, 7)]:
        centers = get_patches_center_coordinates(rows, columns, torch.float32, torch.device("cpu"))
        pixel_values = torch.randn(1, 3, 8 * rows, 8 * columns, dtype=torch.float64)
        expected, expected_grad = outputs(source, pixel_values)
        found, found_grad = outputs(model, pixel_values, positions=(2 * math.pi * centers).double()[None])
        torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-10)
        torch.testing.assert_close(found_grad, expected_grad, rtol=0, atol=1e-10)


def test_masked_patches(tmp_path):
    source = saved_source(tmp_path)
    model = from_dinov3(str(tmp_path), ConversionOptions())
    mask = torch.rand(2, 16) < 0.5
    assert_same(source, model, torch.randn(2, 3, 32, 32), 2e-5, 1e-4, bool_masked_pos=mask)
    with torch.no_grad():
        plain, masked = (model(torch.ones(2, 3, 32, 32), **inputs)[0] for inputs in ({}, {"bool_masked_pos": mask}))
    assert (plain - masked).abs().max() > 0.1


def test_as_backbone_and_for_masked_images(tmp_path):
    source = saved_source(tmp_path / "source", DINOv3ViTBackbone, out_indices=[1, 2])
    convert(str(tmp_path / "source"), tmp_path / "model", "dinov3", ConversionOptions())
    backbone = LiereViTBackbone.from_pretrained(tmp_path / "model", out_indices=[1, 2])
    pixel_values = torch.randn(2, 3, 24, 40)
    with torch.no_grad():
        for ours, theirs in zip(backbone(pixel_values).feature_maps, source(pixel_values).feature_maps, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    _, info = LiereViTForMaskedImageModeling.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert "liere_vit.embeddings.mask_token" not in info["missing_keys"]


@pytest.mark.parametrize("block_size", [8, 32, 64])
def test_grown_it_computes_the_same_and_can_leave_it(tmp_path, block_size):
    source = saved_source(tmp_path, hidden_size=2 * max(block_size, 32))
    model = widen_generators(from_dinov3(str(tmp_path), ConversionOptions()), block_size)
    assert model.config.position_encoding == "liere"
    pixel_values = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        expected = source(pixel_values).last_hidden_state
        torch.testing.assert_close(model(pixel_values).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    generators = model.rotations.generators
    new = (generators == 0) & torch.ones(block_size, block_size).triu(1).bool()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    target = torch.randn_like(expected)
    for _ in range(10):
        optimizer.zero_grad()
        (model(pixel_values).last_hidden_state - target).square().mean().backward()
        optimizer.step()
    assert (generators[new] != 0).float().mean() > 0.95
    with torch.no_grad():
        assert (model(pixel_values).last_hidden_state - expected).abs().max() > 1e-2


def test_training_changes_coordinates_as_dinov3s_does(tmp_path):
    source = saved_source(tmp_path, pos_embed_shift=0.2, pos_embed_jitter=1.3, pos_embed_rescale=1.5).train()
    model = from_dinov3(str(tmp_path), ConversionOptions()).train()
    pixel_values = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        for seed in range(3):
            torch.manual_seed(seed)
            expected = source(pixel_values).last_hidden_state
            torch.manual_seed(seed)
            torch.testing.assert_close(model(pixel_values).last_hidden_state, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position_encoding": "liere"}, "position_encoding is 'liere', but .* is 'rope_mixed'"),
        ({"image_size": [33]}, "image_size is 33, which patch_size 8 does not divide"),
    ],
)
def test_options_that_contradict_it(tmp_path, options, message):
    saved_source(tmp_path)
    with pytest.raises(InputError, match=message):
        from_dinov3(str(tmp_path), ConversionOptions(**options))


def test_what_is_no_dinov3_is_one_sentence(tmp_path, capsys):

    Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
        tmp_path / "2"
    )
    with pytest.raises(InputError, match="has model_type 'dinov2', allowed are dinov3_vit"):
        from_dinov3(str(tmp_path / "2"), ConversionOptions())
    saved_source(tmp_path / "cut")
    weights = load_file(tmp_path / "cut" / "model.safetensors")
    names = [name for name in weights if name.startswith(("layer.1.mlp", "model.layer.1.mlp"))]
    assert names
    save_file(
        {name: value for name, value in weights.items() if name not in names}, tmp_path / "cut/model.safetensors"
    )
    with pytest.raises(InputError, match=r"lacks 4 weights: .*layer.1.mlp.down_proj.bias, .* and 1 more"):
        from_dinov3(str(tmp_path / "cut"), ConversionOptions())
    with pytest.raises(SystemExit) as exit_:
        main(["convert", str(tmp_path / "cut"), str(tmp_path / "out"), "--from", "dinov3"])
    assert exit_.value.code == 2
    assert not (tmp_path / "out").exists()
    assert f"liere-hf convert: error: {tmp_path / 'cut'} lacks 4 weights" in capsys.readouterr().err.splitlines()[-1]


def test_it_trains_after_conversion(tmp_path):
    saved_source(tmp_path)
    model = from_dinov3(str(tmp_path), ConversionOptions())
    assert isinstance(model, LiereViTModel)
    model.train()(torch.randn(2, 3, 32, 32)).pooler_output.square().sum().backward()
    assert model.rotations.generators.grad.abs().max() > 0


# ----- The way back -----


@pytest.mark.parametrize(
    ("name", "block_size"),
    [
        *((name, 2) for name in RELEASED),
        *((name, 8) for name in UNUSUAL if name not in ("only values", "no biases")),
    ],
)
def test_the_way_back_restores_every_weight(tmp_path, name, block_size):
    source = saved_source(tmp_path, **(RELEASED | UNUSUAL)[name])
    model = from_dinov3(str(tmp_path), ConversionOptions())
    if block_size != 2:
        model = widen_generators(model, block_size)
    restored = to_dinov3(model)
    assert restored.config.rope_theta == pytest.approx(source.config.rope_theta, rel=1e-5)
    state = restored.state_dict()
    assert state.keys() == source.state_dict().keys()
    for key, tensor in source.state_dict().items():
        assert torch.equal(state[key], tensor), key


def test_trained_but_for_its_rotations_it_goes_back(tmp_path):
    saved_source(tmp_path)
    model = from_dinov3(str(tmp_path), ConversionOptions())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("rotations."):
                parameter.add_(0.1 * torch.randn_like(parameter))
    pixel_values = torch.randn(2, 3, 24, 40)
    with torch.no_grad():
        expected = model(pixel_values).last_hidden_state
        torch.testing.assert_close(to_dinov3(model)(pixel_values).last_hidden_state, expected, rtol=0, atol=2e-5)


def test_a_new_model_with_dinov3s_rotations_goes_back():
    """Without mask token, registers and LayerScale, which DINOv3 always has."""
    config = LiereViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        position_encoding="rope_mixed",
        position_mode="centered",
    )
    model = LiereViTModel(config).eval()
    with torch.no_grad():
        model.rotations.generators.copy_(axial_frequencies_as_generators(100.0, config))
        pixel_values = torch.randn(2, 3, 32, 48)
        expected = model(pixel_values).last_hidden_state
        torch.testing.assert_close(to_dinov3(model)(pixel_values).last_hidden_state, expected, rtol=0, atol=2e-5)


def changed(change):
    def change_generators(model):
        with torch.no_grad():
            change(model.rotations.generators)
        return model

    return change_generators


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            changed(lambda generators: generators[0, 0, 0, 0, 0, 1].mul_(1.01)),
            "its frequencies are no longer 2 pi",
        ),
        (changed(lambda generators: generators[1].neg_()), "its frequencies are no longer 2 pi"),
        (lambda model: changed(lambda g: g[..., 0, 2].add_(1e-3))(widen_generators(model, 4)), "outside of planes"),
        (
            lambda model: setattr(model.config, "position_mode", "rescaled") or model,
            "position_mode is 'rescaled'",
        ),
        (lambda model: setattr(model.config, "pooling", "mean") or model, "pooling is 'mean', not 'cls'"),
        (lambda model: LiereViTModel(LiereViTConfig(**TINY, position_mode="centered")), "outside of planes"),
        (
            lambda model: LiereViTModel(
                LiereViTConfig(**TINY, position_mode="centered", position_encoding="visionllama")
            ),
            "position_encoding is 'visionllama', which has no free generators",
        ),
        (lambda model: LiereViTModel(LiereViTConfig(**{**TINY, "image_size": [4, 8, 8]})), "it has 3 axes"),
    ],
)
def test_what_dinov3_cannot_represent(tmp_path, change, reason):
    saved_source(tmp_path)
    model = change(from_dinov3(str(tmp_path), ConversionOptions()))
    with pytest.raises(InputError, match=f"DINOv3 cannot represent this model: .*{reason}"):
        to_dinov3(model)


@pytest.mark.parametrize(("pooling", "is_exact"), [(None, True), ("cls", True), ("mean", False), ("patches", False)])
def test_the_record_says_whether_the_outputs_are_the_sources(tmp_path, pooling, is_exact):
    saved_source(tmp_path / "source")
    convert(str(tmp_path / "source"), tmp_path / "model", "dinov3", ConversionOptions(pooling=pooling))
    assert json.loads((tmp_path / "model" / "conversion.json").read_text())["is_exact"] is is_exact


@pytest.mark.parametrize("pooling", ["mean", "patches"])
def test_other_pooling_is_of_normalized_tokens(tmp_path, pooling):
    """As DINOv3's users average its `last_hidden_state`; registers are left out."""
    source = saved_source(tmp_path)
    model = from_dinov3(str(tmp_path), ConversionOptions(pooling=pooling)).eval()
    pixel_values = torch.randn(2, 3, 24, 48)
    with torch.no_grad():
        tokens = source(pixel_values).last_hidden_state
        chosen = torch.cat((tokens[:, : int(pooling == "mean")], tokens[:, 5:]), dim=1)
        torch.testing.assert_close(model(pixel_values).pooler_output, chosen.mean(1), rtol=0, atol=2e-5)
