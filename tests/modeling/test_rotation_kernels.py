"""The Triton kernels: compiled on a CUDA device, run by Triton's interpreter on a CPU.

Compared with SciPy's exponential and its Frechet derivative, explicit block-diagonal matrices, and float64 autograd.
"""

import functools

import numpy as np
import pytest
import scipy.linalg
import torch

pytest.importorskip("triton", reason="needs Triton")

from devices import DEVICES
from selection import mostly_extensive
from triton_interpreter import call, run_interpreted

pytestmark = pytest.mark.xdist_group("interpreter")
# Size, axes and matrices per position (M). Some programs that process several matrices are only partly filled.
EXPONENTIALS = [(4, 1, 9), (4, 3, 2), (8, 2, 3), (16, 3, 2), (32, 1, 2), (64, 2, 1), (128, 3, 1)]
# Block size and head dimension: several blocks, some groups of small blocks only partly filled.
HEADS = [(2, 10), (4, 24), (8, 24), (16, 32), (32, 64), (64, 128), (128, 128)]
BATCH, TOKENS, NUM_HEADS = 70, 3, 2
HALF_PRECISION = [torch.bfloat16, torch.float16]


SIZES = [(4,), (8,), (16,), (32,), (64,), (128,)]
FAST_EXPONENTIALS = mostly_extensive(EXPONENTIALS, [(4, 3, 2), (16, 3, 2), (32, 1, 2)])
FAST_HEADS = mostly_extensive(HEADS, [(2, 10), (8, 24), (32, 64)])
HEADS_IN_HALF_PRECISION = mostly_extensive(HEADS, [(4, 24), (64, 128)])


def on_gpu(argument):
    """The tensor on the GPU, with the same strides."""
    if not isinstance(argument, torch.Tensor):
        return argument
    storage = torch.as_strided(argument, (len(argument.untyped_storage()) // argument.element_size(),), (1,), 0)
    return storage.cuda().as_strided(argument.shape, argument.stride(), argument.storage_offset())


def run_on_gpu(name, *arguments):
    results = call(name, *map(on_gpu, arguments))
    return tuple(result.cpu() for result in results) if isinstance(results, tuple) else results.cpu()


@pytest.fixture(params=DEVICES)
def run(request):
    """Calls a function of rotation_kernels by name, with CPU tensors."""
    if request.param == "cuda":
        return run_on_gpu
    return functools.partial(run_interpreted, request.getfixturevalue("interpreter"))


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exponents(size, num_axes, num_matrices):
    """Positions, skew-symmetric matrices, and their sums of products in float64, of norms 0, 1e-3, 1 and 250."""
    raw = normal(num_axes, num_matrices, size, size).double().triu(1)
    directions = normal(4, num_axes, seed=1).double()
    norms = torch.linalg.matrix_norm(torch.einsum("pi,imjk->pmjk", directions, raw - raw.mT), 2).amax(1)
    positions = (directions * (torch.tensor([0, 1e-3, 1, 250]) / norms)[:, None]).float()
    skew = (raw - raw.mT).float()
    return positions, skew, torch.einsum("pi,imjk->pmjk", positions.double(), skew.double())


def each_matrix(function, *matrices):
    """Apply a SciPy function to every matrix of (P, M, n, n)."""
    flat = (matrix.double().flatten(0, 1).numpy() for matrix in matrices)
    results = [function(*arguments) for arguments in zip(*flat, strict=True)]
    return torch.from_numpy(np.stack(results)).view(matrices[0].shape)


def largest(matrices):
    return matrices.abs().amax((-2, -1))


@pytest.mark.parametrize(("size", "num_axes", "num_matrices"), FAST_EXPONENTIALS)
def test_exponential_equals_scipy(run, size, num_axes, num_matrices):
    positions, skew, exponent = exponents(size, num_axes, num_matrices)
    rotations = run("exponential", positions, skew, torch.float32)
    assert rotations.dtype == torch.float32
    assert torch.equal(rotations[0], torch.eye(size).expand(num_matrices, size, size))
    rotations = rotations.double()
    error = largest(rotations - each_matrix(scipy.linalg.expm, exponent)).amax(1)
    assert (error < torch.tensor([1e-7, 1e-7, 1e-6, 1e-5])).all()
    assert largest(rotations @ rotations.mT - torch.eye(size)).max() < 1e-5


@pytest.mark.parametrize("dtype", HALF_PRECISION)
@pytest.mark.parametrize(("size",), mostly_extensive(SIZES, [(8,), (32,)]))
def test_exponential_in_half_precision(run, dtype, size):
    positions, skew, exponent = exponents(size, 2, 1)
    rotations = run("exponential", positions, skew, dtype)
    assert rotations.dtype == dtype
    expected = each_matrix(scipy.linalg.expm, exponent)
    assert largest(rotations.double() - expected).max() < torch.finfo(dtype).eps


@pytest.mark.parametrize(("size", "value"), [(4, float("inf")), (4, float("nan")), (32, float("inf"))])
def test_nonfinite_exponents_terminate_and_affect_no_others(run, size, value):
    positions, skew, _ = exponents(size, 1, 1)
    not_finite = positions[:3].clone()
    not_finite[1] = value
    for name, argument in (("exponential", torch.float32), ("exponential_backward", normal(3, 1, size, size))):
        actual, expected = (run(name, given, skew, argument) for given in (not_finite, positions[:3]))
        assert not actual[1].isfinite().all()
        assert torch.equal(actual[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize(("size", "num_axes", "num_matrices"), FAST_EXPONENTIALS)
def test_exponential_backward_equals_frechet_derivative(run, size, num_axes, num_matrices):
    positions, skew, exponent = exponents(size, num_axes, num_matrices)
    grad = normal(*exponent.shape, seed=2)
    actual = run("exponential_backward", positions, skew, grad)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, -actual.mT)
    # The adjoint of the derivative at A is the derivative at A^T.
    adjoint = each_matrix(functools.partial(scipy.linalg.expm_frechet, compute_expm=False), exponent.mT, grad)
    expected = (adjoint - adjoint.mT) / 2
    assert (largest(actual - expected) < 2e-5 * largest(expected)).all()


@pytest.mark.parametrize(
    ("size", "dtype"),
    mostly_extensive([(size, HALF_PRECISION[size > 16]) for (size,) in SIZES], [(8, HALF_PRECISION[0])]),
)
def test_exponential_backward_of_a_strided_gradient_in_half_precision(run, dtype, size):
    positions, skew, exponent = exponents(size, 2, 1)
    grad = normal(*exponent.shape, dtype=dtype, seed=2).mT
    actual = run("exponential_backward", positions, skew, grad)
    assert torch.equal(actual, run("exponential_backward", positions, skew, grad.float().contiguous()))


def full_matrices(rotations, num_heads):
    """(T, H, D, D) block-diagonal matrices in float64."""
    matrices = [torch.block_diag(*blocks) for blocks in rotations.double().flatten(0, 1)]
    return torch.stack(matrices).unflatten(0, rotations.shape[:2]).expand(-1, num_heads, -1, -1)


def assert_rotates(run, states, rotations, transpose=False):
    actual = run("rotate", states, rotations, transpose)
    assert actual.shape == states.shape
    assert actual.dtype == states.dtype
    assert actual.is_contiguous()
    matrices = full_matrices(rotations.to(states.dtype), states.shape[2])
    expected = torch.einsum("thij,bthj->bthi", matrices.mT if transpose else matrices, states.double())
    # Sums of up to 128 products, rounded once (by the interpreter towards zero).
    eps = torch.finfo(states.dtype).eps
    torch.testing.assert_close(actual.double(), expected, rtol=2 * eps, atol=8 * eps)


@pytest.mark.parametrize(("rotation_heads", "transpose"), [(1, False), (NUM_HEADS, True)])
@pytest.mark.parametrize(("block", "dim"), FAST_HEADS)
def test_rotate_equals_block_diagonal_matrices(run, block, dim, rotation_heads, transpose):
    rotations = normal(TOKENS, rotation_heads, dim // block, block, block, seed=1) / block**0.5
    assert_rotates(run, normal(BATCH, TOKENS, NUM_HEADS, dim), rotations, transpose)


@pytest.mark.parametrize("rotations_dtype", [None, torch.float32])
@pytest.mark.parametrize("dtype", HALF_PRECISION)
@pytest.mark.parametrize(("block", "dim"), HEADS_IN_HALF_PRECISION)
def test_rotate_in_half_precision(run, block, dim, dtype, rotations_dtype):
    rotations = normal(TOKENS, NUM_HEADS, dim // block, block, block, seed=1) / block**0.5
    states = normal(5, TOKENS, NUM_HEADS, dim, dtype=dtype)
    assert_rotates(run, states, rotations.to(rotations_dtype or dtype))


STRIDED = {
    "part of a projection": lambda: normal(5, TOKENS, 3, NUM_HEADS, 16)[:, :, 1],
    "heads before tokens": lambda: normal(5, NUM_HEADS, TOKENS, 16).transpose(1, 2),
    "without a class token": lambda: normal(5, TOKENS + 1, NUM_HEADS, 16)[:, 1:],
    "every second element": lambda: normal(5, TOKENS, NUM_HEADS, 32)[..., ::2],
    "one number": lambda: normal(1)[0].expand(5, TOKENS, NUM_HEADS, 16),
    "nothing": lambda: normal(0, TOKENS, NUM_HEADS, 16),
}


@pytest.mark.parametrize("states", STRIDED.values(), ids=STRIDED)
def test_rotate_strided_states(run, states):
    assert_rotates(run, states(), normal(TOKENS, 1, 2, 8, 8, seed=1))


def assert_rotations_backward(run, states, grad, rotation_heads, block):
    """Against float64 autograd through the rotation."""
    num_tokens, num_heads, dim = states.shape[1:]
    zeros = torch.zeros(num_tokens, rotation_heads, dim // block, block, block, dtype=torch.float64)
    rotations = zeros.requires_grad_()
    rotated = torch.einsum("thij,bthj->bthi", full_matrices(rotations, num_heads), states.double())
    (expected,) = torch.autograd.grad(rotated, rotations, grad.double())
    actual = run("rotations_backward", states, grad, rotation_heads, block)
    assert actual.dtype == torch.float32
    assert actual.is_contiguous()
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rotation_heads", [1, NUM_HEADS])
@pytest.mark.parametrize(("block", "dim"), FAST_HEADS)
def test_rotations_backward_equals_autograd(run, block, dim, rotation_heads):
    states, grad = (normal(BATCH, TOKENS, NUM_HEADS, dim, seed=seed) for seed in (0, 1))
    assert_rotations_backward(run, states, grad, rotation_heads, block)


@pytest.mark.parametrize("rotation_heads", [1, NUM_HEADS])
@pytest.mark.parametrize("dtype", HALF_PRECISION)
@pytest.mark.parametrize(("block", "dim"), mostly_extensive(HEADS, [(8, 24)]))
def test_rotations_backward_in_half_precision_sums_in_float32(run, block, dim, dtype, rotation_heads):
    states, grad = (normal(BATCH, TOKENS, NUM_HEADS, dim, dtype=dtype, seed=seed) for seed in (0, 1))
    assert_rotations_backward(run, states, grad, rotation_heads, block)


@pytest.mark.parametrize("states", STRIDED.values(), ids=STRIDED)
def test_rotations_backward_of_strided_states_and_gradients(run, states):
    contiguous = normal(*states().shape, seed=1)
    assert_rotations_backward(run, states(), contiguous, 1, 8)
    assert_rotations_backward(run, contiguous, states(), NUM_HEADS, 8)


@pytest.mark.parametrize("rotation_heads", [1, NUM_HEADS])
@pytest.mark.parametrize(("block", "dim"), mostly_extensive(HEADS, [(2, 10), (8, 24)]))
def test_gradients_from_results_equal_autograd(run, block, dim, rotation_heads):
    """With respect to rotations, queries and keys, though only rotated queries and keys are kept."""
    raw = normal(TOKENS, rotation_heads, dim // block, block, block, seed=1).double()
    rotations = torch.linalg.matrix_exp(raw - raw.mT).float().requires_grad_()
    states = [normal(BATCH, TOKENS, NUM_HEADS, dim, seed=seed).requires_grad_() for seed in (2, 3)]
    grads = tuple(normal(BATCH, TOKENS, NUM_HEADS, dim, seed=seed) for seed in (4, 5))
    matrices = full_matrices(rotations, NUM_HEADS)
    expected_rotated = tuple(torch.einsum("thij,bthj->bthi", matrices, each.double()) for each in states)
    expected = torch.autograd.grad(expected_rotated, (rotations, *states), tuple(grad.double() for grad in grads))
    rotations, states = rotations.detach(), tuple(each.detach() for each in states)
    rotated = run("_Rotation", rotations, *states)
    for each, expected_each in zip(rotated, expected_rotated, strict=True):
        torch.testing.assert_close(each.double(), expected_each.detach(), rtol=0, atol=1e-5)
    actual = run("_RotationGradient", rotations, *rotated, *grads)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)
