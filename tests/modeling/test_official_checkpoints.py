"""The authors' own models: their weights under our names give their logits and gradients."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from liere_hf import LiereViTConfig, LiereViTForImageClassification

DIRECTORY = Path(__file__).parents[2].parent / "shared" / "official_checkpoints"
NAMES = (
    "absolute_2d",
    "liere64_2d",
    "liere8_2d",
    "liere8_2d_shared_heads",
    "liere8_2d_shared_layers",
    "liere8_3d",
    "rope_mixed_2d",
    "visionllama_2d",
    "visionllama_3d",
)
AUTHORS_PREFIX = "state_dict.model."

pytestmark = pytest.mark.skipif(not DIRECTORY.is_dir(), reason="shared/official_checkpoints is not there")


def load(name):
    """The recipe and all tensors of a file."""
    with safe_open(DIRECTORY / f"{name}.safetensors", "pt") as file:
        return json.loads(file.metadata()["recipe"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def convert_recipe(recipe):
    """Our configuration. The authors' code lets the first layer's generators serve all layers."""
    return LiereViTConfig(
        hidden_size=recipe["dim"],
        num_hidden_layers=recipe["depth"],
        num_attention_heads=recipe["heads"],
        head_dim=64,
        intermediate_size=recipe["mlp"],
        image_size=recipe["image"],
        patch_size=recipe["patch"],
        num_labels=recipe["ncls"],
        position_encoding=recipe["enc"],
        generator_block_size=recipe.get("gen", 8),
        share_generators_across_layers=True,
        share_generators_across_heads=not recipe.get("per_head", True),
        position_mode="linspace",
    )


def convert_weights(weights, config):
    """The authors' tensors under our names."""
    encoder = {
        "embeddings.cls_token": weights["cls_token"],
        "embeddings.patch_embeddings.projection.weight": weights["to_patch_embedding.1.weight"],
        "embeddings.patch_embeddings.projection.bias": weights["to_patch_embedding.1.bias"],
        "layernorm.weight": weights["mlp_head.0.weight"],
        "layernorm.bias": weights["mlp_head.0.bias"],
    }
    if config.position_encoding == "absolute":
        table = weights["pos_embedding"]
        encoder["embeddings.cls_token"] = weights["cls_token"] + table[:, :1]
        encoder["embeddings.position_embeddings"] = table[:, 1:]
    if config.position_encoding == "liere":
        generators = weights["position_encoder.generator_raw_params"][:, :1].transpose(0, 1)
        num_heads = 1 if config.share_generators_across_heads else config.num_attention_heads
        encoder["rotations.generators"] = generators.unflatten(2, (num_heads, -1)).contiguous()
    for index in range(config.num_hidden_layers):
        theirs, ours = f"transformer.layers.{index}", f"layers.{index}"
        for letter, weight in zip("qkv", weights[f"{theirs}.0.fn.to_qkv.weight"].chunk(3), strict=True):
            encoder[f"{ours}.attention.{letter}_proj.weight"] = weight
        for part in ("weight", "bias"):
            encoder[f"{ours}.attention.o_proj.{part}"] = weights[f"{theirs}.0.fn.to_out.0.{part}"]
            encoder[f"{ours}.layernorm_before.{part}"] = weights[f"{theirs}.0.norm.{part}"]
            encoder[f"{ours}.layernorm_after.{part}"] = weights[f"{theirs}.1.norm.{part}"]
            encoder[f"{ours}.mlp.fc1.{part}"] = weights[f"{theirs}.1.fn.net.0.{part}"]
            encoder[f"{ours}.mlp.fc2.{part}"] = weights[f"{theirs}.1.fn.net.3.{part}"]
    return {
        **{f"liere_vit.{name}": tensor for name, tensor in encoder.items()},
        "classifier.weight": weights["mlp_head.1.weight"],
        "classifier.bias": weights["mlp_head.1.bias"],
    }


@pytest.fixture(scope="module", params=NAMES)
def checkpoint(request):
    """Our model with the authors' weights, and what theirs computed."""
    recipe, tensors = load(request.param)
    weights = {
        key.removeprefix(AUTHORS_PREFIX): tensor for key, tensor in tensors.items() if key.startswith(AUTHORS_PREFIX)
    }
    model = LiereViTForImageClassification(convert_recipe(recipe)).eval()
    model.load_state_dict(convert_weights(weights, model.config))
    return model, tensors


def to_our_layout(pixels, config):
    """(batch, channels, frames, height, width) as (batch, frames, channels, height, width), and back."""
    return pixels.transpose(1, 2) if config.num_axes == 3 else pixels


def test_every_file_is_tested():
    assert {path.stem for path in DIRECTORY.glob("*.safetensors")} == set(NAMES)


def test_logits_at_every_size(checkpoint):
    model, tensors = checkpoint
    sizes = [key.removeprefix("input.") for key in tensors if key.startswith("input.")]
    assert sizes
    for size in sizes:
        logits = model(to_our_layout(tensors[f"input.{size}"], model.config)).logits
        torch.testing.assert_close(logits, tensors[f"logits.{size}"], rtol=0, atol=2e-5)


def test_input_gradients(checkpoint):
    model, tensors = checkpoint
    (size,) = (key.removeprefix("input_grad.") for key in tensors if key.startswith("input_grad."))
    pixel_values = to_our_layout(tensors[f"input.{size}"], model.config).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(pixel_values).logits.square().sum(), pixel_values)
    expected = tensors[f"input_grad.{size}"]
    torch.testing.assert_close(to_our_layout(gradient, model.config), expected, rtol=0, atol=1e-4)
    assert expected.abs().max() > 1e-3


def test_the_rotations_matter(checkpoint):
    """Without its positions none of these models computes its logits: the agreement above is not for nothing."""
    model, tensors = checkpoint
    size = next(key.removeprefix("input.") for key in tensors if key.startswith("input."))
    pixel_values = to_our_layout(tensors[f"input.{size}"], model.config)
    num_patches = torch.Size(model.config.grid_size).numel()
    logits = model(pixel_values, positions=torch.zeros(1, num_patches, model.config.num_axes)).logits
    assert (logits - tensors[f"logits.{size}"]).abs().max() > 1e-4
