"""Wrapped in any way, a model computes with the parameters that it has: against the NumPy reference in float64."""

import copy
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import load_checkpoint_and_dispatch
from factory import ROTARY_ENCODINGS, random_input, random_model, tiny_config
from reference import reference_logits
from selection import all_pairs, mostly_extensive
from torch import nn
from torch.nn.utils import parametrize, prune

from liere_hf import LiereViTForImageClassification
from liere_hf.modeling import differentiation, modeling_liere_vit
from liere_hf.modeling.kept_rotations import Reference
from liere_hf.modeling.position_encodings import POSITION_ENCODINGS
from liere_hf.modeling.rotary_application import rotate_queries_and_keys

CHANGE = 0.8


class Scaled(nn.Module):
    def forward(self, generators):
        return CHANGE * generators


def changed_state(model):
    return {
        name: CHANGE * tensor if name.endswith("generators") else tensor for name, tensor in model.state_dict().items()
    }


def by_functional_call(model):
    parameters = changed_state(model)
    return lambda pixel_values: torch.func.functional_call(model, parameters, (pixel_values,))


def by_parametrization(model):
    for name in dict(model.liere_vit.rotations.named_parameters()):
        parametrize.register_parametrization(model.liere_vit.rotations, name, Scaled())
    return model


def by_pruning(model):
    """Pruned to nothing by a mask that is then a multiple of the weights."""
    for name in dict(model.liere_vit.rotations.named_parameters()):
        parameter = getattr(model.liere_vit.rotations, name)
        prune.custom_from_mask(model.liere_vit.rotations, name, torch.full_like(parameter, CHANGE))
    return model


def by_data(model):
    """An exponential moving average is swapped in like this."""
    for parameter in model.liere_vit.rotations.parameters():
        parameter.data.mul_(CHANGE)
    return model


def by_copy(model):
    return copy.deepcopy(by_data(model))


def by_dispatch(model):
    state = changed_state(model)
    torch.save(state, "state.bin")
    return load_checkpoint_and_dispatch(model, "state.bin", device_map={"": "cpu"})


def by_export(model):
    pixel_values = random_input(model.config)
    return torch.export.export(by_data(model), (pixel_values,)).module()


def by_export_of_parametrized(model):
    return torch.export.export(by_parametrization(model), (random_input(model.config),)).module()


def by_compiler(model):
    return torch.compile(by_data(model), backend="aot_eager", fullgraph=True)


WAYS = (by_data, by_functional_call, by_parametrization, by_pruning, by_copy, by_dispatch)


def built(encoding, num_axes, **overrides):
    return random_model(
        LiereViTForImageClassification,
        tiny_config(num_axes, position_encoding=encoding, generator_block_size=8, **overrides),
    )


def expected_logits(encoding, num_axes, pixel_values, **overrides):
    """Those of the changed parameters, by NumPy in float64."""
    model = built(encoding, num_axes, **overrides)
    model.load_state_dict(changed_state(model))
    return reference_logits(model, pixel_values)


@all_pairs("way, encoding, num_axes", WAYS, ROTARY_ENCODINGS, [1, 2, 3])
def test_the_parameters_that_the_module_has_are_computed_with(way, encoding, num_axes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_current_parameters_are_used(way, encoding, num_axes)


@pytest.mark.extensive
@pytest.mark.parametrize(("encoding", "num_axes"), [*zip(ROTARY_ENCODINGS, (1, 2, 3), strict=True)])
@pytest.mark.parametrize("way", [by_export, by_export_of_parametrized])
def test_exporters_take_the_parameters_that_the_module_has(way, encoding, num_axes):
    assert_current_parameters_are_used(way, encoding, num_axes)


def assert_current_parameters_are_used(way, encoding, num_axes):
    model = built(encoding, num_axes)
    pixel_values = random_input(model.config)
    with torch.no_grad():
        before = model(pixel_values).logits
        actual = way(model)(pixel_values).logits
    expected = expected_logits(encoding, num_axes, pixel_values)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=2e-5)
    if POSITION_ENCODINGS[encoding].parameters:
        assert (actual - before).abs().max() > 1e-3


@pytest.mark.end_to_end
@pytest.mark.parametrize(("encoding", "num_axes"), [("liere", 1), ("rope_mixed", 2), ("visionllama", 3), ("liere", 3)])
def test_compiled_models(encoding, num_axes):
    """The compiler is slow, so these are a few of the above."""
    torch.compiler.reset()
    model = built(encoding, num_axes)
    pixel_values = random_input(model.config)
    with torch.no_grad():
        actual = by_compiler(model)(pixel_values).logits
    np.testing.assert_allclose(actual.numpy(), expected_logits(encoding, num_axes, pixel_values), rtol=0, atol=2e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("trains", mostly_extensive([False, True], [True]))
@pytest.mark.end_to_end
def test_the_compiler_takes_operators_and_exporters_take_none(trains):
    """Whether one or the other traces is not the same question in all versions of torch."""
    torch.compiler.reset()
    module = built("liere", 2).liere_vit.rotations
    module.requires_grad_(trains)
    query, positions = torch.randn(2, 9, 2, 16), torch.rand(1, 8, 2)

    class Rotated(nn.Module):
        def __init__(self):
            super().__init__()
            self.rotations = module

        def forward(self, query, positions):
            (rotations, *_) = self.rotations(positions, torch.float32)
            if isinstance(rotations, Reference):
                return rotations.rotate(query, query)
            return rotate_queries_and_keys(query, query, rotations)

    def operators(graph):
        return [node.target for node in graph.nodes if str(node.target).startswith("liere.")]

    graphs = []
    compiled = torch.compile(Rotated(), backend=lambda graph, _: graphs.append(graph.graph) or graph, fullgraph=True)
    expected = compiled(query, positions)
    assert operators(graphs[0])
    for strict in (True, False):
        program = torch.export.export(Rotated(), (query, positions), strict=strict)
        assert not operators(program.graph)
        for actual, each in zip(program.module()(query, positions), expected, strict=True):
            torch.testing.assert_close(actual, each, rtol=0, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("distance", [pytest.param(1, marks=pytest.mark.extensive), 400])
def test_compiled_rotations_far_from_the_training_grid(distance):
    """Rotations and gradients, against float64: crops of larger pictures keep their place."""
    torch.compiler.reset()
    module = built("liere", 2).liere_vit.rotations
    positions = distance * torch.rand(1, 8, 2, generator=torch.Generator().manual_seed(0))
    results = []
    for rotations in (
        torch.compile(module, backend="aot_eager", fullgraph=True),
        module,
        copy.deepcopy(module).double(),
    ):
        parameter = next(rotations.parameters())
        parameter.grad = None
        outputs = rotations(positions.to(parameter.dtype), parameter.dtype)
        sum(output.sin().sum() for output in outputs).backward()
        results.append((outputs[0].detach().double(), parameter.grad.double()))
    (compiled, compiled_grad), (eager, eager_grad), (exact, exact_grad) = results
    torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-6 * distance)
    torch.testing.assert_close(compiled_grad, eager_grad, rtol=1e-5, atol=1e-5 * distance)
    torch.testing.assert_close(compiled, exact, rtol=0, atol=1e-5 * max(1, distance / 20))
    assert (compiled_grad - exact_grad).abs().max() < 1e-4 * exact_grad.abs().max()
    torch.compiler.reset()


def test_several_copies_of_the_code_in_one_process():
    """Each has operators of its own, also where the same file is imported again under the same name."""
    source = Path(differentiation.__file__)
    operators = []
    for name in ("a_copy", "a_copy", "another.copy-1"):
        spec = importlib.util.spec_from_file_location(name, source)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)

        def double(tensor):
            return (2 * tensor,)

        body = {"fast": staticmethod(double), "plain": staticmethod(double), "results": staticmethod(double)}
        function = module.compiled_as_operator(type("_Double", (module.FastFunction,), {**body, "__module__": name}))
        operators.append(function.operator)
    tensor = torch.arange(3.0)
    assert all(torch.equal(operator([tensor])[0], 2 * tensor) for operator in operators)


@pytest.mark.parametrize("encoding", ROTARY_ENCODINGS)
@pytest.mark.parametrize("num_axes", [1, 2, 3])
def test_autocast_and_half_precision_round_no_rotation(encoding, num_axes):
    """Rotations are those of float32, rounded once."""
    model = built(encoding, num_axes)
    positions = 3 * torch.rand(1, 4, num_axes)
    exact = model.liere_vit.rotations.double()(positions.double(), torch.float64)
    model = built(encoding, num_axes)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.liere_vit.rotations(positions, torch.float32)
    half = model.to(torch.bfloat16).liere_vit.rotations(positions, torch.float32)
    for rotations in (rounded, half):
        for actual, expected in zip(rotations, exact, strict=True):
            torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)


def test_another_default_device_changes_nothing():
    model = built("liere", 2).train()
    results = []
    for device in ("cpu", "meta"):
        model.zero_grad()
        with torch.device("cpu"):
            pixel_values = random_input(model.config)
        with torch.device(device):
            hidden = model.liere_vit.embeddings(pixel_values)[0].detach()
            positions = torch.rand(1, 8, 2, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
            rotations = model.liere_vit.rotations(positions, torch.float32)
            sum(rotation.cumsum(-1).sum() for rotation in rotations).backward()
        assert hidden.device.type == "cpu"
        results.append((rotations[0].detach(), model.liere_vit.rotations.generators.grad.clone()))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("encoding", ROTARY_ENCODINGS)
@pytest.mark.parametrize("num_axes", [1, 2, 3])
def test_gradients_of_positions_are_finite_differences(encoding, num_axes, shared, frozen):
    model = built(encoding, num_axes).double()
    for parameter in model.parameters():
        parameter.requires_grad_(not frozen)
    pixel_values = random_input(model.config).double()
    count = model.config.grid_size
    positions = torch.rand(1 if shared else 2, int(np.prod(count)), num_axes, dtype=torch.float64)
    direction = torch.randn_like(positions)

    def loss(positions):
        return model(pixel_values, positions=positions).logits.sin().sum()

    with torch.no_grad():
        model(pixel_values, positions=positions)
        difference = (loss(positions + 1e-6 * direction) - loss(positions - 1e-6 * direction)) / 2e-6
    positions.requires_grad_()
    loss(positions).backward()
    torch.testing.assert_close((positions.grad * direction).sum(), difference, rtol=1e-5, atol=1e-7)


def test_gradients_of_positions_hold_one_layer_at_a_time():
    config = tiny_config(num_hidden_layers=6, hidden_size=32, num_attention_heads=1, generator_block_size=32)
    rotations = random_model(LiereViTForImageClassification, config).liere_vit.rotations
    positions = torch.rand(1, 40, 2, requires_grad=True)
    stored = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: stored.append(tensor.nbytes) or tensor, lambda t: t):
        results = rotations(positions, torch.float32)
    assert sum(stored) < results[0].nbytes
    sum(result.cumsum(-1).sum() for result in results).backward()
    assert positions.grad.any()


def test_parameters_in_half_precision_are_kept_or_warned_about(tmp_path, monkeypatch):
    """transformers keeps float32. accelerate rounds before the model sees a value, which leaves a warning."""
    warnings = []
    monkeypatch.setattr(modeling_liere_vit.logger, "warning_once", warnings.append)
    model = built("liere", 2)
    model.save_pretrained(tmp_path)
    pixel_values = random_input(model.config)
    for options in ({}, {"device_map": {"": "cpu"}}):
        loaded = LiereViTForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16, **options)
        assert torch.equal(loaded.liere_vit.rotations.generators, model.liere_vit.rotations.generators)
        loaded(pixel_values)
    cast = built("liere", 2).to(torch.bfloat16)
    dispatched = load_checkpoint_and_dispatch(cast, tmp_path, device_map={"": "cpu"})
    assert torch.equal(dispatched.liere_vit.rotations.generators, model.liere_vit.rotations.generators)
    assert dispatched(pixel_values).logits.dtype == torch.bfloat16
    assert not warnings
    dispatched(pixel_values, positions=torch.rand(1, 8, 2).to(torch.bfloat16))
    assert (
        "positions are torch.bfloat16, which rounds angles by up to 0.1: LiereTrainer keeps them; for"
        in warnings.pop()
    )
    dispatched = load_checkpoint_and_dispatch(model, tmp_path, device_map={"": "cpu"}, dtype=torch.bfloat16)
    dispatched(pixel_values)
    assert "The parameters of rotations are torch.bfloat16, which rounds angles" in warnings[0]
    assert "call model.to(dtype) before it instead" in warnings[0]
