"""The exponential against SciPy's, closed forms and the properties of a rotation."""

import numpy as np
import pytest
import scipy.linalg
import torch
from factory import BLOCK_SIZES, random_skew
from hypothesis import given, settings
from hypothesis import strategies as st

from liere_hf import skew_matrix_exp

matrices = {"size": st.sampled_from(BLOCK_SIZES), "scale": st.floats(0, 30), "seed": st.integers(0, 2**31)}


@settings(deadline=None, max_examples=30)
@given(**matrices)
def test_equals_scipy_in_float64(size, scale, seed):
    skew = random_skew(3, size, size, scale=scale, seed=seed)
    expected = scipy.linalg.expm(skew.numpy())
    np.testing.assert_allclose(skew_matrix_exp(skew).numpy(), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_float32_is_near_scipy_for_initial_generators(size):
    raw = 2 * np.pi * torch.rand(20, size, size, generator=torch.Generator().manual_seed(0))
    skew = raw.triu(1) - raw.triu(1).mT
    expected = scipy.linalg.expm(skew.double().numpy())
    rotation = skew_matrix_exp(skew)
    assert rotation.dtype == torch.float32
    np.testing.assert_allclose(rotation.numpy(), expected, rtol=0, atol=5e-5)


@settings(deadline=None, max_examples=30)
@given(**matrices)
def test_is_orthogonal_with_determinant_one(size, scale, seed):
    rotation = skew_matrix_exp(random_skew(3, size, size, scale=scale, seed=seed)).numpy()
    np.testing.assert_allclose(rotation @ rotation.swapaxes(-1, -2), np.eye(size)[None].repeat(3, 0), atol=1e-11)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-11)


@settings(deadline=None, max_examples=20)
@given(angle=st.floats(-1e3, 1e3))
def test_size_two_is_the_plane_rotation(angle):
    """exp([[0, a], [-a, 0]]) = [[cos a, sin a], [-sin a, cos a]]."""
    skew = torch.tensor([[0.0, angle], [-angle, 0.0]], dtype=torch.float64)
    expected = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    np.testing.assert_allclose(skew_matrix_exp(skew).numpy(), expected, atol=1e-12)


def test_size_three_is_rodrigues_formula():
    axis, angle = np.array([2.0, -1.0, 2.0]) / 3, 1.7
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    expected = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    np.testing.assert_allclose(skew_matrix_exp(torch.from_numpy(angle * cross)).numpy(), expected, atol=1e-14)


@pytest.mark.parametrize("size", BLOCK_SIZES)
@pytest.mark.parametrize("batch_shape", [(), (1,), (2, 1, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_shape_and_dtype_and_maps_zero_to_the_identity(size, batch_shape, dtype):
    rotation = skew_matrix_exp(torch.zeros(*batch_shape, size, size, dtype=dtype))
    assert rotation.shape == (*batch_shape, size, size)
    assert rotation.dtype == dtype
    assert torch.equal(rotation, torch.eye(size, dtype=dtype).expand_as(rotation))


@pytest.mark.parametrize("size", [2, 4, 8])
def test_gradients(size):
    """First and second derivatives along skew-symmetric directions, numerically."""
    upper = random_skew(2, size, size, seed=1).triu(1).requires_grad_()

    def rotation(raw):
        return skew_matrix_exp(raw.triu(1) - raw.triu(1).mT)

    assert torch.autograd.gradcheck(rotation, upper)
    if size < 8:
        assert torch.autograd.gradgradcheck(rotation, upper)


@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_derivative_equals_scipy_frechet_derivative(size):
    skew, direction = random_skew(size, size, seed=2), random_skew(size, size, seed=3)
    weights = random_skew(size, size, seed=4) + torch.eye(size)
    skew.requires_grad_()
    (weights * skew_matrix_exp(skew)).sum().backward()
    frechet = scipy.linalg.expm_frechet(skew.detach().numpy(), direction.numpy(), compute_expm=False)
    np.testing.assert_allclose((skew.grad * direction).sum().item(), (weights.numpy() * frechet).sum(), rtol=1e-9)
