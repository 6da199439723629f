import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

from liere_hf.conversion import ConversionOptions, convert, from_timm
from liere_hf.errors import InputError

SMALL = {"depth": 2, "embed_dim": 128, "num_heads": 2, "num_classes": 7}


def timm_model(name, **settings):
    """timm's model with all weights perturbed, so that none keeps an initial value such as 0."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, dynamic_img_size=True, **{**SMALL, **settings}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.mark.parametrize("name", ["vit_small_patch16_rope_mixed_224", "vit_base_patch16_rope_mixed_ape_224"])
def test_equals_timm_at_several_sizes(name, tmp_path):
    source = timm_model(name)
    save_file(source.state_dict(), tmp_path / "source.safetensors")
    convert(str(tmp_path / "source.safetensors"), tmp_path / "model", "timm", ConversionOptions())
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    for size in ((224, 224), (336, 336), (160, 256)):
        pixel_values = torch.randn(1, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(model(pixel_values).logits, source(pixel_values), atol=2e-5, rtol=0)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    assert tuple(processor.image_mean) == pytest.approx(source.pretrained_cfg["mean"])
    assert tuple(processor.image_std) == pytest.approx(source.pretrained_cfg["std"])


def test_another_training_size():
    source = timm_model("vit_small_patch16_rope_mixed_ape_224", img_size=(96, 64))
    model = from_timm(source.state_dict(), ConversionOptions(image_size=[96, 64]))
    pixel_values = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values).logits, source(pixel_values), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda weights: weights.pop("rope.freqs"), {}, "has no rope.freqs"),
        (lambda weights: weights.pop("norm.bias"), {}, "lacks liere_vit.layernorm.bias"),
        (lambda weights: weights.update(extra=torch.zeros(1)), {}, "unknown weights: extra"),
        (lambda weights: None, {"position_encoding": "liere"}, "but checkpoint is 'rope_mixed'"),
        (lambda weights: None, {"patch_size": [8]}, r"has patches of \[16, 16\]"),
    ],
)
def test_weights_that_do_not_match(change, options, message):
    weights = timm_model("vit_small_patch16_rope_mixed_224").state_dict()
    change(weights)
    with pytest.raises(InputError, match=message):
        from_timm(weights, ConversionOptions(**options))


def test_unknown_name(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="timm/vit_nothing is not a directory, is not in the Hub"):
        convert("vit_nothing", tmp_path / "model", "timm", ConversionOptions())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("pooling", ["mean", "patches"])
def test_other_pooling_is_of_normalized_tokens(pooling):
    source = timm_model("vit_small_patch16_rope_mixed_224")
    model = from_timm(source.state_dict(), ConversionOptions(pooling=pooling)).eval()
    pixel_values = torch.randn(2, 3, 224, 160)
    with torch.no_grad():
        tokens = source.forward_features(pixel_values)[:, int(pooling == "patches") :]
        torch.testing.assert_close(model.base_model(pixel_values).pooler_output, tokens.mean(1), atol=2e-5, rtol=0)
