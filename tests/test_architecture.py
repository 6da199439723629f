"""docs/architecture.md: attention layers match its reference implementation; its table has every module."""

import re
from pathlib import Path

import pytest
import torch
from markdown_blocks import code_blocks

from liere_hf import LiereViTConfig, LiereViTModel

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
((_, REFERENCE),) = code_blocks(PAGE)
ENCODINGS = {
    "liere2": {"position_encoding": "liere", "generator_block_size": 2},
    "liere8": {"position_encoding": "liere", "generator_block_size": 8},
    "liere64": {"position_encoding": "liere", "generator_block_size": 64},
    "rope_mixed": {"position_encoding": "rope_mixed"},
    "visionllama": {"position_encoding": "visionllama"},
}
# Spacings of 1/2 and 1/4, which float32 holds exactly.
TRAINING_GRIDS = {1: (5,), 2: (3, 5), 3: (3, 3, 5)}


@pytest.fixture(scope="module")
def reference() -> dict:
    namespace = {}
    exec(REFERENCE, namespace)
    return namespace


def visionllama_generators(head_dim: int, num_axes: int) -> torch.Tensor:
    """(axes, 1, blocks, 2, 2): head_dim // (2 axes) frequencies exp(-4 linspace(0, 1)) per axis, axis after axis."""
    count = head_dim // (2 * num_axes)
    raw = torch.zeros(num_axes, 1, head_dim // 2, 2, 2, dtype=torch.float64)
    for axis in range(num_axes):
        for index, exponent in enumerate(torch.linspace(0, -4, count, dtype=torch.float64)):
            raw[axis, 0, axis * count + index, 0, 1] = -exponent.exp()
    return raw


@pytest.mark.parametrize("is_larger", [False, True], ids=["training size", "larger"])
@pytest.mark.parametrize("num_axes", [1, 2, 3])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_attention_layers_equal_the_reference(reference, encoding, num_axes, is_larger):
    training_grid = TRAINING_GRIDS[num_axes]
    # Again spacings that float32 holds exactly.
    grid = [2 * steps - 1 if is_larger else steps for steps in training_grid]
    config = LiereViTConfig(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=[2 * steps for steps in training_grid],
        patch_size=[2] * num_axes,
        num_channels=1,
        num_register_tokens=2,
        **ENCODINGS[encoding],
    )
    torch.manual_seed(0)
    model = LiereViTModel(config).double().eval()
    seen = {}
    for index, layer in enumerate(model.layers):
        # Attention far from uniform.
        torch.nn.init.normal_(layer.attention.q_proj.weight, std=0.2)
        torch.nn.init.normal_(layer.attention.k_proj.weight, std=0.2)
        layer.attention.register_forward_hook(
            lambda module, inputs, outputs, index=index: seen.update({index: (inputs[0], outputs[0])})
        )
    size = [2 * steps for steps in grid]
    pixels = torch.randn(2, size[0], 1, *size[1:]) if num_axes == 3 else torch.randn(2, 1, *size)

    # VisionLLaMA's frequencies are constants in float32.
    tolerance = 1e-6 if encoding == "visionllama" else 1e-10
    with torch.no_grad():
        model(pixels.double())
        positions = reference["positions"](grid)
        for index, layer in enumerate(model.layers):
            if encoding == "visionllama":
                raw = visionllama_generators(64, num_axes).expand(-1, 2, -1, -1, -1)
            else:
                raw = model.rotations.generators[index]
            hidden_states, output = seen[index]
            projections = (layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj)
            states = [projection(hidden_states).unflatten(-1, (2, 64)) for projection in projections]
            rotations = reference["rotations"](positions, raw)
            expected = reference["attention"](*states, rotations, num_prefix_tokens=3)
            torch.testing.assert_close(output, layer.attention.o_proj(expected.flatten(-2)), rtol=0, atol=tolerance)


def test_the_reference_has_at_most_25_lines():
    assert len(REFERENCE.splitlines()) <= 25


def test_every_module_of_the_model_is_in_the_table():
    (section,) = re.findall(r"## Modules of `liere_hf/modeling`\n(.*?)\n## ", PAGE.read_text(), flags=re.DOTALL)
    rows = re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)
    modules = [path.stem for path in (ROOT / "liere_hf" / "modeling").glob("*.py") if path.stem != "__init__"]
    assert sorted(rows) == sorted(modules)
