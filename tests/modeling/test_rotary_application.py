"""Rotated queries and keys, against explicit block-diagonal matrices in float64."""

import numpy as np
import pytest
import scipy.linalg
import torch
from factory import BLOCK_SIZES, normal, uniform_generators, uniform_positions
from hypothesis import given, settings
from hypothesis import strategies as st
from selection import mostly_extensive

from liere_hf.modeling.rotary_application import apply_plane_rotations, apply_rotations, rotate_queries_and_keys
from liere_hf.modeling.rotations import liere_rotations

seeds = st.integers(0, 2**31)


def rotations_of(*, batch=1, tokens=3, heads=2, blocks=2, size=8, seed=0):
    positions = uniform_positions(batch, tokens, 2, seed=seed)
    return liere_rotations(positions, uniform_generators(1, 2, heads, blocks, size, seed))[0]


@settings(deadline=None, max_examples=60)
@given(
    size=st.sampled_from(BLOCK_SIZES),
    share_heads=st.booleans(),
    share_batch=st.booleans(),
    batch_size=st.integers(1, 3),
    num_heads=st.integers(1, 3),
    num_tokens=st.integers(1, 4),
    seed=seeds,
)
def test_apply_rotations_multiplies_by_the_block_diagonal_matrix(
    size, share_heads, share_batch, batch_size, num_heads, num_tokens, seed
):
    shape = (1 if share_batch else batch_size, num_tokens, 1 if share_heads else num_heads, 64 // size, size, size)
    rotations = normal(*shape, seed=seed)
    states = normal(batch_size, num_tokens, num_heads, 64, seed=seed + 1)
    rotated = apply_rotations(states, rotations)
    assert rotated.shape == states.shape
    full = rotations.expand(batch_size, num_tokens, num_heads, *shape[3:]).numpy()
    for index in np.ndindex(batch_size, num_tokens, num_heads):
        expected = scipy.linalg.block_diag(*full[index]) @ states[index].numpy()
        np.testing.assert_allclose(rotated[index].numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [2, 8])
def test_apply_rotations_keeps_the_dtype_of_states_and_lengths(dtype, size):
    states = normal(2, 3, 2, 16).to(dtype)
    rotations = liere_rotations(uniform_positions(1, 3, 2), uniform_generators(1, 2, 2, 16 // size, size))[0]
    rotated = apply_rotations(states, rotations)
    assert rotated.dtype == dtype
    torch.testing.assert_close(
        rotated.double().norm(dim=-1), states.double().norm(dim=-1), rtol=4 * torch.finfo(dtype).eps, atol=0
    )


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_gradients_of_apply_rotations(size, batch, heads):
    states = normal(2, 2, 3, 8).requires_grad_()
    rotations = normal(batch, 2, heads, 8 // size, size, size, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(apply_rotations, (states, rotations))


@settings(deadline=None, max_examples=80)
@given(
    size=st.sampled_from([4, 6, 8, 16, 64]),
    num_blocks=st.integers(1, 6),
    rotation_heads=st.sampled_from([1, 3]),
    batch_size=st.sampled_from([1, 2, 7, 8, 9]),
    num_tokens=st.integers(1, 7),
    layout=st.sampled_from(["by token", "by head", "sliced", "expanded"]),
    seed=seeds,
)
def test_rotated_queries_and_keys_and_all_gradients(
    size, num_blocks, rotation_heads, batch_size, num_tokens, layout, seed
):
    """Against autograd through einsum: merged and single blocks, any strides."""
    shape = {"tokens": num_tokens, "heads": rotation_heads, "blocks": num_blocks, "size": size}
    rotations = rotations_of(**shape, seed=seed).requires_grad_()
    head_dim = num_blocks * size

    def laid_out(vectors):
        if layout == "by head":
            return vectors.transpose(1, 2).contiguous().transpose(1, 2)
        if layout == "sliced":
            return torch.cat((vectors, vectors), dim=-1)[..., :head_dim]
        return vectors[:, :, :1].expand_as(vectors) if layout == "expanded" else vectors

    vectors = normal(4, batch_size, num_tokens, 3, head_dim, seed=seed + 1)
    query, key = (laid_out(each).requires_grad_() for each in vectors[:2])
    inputs, weights = (query, key, rotations), tuple(laid_out(each) for each in vectors[2:])
    actual = rotate_queries_and_keys(*inputs)
    actual_grads = torch.autograd.grad(actual, inputs, weights)
    expected = tuple(apply_rotations(each, rotations) for each in (query, key))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    expected_grads = torch.autograd.grad(expected, inputs, weights)
    torch.testing.assert_close(actual_grads, expected_grads, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [2, 8, 64])
def test_frozen_rotations_and_an_unused_result(size):
    """No gradient of the rotations is needed, and none arrives for the keys."""
    rotations = rotations_of(size=size)
    query, key = (each.requires_grad_() for each in normal(2, 9, 3, 2, 2 * size).unbind())
    weights = normal(*query.shape, seed=2)
    rotated, _ = rotate_queries_and_keys(query, key, rotations)
    rotated.backward(weights)
    torch.testing.assert_close(query.grad, apply_rotations(weights, rotations.mT), rtol=0, atol=1e-12)
    assert key.grad is None or not key.grad.any()


@pytest.mark.parametrize(("size", "heads"), mostly_extensive([(2, 1), (4, 3), (8, 1)], [(2, 1)]))
def test_second_derivatives(size, heads):
    """Within the rotation group: with respect to the exponents of the rotations."""
    raw = normal(heads, 8 // size, size, size, seed=1).requires_grad_()
    query, key = (each.requires_grad_() for each in normal(2, 2, 1, 3, 8).unbind())

    def rotated(query, key, raw):
        return rotate_queries_and_keys(query, key, torch.linalg.matrix_exp(raw - raw.mT)[None, None])

    inputs = query, key, raw
    assert torch.autograd.gradcheck(rotated, inputs)
    assert torch.autograd.gradgradcheck(rotated, inputs)
    weights = normal(2, *query.shape, seed=2).unbind()
    first, again = (
        torch.autograd.grad(rotated(*inputs), inputs, weights, create_graph=graph) for graph in (False, True)
    )
    torch.testing.assert_close(again, first, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (1, 3), (2, 3)])
def test_plane_rotations_equal_matrix_products(dtype, batch, heads):
    rotations = liere_rotations(uniform_positions(batch, 5, 2), uniform_generators(1, 2, heads, 8, 2))[0]
    states = normal(2, 5, 3, 16).to(dtype).requires_grad_()
    rotated = apply_plane_rotations(states, rotations)
    assert rotated.dtype == dtype
    tolerance = 8 * torch.finfo(dtype).eps
    expected = apply_rotations(states.detach().double(), rotations)
    torch.testing.assert_close(rotated.double(), expected, rtol=tolerance, atol=tolerance)
    rotated.backward(rotated.detach())
    # The transpose of a rotation is its inverse.
    torch.testing.assert_close(states.grad, states.detach(), rtol=2 * tolerance, atol=2 * tolerance)


def test_plane_rotations_in_a_graph_equal_eager():
    torch.compiler.reset()
    rotations = liere_rotations(uniform_positions(1, 5, 2), uniform_generators(1, 2, 3, 8, 2))[0]
    states = normal(2, 5, 3, 16)
    compiled = torch.compile(apply_plane_rotations, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(states, rotations), apply_plane_rotations(states, rotations))
