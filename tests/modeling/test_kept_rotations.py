"""Rotations are computed once while nothing changes, and never reused after a change."""

import copy
import pickle

import pytest
import torch
from factory import random_input, random_model, tiny_config
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from liere_hf import LiereViTForImageClassification
from liere_hf.modeling import kept_rotations
from liere_hf.modeling.kept_rotations import MAX_GRIDS

LARGER_GRID = (3, 5)


def classifier(**overrides):
    return random_model(LiereViTForImageClassification, tiny_config(**overrides))


def generators(model):
    return model.liere_vit.rotations.generators


@torch.no_grad()
def logits(model, pixel_values):
    return model(pixel_values).logits


@pytest.fixture
def computed(monkeypatch):
    """A list with one entry per computation of a layer's rotations."""
    calls = []
    rotations_by_layer = kept_rotations.rotations_by_layer

    def spy(positions, generators):
        calls.extend(generators)
        return rotations_by_layer(positions, generators)

    monkeypatch.setattr(kept_rotations, "rotations_by_layer", spy)
    return calls


@pytest.mark.parametrize("encoding", ["liere", "rope_mixed", "visionllama"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_inference_computes_rotations_once(computed, encoding, context):
    model = classifier(position_encoding=encoding)
    with context():
        first = model(random_input(model.config)).logits
        count = len(computed)
        assert count > 0
        assert torch.equal(model(random_input(model.config)).logits, first)
        model(random_input(model.config, batch_size=5, seed=1))
    assert len(computed) == count


@pytest.mark.parametrize("sharing", [{"position_encoding": "visionllama"}, {"share_generators_across_layers": True}])
def test_layers_that_share_rotations_keep_one(sharing):
    model = classifier(**sharing)
    kept = model.liere_vit.rotations(torch.rand(1, 6, 2), torch.float32)
    assert len(kept) == model.config.num_hidden_layers > 1
    assert len({rotation.data_ptr() for rotation in kept}) == 1


def test_training_with_frozen_generators_computes_rotations_once(computed):
    model = classifier().train()
    generators(model).requires_grad_(False)
    for _ in range(3):
        model(random_input(model.config)).logits.sum().backward()
    assert len(computed) == model.config.num_hidden_layers


def test_training_computes_rotations_in_every_step_and_keeps_none(computed):
    model = classifier()
    logits(model, random_input(model.config))
    for _ in range(2):
        model(random_input(model.config)).logits.sum().backward()
    assert len(computed) == 3 * model.config.num_hidden_layers
    assert len(pickle.dumps(vars(model.liere_vit.rotations.kept))) < 1000


def test_several_sizes_in_turn_are_computed_once_and_the_oldest_goes_first(computed):
    model = classifier()
    inputs = [random_input(model.config, grid_size=(2, columns)) for columns in range(2, 3 + MAX_GRIDS)]
    for _ in range(2):
        expected = [logits(model, each) for each in inputs[:MAX_GRIDS]]
    assert len(computed) == MAX_GRIDS * model.config.num_hidden_layers
    logits(model, inputs[0])
    logits(model, inputs[MAX_GRIDS])
    computed.clear()
    assert torch.equal(logits(model, inputs[0]), expected[0])
    assert not computed
    assert torch.equal(logits(model, inputs[1]), expected[1])
    assert len(computed) == model.config.num_hidden_layers


def step_of_an_optimizer(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(random_input(model.config)).logits.square().sum().backward()
    optimizer.step()


def changed_state(model):
    return {name: tensor + 0.3 for name, tensor in model.state_dict().items()}


def replace_parameter(model):
    model.liere_vit.rotations.generators = nn.Parameter(generators(model).detach() + 0.3)


def swap_storage(model):
    generators(model).data = generators(model).data + 0.3


CHANGES = {
    "in place": lambda model: torch.no_grad()(lambda: generators(model).add_(0.3))(),
    "one entry": lambda model: torch.no_grad()(lambda: generators(model)[1, 0, 0, 0, 0, 1].add_(0.3))(),
    "through .data": lambda model: generators(model).data.mul_(1.3),
    "another storage": swap_storage,
    "another parameter": replace_parameter,
    "initialized": lambda model: nn.init.uniform_(generators(model), 0, 3),
    "a training step": step_of_an_optimizer,
    "loaded": lambda model: model.load_state_dict(changed_state(model)),
    "loaded by assignment": lambda model: model.load_state_dict(changed_state(model), assign=True),
    "another mode of positions": lambda model: setattr(model.config, "position_mode", "sequential"),
    "double": lambda model: model.double(),
    "half": lambda model: model.to(torch.bfloat16),
    "half and back": lambda model: model.to(torch.bfloat16).float(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_noticed(change):
    """After the change, outputs equal those of a new model with the same weights."""
    model = classifier()
    grid_size = LARGER_GRID if change is CHANGES["another mode of positions"] else model.config.grid_size
    pixel_values = random_input(model.config, grid_size=grid_size)
    before = logits(model, pixel_values)
    change(model)
    after = logits(model, pixel_values)
    assert not torch.equal(after.float(), before)
    fresh = LiereViTForImageClassification(model.config).to(after.dtype).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(after, logits(fresh, pixel_values))


@pytest.fixture
def compiled():
    """Compiles a model into one graph, without generating code."""
    torch.compiler.reset()
    yield lambda model: torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.compiler.reset()


@pytest.mark.end_to_end
def test_a_compiled_model_computes_rotations_once_and_notices_changes(computed, compiled):
    """As `compiled` is one graph, each change takes effect without compiling again."""
    model = classifier()
    pixel_values, graph = random_input(model.config), compiled(model)
    expected = logits(classifier(), pixel_values)
    computed.clear()
    for _ in range(3):
        torch.testing.assert_close(logits(graph, pixel_values), expected, rtol=0, atol=1e-5)
    assert len(computed) == model.config.num_hidden_layers
    for name in ("in place", "through .data", "another storage", "loaded"):
        CHANGES[name](model)
        computed.clear()
        actual = logits(graph, pixel_values)
        assert len(computed) == model.config.num_hidden_layers
        fresh = classifier()
        fresh.load_state_dict(model.state_dict())
        torch.testing.assert_close(actual, logits(fresh, pixel_values), rtol=1e-5, atol=1e-5)
        assert (actual - expected).abs().max() > 1e-3


@pytest.mark.extensive
def test_compiled_copies_and_sizes_keep_rotations_of_their_own(computed, compiled):
    models = [classifier(), classifier()]
    generators(models[1]).data.add_(0.3)
    graphs = [compiled(model) for model in models]
    inputs = [random_input(models[0].config, grid_size=grid_size) for grid_size in ((2, 4), LARGER_GRID)]
    for _ in range(3):
        actual = [logits(graph, pixel_values) for graph in graphs for pixel_values in inputs]
    assert len(computed) == 4 * models[0].config.num_hidden_layers
    expected = [logits(model, pixel_values) for model in models for pixel_values in inputs]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.extensive
def test_a_compiled_model_whose_generators_are_frozen_trains(computed, compiled):
    """Gradients of everything before the rotations, as in eager mode, with autocast too."""
    for dtype in (torch.float32, torch.bfloat16):
        gradients = []
        for wrap in (compiled, lambda model: model):
            model = classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
            generators(model).requires_grad_(False)
            forward = wrap(model)
            for _ in range(2):
                model.zero_grad()
                computed.clear()
                with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
                    forward(random_input(model.config)).logits.float().square().sum().backward()
            assert not computed
            gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        tolerance = 1e-4 if dtype == torch.float32 else 5e-2
        for actual, expected in zip(*gradients, strict=True):
            assert (actual - expected).norm() <= tolerance * expected.norm()


@pytest.mark.extensive
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.xfail(torch.__version__.startswith("2.11."), reason="an internal assert of this torch")
def test_compiled_models_stacked_by_vmap(compiled):
    models = [classifier(), classifier()]
    generators(models[1]).data.add_(0.3)
    pixel_values = random_input(models[0].config)
    parameters, _ = stack_module_state(models)
    together = torch.compile(
        lambda parameters: vmap(lambda each: functional_call(models[0], each, (pixel_values,)).logits)(parameters),
        backend="aot_eager",
    )
    with torch.no_grad():
        for model, actual in zip(models, together(parameters), strict=True):
            torch.testing.assert_close(actual, logits(model, pixel_values), rtol=0, atol=1e-5)


def test_other_sizes_positions_and_dtypes_are_noticed():
    model = classifier()
    small, large = random_input(model.config), random_input(model.config, grid_size=LARGER_GRID)
    positions = torch.rand(1, 8, 2)

    def outputs(each):
        with torch.no_grad():
            yield each(small).logits
            yield each(large).logits
            yield each(small, positions=positions).logits
            yield each(small, positions=positions.expand(2, -1, -1)).logits
            with torch.autocast("cpu", torch.bfloat16):
                yield each(small).logits
            yield each(small).logits

    expected = [next(part for number, part in enumerate(outputs(classifier())) if number == i) for i in range(6)]
    assert all(torch.equal(*pair) for pair in zip(outputs(model), expected, strict=True))


def test_gradients_of_generators_inside_autocast_are_those_outside():
    gradients = []
    for inside in (False, True):
        model = classifier()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(random_input(model.config)).logits.float().square().sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        gradients.append(generators(model).grad)
    difference = (gradients[0] - gradients[1]).abs().max()
    assert difference < 1e-2 * gradients[0].abs().max()


def test_rotations_kept_in_inference_mode_can_be_used_in_training():
    model = classifier()
    generators(model).requires_grad_(False)
    with torch.inference_mode():
        model(random_input(model.config))
    model(random_input(model.config)).logits.sum().backward()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_independent_and_carry_no_rotations(clone):
    model = classifier()
    pixel_values = random_input(model.config)
    bare = len(pickle.dumps(model))
    expected = logits(model, pixel_values)
    assert len(pickle.dumps(model)) == bare
    other = clone(model)
    assert torch.equal(logits(other, pixel_values), expected)
    generators(other).data.add_(0.3)
    assert torch.equal(logits(model, pixel_values), expected)
    assert not torch.equal(logits(other, pixel_values), expected)


def products(program):
    return [node for node in program.graph.nodes if "bmm" in str(node.target) or "cos" in str(node.target)]


@pytest.mark.parametrize(
    "change",
    [
        "through .data",
        *(
            pytest.param(name, marks=pytest.mark.extensive)
            for name in ("another parameter", "loaded by assignment", "double")
        ),
    ],
)
def test_export_takes_the_current_weights(change):
    model = classifier()
    pixel_values = random_input(model.config)
    before = logits(model, pixel_values)
    CHANGES[change](model)
    after = logits(model, pixel_values)
    exported = torch.export.export(model, (pixel_values,)).module()(pixel_values).logits
    assert (after - before).abs().max() > 1e-3 or change == "double"
    torch.testing.assert_close(exported, after, rtol=1e-4, atol=1e-5)


@pytest.mark.end_to_end
def test_export_takes_generators_as_they_are_parametrized():
    class Half(nn.Module):
        def forward(self, generators):
            return generators / 2

    model = classifier()
    pixel_values = random_input(model.config)
    before = logits(model, pixel_values)
    nn.utils.parametrize.register_parametrization(model.liere_vit.rotations, "generators", Half())
    after = logits(model, pixel_values)
    assert (after - before).abs().max() > 1e-3
    exported = torch.export.export(model, (pixel_values,)).module()(pixel_values).logits
    torch.testing.assert_close(exported, after, rtol=0, atol=1e-5)


@pytest.mark.end_to_end
def test_export_of_a_size_that_may_vary_computes_them():
    model = classifier()
    dynamic = torch.export.Dim("height", min=2, max=8)
    program = torch.export.export(
        model, (random_input(model.config),), dynamic_shapes={"pixel_values": {2: 4 * dynamic}}, strict=False
    )
    assert products(program)
    for grid_size in ((2, 4), (5, 4)):
        pixel_values = random_input(model.config, grid_size=grid_size)
        actual = program.module()(pixel_values).logits
        torch.testing.assert_close(actual, logits(model, pixel_values), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_models_stacked_by_vmap():
    models = [classifier(), classifier()]
    generators(models[1]).data.add_(0.3)
    pixel_values = random_input(models[0].config)
    parameters, _ = stack_module_state(models)
    with torch.no_grad():
        together = vmap(lambda each: functional_call(models[0], each, (pixel_values,)).logits)(parameters)
    for model, actual in zip(models, together, strict=True):
        torch.testing.assert_close(actual, logits(model, pixel_values), rtol=0, atol=1e-5)


def test_meta_models_run_repeatedly():
    model = classifier().to("meta")
    for _ in range(2):
        assert logits(model, random_input(model.config).to("meta")).shape == (2, 5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_generators_that_are_not_finite_give_logits_that_are_not(value):
    """Diverged training is visible in the loss, and does not raise an error in the exponential."""
    model = classifier()
    generators(model).data[0, 0, 0, 0, 0, 1] = value
    # With AVX-512, torch's own attention turns NaN into numbers where there are fewer than 16 keys.
    loss = model(random_input(model.config, grid_size=LARGER_GRID)).logits.sum()
    loss.backward()
    assert not loss.isfinite()
