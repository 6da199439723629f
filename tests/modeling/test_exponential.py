"""The exponential against SciPy's, closed forms and the properties of a rotation."""

import json
from pathlib import Path

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from factory import BLOCK_SIZES, random_skew
from hypothesis import given, settings
from hypothesis import strategies as st
from selection import mostly_extensive

from liere_hf import skew_matrix_exp
from liere_hf.benchmark.exponential import ERROR_WIDTHS, largest_errors
from liere_hf.modeling import exponential
from liere_hf.modeling.exponential import choose_scaling, traceable_exponential
from liere_hf.modeling.polynomial import FLOAT32, FLOAT32_FOR_GRADIENT, FLOAT32_VIA_FLOAT64, FLOAT64

ROOT = Path(__file__).parents[2]

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


def of_norm_250(structure, size, num_matrices=20):
    """Float32 matrices of spectral norm 250 whose entries and eigenvalues are spread very differently."""
    raw = random_skew(num_matrices, size, size, seed=5)
    if structure == "initial generators":
        upper = torch.rand(raw.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6)).triu(1)
        raw = upper - upper.mT
    elif structure == "one plane":
        raw = torch.zeros_like(raw)
        raw[:, 0, -1], raw[:, -1, 0] = 1, -1
    elif structure == "planes":
        raw = raw * torch.eye(size // 2, dtype=raw.dtype).repeat_interleave(2, 0).repeat_interleave(2, 1)
    return (raw * (250 / torch.linalg.matrix_norm(raw, 2))[:, None, None]).float()


@pytest.mark.parametrize("size", [2, 4, 6, 8, 16, 32, 64])
@pytest.mark.parametrize("structure", ["dense", "initial generators", "one plane", "planes"])
@pytest.mark.parametrize("function", [skew_matrix_exp, traceable_exponential])
def test_float32_is_accurate_up_to_norm_250(function, structure, size):
    skew = of_norm_250(structure, size)
    rotation = function(skew).double().numpy()
    expected = scipy.linalg.expm(skew.double().numpy())
    np.testing.assert_allclose(rotation, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(rotation @ rotation.swapaxes(-1, -2), np.eye(size)[None].repeat(20, 0), atol=1e-5)


@pytest.mark.parametrize("size", [2, 4, 6, 8, 16, 32, 64])
@pytest.mark.parametrize("function", [skew_matrix_exp, traceable_exponential])
def test_float32_gradient_is_accurate_up_to_norm_250(function, size):
    skew = of_norm_250("initial generators", size, num_matrices=3).requires_grad_()
    weights = random_skew(3, size, size, seed=7) + torch.eye(size)
    (function(skew) * weights.float()).sum().backward()
    exact = skew.detach().double().requires_grad_()
    (torch.linalg.matrix_exp(exact) * weights.float()).sum().backward()
    actual, expected = ((grad - grad.mT).double() for grad in (skew.grad, exact.grad))
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("size", mostly_extensive([6, 8], [6]))
def test_second_derivatives_of_scaling_and_squaring(size):
    upper = random_skew(2, size, size, seed=1).triu(1).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda raw: skew_matrix_exp(raw.triu(1) - raw.triu(1).mT), upper)


def test_gradient_at_zero_of_size_four():
    """exp(A) = 1 + A + ..., whose derivative at 0 is the identity."""
    skew = torch.zeros(4, 4, requires_grad=True)
    weights = random_skew(4, 4).float()
    (skew_matrix_exp(skew) * weights).sum().backward()
    torch.testing.assert_close(skew.grad - skew.grad.mT, 2 * weights)


@pytest.mark.parametrize("size", mostly_extensive([2, 4, 8, 32], [8]))
def test_one_graph_and_an_exported_program_equal_eager(size):
    torch.compiler.reset()
    skew = random_skew(3, size, size, scale=10).float()

    class Module(torch.nn.Module):
        def forward(self, skew):
            return skew_matrix_exp(skew)

    compiled = torch.compile(skew_matrix_exp, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(Module(), (skew,)).module()
    gradients = []
    for function in (skew_matrix_exp, compiled):
        leaf = skew.clone().requires_grad_()
        rotation = function(leaf)
        rotation.square().mul(torch.arange(size)).sum().backward()
        gradients.append(leaf.grad - leaf.grad.mT)
        torch.testing.assert_close(rotation, skew_matrix_exp(skew), rtol=0, atol=1e-5)
    torch.testing.assert_close(exported(skew), skew_matrix_exp(skew), rtol=0, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


@pytest.mark.parametrize("size", [8, 64])
def test_the_same_input_gives_the_same_bits(size):
    skew = random_skew(50, size, size, scale=20).float()
    results = []
    for _ in range(2):
        leaf = skew.clone().requires_grad_()
        rotation = skew_matrix_exp(leaf)
        (rotation * skew.cumsum(-1)).sum().backward()
        results.append((rotation, leaf.grad))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_matrices_in_chunks_equal_single_ones(monkeypatch):
    skew = torch.cat([random_skew(10, 16, 16, scale=scale) for scale in (0.01, 1, 5, 20, 1)]).float()
    weights = random_skew(50, 16, 16, seed=1).float()
    monkeypatch.setattr(exponential, "CHUNK_BYTES", 7 * 16 * 16 * 4)
    leaf = skew.clone().requires_grad_()
    rotation = skew_matrix_exp(leaf)
    (rotation * weights).sum().backward()
    assert leaf.grad.abs().amax((1, 2)).min() > 1e-3
    for index, matrix in enumerate(skew):
        alone = matrix.clone().requires_grad_()
        expected = skew_matrix_exp(alone)
        (expected * weights[index]).sum().backward()
        torch.testing.assert_close(rotation[index], expected, rtol=0, atol=1e-5)
        actual_grad, expected_grad = (grad - grad.mT for grad in (leaf.grad[index], alone.grad))
        torch.testing.assert_close(actual_grad, expected_grad, rtol=1e-4, atol=1e-4)


def test_no_matrices_give_no_rotations():
    empty = torch.zeros(0, 8, 8, requires_grad=True)
    rotation = skew_matrix_exp(empty)
    assert rotation.shape == (0, 8, 8)
    rotation.sum().backward()
    assert empty.grad.shape == (0, 8, 8)


def fitted_coefficients(theta: float) -> list[float]:
    """r, x1, x3, x5, k, x4, y2 of the polynomial sum_k c_k B^k that polynomial.py describes, by 50 digits."""
    with mpmath.workdps(50):
        nodes = [(1 + mpmath.cos(mpmath.pi * (2 * i + 1) / 8)) / 2 * mpmath.mpf(theta) ** 2 for i in range(4)]
        powers = mpmath.matrix([[(-node) ** k for k in range(4)] for node in nodes])
        angles = [mpmath.sqrt(node) for node in nodes]
        _, c3, c5, c7 = mpmath.lu_solve(powers, mpmath.matrix([mpmath.sin(x) / x for x in angles]))
        c2, c4, c6, c8 = mpmath.lu_solve(powers, mpmath.matrix([(1 - mpmath.cos(x)) / x**2 for x in angles]))
        r, x1 = 2 * c8 / c7, c7 / (2 * mpmath.sqrt(c8))
        shared = (c6 - x1**2) / (x1 * r)
        x5 = (c5 - shared * x1) / (x1 * r)
        half = (shared - r * x5) / 2
        x3 = half - mpmath.sqrt(half**2 + x1 * x5 + r * c3 - c4)
        x4 = (c3 - x3 * x5) / x1
        return [float(value) for value in (r, x1, x3, x5, shared - 2 * x3, x4, c2 - x3 * x4)]


@pytest.mark.parametrize("scaling", [FLOAT32, FLOAT32_FOR_GRADIENT, FLOAT32_VIA_FLOAT64, FLOAT64])
def test_coefficients_are_those_of_the_interpolation(scaling):
    np.testing.assert_allclose(scaling.coefficients, fitted_coefficients(scaling.theta), rtol=1e-14)


@pytest.mark.parametrize("scaling", [FLOAT32, FLOAT32_VIA_FLOAT64, FLOAT64])
def test_polynomial_is_the_exponential(scaling):
    """On the imaginary axis, where the eigenvalues lie. Errors are relative to the angle."""
    r, x1, x3, x5, k, x4, y2 = scaling.coefficients
    b = 1j * np.linspace(1e-3, 1, 1001) * scaling.theta
    q = x3 * b**2 + x1 * b**2 * (b + r * b**2)
    polynomial = b + y2 * b**2 + x4 * q + q * (q + k * b**2 + x5 * b)
    error = {FLOAT32: 1e-7, FLOAT32_VIA_FLOAT64: 3e-10, FLOAT64: 1e-13}[scaling]
    assert (np.abs(polynomial - np.expm1(b)) < error * np.abs(b)).all()


def test_products_of_reduced_precision_are_avoided():
    assert choose_scaling(torch.empty(64, 64), 1.0).dtype == torch.float32
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert choose_scaling(torch.empty(64, 64), 1.0).dtype == torch.float64
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("size", [2, 4, 8, 64])
def test_autocast_changes_nothing(size):
    """Neither around the forward pass nor around the backward pass."""
    skew = random_skew(20, size, size, scale=5).float()
    results = []
    for enabled in (False, True):
        leaf = skew.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            rotation = skew_matrix_exp(leaf)
            (rotation * skew.cumsum(-1)).sum().backward()
        results.append((rotation, leaf.grad))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def documented_errors():
    """Rows of the table in docs/speed.md: width, and the largest error by kind."""
    table = (ROOT / "docs" / "speed.md").read_text().split("| width | initial generators | ", 1)[1]
    header, _, *rows = [line.strip("| ").split(" | ") for line in table.split("\n\n")[0].splitlines()]
    kinds = ["initial generators", *header]
    return {int(width): dict(zip(kinds, map(float, errors), strict=True)) for width, *errors in rows}


@pytest.mark.parametrize("width", ERROR_WIDTHS)
def test_errors_are_as_documented(width):
    documented = documented_errors()[width]
    for kind, error in largest_errors(width, torch.device("cpu")).items():
        assert error <= documented[kind], kind


def test_documented_errors_leave_a_margin_above_those_measured():
    rows = json.loads((ROOT / "results" / "exponential_errors.json").read_text())["errors"]
    measured = {row.pop("width"): row for row in rows}
    documented = documented_errors()
    assert documented.keys() == measured.keys()
    for width, errors in documented.items():
        assert errors.keys() == measured[width].keys()
        for kind, error in errors.items():
            assert error / 10 < measured[width][kind] <= error, (width, kind)
