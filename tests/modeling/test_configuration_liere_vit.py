"""The configuration: derived values, files, and one clear sentence for every invalid value."""

import json
import math

import pytest
from factory import ENCODINGS, SIZES, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from liere_hf import LiereViTConfig, LiereViTModel
from liere_hf.modeling.position_encodings import POSITION_ENCODINGS


def test_defaults_are_the_base_model_of_the_paper():
    config = LiereViTConfig()
    expected = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "head_dim": 64,
        "hidden_dropout_prob": 0.1,
        "layer_norm_eps": 1e-5,
        "qkv_bias": False,
        "pooling": "cls",
        "position_encoding": "liere",
        "generator_block_size": 8,
        "generator_init": "planar",
        "generator_init_scale": 2 * math.pi,
    }
    assert {field: getattr(config, field) for field in expected} == expected


@pytest.mark.parametrize("encoding", POSITION_ENCODINGS)
def test_new_models_start_planar_and_old_files_uniform(encoding, tmp_path):
    """Files that were saved before there was a choice do not name `generator_init`."""
    config = LiereViTConfig(position_encoding=encoding)
    entry = POSITION_ENCODINGS[encoding]
    assert config.generator_init == (("planar" if entry.initial_values else "uniform") if entry.parameters else None)
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    assert saved["generator_init"] == config.generator_init
    assert LiereViTConfig.from_pretrained(tmp_path).generator_init == config.generator_init
    del saved["generator_init"]
    path.write_text(json.dumps(saved))
    for load in (LiereViTConfig.from_pretrained, AutoConfig.from_pretrained):
        assert load(tmp_path).generator_init == "uniform"
        assert load(tmp_path, num_labels=3).num_labels == 3


@pytest.mark.parametrize("before", POSITION_ENCODINGS)
@pytest.mark.parametrize("after", POSITION_ENCODINGS)
def test_another_encoding_than_the_saved_one(before, after, tmp_path):
    """What follows from the encoding is that of the new one, and the model can be saved and loaded again."""
    tiny_config(position_encoding=before, generator_init=None).save_pretrained(tmp_path)
    block_size = json.loads((tmp_path / "config.json").read_text())["generator_block_size"]
    options = {"position_encoding": after, "generator_init": None, "generator_block_size": block_size}
    if (after, block_size) == ("string", 2):
        with pytest.raises(ValueError, match="generator_block_size is 2, allowed for string is 4 or more"):
            LiereViTConfig.from_pretrained(tmp_path, position_encoding=after)
        return
    expected = tiny_config(**options)
    subclass = type("Subclass", (LiereViTConfig,), {})
    for load in (LiereViTConfig.from_pretrained, AutoConfig.from_pretrained, subclass.from_pretrained):
        config = load(tmp_path, position_encoding=after)
        for field in ("position_encoding", "generator_block_size", "generator_init"):
            assert getattr(config, field) == getattr(expected, field)
        model = LiereViTModel(config)
        model.save_pretrained(tmp_path / "other")
        assert LiereViTModel.from_pretrained(tmp_path / "other").state_dict().keys() == model.state_dict().keys()
        assert load(tmp_path, position_encoding=after, generator_init="uniform").generator_init == "uniform"


def test_another_number_of_layers_than_the_saved_one(tmp_path):
    tiny_config(num_hidden_layers=3).save_pretrained(tmp_path)
    for load in (LiereViTConfig.from_pretrained, AutoConfig.from_pretrained):
        config = load(tmp_path, num_hidden_layers=1)
        assert (config.stage_names, config.out_features) == (["stem", "stage1"], ["stage1"])
        assert load(tmp_path, num_hidden_layers=2, out_indices=[1, 2]).out_features == ["stage1", "stage2"]
        assert len(LiereViTModel(config).layers) == 1


def test_a_dictionary_of_an_encoding_without_generators_makes_one_that_starts_planar():
    for before in ("absolute", "visionllama", "none"):
        fields = LiereViTConfig(position_encoding=before).to_dict() | {"position_encoding": "liere"}
        assert LiereViTConfig(**fields).generator_init == "planar"


@pytest.mark.parametrize("encoding", [name for name, each in POSITION_ENCODINGS.items() if each.block_size])
def test_another_encoding_in_place_is_refused_by_its_block_size(encoding):
    config = tiny_config(position_encoding="liere", generator_block_size=8)
    config.position_encoding = encoding
    message = f"generator_block_size is 8, {encoding} allows {POSITION_ENCODINGS[encoding].block_size}"
    with pytest.raises(ValueError, match=message):
        LiereViTModel(config)


@pytest.mark.parametrize(
    ("image_size", "patch_size", "num_axes", "grid_size"),
    [
        (224, 16, 2, (14, 14)),
        ([20], [4], 1, (5,)),
        ([32, 48], 16, 2, (2, 3)),
        (32, [8, 16], 2, (4, 2)),
        ([8, 32, 48], [2, 16, 8], 3, (4, 2, 6)),
        ((8, 32, 48), 4, 3, (2, 8, 12)),
        ((2, 4, 6, 8), 2, 4, (1, 2, 3, 4)),
    ],
)
def test_axes_follow_the_number_of_sizes(image_size, patch_size, num_axes, grid_size):
    config = LiereViTConfig(image_size=image_size, patch_size=patch_size)
    assert config.num_axes == num_axes
    assert config.grid_size == grid_size
    pixels = tuple(steps * patch for steps, patch in zip(grid_size, config.spatial_patch_size, strict=True))
    assert config.spatial_image_size == pixels
    assert config.spatial_encoder_stride == config.spatial_patch_size


@pytest.mark.parametrize(
    ("use_cls_token", "num_register_tokens", "expected"), [(True, 0, 1), (True, 4, 5), (False, 3, 3), (False, 0, 0)]
)
def test_prefix_tokens(use_cls_token, num_register_tokens, expected):
    config = tiny_config(use_cls_token=use_cls_token, num_register_tokens=num_register_tokens, pooling="mean")
    assert config.num_prefix_tokens == expected


def test_num_frames_exists_only_for_clips():
    assert tiny_config(3).num_frames == 4
    assert not hasattr(tiny_config(2), "num_frames")


@pytest.mark.parametrize("encoding", ["rope_mixed", "visionllama"])
def test_rope_has_blocks_of_width_two(encoding):
    assert tiny_config(position_encoding=encoding, generator_block_size=8).generator_block_size == 2


def test_encoder_stride_and_pooler_size():
    config = tiny_config(encoder_stride=2, pooler_output_size=7)
    assert config.spatial_encoder_stride == (2, 2)
    assert config.pooler_output_size == 7
    assert tiny_config().pooler_output_size == 32


@pytest.mark.parametrize(
    "old, interpolation",
    [
        ({}, "cubic"),
        ({"position_embedding_antialias": False}, "cubic"),
        ({"position_embedding_antialias": True}, "antialiased_cubic"),
    ],
)
def test_older_configurations_read_the_table_as_before(old, interpolation, tmp_path):
    written = tiny_config().to_dict()
    del written["position_embedding_interpolation"]
    (tmp_path / "config.json").write_text(json.dumps(written | old))
    config = LiereViTConfig.from_pretrained(tmp_path)
    assert config.position_embedding_interpolation == interpolation
    assert "position_embedding_antialias" not in config.to_dict()


valid_settings = st.fixed_dictionaries(
    {
        "num_axes": st.integers(1, 3),
        "position_encoding": st.sampled_from(ENCODINGS),
        "position_mode": st.sampled_from(["sequential", "linspace", "rescaled"]),
        "position_embedding_interpolation": st.sampled_from(
            ["cubic", "antialiased_cubic", "linear", "antialiased_linear"]
        ),
        "generator_block_size": st.sampled_from([2, 4, 8, 16]),
        "share_generators_across_layers": st.booleans(),
        "share_generators_across_heads": st.booleans(),
        "use_absolute_position_embeddings": st.booleans(),
        "use_cls_token": st.booleans(),
        "num_register_tokens": st.integers(0, 3),
        "pooling": st.just("mean"),
        "num_labels": st.integers(1, 9),
        "hidden_dropout_prob": st.floats(0, 0.9),
        "out_indices": st.sampled_from([None, [1], [0, 2]]),
    }
)


@settings(deadline=None, max_examples=30)
@given(options=valid_settings)
def test_survives_a_json_file(options, tmp_path_factory):
    config = tiny_config(**options)
    directory = tmp_path_factory.mktemp("config")
    config.save_pretrained(directory)
    loaded = LiereViTConfig.from_pretrained(directory)
    assert loaded.to_dict() == config.to_dict()
    for name in ("num_axes", "grid_size", "num_prefix_tokens", "spatial_patch_size", "out_features", "num_labels"):
        assert getattr(loaded, name) == getattr(config, name)
    written = json.loads((directory / "config.json").read_text())
    assert written["model_type"] == "liere_vit"
    assert written["position_encoding"] == options["position_encoding"]


@settings(deadline=None, max_examples=40)
@given(head_dim=st.integers(1, 24), block_size=st.integers(-2, 26))
def test_allowed_block_sizes_are_the_even_divisors(head_dim, block_size):
    options = {"head_dim": head_dim, "generator_block_size": block_size}
    if block_size > 0 and block_size % 2 == 0 and head_dim % block_size == 0:
        assert tiny_config(**options).generator_block_size == block_size
    else:
        with pytest.raises(ValueError, match=rf"generator_block_size is {block_size}, it must be even and divide"):
            tiny_config(**options)


@settings(deadline=None, max_examples=40)
@given(size=st.lists(st.integers(1, 12), min_size=1, max_size=3), data=st.data())
def test_allowed_image_sizes_are_multiples_of_the_patch_size(size, data):
    patch = data.draw(st.lists(st.integers(1, 4), min_size=len(size), max_size=len(size)))
    if all(pixels % extent == 0 for pixels, extent in zip(size, patch, strict=True)):
        expected = tuple(pixels // extent for pixels, extent in zip(size, patch, strict=True))
        assert tiny_config(image_size=size, patch_size=patch).grid_size == expected
    else:
        with pytest.raises(ValueError, match=r"image_size is \[.*\], which patch_size \[.*\] does not divide"):
            tiny_config(image_size=size, patch_size=patch)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"position_encoding": "fourier"},
            "position_encoding is 'fourier', allowed are absolute, visionllama, rope_mixed, liere, none",
        ),
        ({"pooling": "max"}, "pooling is 'max', allowed are cls, mean"),
        ({"position_mode": "polar"}, "position_mode is 'polar', allowed are sequential, linspace, rescaled"),
        (
            {"position_embedding_interpolation": "nearest"},
            "position_embedding_interpolation is 'nearest', allowed are cubic, antialiased_cubic, linear",
        ),
        (
            {"generator_block_size": 6},
            r"generator_block_size is 6, it must be even and divide head_dim \(16\): allowed are 2, 4, 8, 16$",
        ),
        ({"generator_block_size": 1}, r"generator_block_size is 1, it must be even .* allowed are 2, 4, 8, 16$"),
        ({"generator_block_size": 0}, r"generator_block_size is 0, it must be even .* allowed are 2, 4, 8, 16$"),
        ({"generator_block_size": 32}, r"generator_block_size is 32, .* allowed are 2, 4, 8, 16$"),
        ({"head_dim": 9, "generator_block_size": 3}, "generator_block_size is 3, .* allowed are none"),
        (
            {"position_encoding": "rope_mixed", "head_dim": 9},
            "head_dim is 9, .* be a multiple of 2 for rope_mixed",
        ),
        (
            {"position_encoding": "visionllama", "head_dim": 9},
            "head_dim is 9, .* be a multiple of 2 for visionllama",
        ),
        (
            {"position_encoding": "visionllama", "head_dim": 4, **SIZES[3]},
            "head_dim is 4, visionllama needs at least 2 per axis, so 6 or more",
        ),
        (
            {"image_size": [8, 13]},
            r"image_size is \[8, 13\], which patch_size \[4, 3\] does not divide: along axis 1, 13 is not a multiple",
        ),
        (
            {"image_size": [4, 8, 12]},
            r"image_size is \[4, 8, 12\], 3 values where patch_size .* makes 2 axes",
        ),
        ({"encoder_stride": [4, 4, 4]}, r"encoder_stride is \[4, 4, 4\], 3 values where patch_size .* makes 2 axes"),
        ({"image_size": [8, 0]}, r"image_size is \[8, 0\], allowed are positive integers"),
        ({"patch_size": [4, -3]}, r"patch_size is \[4, -3\], allowed are positive integers"),
        ({"patch_size": []}, r"patch_size is \[\], allowed are positive integers"),
        ({"hidden_size": 33}, r"hidden_size is 33, which num_attention_heads \(2\) does not divide"),
        ({"hidden_size": 0}, "hidden_size is 0, allowed is 1 or more"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1, allowed is 1 to 1000"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, allowed is 1 or more"),
        ({"intermediate_size": 0}, "intermediate_size is 0, allowed is 1 or more"),
        ({"head_dim": 0}, "head_dim is 0, allowed is 1 or more"),
        ({"num_channels": 0}, "num_channels is 0, allowed is 1 or more"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob is 1.0, allowed is 0 or more and less than 1"),
        ({"attention_probs_dropout_prob": -0.1}, "attention_probs_dropout_prob is -0.1, allowed is 0 or more"),
        ({"drop_path_rate": 1.5}, "drop_path_rate is 1.5, allowed is 0 or more and less than 1"),
        ({"initializer_range": -1.0}, "initializer_range is -1.0, allowed is 0 or more"),
        ({"initializer_range": math.nan}, "initializer_range is nan, allowed is 0 or more"),
        ({"generator_init_scale": -1.0}, "generator_init_scale is -1.0, allowed is 0 or more"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps is -1.0, allowed is 0 or more"),
        ({"prefix_attention_bias": math.inf}, "prefix_attention_bias is inf, allowed are finite numbers"),
        ({"layer_scale_init_value": math.nan}, "layer_scale_init_value is nan, allowed are finite numbers"),
        ({"pooler_output_size": 0}, "pooler_output_size is 0, allowed is 1 or more"),
        ({"hidden_size": 10**30, "head_dim": 8}, f"hidden_size is {10**30}, allowed is 1 or more, at most 2147483647"),
        ({"hidden_act": "foo"}, "hidden_act is 'foo', allowed are gelu, "),
        ({"pooler_act": "foo"}, "pooler_act is 'foo', allowed are gelu, "),
        ({"num_register_tokens": -1}, "num_register_tokens is -1, allowed is 0 or more"),
        ({"use_cls_token": False}, "pooling is 'cls' but use_cls_token is False: choose pooling 'mean'"),
    ],
)
def test_invalid_values(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**overrides)
