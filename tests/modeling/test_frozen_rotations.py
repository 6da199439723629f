"""Frozen rotations are constants for compilers and exporters, follow loaded weights, and are not saved."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from factory import ROTARY_ENCODINGS, random_input, random_model, tiny_config
from selection import mostly_extensive

from liere_hf import LiereViTBackbone, LiereViTForImageClassification

OTHER_SIZE = (12, 15)
OTHER_GRID = (3, 5)


def frozen_classifier(**overrides):
    model = random_model(LiereViTForImageClassification, tiny_config(**overrides))
    model.freeze_rotations(model.config.image_size, OTHER_SIZE)
    return model


@torch.no_grad()
def logits(model, pixel_values):
    return model(pixel_values).logits


@pytest.fixture(params=[None, OTHER_GRID], ids=["training size", "another size"])
def grid_size(request):
    return request.param


@pytest.mark.parametrize("encoding", ROTARY_ENCODINGS)
def test_logits_stay_and_no_weight_is_read(encoding, grid_size):
    model = frozen_classifier(position_encoding=encoding)
    pixel_values = random_input(model.config, grid_size=grid_size)
    frozen = logits(model, pixel_values)
    for parameter in model.liere_vit.rotations.parameters():
        parameter.data.fill_(float("nan"))
    assert torch.equal(logits(model, pixel_values), frozen)
    fresh = random_model(LiereViTForImageClassification, model.config)
    assert torch.equal(logits(fresh, pixel_values), frozen)


def test_other_sizes_and_given_positions_are_computed():
    model = frozen_classifier()
    fresh = random_model(LiereViTForImageClassification, model.config)
    larger, positions = random_input(model.config, grid_size=(4, 4)), torch.rand(1, 8, 2)
    assert torch.equal(logits(model, larger), logits(fresh, larger))
    with torch.no_grad():
        pair = [each(random_input(model.config), positions=positions).logits for each in (model, fresh)]
    assert torch.equal(*pair)
    for each in (model, fresh):
        each.config.position_mode = each.liere_vit.config.position_mode = "rescaled"
    pixel_values = random_input(model.config, grid_size=OTHER_GRID)
    assert torch.equal(logits(model, pixel_values), logits(fresh, pixel_values))


@pytest.mark.parametrize("encoding", mostly_extensive(ROTARY_ENCODINGS, ["liere"]))
def test_export_holds_constants(encoding, grid_size):
    model = frozen_classifier(position_encoding=encoding)
    pixel_values = random_input(model.config, grid_size=grid_size)
    program = torch.export.export(model, (pixel_values,))
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any(name in target for target in targets for name in ("bmm", "cos", "exp."))
    torch.testing.assert_close(program.module()(pixel_values).logits, logits(model, pixel_values), rtol=0, atol=1e-5)


def test_jit_trace_holds_constants():
    model = frozen_classifier()
    pixel_values = random_input(model.config)

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixel_values):
            return self.model(pixel_values).logits

    traced = torch.jit.trace(Logits().eval(), pixel_values)
    assert "generators" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(pixel_values), logits(model, pixel_values), rtol=0, atol=1e-5)


@pytest.mark.end_to_end
def test_the_compiler_takes_constants():
    torch.compiler.reset()
    model, graphs = frozen_classifier(), []

    def record(graph, _):
        graphs.append(graph.graph)
        return graph

    pixel_values = random_input(model.config)
    compiled = torch.compile(model, backend=record, fullgraph=True)
    torch.testing.assert_close(logits(compiled, pixel_values), logits(model, pixel_values), rtol=0, atol=1e-5)
    assert not any("liere." in str(node.target) or "generators" in node.name for node in graphs[0].nodes)
    torch.compiler.reset()


def test_saved_files_are_the_same(tmp_path):
    model = random_model(LiereViTForImageClassification, tiny_config())
    for name in ("before", "frozen"):
        model.save_pretrained(tmp_path / name)
        model.freeze_rotations()
    files = [
        {path.name: path.read_bytes() for path in Path(tmp_path / name).iterdir()} for name in ("before", "frozen")
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_stay_frozen(clone):
    model = frozen_classifier()
    pixel_values = random_input(model.config)
    other = clone(model)
    other.liere_vit.rotations.generators.data.fill_(float("nan"))
    assert torch.equal(logits(other, pixel_values), logits(model, pixel_values))


CHANGES = {
    "loaded": lambda model: model.load_state_dict({name: tensor + 0.3 for name, tensor in model.state_dict().items()}),
    "half": lambda model: model.to(torch.bfloat16),
    "half and back": lambda model: model.to(torch.bfloat16).float(),
    "double": lambda model: model.double(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_rotations_follow_loaded_weights_and_the_dtype(change, grid_size):
    model = frozen_classifier()
    change(model)
    pixel_values = random_input(model.config, grid_size=grid_size)
    frozen = logits(model, pixel_values)
    assert next(model.liere_vit.rotations.buffers()).dtype == frozen.dtype
    model.unfreeze_rotations()
    assert torch.equal(logits(model, pixel_values), frozen)


def test_training_is_refused_until_they_are_unfrozen():
    model = frozen_classifier()
    with pytest.raises(RuntimeError, match="call unfreeze_rotations"):
        model.train()
    model.unfreeze_rotations()
    model.train()
    assert not list(model.buffers())
    with pytest.raises(RuntimeError, match="the model is in training mode"):
        model.freeze_rotations()
    model(random_input(model.config)).logits.sum().backward()
    assert model.liere_vit.rotations.generators.grad.any()


@pytest.mark.parametrize("size", [7, (8, 12, 4), (8, 0)])
def test_sizes_that_are_no_grid_are_refused(size):
    model = random_model(LiereViTForImageClassification, tiny_config())
    with pytest.raises(ValueError, match=r"image_size is .*, each of 2 values must be a positive multiple"):
        model.freeze_rotations(size)


def test_models_without_rotations_and_backbones():
    random_model(LiereViTForImageClassification, tiny_config(position_encoding="absolute")).freeze_rotations()
    backbone = random_model(LiereViTBackbone, tiny_config())
    backbone.freeze_rotations()
    assert len(list(backbone.buffers())) == backbone.config.num_hidden_layers
