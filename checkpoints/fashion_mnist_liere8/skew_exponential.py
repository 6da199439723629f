"""The exponential of skew-symmetric matrices, which is a rotation, and its gradient.

Closed forms for sizes 2 and 4, scaling and squaring for the others.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from .differentiation import FastFunction, compiled_as_operator, pull_back
from .kernel_gate import exponential, exponential_backward, has_exponential
from .scaling_and_squaring import (
    CHUNK_BYTES,
    FLOAT32,
    FLOAT32_VIA_FLOAT64,
    FLOAT64,
    GPU_CHUNK_BYTES,
    ExponentialPowers,
    ScratchBuffers,
    choose_scaling,
    count_squarings,
    kernel_scaling,
    norm_bound_from_square,
    quadratic_coefficients,
)

# The intermediate results of one call are kept for the gradient up to this size, 256 MiB. Larger ones are computed
# again, which was measured to take a quarter longer.
MAX_KEPT_BYTES = 1 << 28
# Matrices kept per input matrix: B, B^2, the quadratics P1 ... P4, Q, and at norm 250 nine squarings.
NUM_KEPT_MATRICES = 16
# Squarings where the norms are not known. From theta = 0.5 (`FLOAT32_VIA_FLOAT64`) they reach norms of 500,000.
MAX_SQUARINGS = 20


def skew_matrix_exp(skew: torch.Tensor) -> torch.Tensor:
    """exp(A) for skew-symmetric A, which is orthogonal with determinant 1.

    That the input is skew-symmetric is not checked. In float32 the result is within 1e-5 of the exact rotation for
    spectral norms up to 250; where all singular values are equal, within 4e-5 at width 128 (see docs/speed.md).
    The gradient is exact along skew-symmetric directions. Works under torch.compile, the transforms of torch.func, and
    torch.export, there for norms up to 500,000.

    Args:
        skew: shape (..., n, n), float32 or float64.

    Returns:
        Tensor of the same shape and dtype.
    """
    size = skew.shape[-1]
    if size == 2:
        return _exponential_of_size_2(skew)
    if size == 4:
        return _exponential_of_size_4(skew)
    matrices = skew.reshape(-1, size, size)
    keeps = [[]] if torch.is_grad_enabled() and skew.requires_grad else []
    (rotations,) = _SkewExponential.call(matrices, *keeps)
    return rotations.reshape(skew.shape)


def skew_matrix_exp_backward(skew: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """The gradient with respect to A (..., n, n) with n > 4, from that with respect to exp(A). Not differentiable."""
    shape = (-1, *skew.shape[-2:])
    (skew_grad,) = _SkewExponentialGradient.fast(skew.reshape(shape), grad.reshape(shape))
    return skew_grad.view(skew.shape)


def _exponential_of_size_2(skew: torch.Tensor) -> torch.Tensor:
    angle = skew[..., 0, 1]
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((cos, sin, -sin, cos), dim=-1).unflatten(-1, (2, 2))


def _exponential_of_size_4(skew: torch.Tensor) -> torch.Tensor:
    """By so(4) = so(3) + so(3): the product of a left- and a right-isoclinic rotation, which commute.

    Each is the multiplication by a unit quaternion, from the left or from the right.
    """
    work = skew if skew.device.type == "mps" else skew.double()
    a, b, c = work[..., 0, 1], work[..., 0, 2], work[..., 0, 3]
    d, e, f = work[..., 1, 2], work[..., 1, 3], work[..., 2, 3]
    left, right = (
        _quaternion_exponential(torch.stack((a + sign * f, b - sign * e, c + sign * d), dim=-1) / 2)
        for sign in (1, -1)
    )
    w, x, y, z = left.unbind(-1)
    left = torch.stack((w, x, y, z, -x, w, z, -y, -y, -z, w, x, -z, y, -x, w), dim=-1).unflatten(-1, (4, 4))
    w, x, y, z = right.unbind(-1)
    right = torch.stack((w, x, y, z, -x, w, -z, y, -y, z, w, -x, -z, -y, x, w), dim=-1).unflatten(-1, (4, 4))
    return (left.unsqueeze(-1) * right.unsqueeze(-3)).sum(-2).to(skew.dtype)


def _quaternion_exponential(vector: torch.Tensor) -> torch.Tensor:
    """exp of the imaginary quaternion v: (cos |v|, sin |v| v / |v|), differentiable at 0 by its Taylor series."""
    square = vector.square().sum(-1, keepdim=True)
    tiny = square < 1e-4
    norm = torch.where(tiny, 1.0, square).sqrt()
    cos = torch.where(tiny, 1 - square / 2 + square**2 / 24 - square**3 / 720, norm.cos())
    sinc = torch.where(tiny, 1 - square / 6 + square**2 / 120 - square**3 / 5040, norm.sin() / norm)
    return torch.cat((cos, sinc * vector), dim=-1)


def norm_bounds(skew: torch.Tensor) -> torch.Tensor:
    """Upper bounds of the spectral norms of skew-symmetric matrices, shape (...).

    Singular values come in pairs, so the squared Frobenius norm is at least twice the squared spectral norm.
    """
    return torch.linalg.matrix_norm(skew.detach()) / math.sqrt(2)


@compiled_as_operator
class _SkewExponential(FastFunction):
    """exp(A) of a batch (matrices, n, n), in chunks of similar norm. `chunks` takes what the gradient needs."""

    @staticmethod
    def fast(matrices: torch.Tensor, chunks: list["_Chunk"] | None = None) -> tuple[torch.Tensor, ...]:
        if has_exponential(matrices):
            scaling = kernel_scaling(matrices.shape[-1])
            return (exponential(matrices.new_ones(1, 1), matrices[None], matrices.dtype, scaling)[0],)
        rotations = torch.empty_like(matrices, memory_format=torch.contiguous_format)
        keeps = chunks is not None and NUM_KEPT_MATRICES * rotations.nbytes <= MAX_KEPT_BYTES
        if keeps:
            chunks += _chunks(matrices, for_gradient=True)
        for chunk in chunks if keeps else _chunks(matrices, ScratchBuffers(matrices.device)):
            rotations.index_copy_(0, chunk.index, chunk.exponential.rotations[0].to(matrices.dtype))
        return (rotations,)

    @staticmethod
    def plain(matrices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (plain_exponential(matrices),)

    @staticmethod
    def graph(matrices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (traceable_exponential(matrices),)

    @staticmethod
    def results(matrices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.empty_like(matrices, memory_format=torch.contiguous_format),)

    @staticmethod
    def gradients(inputs, needed, grads, chunks=None):
        return _SkewExponentialGradient.call(*inputs, *grads, *([chunks] if chunks else []))


@compiled_as_operator
class _SkewExponentialGradient(FastFunction):
    """The gradient with respect to A, from that with respect to exp(A)."""

    @staticmethod
    def fast(
        matrices: torch.Tensor, grad: torch.Tensor, chunks: list["_Chunk"] | None = None
    ) -> tuple[torch.Tensor, ...]:
        if has_exponential(matrices):
            arguments = (matrices.new_ones(1, 1), matrices[None], grad[None], FLOAT32_VIA_FLOAT64)
            return (exponential_backward(*arguments)[0],)
        matrices_grad = torch.empty_like(matrices, memory_format=torch.contiguous_format)
        kept, scratch = list(chunks or ()), ScratchBuffers(matrices.device)
        for chunk in kept or _chunks(matrices, ScratchBuffers(matrices.device), for_gradient=True):
            scratch.reset()
            matrices_grad.index_copy_(0, chunk.index, chunk.backward(grad, scratch).to(matrices.dtype))
        if kept:
            chunks.clear()
        return (matrices_grad,)

    @staticmethod
    def plain(matrices: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return pull_back(_SkewExponential.plain, (matrices,), (grad,))

    @staticmethod
    def results(matrices: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.empty_like(matrices, memory_format=torch.contiguous_format),)


class _Chunk(NamedTuple):
    """Matrices that are computed together.

    Attributes:
        index: their indices in the batch.
        powers: B and B^2 of the scaled matrices, shape (2, matrices, n, n).
        coefficients: of 1, B and B^2 in the quadratics P1 ... P4, shape (4, 3).
        exponential: computed from these quadratics.
    """

    index: torch.Tensor
    powers: torch.Tensor
    coefficients: torch.Tensor
    exponential: ExponentialPowers

    def backward(self, grad: torch.Tensor, scratch: ScratchBuffers) -> torch.Tensor:
        b = self.powers[0]
        quadratics_grad = self.exponential.backward([grad.mT[self.index].contiguous().to(b.dtype)], scratch)
        b_grad, square_grad = (self.coefficients[:, 1:].T @ quadratics_grad.flatten(1)).view_as(self.powers)
        b_grad.baddbmm_(b, square_grad).baddbmm_(square_grad, b)
        # The sign undoes the transposition: for the skew-symmetric part, the only one that counts, they are the same.
        return b_grad.mul_(-(2.0**-self.exponential.num_squarings))


def _chunks(
    matrices: torch.Tensor, shared: ScratchBuffers | None = None, for_gradient: bool = False
) -> Iterator[_Chunk]:
    """Matrices of similar norm, as many as stay in the cache.

    With `shared` buffers a chunk overwrites the one before. Without, each has its own.
    """
    if not len(matrices):
        return
    size = matrices.shape[-1]
    scaling = choose_scaling(matrices, matrices.abs().max().item())
    coefficients = matrices.new_tensor(quadratic_coefficients(scaling), dtype=scaling.dtype)
    chunk_bytes = CHUNK_BYTES if matrices.device.type == "cpu" else GPU_CHUNK_BYTES
    chunk_size = max(1, chunk_bytes // (size * size * scaling.dtype.itemsize))
    for index in norm_bounds(matrices).argsort().split(chunk_size):
        scratch = shared or ScratchBuffers(matrices.device)
        scratch.reset()
        powers, quadratics = (scratch.empty(count, len(index), size, size, dtype=scaling.dtype) for count in (2, 4))
        b, square = powers
        torch.bmm(b.copy_(matrices[index]), b, out=square)
        bound = norm_bound_from_square(torch.linalg.vector_norm(square, dim=(1, 2)).max().square())
        num_squarings = count_squarings(bound.item(), scaling)
        b.mul_(2.0**-num_squarings)
        square.mul_(4.0**-num_squarings)
        torch.mm(coefficients[:, 1:], powers.flatten(1), out=quadratics.flatten(1))
        quadratics.diagonal(dim1=-2, dim2=-1).add_(coefficients[:, :1, None])
        exponential = ExponentialPowers(quadratics, num_squarings, [len(index)], scratch, for_gradient)
        yield _Chunk(index, powers, coefficients, exponential)


def plain_exponential(matrices: torch.Tensor) -> torch.Tensor:
    """The exponential of matrices (..., n, n) by torch's own, which has all derivatives, in float64 where there is."""
    work = matrices if matrices.device.type == "mps" else matrices.double()
    return torch.linalg.matrix_exp(work).to(matrices.dtype)


def traceable_exponential(matrices: torch.Tensor) -> torch.Tensor:
    """The exponential by scaling and squaring, without control flow that depends on the values, for exporters.

    All matrices go through `MAX_SQUARINGS` squarings, and each keeps the results of as many as its norm needs.

    Computed in float64 where the device has it: that is accurate for entries of any size, and is not affected by
    reduced precision of float32 products (TF32).

    Args:
        matrices: shape (batch, n, n).
    """
    if matrices.device.type == "mps":
        scaling = FLOAT32
    else:
        scaling = FLOAT64 if matrices.dtype == torch.float64 else FLOAT32_VIA_FLOAT64
    work = matrices.to(scaling.dtype)
    num_squarings = (norm_bounds(work) / scaling.theta).log2().ceil().clamp(0, MAX_SQUARINGS)
    scales = work.new_tensor([2.0**-k for k in range(MAX_SQUARINGS + 1)])
    identity = torch.eye(work.shape[-1], dtype=work.dtype, device=work.device)
    b = work * scales[num_squarings.long(), None, None]
    powers = identity, b, torch.bmm(b, b)
    p1, p2, p3, p4 = (
        sum(factor * power for factor, power in zip(coefficients, powers, strict=True) if factor)
        for coefficients in quadratic_coefficients(scaling)
    )
    q = torch.bmm(p1, p2)
    expm1 = torch.baddbmm(p4, q, q + p3)
    for step in range(MAX_SQUARINGS):
        squared = torch.baddbmm(expm1, expm1, expm1, beta=2)
        expm1 = torch.where((step < num_squarings)[:, None, None], squared, expm1)
    return (expm1 + identity).to(matrices.dtype)
