"""Rotations against SciPy's exponential, explicit block-diagonal matrices, and the theory of relative positions."""

import numpy as np
import pytest
import scipy.linalg
import torch
from factory import (
    BLOCK_SIZES,
    ENCODINGS,
    ROTARY_ENCODINGS,
    normal,
    tiny_config,
    uniform_generators,
    uniform_positions,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from selection import mostly_extensive

from liere_hf import LiereViTModel, grid_positions
from liere_hf.modeling.modeling_liere_vit import LiereViTRotations
from liere_hf.modeling.position_encodings import POSITION_ENCODINGS, axial_generators
from liere_hf.modeling.rotary_application import apply_rotations
from liere_hf.modeling.rotations import liere_rotations, rotations_by_layer

seeds = st.integers(0, 2**31)


def full_rotation(generators, layer, head, position):
    """R(p) of a whole head, (head_dim, head_dim): SciPy's exponential of the block-diagonal sum of p_i A_i."""
    exponent = 0
    for axis, coordinate in enumerate(position.tolist()):
        upper = [np.triu(block, k=1) for block in generators[layer, axis, head].numpy()]
        exponent = exponent + coordinate * scipy.linalg.block_diag(*(raw - raw.T for raw in upper))
    return scipy.linalg.expm(exponent)


def scores(generators, queries, keys, query_positions, key_positions):
    """(tokens,) attention scores of one head: q_i^T R(p_i)^T R(p'_i) k_i."""
    rotated = [
        apply_rotations(states[None, :, None], liere_rotations(positions[None], generators)[0])[0, :, 0]
        for states, positions in ((queries, query_positions), (keys, key_positions))
    ]
    return (rotated[0] * rotated[1]).sum(-1)


@settings(deadline=None, max_examples=40)
@given(
    size=st.sampled_from(BLOCK_SIZES),
    num_axes=st.integers(1, 4),
    num_heads=st.integers(1, 2),
    num_layers=st.integers(1, 2),
    batch_size=st.integers(1, 2),
    seed=seeds,
)
def test_liere_rotations_equal_scipy_exponential(size, num_axes, num_heads, num_layers, batch_size, seed):
    num_blocks, num_tokens = 2, 2
    generators = uniform_generators(num_layers, num_axes, num_heads, num_blocks, size, seed)
    positions = uniform_positions(batch_size, num_tokens, num_axes, seed=seed)
    rotations = liere_rotations(positions, generators)
    assert rotations.shape == (num_layers, batch_size, num_tokens, num_heads, num_blocks, size, size)
    assert rotations.dtype == torch.float64
    for layer, batch, token, head in np.ndindex(num_layers, batch_size, num_tokens, num_heads):
        expected = full_rotation(generators, layer, head, positions[batch, token])
        actual = scipy.linalg.block_diag(*rotations[layer, batch, token, head].numpy())
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10)
        np.testing.assert_allclose(actual.T @ actual, np.eye(len(actual)), atol=1e-10)
        np.testing.assert_allclose(np.linalg.det(actual), 1, atol=1e-10)


@settings(deadline=None, max_examples=20)
@given(num_axes=st.integers(1, 3), seed=seeds)
def test_width_two_is_rope_mixed(num_axes, seed):
    """With blocks of width 2 the angle is the scalar product of position and frequencies (RoPE-Mixed)."""
    generators = uniform_generators(1, num_axes, 1, 3, 2, seed)
    positions = uniform_positions(1, 5, num_axes, seed=seed)
    angle = positions[0].numpy() @ generators[0, :, 0, :, 0, 1].numpy()
    expected = np.stack([np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)], -1).reshape(5, 3, 2, 2)
    np.testing.assert_allclose(liere_rotations(positions, generators)[0, 0, :, 0].numpy(), expected, atol=1e-12)


def test_only_the_strict_upper_triangle_of_generators_counts():
    generators = uniform_generators(1, 2, 1, 2, 4)
    positions = uniform_positions(1, 3, 2)
    disturbed = generators + uniform_generators(1, 2, 1, 2, 4, seed=1).tril()
    assert torch.equal(liere_rotations(positions, generators), liere_rotations(positions, disturbed))


@settings(deadline=None, max_examples=20)
@given(size=st.sampled_from(BLOCK_SIZES), num_axes=st.integers(1, 3), shift=st.floats(-3, 3), seed=seeds)
def test_scores_along_a_straight_line_depend_on_the_distance_only(size, num_axes, shift, seed):
    generators = uniform_generators(1, num_axes, 1, 64 // size, size, seed)
    queries, keys = normal(4, 64, seed=seed), normal(4, 64, seed=seed + 1)
    direction = uniform_positions(num_axes, seed=seed)
    query_steps, key_steps = uniform_positions(4, 1, seed=seed + 2), uniform_positions(4, 1, seed=seed + 3)
    here = scores(generators, queries, keys, query_steps * direction, key_steps * direction)
    there = scores(generators, queries, keys, (query_steps + shift) * direction, (key_steps + shift) * direction)
    assert (here - (queries * keys).sum(-1)).abs().max() > 1e-3
    torch.testing.assert_close(here, there, rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(size=st.sampled_from(BLOCK_SIZES), num_axes=st.integers(2, 3), seed=seeds)
def test_scores_of_commuting_generators_depend_on_the_offset_only(size, num_axes, seed):
    """The generators of all axes are multiples of each other, with different factors in every block."""
    basis = uniform_generators(1, 1, 1, 64 // size, size, seed)
    generators = basis * uniform_positions(1, num_axes, 1, 64 // size, 1, 1, seed=seed + 1)
    queries, keys = normal(4, 64, seed=seed), normal(4, 64, seed=seed + 1)
    query_positions, key_positions = (uniform_positions(4, num_axes, seed=seed + offset) for offset in (2, 3))
    shift = uniform_positions(num_axes, seed=seed + 4)
    here = scores(generators, queries, keys, query_positions, key_positions)
    there = scores(generators, queries, keys, query_positions + shift, key_positions + shift)
    torch.testing.assert_close(here, there, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [4, 8, 64])
def test_scores_of_generators_that_do_not_commute_depend_on_absolute_positions(size):
    """The opposite of the property above: LieRE in 2D is not a purely relative encoding."""
    generators = uniform_generators(1, 2, 1, 64 // size, size)
    queries, keys = normal(4, 64), normal(4, 64, seed=1)
    query_positions, key_positions = uniform_positions(4, 2, seed=2), uniform_positions(4, 2, seed=3)
    here = scores(generators, queries, keys, query_positions, key_positions)
    there = scores(generators, queries, keys, query_positions + 0.5, key_positions + 0.5)
    assert (here - there).abs().max() > 0.1


@pytest.mark.parametrize(("head_dim", "num_axes"), [(64, 1), (64, 2), (64, 3), (16, 3), (6, 3), (10, 2)])
def test_axial_generators_are_the_published_frequencies(head_dim, num_axes):
    """exp(-4 linspace(0, 1)), axis after axis, [[0, -1], [1, 0]] times the angle; the rest is not rotated."""
    config = tiny_config(num_axes, position_encoding="visionllama", head_dim=head_dim)
    generators = axial_generators(config, {}, torch.device("cpu")).double()
    assert generators.shape == (1, num_axes, 1, head_dim // 2, 2, 2)
    count = head_dim // (2 * num_axes)
    position = np.linspace(0.3, 2.1, num_axes)
    angles = np.zeros(head_dim // 2)
    for axis in range(num_axes):
        for index in range(count):
            fraction = index / (count - 1) if count > 1 else 0
            angles[axis * count + index] = position[axis] * np.exp(-4 * fraction)
    blocks = [np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) for angle in angles]
    rotations = liere_rotations(torch.from_numpy(position)[None, None], generators)
    np.testing.assert_allclose(
        scipy.linalg.block_diag(*rotations[0, 0, 0, 0].numpy()), scipy.linalg.block_diag(*blocks), atol=3e-7
    )


@pytest.mark.parametrize(
    ("size", "batch_size"),
    mostly_extensive([(2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2)], [(2, 1), (2, 2), (4, 1)]),
)
def test_gradients_of_liere_rotations(size, batch_size):
    generators = uniform_generators(1, 2, 2, 1, size).requires_grad_()
    positions = uniform_positions(batch_size, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(liere_rotations, (positions, generators))


@pytest.mark.parametrize("encoding", ROTARY_ENCODINGS)
@pytest.mark.parametrize(("use_cls_token", "registers"), [(True, 0), (True, 3), (False, 2), (False, 0)])
def test_prefix_tokens_have_the_identity_and_patches_their_rotation(encoding, use_cls_token, registers):
    config = tiny_config(
        position_encoding=encoding, use_cls_token=use_cls_token, num_register_tokens=registers, pooling="mean"
    )
    module = LiereViTRotations(config)
    for parameter in module.parameters():
        torch.nn.init.uniform_(parameter, 0, 2 * np.pi)
    positions = 0.5 + torch.rand(2, 8, 2)
    rotations = module(positions, torch.float32)
    num_prefix = use_cls_token + registers
    assert len(rotations) == config.num_hidden_layers
    entry = POSITION_ENCODINGS[encoding]
    generators = entry.generators(config, dict(module.named_parameters()), positions.device).detach()
    for layer, rotation in enumerate(rotations):
        assert rotation.shape[:2] == (2, num_prefix + 8)
        prefix = rotation[:, :num_prefix]
        assert torch.equal(prefix, torch.eye(prefix.shape[-1]).expand_as(prefix))
        layer = min(layer, len(generators) - 1)
        for batch, token, head in np.ndindex(2, 8, rotation.shape[2]):
            expected = full_rotation(generators.double(), layer, head, positions[batch, token].double())
            actual = scipy.linalg.block_diag(*rotation[batch, num_prefix + token, head].detach().numpy())
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("share_layers", [False, True])
@pytest.mark.parametrize("share_heads", [False, True])
def test_generators_have_one_basis_per_layer_and_head_unless_shared(encoding, share_layers, share_heads):
    config = tiny_config(
        num_axes=3,
        num_hidden_layers=3,
        position_encoding=encoding,
        share_generators_across_layers=share_layers,
        share_generators_across_heads=share_heads,
    )
    parameters = dict(LiereViTModel(config).named_parameters())
    if encoding not in ("liere", "rope_mixed"):
        assert "rotations.generators" not in parameters
        return
    size = 8 if encoding == "liere" else 2
    expected = (1 if share_layers else 3, 3, 1 if share_heads else 2, 16 // size, size, size)
    assert parameters["rotations.generators"].shape == expected


@settings(deadline=None, max_examples=15)
@given(
    size=st.sampled_from([6, 8, 16]),
    grid=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    origin=st.booleans(),
    seed=seeds,
)
def test_points_that_are_multiples_of_others_get_their_own_rotation(size, grid, origin, seed):
    """On a grid most points are multiples: rotations and gradients against torch's exponential of each point."""
    axes = [torch.arange(steps, dtype=torch.float64) / 3 + (0 if origin else 0.1) for steps in grid]
    positions = torch.cartesian_prod(*axes).view(1, -1, len(grid))
    positions = torch.cat((positions, positions[:, -2:]), dim=1)  # some of them twice
    generators = uniform_generators(1, len(grid), 1, 2, size, seed).requires_grad_()
    weights = normal(1, *positions.shape[:2], 1, 2, size, size, seed=seed)
    results = []
    for function in (liere_rotations, published_rotations):
        generators.grad = None
        rotations = function(positions, generators)
        (rotations * weights).sum().backward()
        results.append((rotations.detach(), generators.grad))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-10)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-9, atol=1e-9)


def published_rotations(positions, generators):
    upper = generators.triu(1)
    exponents = torch.einsum("bta,lahnij->lbthnij", positions, upper - upper.mT)
    return torch.linalg.matrix_exp(exponents.contiguous())


@pytest.mark.parametrize("size", [8, 16, 64])
@pytest.mark.parametrize("grid_size", [(8, 8), (5, 14), (3, 4, 4)])
def test_float32_rotations_of_a_grid_are_accurate(size, grid_size):
    """Initial generators have norms up to 250, and coordinates such as 1/3 are rounded in float32."""
    positions = grid_positions(grid_size, grid_size)[None]
    generators = uniform_generators(1, len(grid_size), 1, 1, size)
    rotations = liere_rotations(positions, generators.float())
    assert rotations.dtype == torch.float32
    exact = published_rotations(positions.double(), generators.float().double())
    torch.testing.assert_close(rotations.double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [8, 16, 64])
@pytest.mark.parametrize("grid_size", [(8, 8), (5, 14), (3, 4, 4)])
def test_float32_gradients_of_a_grid_are_accurate(size, grid_size):
    """To 1e-4 of the largest entry at norms up to 250. Exponentials for gradients take fewer squarings."""
    positions = grid_positions(grid_size, grid_size)[None]
    generators = uniform_generators(1, len(grid_size), 1, 1, size).float()
    weights = normal(1, 1, positions.shape[1], 1, 1, size, size)
    gradients = []
    for function, dtype in ((liere_rotations, torch.float32), (published_rotations, torch.float64)):
        leaf = generators.detach().to(dtype, copy=True).requires_grad_()
        function(positions.to(dtype), leaf).backward(weights.to(dtype))
        gradients.append(leaf.grad.double())
    assert (gradients[0] - gradients[1]).abs().max() < 1e-4 * gradients[1].abs().max()


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("rest", [0.01, 0.001, 0])
def test_large_generators_that_cancel_each_other(size, rest):
    """On the diagonal of the grid the sum of large terms nearly vanishes, and so does its square."""
    positions = grid_positions((8, 8), (8, 8))[None]
    generators = uniform_generators(1, 2, 1, 1, size, seed=1).float()
    generators[:, 1] = rest * generators[:, 0] - generators[:, 0]
    exact = published_rotations(positions.double(), generators.double())
    torch.testing.assert_close(liere_rotations(positions, generators).double(), exact, rtol=0, atol=1e-5)


def test_gradients_where_some_layers_are_not_used():
    """As in a model with an early exit: the gradients of unused layers are 0, and the others do not change."""
    generators, positions = uniform_generators(3, 2, 1, 2, 8), grid_positions((3, 4), (3, 4)).double()[None]
    weights = normal(12, 1, 2, 8, 8)
    gradients = []
    for layers in ([0, 1, 2], [1]):
        leaf = generators.clone().requires_grad_()
        rotations = rotations_by_layer(positions, leaf)
        sum((rotations[layer] * weights).sum() for layer in layers).backward()
        gradients.append(leaf.grad)
    assert (gradients[0].abs().amax((1, 2, 3, 4, 5)) > 1e-3).all()
    assert torch.equal(gradients[0][1], gradients[1][1])
    assert not gradients[1][[0, 2]].any()


def test_training_keeps_only_the_generators():
    """In addition to the rotations themselves. Exponents and their powers are not saved for the backward pass."""
    positions = grid_positions((6, 6), (6, 6))[None]
    generators = uniform_generators(2, 2, 1, 1, 16).float().requires_grad_()
    stored = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: stored.append(tensor.nbytes) or tensor, lambda t: t):
        rotations = liere_rotations(positions, generators)
    assert sum(stored) < rotations.nbytes / 4
    rotations.sum().backward()
