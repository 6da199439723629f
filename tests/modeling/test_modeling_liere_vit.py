"""The models against ViT, a NumPy reference, torch's own losses and exporters, and themselves under symmetries."""

import contextlib
import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from factory import (
    ENCODINGS,
    LEARNED_ENCODINGS,
    ROTARY_ENCODINGS,
    patch_window,
    random_input,
    random_model,
    tiny_config,
    vit_pair,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import patch_vectors, reference_logits
from selection import all_pairs, mostly_extensive
from torch.nn import functional
from transformers import AutoModelForImageClassification, AutoModelForVideoClassification

from liere_hf import (
    LiereViTBackbone,
    LiereViTForImageClassification,
    LiereViTForMaskedImageModeling,
    LiereViTForVideoClassification,
    LiereViTModel,
    grid_positions,
)
from liere_hf.modeling.modeling_liere_vit import LiereViTDropPath, from_patches, to_patches
from liere_hf.modeling.positions import POSITION_MODES, stretched_positions

ALL_AXES = (1, 2, 3)
LARGER_GRIDS = {1: (7,), 2: (3, 5), 3: (3, 2, 5)}
SMALLER_GRIDS = {1: (3,), 2: (1, 3), 3: (1, 2, 3)}

PREFIXES = [
    {"pooling": "cls"},
    {"pooling": "cls", "num_register_tokens": 2},
    {"pooling": "mean"},
    {"pooling": "mean", "num_register_tokens": 2},
    {"pooling": "mean", "use_cls_token": False},
    {"pooling": "mean", "use_cls_token": False, "num_register_tokens": 3},
]
prefixes = pytest.mark.parametrize(
    "prefix", PREFIXES, ids=lambda prefix: "-".join(f"{key}={value}" for key, value in prefix.items())
)


def classifier(num_axes=2, **overrides):
    return random_model(LiereViTForImageClassification, tiny_config(num_axes, **overrides))


def default_positions(config, grid_size):
    """What the model uses when no positions are given: those that the table is stretched to, or those of the mode."""
    if config.position_encoding == "absolute":
        return stretched_positions(grid_size, config.grid_size)[None]
    return grid_positions(grid_size, config.grid_size, config.position_mode)[None]


# ----- The whole model against another implementation -----


@settings(deadline=None, max_examples=30)
@given(
    num_axes=st.sampled_from(ALL_AXES),
    prefix=st.sampled_from(
        [
            {},
            {"num_register_tokens": 2},
            {"pooling": "mean", "num_register_tokens": 1},
            {"pooling": "mean", "use_cls_token": False},
        ]
    ),
    encoding=st.sampled_from(ENCODINGS),
    block_size=st.sampled_from([2, 4, 8]),
    share_layers=st.booleans(),
    share_heads=st.booleans(),
    table=st.booleans(),
    qkv_bias=st.booleans(),
    layer_scale=st.sampled_from([0.0, 0.5]),
    prefix_bias=st.sampled_from([0.0, 1.5]),
    num_heads=st.sampled_from([1, 3]),
)
def test_logits_equal_the_numpy_reference(
    num_axes,
    prefix,
    encoding,
    block_size,
    share_layers,
    share_heads,
    table,
    qkv_bias,
    layer_scale,
    prefix_bias,
    num_heads,
):
    model = classifier(
        num_axes,
        **prefix,
        position_encoding=encoding,
        generator_block_size=block_size,
        share_generators_across_layers=share_layers,
        share_generators_across_heads=share_heads,
        use_absolute_position_embeddings=table,
        qkv_bias=qkv_bias,
        layer_scale_init_value=layer_scale,
        prefix_attention_bias=prefix_bias,
        num_attention_heads=num_heads,
        head_dim=8,
        layer_norm_eps=0.1,
    )
    pixel_values = random_input(model.config)
    np.testing.assert_allclose(
        model(pixel_values).logits.detach().numpy(), reference_logits(model, pixel_values), rtol=0, atol=5e-5
    )


@pytest.mark.parametrize("num_axes", ALL_AXES)
@pytest.mark.parametrize("encoding", ROTARY_ENCODINGS)
@pytest.mark.parametrize("grids", [LARGER_GRIDS, SMALLER_GRIDS], ids=["larger", "smaller"])
def test_logits_at_other_sizes_equal_the_numpy_reference(num_axes, encoding, grids):
    model = classifier(num_axes, position_encoding=encoding)
    pixel_values = random_input(model.config, grid_size=grids[num_axes])
    np.testing.assert_allclose(
        model(pixel_values).logits.detach().numpy(), reference_logits(model, pixel_values), rtol=0, atol=5e-5
    )


@pytest.mark.parametrize("encoding", ["liere", "rope_mixed", "absolute", "none"])
@pytest.mark.parametrize("size", [(16, 16), (24, 24), (12, 28), (8, 32), (8, 8), (20, 4)])
def test_without_rotation_it_is_vit(encoding, size):
    vit, model = vit_pair(encoding)
    pixel_values = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = vit(pixel_values, interpolate_pos_encoding=size != (16, 16)).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(model(pixel_values).logits, expected, rtol=0, atol=2e-6)


def test_without_rotation_its_gradients_and_hidden_states_are_vits():
    vit, model = vit_pair("liere")
    pixel_values = torch.randn(2, 3, 16, 16)
    outputs, expected = (each(pixel_values, output_hidden_states=True) for each in (model, vit))
    for ours, theirs in zip(outputs.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    outputs.logits.square().sum().backward()
    expected.logits.square().sum().backward()
    ours, theirs = dict(model.named_parameters()), dict(vit.named_parameters())
    for name in ("layers.0.attention.q_proj.weight", "layers.1.mlp.fc1.bias", "layernorm.weight"):
        torch.testing.assert_close(ours[f"liere_vit.{name}"].grad, theirs[f"vit.{name}"].grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("interpolation", "mode", "grid_size"),
    [
        *itertools.product(["cubic", "antialiased_cubic"], ["bicubic"], [(6, 6), (3, 7), (2, 2), (2, 8), (4, 4)]),
        *itertools.product(["linear"], ["linear", "bilinear", "trilinear"], [9, 5, 3]),
    ],
)
def test_table_at_other_sizes_is_torchs(interpolation, mode, grid_size):
    """The patch embeddings minus those of a model whose table is zero."""
    num_axes = {"linear": 1, "bilinear": 2, "bicubic": 2, "trilinear": 3}[mode]
    if isinstance(grid_size, int):
        grid_size = (grid_size, 4, 2)[:num_axes]
    training_grid_size = (4, 4, 3)[:num_axes]
    config = tiny_config(
        image_size=[4 * steps for steps in training_grid_size],
        patch_size=[4] * num_axes,
        position_encoding="absolute",
        position_embedding_interpolation=interpolation,
    )
    embeddings = random_model(LiereViTModel, config).embeddings
    pixel_values = random_input(config, grid_size=grid_size)
    with torch.no_grad():
        both = embeddings(pixel_values)[0][:, 1:]
        table = embeddings.position_embeddings.clone()
        embeddings.position_embeddings.zero_()
        read = both - embeddings(pixel_values)[0][:, 1:]
    image = table.reshape(1, *training_grid_size, 32).movedim(-1, 1)
    antialias = interpolation == "antialiased_cubic"
    expected = functional.interpolate(image, grid_size, mode=mode, align_corners=False, antialias=antialias)
    torch.testing.assert_close(read, expected.flatten(2).mT.expand_as(read), rtol=0, atol=1e-5)


# ----- Gradients, precision, compilation and export -----


@pytest.mark.parametrize("encoding", mostly_extensive(ENCODINGS, ["liere", "absolute"]))
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_gradients_of_the_whole_model_in_float64(encoding, pooling):
    model = classifier(
        hidden_size=8,
        head_dim=4,
        intermediate_size=8,
        generator_block_size=4,
        num_register_tokens=1,
        position_encoding=encoding,
        pooling=pooling,
    ).double()
    pixel_values = random_input(model.config).double().requires_grad_()
    names, parameters = zip(*model.named_parameters(), strict=True)

    def logits(pixel_values, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), pixel_values).logits

    assert torch.autograd.gradcheck(logits, (pixel_values, *parameters), fast_mode=True)


@pytest.mark.parametrize("encoding", LEARNED_ENCODINGS)
def test_gradients_of_generators_and_positions_in_float64(encoding):
    model = classifier(
        hidden_size=8, head_dim=4, intermediate_size=8, generator_block_size=4, position_encoding=encoding
    ).double()
    pixel_values = random_input(model.config).double()
    positions = torch.rand(2, 8, 2, dtype=torch.float64, requires_grad=True)
    name = "liere_vit.rotations.generators"

    def logits(generators, positions):
        return torch.func.functional_call(model, {name: generators}, pixel_values, {"positions": positions}).logits

    assert torch.autograd.gradcheck(logits, (model.get_parameter(name), positions), fast_mode=True)


@pytest.mark.parametrize("num_axes", ALL_AXES)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_gradient_checkpointing_gives_the_same_gradients(num_axes, encoding):
    gradients = []
    for checkpointing in (False, True):
        model = classifier(
            num_axes, position_encoding=encoding, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        ).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        assert {layer.gradient_checkpointing for layer in model.liere_vit.layers} == {checkpointing}
        pixel_values = random_input(model.config)
        model(pixel_values, labels=torch.tensor([1, 3])).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    plain, checkpointed = gradients
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-6)


@all_pairs("dtype, encoding, attention", [torch.float16, torch.bfloat16], ENCODINGS, ["eager", "sdpa"])
def test_half_precision_keeps_generators_and_stays_near_float32(dtype, encoding, attention, tmp_path):
    model = classifier(position_encoding=encoding)
    pixel_values = random_input(model.config, batch_size=4)
    expected = model(pixel_values).logits
    model.save_pretrained(tmp_path)
    generators = {name: p.clone() for name, p in model.named_parameters() if name.endswith("generators")}
    assert bool(generators) == (encoding in LEARNED_ENCODINGS)
    for half in (
        model.to(dtype),
        LiereViTForImageClassification.from_pretrained(tmp_path, dtype=dtype),
    ):
        half.set_attn_implementation(attention)
        for name, parameter in half.named_parameters():
            if name in generators:
                assert torch.equal(parameter, generators[name])
                assert parameter.dtype == torch.float32
            else:
                assert parameter.dtype == dtype
        logits = half(pixel_values).logits
        assert logits.dtype == dtype
        tolerance = 32 * torch.finfo(dtype).eps
        torch.testing.assert_close(logits.float(), expected, rtol=tolerance, atol=tolerance)


def test_half_and_bfloat16_methods_keep_generators():
    for convert in (torch.nn.Module.half, torch.nn.Module.bfloat16):
        model = convert(classifier())
        assert model.liere_vit.rotations.generators.dtype == torch.float32
        assert model.classifier.weight.dtype != torch.float32


def test_half_precision_trains_generators_in_float32():
    model = classifier().to(torch.bfloat16)
    model(random_input(model.config), labels=torch.tensor([0, 1])).loss.backward()
    gradient = model.liere_vit.rotations.generators.grad
    assert gradient.dtype == torch.float32
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_autocast(encoding):
    model = classifier(position_encoding=encoding)
    pixel_values = random_input(model.config, batch_size=4)
    expected = model(pixel_values).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(pixel_values, labels=torch.tensor([0, 1, 2, 3]))
    assert outputs.logits.dtype == torch.bfloat16
    torch.testing.assert_close(outputs.logits.float(), expected, rtol=0.1, atol=0.1)
    outputs.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.abs().max() > 0, name


def at_half_precision(model, precision):
    """The model, cast unless autocast does it, the context in which to call it, and the dtype of its products."""
    if precision == "autocast":
        return model, torch.autocast("cpu", dtype=torch.bfloat16), torch.bfloat16
    dtype = {"half": torch.float16, "bfloat16": torch.bfloat16}[precision]
    return model.to(dtype), contextlib.nullcontext(), dtype


HALF_PRECISIONS = ("autocast", "half", "bfloat16")


@all_pairs(
    "precision, num_axes, encoding, dtype",
    HALF_PRECISIONS,
    ALL_AXES,
    ROTARY_ENCODINGS,
    [torch.float32, torch.float64],
)
def test_given_positions_reach_the_rotations_unchanged(precision, num_axes, encoding, dtype):
    """Far from the grid, rounding coordinates to half precision would move them to other places."""
    model = classifier(num_axes, position_encoding=encoding)
    positions = grid_positions(model.config.grid_size, model.config.grid_size, dtype=dtype)[None] + 30.37
    with torch.no_grad():
        expected = model.liere_vit.rotations(positions, torch.float32)
    model, context, half = at_half_precision(model, precision)
    calls = []
    model.liere_vit.rotations.register_forward_hook(lambda _, inputs, rotations: calls.append((inputs[0], rotations)))
    with context, torch.no_grad():
        model(random_input(model.config), positions=positions)
    ((given, rotations),) = calls
    assert given is positions
    for ours, exact in zip(rotations, expected, strict=True):
        torch.testing.assert_close(ours.float(), exact, rtol=0, atol=torch.finfo(half).eps)


@pytest.mark.parametrize("precision", HALF_PRECISIONS)
@pytest.mark.parametrize("num_axes", ALL_AXES)
@pytest.mark.parametrize("interpolation", ["cubic", "linear"])
def test_the_table_is_read_in_float32(precision, num_axes, interpolation):
    """The embeddings of a model without patches are the interpolated table, rounded at most once."""
    config = tiny_config(num_axes, position_encoding="absolute", position_embedding_interpolation=interpolation)
    embeddings = random_model(LiereViTModel, config).embeddings
    positions = 0.9 * grid_positions(config.grid_size, config.grid_size)[None] + 0.0371
    with torch.no_grad():
        for parameter in embeddings.patch_embeddings.parameters():
            parameter.zero_()
        embeddings.position_embeddings.copy_(embeddings.position_embeddings.bfloat16().half())
        pixel_values = random_input(config)
        expected = embeddings(pixel_values, positions=positions)[0]
        embeddings, context, half = at_half_precision(embeddings, precision)
        with context:
            read = embeddings(pixel_values.to(embeddings.position_embeddings.dtype), positions=positions)[0]
    eps = 1e-6 if precision == "autocast" else torch.finfo(half).eps
    torch.testing.assert_close(read[:, 1:].float(), expected[:, 1:], rtol=eps, atol=1e-6)


def test_float64():
    model = classifier()
    pixel_values = random_input(model.config)
    expected = model(pixel_values).logits
    model.double()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    logits = model(pixel_values).logits
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=5e-5)


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.end_to_end
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_model_equals_eager():
    model = classifier(num_register_tokens=1, pooling="mean")
    pixel_values = random_input(model.config, batch_size=3)
    with torch.no_grad():
        expected = model(pixel_values).logits
        logits = torch.compile(model, fullgraph=True)(pixel_values).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.end_to_end
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("encoding", ["liere", "absolute"])
def test_one_graph_forward_and_backward(encoding):
    """The traced graph, run without the slow code generation, and at another size too."""
    model = classifier(position_encoding=encoding, num_hidden_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for grid_size in (model.config.grid_size, LARGER_GRIDS[2]):
        pixel_values = random_input(model.config, grid_size=grid_size)
        gradients = []
        for each in (model, compiled):
            model.zero_grad()
            each(pixel_values).logits.square().sum().backward()
            gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("num_axes", "encoding"),
    mostly_extensive([(2, "absolute"), (3, "liere")], fast=[(2, "absolute")]),
)
def test_export_with_a_dynamic_batch(num_axes, encoding):
    model = classifier(num_axes, position_encoding=encoding, num_register_tokens=1)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        model, (random_input(model.config),), dynamic_shapes={"pixel_values": {0: batch}}, strict=False
    )
    for batch_size in (1, 2, 5):
        pixel_values = random_input(model.config, batch_size, seed=batch_size)
        torch.testing.assert_close(
            program.module()(pixel_values).logits, model(pixel_values).logits, rtol=0, atol=1e-5
        )


# ----- Attention and symmetries -----


@pytest.mark.parametrize("num_axes", ALL_AXES)
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_attention_implementations_agree(num_axes, encoding):
    """Eager, sdpa and flex attention. The last is not compiled (on a CPU it has no gradients)."""
    model = classifier(num_axes, position_encoding=encoding)
    pixel_values = random_input(model.config)
    mask = torch.ones(2, math.prod(model.config.grid_size), dtype=torch.long)
    mask[1, -2:] = 0
    results = {}
    for name in ("eager", "sdpa", "flex_attention"):
        model.set_attn_implementation(name)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            results[name] = torch.stack([model(pixel_values).logits, model(pixel_values, attention_mask=mask).logits])
    assert (results["eager"][0, 1] - results["eager"][1, 1]).abs().max() > 1e-3
    torch.testing.assert_close(results["sdpa"], results["eager"], rtol=0, atol=1e-5)
    torch.testing.assert_close(results["flex_attention"], results["eager"], rtol=0, atol=1e-5)


def test_attentions_are_distributions_over_all_tokens():
    model = classifier(attn_implementation="eager", num_register_tokens=2)
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    attentions = model(random_input(model.config), attention_mask=mask, output_attentions=True).attentions
    assert len(attentions) == 2
    for attention in attentions:
        assert attention.shape == (2, 2, 11, 11)
        assert (attention >= 0).all()
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 2, 11), rtol=0, atol=1e-5)
        assert attention[1, :, :, -3:].max() == 0
        assert attention[0].min() > 0


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_prefix_attention_bias_is_the_weight_of_repeated_tokens(attention):
    """With bias log n, one register has the weight of n equal ones, with and without padding."""
    single, repeated = (
        classifier(
            use_cls_token=False,
            pooling="mean",
            num_register_tokens=count,
            prefix_attention_bias=bias,
            attn_implementation=attention,
        )
        for count, bias in ((1, math.log(3)), (3, 0.0))
    )
    weights = single.state_dict()
    name = "liere_vit.embeddings.register_tokens"
    repeated.load_state_dict({**weights, name: weights[name].repeat(1, 3, 1)})
    pixel_values = random_input(single.config)
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    for arguments in ({}, {"attention_mask": mask}):
        expected = repeated(pixel_values, **arguments).logits
        torch.testing.assert_close(single(pixel_values, **arguments).logits, expected, rtol=0, atol=1e-5)
    single.config.prefix_attention_bias = 0.0
    assert (single(pixel_values).logits - repeated(pixel_values).logits).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("masked", [False, True])
def test_prefix_attention_bias_in_half_precision(attention, masked):
    """In bfloat16 and under autocast, where queries have another dtype than the residual stream."""
    model = classifier(prefix_attention_bias=1.0, attn_implementation=attention)
    pixel_values = random_input(model.config)
    arguments = {"attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3])} if masked else {}
    expected = model(pixel_values, **arguments).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = model(pixel_values, **arguments).logits
    half = model.to(torch.bfloat16)(pixel_values, **arguments).logits
    for logits in (autocast, half):
        torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.1)


def test_prefix_attention_bias_with_an_attention_that_cannot_add_it():
    model = classifier(prefix_attention_bias=1.0, attn_implementation="flex_attention")
    message = "prefix_attention_bias is 1.0, which attn_implementation 'flex_attention' cannot add: use eager or sdpa"
    with pytest.raises(ValueError, match=message):
        model(random_input(model.config))


@pytest.mark.parametrize("num_axes", ALL_AXES)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_samples_do_not_see_each_other(num_axes, encoding):
    """The logits of a sample depend neither on the order nor on the size of the batch."""
    model = classifier(num_axes, position_encoding=encoding)
    pixel_values = random_input(model.config, batch_size=5)
    expected = model(pixel_values).logits
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(model(pixel_values[order]).logits, expected[order], rtol=0, atol=1e-5)
    alone = torch.cat([model(sample[None]).logits for sample in pixel_values])
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_order_of_patches_matters_to_encodings_only(encoding):
    """Permuting the patches changes the logits unless there is no encoding, or unless positions go with them."""
    model = classifier(position_encoding=encoding)
    pixel_values = random_input(model.config)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 4, 3])
    patches = to_patches(pixel_values, (4, 3)).flatten(1, 2)[:, order].unflatten(1, (2, 4))
    shuffled = from_patches(patches, (4, 3))
    expected = model(pixel_values).logits
    difference = (model(shuffled).logits - expected).abs().max()
    assert difference < 1e-5 if encoding == "none" else difference > 1e-3
    positions = grid_positions((2, 4), (2, 4))[order][None]
    torch.testing.assert_close(model(shuffled, positions=positions).logits, expected, rtol=0, atol=1e-5)


# ----- Bases, initial values, regularization -----


@pytest.mark.parametrize("encoding", LEARNED_ENCODINGS)
def test_every_layer_head_axis_and_block_has_a_basis_of_its_own(encoding):
    """Every entry above the diagonal changes the logits, and no other entry does."""
    model = classifier(3, position_encoding=encoding)
    pixel_values = random_input(model.config)
    model(pixel_values).logits.square().sum().backward()
    gradient = model.liere_vit.rotations.generators.grad
    size = gradient.shape[-1]
    assert gradient.shape == (2, 3, 2, 16 // size, size, size)
    upper = torch.ones(size, size).triu(1).bool()
    assert (gradient[..., upper] != 0).all()
    assert (gradient[..., ~upper] == 0).all()


@pytest.mark.parametrize("share_layers", [False, True])
def test_layers_read_their_own_generators(share_layers):
    """Changing those of the last layer does not change the first layer's output, unless they are shared."""
    model = classifier(share_generators_across_layers=share_layers)
    pixel_values = random_input(model.config)
    before = model(pixel_values, output_hidden_states=True)
    with torch.no_grad():
        model.liere_vit.rotations.generators[-1].add_(1)
    after = model(pixel_values, output_hidden_states=True)
    assert torch.equal(before.hidden_states[1], after.hidden_states[1]) != share_layers
    assert (before.logits - after.logits).abs().max() > 1e-3


@pytest.mark.parametrize("encoding", LEARNED_ENCODINGS)
@pytest.mark.parametrize("scale", [2 * math.pi, 0.5])
def test_initial_generators_are_uniform(encoding, scale):
    torch.manual_seed(0)
    config = tiny_config(hidden_size=64, position_encoding=encoding, generator_init_scale=scale)
    values = LiereViTModel(config).rotations.generators.detach().flatten().numpy()
    assert scipy.stats.kstest(values, "uniform", args=(0, scale)).pvalue > 1e-3


def test_other_initial_values():
    """Tokens and table normal with `initializer_range`, the mask token zero, LayerScale as configured."""
    torch.manual_seed(0)
    config = tiny_config(
        hidden_size=256,
        num_register_tokens=4,
        use_absolute_position_embeddings=True,
        initializer_range=0.3,
        layer_scale_init_value=0.1,
    )
    model = LiereViTModel(config, use_mask_token=True)
    embeddings = model.embeddings
    for table in (embeddings.cls_token, embeddings.register_tokens, embeddings.position_embeddings):
        values = table.detach().flatten().numpy()
        assert scipy.stats.kstest(values, "norm", args=(0, 0.3)).pvalue > 1e-3
    assert not embeddings.mask_token.any()
    for layer in model.layers:
        for scale in (layer.layer_scale1, layer.layer_scale2):
            assert torch.equal(scale.lambda1, torch.full((256,), 0.1))


@pytest.mark.parametrize("encoding", LEARNED_ENCODINGS)
def test_frozen_generators_stay_while_the_rest_trains(encoding):
    model = classifier(position_encoding=encoding).train()
    model.liere_vit.rotations.generators.requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(random_input(model.config), labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        frozen = name.endswith("generators")
        assert (parameter.grad is None) == frozen
        assert torch.equal(parameter, before[name]) == frozen, name


def test_a_few_steps_overfit_a_batch():
    torch.manual_seed(0)
    model = LiereViTForImageClassification(
        tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ).train()
    pixel_values, labels = random_input(model.config, batch_size=5), torch.arange(5)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(pixel_values, labels=labels).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop_path = LiereViTDropPath(0.25).train()
    states = torch.randn(4000, 2, 3)
    dropped = drop_path(states)
    kept = dropped.abs().amax((1, 2)) > 0
    torch.testing.assert_close(dropped[kept], states[kept] / 0.75)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert torch.equal(drop_path.eval()(states), states)


def test_stochastic_depth_rises_linearly_over_the_layers():
    model = LiereViTModel(tiny_config(num_hidden_layers=5, drop_path_rate=0.2))
    rates = [getattr(layer.drop_path, "drop_prob", 0.0) for layer in model.layers]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


# ----- Saving -----


@all_pairs("num_axes, encoding, share_layers, share_heads", ALL_AXES, ENCODINGS, [False, True], [False, True])
def test_saved_and_reloaded_bit_equal(num_axes, encoding, share_layers, share_heads, tmp_path):
    model = classifier(
        num_axes,
        position_encoding=encoding,
        share_generators_across_layers=share_layers,
        share_generators_across_heads=share_heads,
    )
    model.save_pretrained(tmp_path)
    weight_files = {path.name for path in tmp_path.iterdir()} - {"config.json"}
    assert {name for name in weight_files if not name.endswith(".py")} == {"model.safetensors"}
    pixel_values = random_input(model.config)
    expected = model(pixel_values).logits
    auto_classes = [AutoModelForImageClassification] + [AutoModelForVideoClassification] * (num_axes == 3)
    for auto_class in auto_classes:
        loaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        assert torch.equal(loaded(pixel_values).logits, expected)
        assert loaded.state_dict().keys() == model.state_dict().keys()


def test_a_classifier_loads_into_the_bare_model_and_back(tmp_path):
    model = classifier()
    pixel_values = random_input(model.config)
    model.save_pretrained(tmp_path / "classifier")
    bare = LiereViTModel.from_pretrained(tmp_path / "classifier")
    assert torch.equal(bare(pixel_values).pooler_output, model.liere_vit(pixel_values).pooler_output)
    bare.save_pretrained(tmp_path / "bare")
    again = LiereViTForImageClassification.from_pretrained(tmp_path / "bare", num_labels=5)
    again.classifier.load_state_dict(model.classifier.state_dict())
    assert torch.equal(again(pixel_values).logits, model(pixel_values).logits)


# ----- Sizes and positions -----


@settings(deadline=None, max_examples=30)
@given(
    num_axes=st.sampled_from(ALL_AXES),
    encoding=st.sampled_from(ENCODINGS),
    mode=st.sampled_from(["sequential", "linspace", "rescaled"]),
    data=st.data(),
)
def test_any_size_runs_with_any_encoding(num_axes, encoding, mode, data):
    grid_size = tuple(data.draw(st.integers(1, 6), label="steps") for _ in range(num_axes))
    config = tiny_config(num_axes, position_encoding=encoding, position_mode=mode)
    model = random_model(LiereViTModel, config)
    pixel_values = random_input(config, grid_size=grid_size)
    outputs = model(pixel_values)
    assert outputs.last_hidden_state.shape == (2, 1 + math.prod(grid_size), 32)
    assert outputs.pooler_output.shape == (2, 32)
    assert outputs.last_hidden_state.isfinite().all()
    explicit = model(pixel_values, positions=default_positions(config, grid_size)).last_hidden_state
    torch.testing.assert_close(explicit, outputs.last_hidden_state, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_axes", ALL_AXES)
@pytest.mark.parametrize("encoding", ENCODINGS[:-1])
def test_positions_shared_by_the_batch_or_one_set_per_sample(num_axes, encoding):
    model = classifier(num_axes, position_encoding=encoding)
    pixel_values = random_input(model.config)
    num_patches = math.prod(model.config.grid_size)
    positions = torch.rand(2, num_patches, num_axes, generator=torch.Generator().manual_seed(0))
    shared = model(pixel_values, positions=positions[:1]).logits
    repeated = model(pixel_values, positions=positions[:1].expand(2, -1, -1)).logits
    torch.testing.assert_close(shared, repeated, rtol=0, atol=1e-5)
    together = model(pixel_values, positions=positions).logits
    assert (together - shared)[1].abs().max() > 1e-3
    for index in (0, 1):
        alone = model(pixel_values[index : index + 1], positions=positions[index : index + 1]).logits
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-5)


def crop_of_grid(num_axes):
    """A larger grid, a window of it (slices of patches), and the indices of the window's tokens in the grid."""
    grid_size = LARGER_GRIDS[num_axes]
    window = tuple(slice(1, steps) for steps in grid_size)
    tokens = torch.arange(math.prod(grid_size)).reshape(grid_size)[window].flatten()
    return grid_size, window, tokens


@all_pairs("num_axes, encoding, pooling", ALL_AXES, ROTARY_ENCODINGS, ["cls", "mean"])
def test_a_crop_with_its_true_coordinates_equals_the_image_with_the_rest_masked(num_axes, encoding, pooling):
    model = classifier(num_axes, position_encoding=encoding, pooling=pooling)
    config = model.config
    grid_size, window, tokens = crop_of_grid(num_axes)
    pixel_values = random_input(config, grid_size=grid_size)
    positions = grid_positions(grid_size, config.grid_size)[None]
    crop = pixel_values[patch_window(config, window)]

    rotations = model.liere_vit.rotations
    for whole, part in zip(
        rotations(positions, torch.float32), rotations(positions[:, tokens], torch.float32), strict=True
    ):
        assert torch.equal(whole[:, 1:][:, tokens], part[:, 1:])

    mask = torch.zeros(2, math.prod(grid_size), dtype=torch.long)
    mask[:, tokens] = 1
    expected = model(pixel_values, attention_mask=mask).logits
    cropped = model(crop, positions=positions[:, tokens]).logits
    torch.testing.assert_close(cropped, expected, rtol=0, atol=1e-5)
    assert (model(crop).logits - cropped).abs().max() > 1e-3


@all_pairs("attention, num_axes, encoding", ["eager", "sdpa"], ALL_AXES, ENCODINGS)
def test_a_padded_batch_of_mixed_sizes_equals_the_samples_one_by_one(attention, num_axes, encoding):
    check_padded_batch(num_axes, position_encoding=encoding, attn_implementation=attention, num_register_tokens=2)


@pytest.mark.parametrize("num_axes", ALL_AXES)
@pytest.mark.parametrize("mode", POSITION_MODES)
def test_a_padded_batch_has_the_positions_of_its_samples(mode, num_axes):
    check_padded_batch(num_axes, position_mode=mode)


@pytest.mark.end_to_end
def test_an_exported_model_takes_padded_batches_of_any_length():
    model = classifier()
    pixel_values = random_input(model.config, batch_size=3, grid_size=LARGER_GRIDS[2])
    mask = torch.ones(3, *LARGER_GRIDS[2])
    mask[1, 1:] = mask[2, :, 2:] = 0
    inputs = {"pixel_values": pixel_values, "attention_mask": mask.flatten(1)}
    batch = torch.export.Dim("batch", min=2, max=16)
    program = torch.export.export(model, (), inputs, dynamic_shapes={name: {0: batch} for name in inputs}).module()
    for chosen in (slice(None), slice(1, 3)):
        some = {name: each[chosen] for name, each in inputs.items()}
        torch.testing.assert_close(program(**some).logits, model(**some).logits, rtol=0, atol=1e-5)


@prefixes
@pytest.mark.parametrize("encoding", ["liere", "absolute"])
def test_a_padded_batch_with_any_prefix_and_pooling(encoding, prefix):
    check_padded_batch(2, position_encoding=encoding, **prefix)


def check_padded_batch(num_axes, **overrides):
    """A large epsilon, so that the final normalization does not hide the scale of a mean over too many tokens."""
    model = classifier(num_axes, layer_norm_eps=0.1, **overrides)
    config = model.config
    num_prefix = config.num_prefix_tokens
    grids = [LARGER_GRIDS[num_axes], SMALLER_GRIDS[num_axes]]
    largest = tuple(max(steps) for steps in zip(*grids, strict=True))
    pixel_values = random_input(config, grid_size=largest, seed=1)
    mask = torch.zeros(2, *largest, dtype=torch.long)
    positions = torch.zeros(2, *largest, num_axes)
    alone, samples = [], []
    for index, grid_size in enumerate(grids):
        window = tuple(slice(0, steps) for steps in grid_size)
        sample = random_input(config, batch_size=1, grid_size=grid_size, seed=index)
        pixel_values[index : index + 1][patch_window(config, window)] = sample
        mask[(index, *window)] = 1
        positions[(index, *window)] = default_positions(config, grid_size).reshape(*grid_size, num_axes)
        samples.append(sample)
        alone.append(model(sample, output_hidden_states=True))
    mask, positions = mask.flatten(1), positions.flatten(1, -2)
    arguments = {"positions": positions} if config.position_encoding == "absolute" else {}
    for full_mask in (mask, functional.pad(mask, (num_prefix, 0), value=1).bool()):
        together = model(pixel_values, attention_mask=full_mask, output_hidden_states=True, **arguments)
        for index, expected in enumerate(alone):
            torch.testing.assert_close(together.logits[index], expected.logits[0], rtol=0, atol=1e-5)
            keep = functional.pad(mask[index], (num_prefix, 0), value=1).bool()
            for states, expected_states in zip(together.hidden_states, expected.hidden_states, strict=True):
                torch.testing.assert_close(states[index, keep], expected_states[0], rtol=0, atol=2e-5)


# ----- Outputs, losses, heads -----


@all_pairs("attention, num_axes, encoding", ["eager", "sdpa"], ALL_AXES, ENCODINGS)
def test_a_sample_of_only_padding_is_finite_and_does_not_affect_others(attention, num_axes, encoding):
    model = classifier(num_axes, position_encoding=encoding, pooling="mean", use_cls_token=False)
    model.set_attn_implementation(attention)
    pixel_values = random_input(model.config, batch_size=3).requires_grad_()
    mask = torch.ones(3, math.prod(model.config.grid_size))
    mask[1] = 0
    logits = model(pixel_values, attention_mask=mask).logits
    assert logits.isfinite().all()
    alone = model(pixel_values[[0, 2]]).logits
    torch.testing.assert_close(logits[[0, 2]], alone, rtol=0, atol=1e-5)
    logits.square().sum().backward()
    for gradient in (pixel_values.grad, *(parameter.grad for parameter in model.parameters())):
        assert gradient.isfinite().all()
    assert not pixel_values.grad[1].any()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_sample_of_only_padding_in_half_precision(attention):
    """Its scores are so negative that none is finite in float16 once the mask is added."""
    model = random_model(LiereViTModel, tiny_config(pooling="mean", use_cls_token=False, position_encoding="none"))
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.q_proj.weight.copy_(-30 * layer.attention.k_proj.weight)
    model.set_attn_implementation(attention)
    mask = torch.tensor([[1] * 8, [0] * 8])
    outputs = model.half()(random_input(model.config), attention_mask=mask)
    assert outputs.last_hidden_state.isfinite().all()
    assert outputs.pooler_output.isfinite().all()


@prefixes
def test_pooled_output_is_the_normalized_cls_token_or_mean(prefix):
    model = random_model(LiereViTModel, tiny_config(layer_norm_eps=0.1, **prefix))
    config = model.config
    outputs = model(random_input(config), output_hidden_states=True)
    assert len(outputs.hidden_states) == 3
    last = outputs.hidden_states[-1]
    torch.testing.assert_close(outputs.last_hidden_state, model.layernorm(last), rtol=0, atol=1e-6)
    num_cls = int(config.use_cls_token)
    if config.pooling == "cls":
        pooled = last[:, 0]
    else:
        counted = [*range(num_cls), *range(config.num_prefix_tokens, last.shape[1])]
        pooled = last[:, counted].mean(1)
    torch.testing.assert_close(outputs.pooler_output, model.layernorm(pooled), rtol=0, atol=1e-5)


def test_dense_pooler():
    config = tiny_config(pooler_output_size=7)
    model = random_model(LiereViTModel, config, add_pooling_layer=True)
    outputs = model(random_input(config))
    expected = torch.tanh(outputs.last_hidden_state[:, 0] @ model.pooler.dense.weight.T + model.pooler.dense.bias)
    torch.testing.assert_close(outputs.pooler_output, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("problem_type", "labels", "loss_function"),
    [
        ("single_label_classification", torch.tensor([4, 0]), functional.cross_entropy),
        ("multi_label_classification", torch.tensor([[1.0, 0, 1, 0, 0], [0, 0, 0, 1, 1]]), None),
        ("regression", torch.tensor([[0.1, 2, 3, -4, 5], [5, 4, 3, 2, -1]]), functional.mse_loss),
    ],
)
def test_classification_losses_are_torchs(problem_type, labels, loss_function):
    loss_function = loss_function or functional.binary_cross_entropy_with_logits
    model = classifier(problem_type=problem_type)
    outputs = model(random_input(model.config), labels=labels)
    torch.testing.assert_close(outputs.loss, loss_function(outputs.logits, labels))
    assert model(random_input(model.config)).loss is None


def test_problem_type_follows_labels():
    for labels, num_labels, expected in (
        (torch.tensor([1, 2]), 5, "single_label_classification"),
        (torch.rand(2, 5), 5, "multi_label_classification"),
        (torch.rand(2), 1, "regression"),
    ):
        model = classifier(num_labels=num_labels)
        model(random_input(model.config), labels=labels)
        assert model.config.problem_type == expected


def test_return_dict_false_gives_a_tuple():
    model = classifier()
    pixel_values, labels = random_input(model.config), torch.tensor([0, 1])
    outputs = model(pixel_values, labels=labels)
    loss, logits = model(pixel_values, labels=labels, return_dict=False)
    assert torch.equal(loss, outputs.loss)
    assert torch.equal(logits, outputs.logits)


@settings(deadline=None, max_examples=40)
@given(
    axes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4),
    num_channels=st.integers(1, 3),
)
def test_patches_equal_the_reference_and_are_put_together_again(axes, num_channels):
    grid_size, patch_size = zip(*axes, strict=True)
    size = [steps * patch for steps, patch in axes]
    pixel_values = torch.arange(2 * num_channels * math.prod(size)).reshape(2, num_channels, *size)
    patches = to_patches(pixel_values, patch_size)
    assert patches.shape == (2, *grid_size, math.prod(patch_size) * num_channels)
    for sample, expected in zip(patches, pixel_values, strict=True):
        np.testing.assert_array_equal(sample.flatten(0, -2).numpy(), patch_vectors(expected.numpy(), patch_size))
    assert torch.equal(from_patches(patches, patch_size), pixel_values)


@pytest.mark.parametrize("num_axes", ALL_AXES)
@prefixes
def test_masked_image_modeling_loss_is_the_mean_error_of_masked_pixels(num_axes, prefix):
    config = tiny_config(num_axes, **prefix)
    model = random_model(LiereViTForMaskedImageModeling, config)
    pixel_values = random_input(config)
    num_patches = math.prod(config.grid_size)
    masked = torch.rand(2, num_patches, generator=torch.Generator().manual_seed(0)) < 0.4
    outputs = model(pixel_values, bool_masked_pos=masked)
    assert outputs.reconstruction.shape == pixel_values.shape

    mask = masked.reshape(2, *config.grid_size)
    for axis, patch in enumerate(config.spatial_patch_size, start=1):
        mask = mask.repeat_interleave(patch, dim=axis)
    mask = mask.unsqueeze(2 if num_axes == 3 else 1).expand_as(pixel_values)
    expected = (pixel_values - outputs.reconstruction).abs()[mask].mean()
    torch.testing.assert_close(outputs.loss, expected)
    assert model(pixel_values).loss is None


@pytest.mark.parametrize("num_axes", ALL_AXES)
def test_masked_pixels_are_hidden_from_the_model(num_axes):
    config = tiny_config(num_axes)
    model = random_model(LiereViTForMaskedImageModeling, config)
    pixel_values = random_input(config)
    masked = torch.zeros(2, math.prod(config.grid_size), dtype=torch.bool)
    masked[:, 0] = True
    changed = pixel_values.clone()
    changed[patch_window(config, [slice(0, 1)] * num_axes)] += 1
    hidden = [model(each, bool_masked_pos=masked).reconstruction for each in (pixel_values, changed)]
    torch.testing.assert_close(hidden[0], hidden[1], rtol=0, atol=1e-6)
    assert (model(pixel_values).reconstruction - model(changed).reconstruction).abs().max() > 1e-3


@pytest.mark.parametrize("num_axes", ALL_AXES)
def test_reconstruction_puts_every_decoded_patch_at_its_place(num_axes):
    """A decoder that ignores its input and identifies each pixel by its bias, with a different encoder stride."""
    stride = tuple(range(2, 2 + num_axes))
    config = tiny_config(num_axes, encoder_stride=list(stride))
    model = random_model(LiereViTForMaskedImageModeling, config)
    with torch.no_grad():
        model.decoder.weight.zero_()
        model.decoder.bias.copy_(torch.arange(len(model.decoder.bias)))
    reconstruction = model(random_input(config)).reconstruction
    reconstruction = reconstruction.transpose(1, 2) if num_axes == 3 else reconstruction
    size = [steps * pixels for steps, pixels in zip(config.grid_size, stride, strict=True)]
    assert reconstruction.shape == (2, 3, *size)
    for channel, *place in itertools.product(range(3), *(range(extent) for extent in size)):
        inside = [coordinate % pixels for coordinate, pixels in zip(place, stride, strict=True)]
        expected = np.ravel_multi_index((*inside, channel), (*stride, 3))
        assert reconstruction[(0, channel, *place)] == expected


@all_pairs("num_axes, apply_layernorm, prefix", ALL_AXES, [False, True], PREFIXES)
def test_backbone_feature_maps_are_hidden_states_on_the_grid(num_axes, apply_layernorm, prefix):
    config = tiny_config(num_axes, out_indices=[0, 2], apply_layernorm=apply_layernorm, **prefix)
    backbone = random_model(LiereViTBackbone, config)
    bare = LiereViTModel(config).eval()
    bare.load_state_dict(backbone.state_dict())
    grid_size = LARGER_GRIDS[num_axes]
    pixel_values = random_input(config, grid_size=grid_size)
    outputs = backbone(pixel_values)
    hidden_states = bare(pixel_values, output_hidden_states=True).hidden_states
    assert backbone.channels == [32, 32]
    assert len(outputs.feature_maps) == 2
    for feature_map, states in zip(outputs.feature_maps, (hidden_states[0], hidden_states[2]), strict=True):
        if apply_layernorm:
            states = functional.layer_norm(states, (32,), bare.layernorm.weight, bare.layernorm.bias, 1e-5)
        assert feature_map.shape == (2, 32, *grid_size)
        patches = states[:, config.num_prefix_tokens :]
        for token, place in enumerate(np.ndindex(*grid_size)):
            torch.testing.assert_close(
                feature_map[(slice(None), slice(None), *place)], patches[:, token], rtol=0, atol=1e-5
            )


def test_backbone_without_reshaping_gives_tokens():
    config = tiny_config(out_features=["stage1"], reshape_hidden_states=False, num_register_tokens=2)
    backbone = random_model(LiereViTBackbone, config)
    outputs = backbone(random_input(config), output_hidden_states=True)
    assert len(outputs.hidden_states) == 3
    expected = backbone.layernorm(outputs.hidden_states[1])[:, 3:]
    torch.testing.assert_close(outputs.feature_maps[0], expected, rtol=0, atol=1e-6)
    assert backbone(random_input(config)).hidden_states is None


@prefixes
def test_backbone_keeps_the_cls_token_in_front_of_patches(prefix):
    config = tiny_config(out_indices=[0, 2], reshape_hidden_states=False, keep_cls_token=True, **prefix)
    backbone = random_model(LiereViTBackbone, config)
    outputs = backbone(random_input(config), output_hidden_states=True)
    for feature_map, states in zip(outputs.feature_maps, outputs.hidden_states[::2], strict=True):
        states = backbone.layernorm(states)
        kept = [states[:, index] for index in range(states.shape[1]) if index >= config.num_prefix_tokens]
        if config.use_cls_token:
            kept.insert(0, states[:, 0])
        torch.testing.assert_close(feature_map, torch.stack(kept, dim=1), rtol=0, atol=1e-6)


def test_video_classifier_is_the_image_classifier_in_three_axes():
    config = tiny_config(3)
    model = classifier(3)
    video = LiereViTForVideoClassification(config).eval()
    video.load_state_dict(model.state_dict())
    pixel_values = random_input(config)
    assert torch.equal(video(pixel_values).logits, model(pixel_values).logits)


# ----- Another default device -----


@pytest.fixture
def meta_by_default():
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@all_pairs("attention, num_axes, encoding", ["eager", "sdpa"], ALL_AXES, ENCODINGS)
def test_tensors_are_on_the_device_of_the_input(num_axes, encoding, attention, request):
    """A tensor created without a device would be on `meta`, and could not be combined with other tensors."""
    model = random_model(
        LiereViTForMaskedImageModeling,
        tiny_config(
            num_axes,
            position_encoding=encoding,
            use_absolute_position_embeddings=True,
            position_embedding_interpolation=("linear", "antialiased_cubic", "cubic")[num_axes - 1],
            num_register_tokens=1,
            prefix_attention_bias=0.5,
            drop_path_rate=0.2,
            pooling="mean",
        ),
    )
    model.set_attn_implementation(attention)
    inputs = []
    for grid_size in (model.config.grid_size, LARGER_GRIDS[num_axes]):
        mask = torch.ones(2, math.prod(grid_size))
        mask[1, 1] = 0
        pixel_values = random_input(model.config, grid_size=grid_size)
        positions = grid_positions(grid_size, model.config.grid_size)[None].expand(2, -1, -1)
        inputs.append({"pixel_values": pixel_values})
        inputs.append({"pixel_values": pixel_values, "positions": positions, "attention_mask": mask})
        inputs[-1]["bool_masked_pos"] = 1 - mask
    expected = [model(**each).reconstruction for each in inputs]
    request.getfixturevalue("meta_by_default")
    for each, reconstruction in zip(inputs, expected, strict=True):
        torch.testing.assert_close(model.eval()(**each).reconstruction, reconstruction, rtol=0, atol=1e-5)
        model.train()(**each).reconstruction.sum().backward()
    assert {parameter.grad.device.type for parameter in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.usefixtures("meta_by_default")
def test_a_model_is_built_on_the_default_device(encoding, tmp_path):
    model = LiereViTForImageClassification(tiny_config(position_encoding=encoding, layer_scale_init_value=0.1))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    logits = model(torch.empty(2, 3, 8, 12)).logits
    assert (logits.device.type, logits.shape) == ("meta", (2, 5))


# ----- Bad input -----


@pytest.mark.parametrize(
    ("num_axes", "shape", "message"),
    [
        (2, (3, 8, 12), r"has shape \(3, 8, 12\), .* takes \(batch, channels, height, width\)"),
        (
            2,
            (2, 3, 4, 8, 12),
            r"has shape \(2, 3, 4, 8, 12\), .* takes \(batch, channels, height, width\)",
        ),
        (1, (2, 3, 8, 12), r"has shape \(2, 3, 8, 12\), .* takes \(batch, channels, length\)"),
        (
            3,
            (2, 3, 8, 12),
            r"has shape \(2, 3, 8, 12\), .* takes \(batch, frames, channels, height, width\)",
        ),
        (2, (2, 4, 8, 12), "has 4 channels .* num_channels is 3"),
        (
            3,
            (2, 3, 4, 6, 8),
            r"has 4 channels .* read as \(batch, frames, channels, .* num_channels is 3",
        ),
        (
            2,
            (2, 3, 8, 13),
            r"has size \(8, 13\), each must be a positive multiple of patch_size \(4, 3\)",
        ),
        (
            2,
            (2, 3, 0, 12),
            r"has size \(0, 12\), each must be a positive multiple of patch_size \(4, 3\)",
        ),
        (3, (2, 5, 3, 6, 8), r"has size \(5, 6, 8\), .* multiple of patch_size \(2, 3, 2\)"),
        (1, (2, 3, 21), r"has size \(21,\), each must be a positive multiple of patch_size \(4,\)"),
    ],
)
@pytest.mark.parametrize(
    "model_class", [LiereViTForImageClassification, LiereViTForMaskedImageModeling, LiereViTBackbone]
)
def test_pixel_values_that_do_not_fit(num_axes, shape, message, model_class):
    with pytest.raises(ValueError, match=f"pixel_values {message}"):
        model_class(tiny_config(num_axes))(torch.zeros(shape))


@pytest.mark.parametrize(
    "model_class", [LiereViTModel, LiereViTForImageClassification, LiereViTForMaskedImageModeling, LiereViTBackbone]
)
def test_missing_pixel_values(model_class):
    with pytest.raises(ValueError, match="pixel_values is None, the model needs an input"):
        model_class(tiny_config())(None)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("shape", [(8, 2), (2, 7, 2), (2, 9, 2), (3, 8, 2), (2, 8, 1), (2, 8, 3), (1, 2, 4, 2)])
def test_positions_that_do_not_fit(encoding, shape):
    model = classifier(position_encoding=encoding)
    message = r"positions has shape .*, expected \(1 or batch, patches, axes\) = \(1 or 2, 8, 2\)"
    with pytest.raises(ValueError, match=message):
        model(random_input(model.config), positions=torch.zeros(shape))


@pytest.mark.parametrize("shape", [(8,), (2, 7), (2, 10), (1, 8), (3, 8), (2, 8, 1), (2, 1, 8, 8)])
def test_attention_masks_that_do_not_fit(shape):
    model = classifier()
    message = r"attention_mask has shape .*, expected \(batch, patches\) = \(2, 8\) or .* = \(2, 9\)"
    with pytest.raises(ValueError, match=message):
        model(random_input(model.config), attention_mask=torch.ones(shape))


def test_masked_patches_without_a_mask_token():
    model = random_model(LiereViTModel, tiny_config())
    masked = torch.zeros(2, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"bool_masked_pos is given, but .* no mask token: .* use_mask_token"):
        model(random_input(model.config), bool_masked_pos=masked)


@pytest.mark.parametrize("shape", [(2, 7), (1, 8), (2, 9)])
def test_masked_patches_that_do_not_fit(shape):
    model = random_model(LiereViTForMaskedImageModeling, tiny_config())
    with pytest.raises(ValueError, match=r"bool_masked_pos has shape .*, expected \(batch, patches\) = \(2, 8\)"):
        model(random_input(model.config), bool_masked_pos=torch.zeros(shape))


def test_masked_patches_with_another_encoder_stride():
    model = random_model(LiereViTForMaskedImageModeling, tiny_config(encoder_stride=2))
    message = r"encoder_stride is \(2, 2\), which must equal patch_size \(4, 3\)"
    with pytest.raises(ValueError, match=message):
        model(random_input(model.config), bool_masked_pos=torch.zeros(2, 8))


@pytest.mark.parametrize("num_axes", [1, 2])
def test_video_classifier_with_too_few_axes(num_axes):
    with pytest.raises(ValueError, match=r"patch_size is \[.*\], a video model needs three values"):
        LiereViTForVideoClassification(tiny_config(num_axes))


def test_a_configuration_made_invalid_after_its_creation():
    config = tiny_config()
    config.position_encoding = "fourier"
    with pytest.raises(ValueError, match="position_encoding is 'fourier', allowed are absolute"):
        LiereViTModel(config)
