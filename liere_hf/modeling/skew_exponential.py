"""The exponential of skew-symmetric matrices, which is a rotation, and its gradient.

Closed forms for widths 2 and 4. Wider matrices by scaling and squaring.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from transformers.utils.generic import maybe_autocast

from .squaring_ladder import (
    CHUNK_BYTES,
    FLOAT32,
    FLOAT32_BY_FLOAT64,
    FLOAT64,
    SquaringLadder,
    Workspace,
    choose_scaling,
    count_squarings,
    kernel_scaling,
    norm_from_square,
    polynomial_terms,
)

try:
    from .rotation_kernels import exponential as kernel_exponential
    from .rotation_kernels import exponential_backward as kernel_exponential_backward
except ImportError:
    kernel_exponential = None

# A ladder is about so many times as large as its matrices. Those of one call are kept for the gradient up to so many
# bytes, else made again.
LADDER_SIZE = 16
KEPT_BYTES = 1 << 28
# Without a look at the values, norms up to 2^12 are expected.
MAX_SQUARINGS = 12


def skew_matrix_exp(skew: torch.Tensor) -> torch.Tensor:
    """exp(A) for skew-symmetric A: orthogonal, with determinant 1.

    The input is trusted to be skew-symmetric. Within 1e-5 of the exact rotation in float32 for spectral norms up to
    250, whatever the width; the gradient is exact along skew-symmetric directions. Works under torch.compile and
    torch.export, there for norms up to 2,000.

    Args:
        skew: shape (..., n, n), float32 or float64.

    Returns:
        Tensor of the same shape and dtype.
    """
    size = skew.shape[-1]
    if size == 2:
        return _plane_rotation(skew)
    if size == 4:
        return _isoclinic_rotations(skew)
    matrices = skew.reshape(-1, size, size)
    exponential = _SkewExponential.apply if runs_eagerly(skew) else graph_exponential
    with maybe_autocast(skew.device.type, enabled=False):
        return exponential(matrices).reshape(skew.shape)


def _plane_rotation(skew: torch.Tensor) -> torch.Tensor:
    angle = skew[..., 0, 1]
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((cos, sin, -sin, cos), dim=-1).unflatten(-1, (2, 2))


def _isoclinic_rotations(skew: torch.Tensor) -> torch.Tensor:
    """so(4) = so(3) + so(3): the product of a left and a right rotation by unit quaternions, which commute."""
    work = skew if skew.device.type == "mps" else skew.double()
    a, b, c = work[..., 0, 1], work[..., 0, 2], work[..., 0, 3]
    d, e, f = work[..., 1, 2], work[..., 1, 3], work[..., 2, 3]
    left, right = (_half_turn(torch.stack((a + sign * f, b - sign * e, c + sign * d), dim=-1) / 2) for sign in (1, -1))
    w, x, y, z = left.unbind(-1)
    left = torch.stack((w, x, y, z, -x, w, z, -y, -y, -z, w, x, -z, y, -x, w), dim=-1).unflatten(-1, (4, 4))
    w, x, y, z = right.unbind(-1)
    right = torch.stack((w, x, y, z, -x, w, -z, y, -y, z, w, -x, -z, -y, x, w), dim=-1).unflatten(-1, (4, 4))
    return (left.unsqueeze(-1) * right.unsqueeze(-3)).sum(-2).to(skew.dtype)


def _half_turn(vector: torch.Tensor) -> torch.Tensor:
    """The unit quaternion (cos |v|, sin |v| v / |v|), differentiable at 0 too."""
    square = vector.square().sum(-1, keepdim=True)
    tiny = square < 1e-4
    norm = torch.where(tiny, 1.0, square).sqrt()
    cos = torch.where(tiny, 1 - square / 2 + square**2 / 24 - square**3 / 720, norm.cos())
    sinc = torch.where(tiny, 1 - square / 6 + square**2 / 120 - square**3 / 5040, norm.sin() / norm)
    return torch.cat((cos, sinc * vector), dim=-1)


def values_are_known() -> bool:
    """Whether code may look at the values of tensors: no compiler traces it, no torch.func transform wraps them."""
    return not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


def runs_eagerly(matrices: torch.Tensor) -> bool:
    """Whether ladders on the CPU or kernels on the GPU take matrices (..., n, n), and not `graph_exponential`."""
    return values_are_known() and (matrices.device.type == "cpu" or _has_kernels(matrices))


def _has_kernels(matrices: torch.Tensor) -> bool:
    return (
        kernel_exponential is not None
        and matrices.is_cuda
        and matrices.dtype == torch.float32
        and matrices.shape[-1] in (8, 16, 32, 64, 128)
    )


def norm_bounds(skew: torch.Tensor) -> torch.Tensor:
    """At least the spectral norm of each skew-symmetric matrix, whose singular values come in pairs: shape (...)."""
    return torch.linalg.matrix_norm(skew.detach()) / math.sqrt(2)


class _SkewExponential(torch.autograd.Function):
    """By ladders of matrices of similar norm on a CPU, by kernels on a GPU."""

    @staticmethod
    def forward(ctx, matrices: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(matrices)
        if matrices.is_cuda:
            scaling = kernel_scaling(matrices.shape[-1])
            return kernel_exponential(matrices.new_ones(1, 1), matrices[None], matrices.dtype, scaling)[0]
        rotations = torch.empty_like(matrices, memory_format=torch.contiguous_format)
        keep = ctx.needs_input_grad[0] and LADDER_SIZE * rotations.nbytes <= KEPT_BYTES
        ctx.chunks = list(_chunks(matrices, for_gradient=True)) if keep else None
        for chunk in ctx.chunks or _chunks(matrices, Workspace()):
            rotations.index_copy_(0, chunk.index, chunk.ladder.rotations[0].to(matrices.dtype))
        return rotations

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        with maybe_autocast(grad.device.type, enabled=False):
            return _SkewExponential._gradient(ctx, grad)

    @staticmethod
    def _gradient(ctx, grad: torch.Tensor) -> torch.Tensor:
        (matrices,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return torch.autograd.grad(graph_exponential(matrices), matrices, grad, create_graph=True)[0]
        if matrices.is_cuda:
            arguments = (matrices.new_ones(1, 1), matrices[None], grad[None], FLOAT32_BY_FLOAT64)
            return kernel_exponential_backward(*arguments)[0]
        matrices_grad = torch.empty_like(matrices, memory_format=torch.contiguous_format)
        chunks, ctx.chunks, workspace = ctx.chunks, None, Workspace()
        for chunk in chunks or _chunks(matrices, Workspace(), for_gradient=True):
            workspace.reset()
            matrices_grad.index_copy_(0, chunk.index, chunk.backward(grad, workspace).to(matrices.dtype))
        return matrices_grad


class _Chunk(NamedTuple):
    """Matrices that are computed together.

    Attributes:
        index: which they are.
        powers: B and B^2, of the matrices scaled.
        factors: of 1, B and B^2 in the polynomial's terms, shape (4, 3).
        ladder: from these terms.
    """

    index: torch.Tensor
    powers: torch.Tensor
    factors: torch.Tensor
    ladder: SquaringLadder

    def backward(self, grad: torch.Tensor, workspace: Workspace) -> torch.Tensor:
        b, ladder = self.powers[0], self.ladder
        terms_grad = ladder.backward([grad.mT[self.index].contiguous().to(b.dtype)], workspace)
        b_grad, square_grad = (self.factors[:, 1:].T @ terms_grad.flatten(1)).view_as(self.powers)
        b_grad.baddbmm_(b, square_grad).baddbmm_(square_grad, b)
        # The skew-symmetric parts of a transposed matrix and of its negative are the same.
        return b_grad.mul_(-(2.0**-ladder.num_squarings))


def _chunks(matrices: torch.Tensor, shared: Workspace | None = None, for_gradient: bool = False) -> Iterator[_Chunk]:
    """Matrices of similar norm, as many as stay in the cache; each for itself if they share no workspace."""
    if not len(matrices):
        return
    width = matrices.shape[-1]
    scaling = choose_scaling(matrices.dtype, width, matrices.abs().max().item())
    factors = torch.tensor(polynomial_terms(scaling), dtype=scaling.dtype)
    size = max(1, CHUNK_BYTES // (width * width * scaling.dtype.itemsize))
    for index in norm_bounds(matrices).argsort().split(size):
        workspace = shared or Workspace()
        workspace.reset()
        powers, terms = (workspace.take(count, len(index), width, width, dtype=scaling.dtype) for count in (2, 4))
        b, square = powers
        torch.bmm(b.copy_(matrices[index]), b, out=square)
        bound = norm_from_square(torch.linalg.vector_norm(square, dim=(1, 2)).max().square())
        num_squarings = count_squarings(bound.item(), scaling)
        b.mul_(2.0**-num_squarings)
        square.mul_(4.0**-num_squarings)
        torch.mm(factors[:, 1:], powers.flatten(1), out=terms.flatten(1))
        terms.diagonal(dim1=-2, dim2=-1).add_(factors[:, :1, None])
        ladder = SquaringLadder(terms, num_squarings, [len(index)], workspace, for_gradient)
        yield _Chunk(index, powers, factors, ladder)


def graph_exponential(matrices: torch.Tensor) -> torch.Tensor:
    """The exponential without a look at the values: for graphs, for devices that would wait, for second derivatives.

    The number of squarings is fixed; each matrix takes as many of them as its norm asks for. In float64, where the
    device has it: matrix units of reduced precision leave that alone, and it holds for entries of any size.

    Args:
        matrices: shape (batch, n, n).
    """
    if matrices.device.type == "mps":
        scaling = FLOAT32
    else:
        scaling = FLOAT64 if matrices.dtype == torch.float64 else FLOAT32_BY_FLOAT64
    work = matrices.to(scaling.dtype)
    wanted = (norm_bounds(work) / scaling.norm).log2().ceil().clamp(0, MAX_SQUARINGS)
    scales = work.new_tensor([2.0**-k for k in range(MAX_SQUARINGS + 1)])
    identity = torch.eye(work.shape[-1], dtype=work.dtype, device=work.device)
    b = work * scales[wanted.long(), None, None]
    powers = identity, b, torch.bmm(b, b)
    square, cubic, inner, linear = (
        sum(factor * power for factor, power in zip(factors, powers, strict=True) if factor)
        for factors in polynomial_terms(scaling)
    )
    q = torch.bmm(square, cubic)
    rotation = torch.baddbmm(linear, q, q + inner)
    for step in range(MAX_SQUARINGS):
        squared = torch.baddbmm(rotation, rotation, rotation, beta=2)
        rotation = torch.where((step < wanted)[:, None, None], squared, rotation)
    return (rotation + identity).to(matrices.dtype)
