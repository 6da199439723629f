"""Quantized models against transformers' ViT with the same weights under the same scheme."""

import copy

import pytest
import torch
from factory import ENCODINGS, LEARNED_ENCODINGS, random_input, random_model, tiny_config, vit_pair
from selection import mostly_extensive
from torch import nn
from transformers import BitsAndBytesConfig

from liere_hf import LiereViTForImageClassification, LiereViTForMaskedImageModeling

# bitsandbytes packs blocks of 64 values, and its 4-bit product on a CPU takes multiples of 32 features.
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_labels": 32}


def with_quantize_dynamic(model, directory):
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def with_torchao(config_name):
    def quantize(model, directory):
        torchao = pytest.importorskip("torchao.quantization")
        model = copy.deepcopy(model)
        torchao.quantize_(model, getattr(torchao, config_name)())
        return model

    return quantize


def with_quanto(weights):
    def quantize(model, directory):
        quanto = pytest.importorskip("optimum.quanto")
        model = copy.deepcopy(model)
        quanto.quantize(model, weights=getattr(quanto, weights))
        quanto.freeze(model)
        return model

    return quantize


def with_bitsandbytes(**options):
    def quantize(model, directory):
        pytest.importorskip("bitsandbytes")
        model.save_pretrained(directory)
        config = BitsAndBytesConfig(**options)
        return (
            type(model)
            .from_pretrained(directory, quantization_config=config, dtype=torch.float32, device_map="cpu")
            .eval()
        )

    return quantize


schemes = pytest.mark.parametrize(
    "quantize",
    [
        pytest.param(with_quantize_dynamic, id="quantize_dynamic"),
        pytest.param(with_torchao("Int8WeightOnlyConfig"), id="torchao-int8"),
        pytest.param(with_torchao("Int8DynamicActivationInt8WeightConfig"), id="torchao-int8-activations"),
        pytest.param(with_quanto("qint8"), id="quanto-int8"),
        pytest.param(with_quanto("qint4"), id="quanto-int4"),
        pytest.param(with_bitsandbytes(load_in_8bit=True), id="bitsandbytes-8"),
        pytest.param(with_bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"), id="bitsandbytes-4"),
    ],
)
# torch.ao warns that it is deprecated, bitsandbytes about its casts.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def relative_error(logits, expected):
    return ((logits.float() - expected).norm() / expected.norm()).item()


@torch.no_grad()
def quantization_errors(encoding, quantize, directory, seed, **options):
    """Relative errors of the logits of ViT and of our model with its weights."""
    models = vit_pair(encoding, seed=seed, **SIZES, **options)
    pixel_values = random_input(models[1].config, batch_size=16, seed=seed)
    errors = []
    for model in models:
        quantized = quantize(model, directory / type(model).__name__)
        errors.append(relative_error(quantized(pixel_values).logits, model(pixel_values).logits))
    generators = {name: value for name, value in models[1].named_parameters() if name.endswith("generators")}
    assert bool(generators) == (encoding in LEARNED_ENCODINGS)
    for name, value in generators.items():
        assert torch.equal(quantized.get_parameter(name), value)
    return errors


@schemes
@pytest.mark.parametrize("encoding", ["liere", "absolute"])
def test_without_rotation_the_error_is_no_larger_than_vits(encoding, quantize, tmp_path):
    """It is equal, or smaller where a scheme also quantizes ViT's convolution."""
    vit_error, error = quantization_errors(encoding, quantize, tmp_path, seed=0)
    assert 1e-3 < error < 1.05 * vit_error


@schemes
@pytest.mark.parametrize("encoding", mostly_extensive(["liere", "rope_mixed", "visionllama"], ["liere"]))
def test_with_rotations_the_error_is_no_larger_than_vits(encoding, quantize, tmp_path):
    errors = [
        quantization_errors(encoding, quantize, tmp_path / str(seed), seed, zero_generators=False) for seed in range(4)
    ]
    vit_error, error = (sum(each) for each in zip(*errors, strict=True))
    # The sum over four models, whose errors differ by about 20%.
    assert error < 1.2 * vit_error


class Uint8Linear(nn.Module):
    """A linear layer like 4-bit ones: its weight is packed integers, its products have the dtype of the input."""

    def __init__(self, linear):
        super().__init__()
        values = linear.weight.detach()
        self.zero, self.step = values.min(), (values.max() - values.min()) / 255
        self.weight = nn.Parameter(((values - self.zero) / self.step).round().to(torch.uint8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, hidden_states):
        assert hidden_states.is_floating_point()
        weight = (self.weight.to(self.step.dtype) * self.step + self.zero).to(hidden_states.dtype)
        return nn.functional.linear(hidden_states, weight, self.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_pixels_stay_floats_whatever_replaces_the_patch_projection(encoding, dtype):
    model = random_model(LiereViTForImageClassification, tiny_config(position_encoding=encoding)).to(dtype)
    pixel_values = random_input(model.config, batch_size=8)
    expected = model(pixel_values).logits.float()
    embeddings = model.liere_vit.embeddings.patch_embeddings
    embeddings.projection = Uint8Linear(embeddings.projection)
    logits = model(pixel_values).logits
    assert logits.dtype == dtype
    assert relative_error(logits, expected) < 0.05


def test_a_quantized_model_reconstructs_pixels(tmp_path):
    model = random_model(LiereViTForMaskedImageModeling, tiny_config())
    quantized = with_quantize_dynamic(model, tmp_path)
    pixel_values = random_input(model.config)
    mask = torch.zeros(2, 8)
    mask[:, 2:5] = 1
    outputs = [each(pixel_values, bool_masked_pos=mask).reconstruction for each in (quantized, model)]
    assert relative_error(*outputs) < 0.1
