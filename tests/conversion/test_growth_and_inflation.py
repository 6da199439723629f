import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liere_hf import (
    LiereViTConfig,
    LiereViTForImageClassification,
    LiereViTForMaskedImageModeling,
    LiereViTForVideoClassification,
)
from liere_hf.conversion import inflate, widen_generators
from liere_hf.errors import InputError


def image_model(model_class=LiereViTForImageClassification, **overrides):
    torch.manual_seed(0)
    config = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 16,
        "intermediate_size": 32,
        "image_size": (16, 24),
        "patch_size": 8,
        "initializer_range": 0.2,
        "generator_init": "uniform",
    }
    return model_class(LiereViTConfig(**{**config, **overrides})).eval()


def train_ten_steps(model, pixel_values):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    labels = torch.arange(len(pixel_values)) % 2
    for _ in range(10):
        optimizer.zero_grad()
        model(pixel_values, labels=labels).loss.backward()
        optimizer.step()


@settings(deadline=None, max_examples=15)
@given(
    before=st.sampled_from([2, 4, 8]),
    factor=st.sampled_from([1, 2, 4, 8]),
    share_layers=st.booleans(),
    share_heads=st.booleans(),
    rows=st.integers(1, 4),
)
def test_widening_preserves_outputs(before, factor, share_layers, share_heads, rows):
    after = min(before * factor, 16)
    model = image_model(
        position_encoding="rope_mixed" if before == 2 else "liere",
        generator_block_size=before,
        share_generators_across_layers=share_layers,
        share_generators_across_heads=share_heads,
    )
    wide = widen_generators(model, after)
    assert wide.config.generator_block_size == after
    pixel_values = torch.randn(2, 3, 8 * rows, 24)
    torch.testing.assert_close(wide(pixel_values).logits, model(pixel_values).logits, atol=1e-5, rtol=0)


def test_new_entries_are_trained():
    model = image_model(position_encoding="rope_mixed")
    wide = widen_generators(model, 8)
    is_new = wide.liere_vit.rotations.generators == 0
    train_ten_steps(wide, torch.randn(4, 3, 16, 24))
    upper = torch.ones(8, 8).triu(1).bool()
    assert (wide.liere_vit.rotations.generators[..., upper][is_new[..., upper]] != 0).all()
    assert model.config.position_encoding == "rope_mixed"


@pytest.mark.parametrize(
    "overrides, block_size, message",
    [
        ({"position_encoding": "absolute"}, 8, "has no free generators to widen"),
        ({"generator_block_size": 4}, 6, "block_size is 6, allowed are 4, 8, 16"),
        ({"generator_block_size": 8}, 4, "block_size is 4, allowed are 8, 16"),
        ({"generator_block_size": 8}, 32, "block_size is 32, allowed are 8, 16"),
    ],
)
def test_widening_with_bad_arguments(overrides, block_size, message):
    with pytest.raises(InputError, match=message):
        widen_generators(image_model(**overrides), block_size)


def still_clip(pixel_values, num_frames):
    return pixel_values[:, None].expand(-1, num_frames, -1, -1, -1)


@settings(deadline=None, max_examples=10)
@given(
    tubelet=st.integers(1, 3),
    encoding=st.sampled_from(["liere", "rope_mixed", "absolute", "none"]),
    pooling=st.sampled_from(["cls", "mean"]),
    num_register_tokens=st.integers(0, 2),
)
def test_one_tubelet_of_a_still_clip_gives_the_images_logits(tubelet, encoding, pooling, num_register_tokens):
    model = image_model(position_encoding=encoding, pooling=pooling, num_register_tokens=num_register_tokens)
    video = inflate(model, tubelet, tubelet)
    assert isinstance(video, LiereViTForVideoClassification)
    pixel_values = torch.randn(2, 3, 16, 24)
    torch.testing.assert_close(
        video(still_clip(pixel_values, tubelet)).logits, model(pixel_values).logits, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("num_frames", [4, 6])
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_several_tubelets(num_frames, attn_implementation):
    """Exact without prefix tokens and with a balanced prefix. Otherwise CLS has a smaller share of attention."""
    pixel_values = torch.randn(2, 3, 16, 24)
    clip = still_clip(pixel_values, num_frames)
    without_prefix = image_model(use_cls_token=False, pooling="mean", attn_implementation=attn_implementation)
    expected = without_prefix(pixel_values).logits
    torch.testing.assert_close(inflate(without_prefix, num_frames)(clip).logits, expected, atol=1e-5, rtol=0)

    model = image_model(num_register_tokens=1, attn_implementation=attn_implementation)
    expected = model(pixel_values).logits
    assert (inflate(model, num_frames)(clip).logits - expected).abs().max() > 1e-4
    balanced = inflate(model, num_frames, balance_prefix=True)
    torch.testing.assert_close(balanced(clip).logits, expected, atol=1e-5, rtol=0)


def test_balanced_prefix_and_padding():
    """Padding still has no effect when the mask also contains the prefix bias."""
    model = inflate(image_model(), 4, balance_prefix=True)
    clip = torch.randn(1, 4, 3, 16, 24)
    padded = torch.cat((clip, torch.randn(1, 4, 3, 8, 24)), dim=-2)
    mask = torch.ones(1, 2, 3, 3)
    mask[:, :, 2] = 0
    torch.testing.assert_close(
        model(padded, attention_mask=mask.flatten(1)).logits, model(clip).logits, atol=1e-5, rtol=0
    )


def test_masked_image_modeling_decodes_every_frame_like_the_image():
    model = image_model(LiereViTForMaskedImageModeling)
    pixel_values = torch.randn(1, 3, 16, 24)
    frames = inflate(model, 2, 2)(still_clip(pixel_values, 2)).reconstruction
    image = model(pixel_values).reconstruction
    torch.testing.assert_close(frames, still_clip(image, 2), atol=1e-5, rtol=0)


def test_time_generators_are_trained():
    video = inflate(image_model(generator_block_size=4), 4)
    train_ten_steps(video, torch.randn(4, 4, 3, 16, 24))
    time = video.liere_vit.rotations.generators[:, 0]
    assert (time[..., torch.ones(4, 4).triu(1).bool()] != 0).all()


@pytest.mark.parametrize(
    "model, arguments, message",
    [
        ({}, (5, 2), r"num_frames is 5, which tubelet \(2\) does not divide"),
        ({"position_encoding": "visionllama"}, (4, 2), "visionllama"),
        ({"image_size": (2, 16, 24), "patch_size": (1, 8, 8)}, (4, 2), "has 3 axes"),
    ],
)
def test_inflation_with_bad_arguments(model, arguments, message):
    with pytest.raises(InputError, match=message):
        inflate(image_model(**model), *arguments)
