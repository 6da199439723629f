import pytest
import torch

from liere_hf import LiereViTConfig, LiereViTForImageClassification
from liere_hf.demo import cls_attention, run_demo
from liere_hf.errors import InputError


def small_model(num_hidden_layers: int) -> LiereViTForImageClassification:
    config = LiereViTConfig(
        hidden_size=16,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=(8, 12),
        patch_size=4,
        num_register_tokens=1,
        attn_implementation="eager",
    )
    return LiereViTForImageClassification(config).eval()


def test_cls_attention_is_a_share_of_every_patch():
    attention = cls_attention(small_model(2), torch.randn(3, 3, 8, 12))
    assert attention.shape == (3, 2, 3)
    assert torch.allclose(attention.sum((1, 2)), torch.ones(3))


def test_cls_attention_of_one_layer_is_its_attention():
    """With one layer the rollout is the CLS row of the attention weights, except for its weight on itself."""
    model, pixel_values = small_model(1), torch.randn(2, 3, 8, 12)
    with torch.no_grad():
        weights = model(pixel_values, output_attentions=True).attentions[0].mean(1)
    attention = cls_attention(model, pixel_values)
    expected = weights[:, 0, 2:] / weights[:, 0, 2:].sum(-1, keepdim=True)
    assert torch.allclose(attention.flatten(1), expected, atol=1e-6)


def test_refuses_a_directory_with_files(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="already holds files"):
        run_demo(tmp_path)
