import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liere_hf import LiereViTConfig, LiereViTForImageClassification, LiereViTForVideoClassification
from liere_hf.data.augmentation.patch_shuffling import shuffle_patches


def patches_of(pixel_values, patch_size):
    """The patches of one example as sorted rows, which a permutation does not change."""
    pixels = pixel_values if pixel_values.ndim == 3 else pixel_values.transpose(0, 1)
    for axis, size in enumerate(patch_size, start=1):
        pixels = pixels.unfold(axis, size, size)
    rows = pixels.movedim(0, len(patch_size)).reshape(-1, pixels.shape[0] * torch.tensor(patch_size).prod())
    return sorted(map(tuple, rows.tolist()))


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=2, max_size=3), st.integers(1, 3))
def test_patches_stay_intact_and_none_is_lost(axes, num_channels):
    patch_size = tuple(patch for _, patch in axes)
    size = [count * patch for count, patch in axes]
    frames, space = (size[:1], size[1:]) if len(size) == 3 else ([], size)
    pixel_values = torch.randn(2, *frames, num_channels, *space)
    shuffled = shuffle_patches(pixel_values, patch_size, [3, 4])
    assert shuffled.shape == pixel_values.shape
    for before, after in zip(pixel_values, shuffled, strict=True):
        assert patches_of(before, patch_size) == patches_of(after, patch_size)


def test_the_permutation_depends_only_on_the_example():
    pixel_values = torch.arange(64.0).reshape(1, 1, 8, 8).expand(3, -1, -1, -1)
    shuffled = shuffle_patches(pixel_values, (2, 2), [7, 8, 7])
    assert torch.equal(shuffled[0], shuffled[2])
    assert not torch.equal(shuffled[0], shuffled[1])
    assert not torch.equal(shuffled[0], pixel_values[0])
    assert torch.equal(shuffle_patches(pixel_values[:1], (2, 2), [8])[0], shuffled[1])


@torch.no_grad()
def test_a_model_without_positions_is_invariant():
    """A model with positions is not. Images and clips are split into the same patches as in the model."""
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    for kind, size, patch, shape in (
        (LiereViTForImageClassification, [8, 12], [4, 4], (2, 3, 8, 12)),
        (LiereViTForVideoClassification, [4, 8, 8], [2, 4, 4], (2, 4, 3, 8, 8)),
    ):
        for encoding in ("none", "liere"):
            torch.manual_seed(0)
            config = LiereViTConfig(
                image_size=size, patch_size=patch, position_encoding=encoding, head_dim=16, **common
            )
            config.initializer_range = 0.5
            model, pixel_values = kind(config).eval(), torch.randn(shape)
            shuffled = shuffle_patches(pixel_values, config.spatial_patch_size, [0, 1])
            difference = (model(pixel_values).logits - model(shuffled).logits).abs().max()
            assert (difference < 1e-4) == (encoding == "none")
