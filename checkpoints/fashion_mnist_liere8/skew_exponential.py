"""The exponential of skew-symmetric matrices, which is a rotation, and its gradient.

Closed forms for widths 2 and 4. Wider matrices by scaling and squaring: a polynomial of degree 8 in three products
(the scheme of Bader, Blanes and Casas, arXiv 1710.10989, with coefficients for imaginary eigenvalues), then
E <- 2E + E E on E = exp(B) - 1. Keeping E instead of 1 + E is what keeps float32 accurate over eight squarings: small
entries are not rounded against the ones of the diagonal.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from transformers.utils.generic import maybe_autocast

try:
    from .rotation_kernels import exponential as kernel_exponential
    from .rotation_kernels import exponential_backward as kernel_exponential_backward
except ImportError:
    kernel_exponential = None

# The error of float32 is 1e-7 to 3e-7 times the largest entry, more in narrow matrices: beyond these entries products
# are taken in float64.
LARGEST_FLOAT32_ENTRY = 40
LARGEST_FLOAT32_ENTRY_OF_NARROW = 16
NARROW = 16
# So many squarings keep exp(B) - 1; on the few that follow, rounding has no time to grow.
SQUARINGS_WITHOUT_IDENTITY = 4
# Without a look at the values, norms up to 2^12 are expected.
MAX_SQUARINGS = 12
# Bytes of a chunk whose ladder is computed at a time, so that it stays in the cache of a CPU.
CHUNK_BYTES = 1 << 19
# Ladders of one call are kept for the gradient up to this, else computed again.
KEPT_BYTES = 1 << 27


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


def polynomial_coefficients(scaled_norm: float) -> tuple[float, ...]:
    """Coefficients of exp(B) - 1 for skew-symmetric B of a spectral norm up to `scaled_norm`.

    sum_k c_k B^k, k = 1 .. 8, interpolates sin(x) / x and (cos(x) - 1) / x^2 at four Chebyshev nodes in x^2 each, so
    that the error is relative to the angle. With r = x2 / x1 and x7 = 1 of Bader, Blanes and Casas it is evaluated as

        B2 = B B;  Q = x3 B2 + x1 B2 (B + r B2);  V = Q + k B2 + x5 B;  exp(B) - 1 = B + y2 B2 + x4 Q + Q V

    where c_1 is taken as the 1 that it is but for the error.

    Returns:
        r, x1, x3, x5, k, x4, y2.
    """
    exact = {"dtype": torch.float64, "device": "cpu"}
    nodes = [(1 + math.cos(math.pi * (2 * i + 1) / 8)) / 2 for i in range(4)]
    angles = [scaled_norm * math.sqrt(node) for node in nodes]
    powers = torch.tensor([[node**k for k in range(4)] for node in nodes], **exact)
    values = [[math.sin(x) / x, -2 * (math.sin(x / 2) / x) ** 2] for x in angles]
    fit = torch.linalg.solve(powers, torch.tensor(values, **exact))
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], **exact)
    fit = fit * (signs * torch.tensor([scaled_norm ** (-2 * k) for k in range(4)], **exact))[:, None]
    _, c3, c5, c7 = fit[:, 0].tolist()
    c2, c4, c6, c8 = (-fit[:, 1]).tolist()

    r = 2 * c8 / c7
    x1 = c7 / (2 * math.sqrt(c8))
    shared = (c6 - x1**2) / (x1 * r)
    x5 = (c5 - shared * x1) / (x1 * r)
    half = (shared - r * x5) / 2
    x3 = half - math.sqrt(half**2 + x1 * x5 + r * c3 - c4)
    x4 = (c3 - x3 * x5) / x1
    return r, x1, x3, x5, shared - 2 * x3, x4, c2 - x3 * x4


class Scaling(NamedTuple):
    """How far exponents are scaled down, and the polynomial for that."""

    dtype: torch.dtype
    norm: float
    coefficients: tuple[float, ...]


# Made at import, since compilers cannot trace it: to the rounding of float32, of float64, and of float32 in float64.
FLOAT32 = Scaling(torch.float32, 1.1, polynomial_coefficients(1.1))
FLOAT64 = Scaling(torch.float64, 0.12, polynomial_coefficients(0.12))
FLOAT32_BY_FLOAT64 = Scaling(torch.float64, 0.5, polynomial_coefficients(0.5))


def choose_scaling(dtype: torch.dtype, width: int, largest_entry: float) -> Scaling:
    """The scaling for matrices on a CPU."""
    if dtype == torch.float64:
        return FLOAT64
    limit = LARGEST_FLOAT32_ENTRY_OF_NARROW if width < NARROW else LARGEST_FLOAT32_ENTRY
    return FLOAT32_BY_FLOAT64 if largest_entry > limit or _float32_is_reduced() else FLOAT32


def kernel_scaling(width: int) -> Scaling:
    """The scaling for the Triton kernels, which take narrow matrices in float64."""
    return FLOAT32 if width >= 32 else FLOAT32_BY_FLOAT64


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


def _float32_is_reduced() -> bool:
    """Whether float32 products may be rounded to fewer bits on a CPU (torch.set_float32_matmul_precision)."""
    settings = (torch.backends.mkldnn.matmul.fp32_precision, torch.backends.fp32_precision)
    return any(setting not in ("none", "ieee") for setting in settings)


def _polynomial(b: torch.Tensor, coefficients: tuple[float, ...]) -> tuple[torch.Tensor, ...]:
    """exp(B) - 1, and B2 and Q of `polynomial_coefficients`."""
    r, x1, x3, x5, k, x4, y2 = coefficients
    square = torch.bmm(b, b)
    q = torch.baddbmm(square, square, torch.add(b, square, alpha=r), beta=x3, alpha=x1)
    v = torch.add(q, square, alpha=k).add_(b, alpha=x5)
    return torch.add(b, square, alpha=y2).add_(q, alpha=x4).baddbmm_(q, v), square, q


class SquaringLadder:
    """exp(A), exp(2 A), exp(3 A), ... of a batch of skew-symmetric matrices, and the gradient back to A.

    Args:
        scaled: 2^-num_squarings A, shape (batch, n, n), of a spectral norm up to `scaling.norm` and its dtype.
        scaling: which polynomial.
        num_squarings: squarings up to exp(A).
        multiples: k of exp(k A), from 1 on; both halves of each, k // 2 and k - k // 2, are among them.
    """

    def __init__(self, scaled: torch.Tensor, scaling: Scaling, num_squarings: int, multiples: tuple[int, ...] = (1,)):
        self.scaled, self.coefficients, self.num_squarings = scaled, scaling.coefficients, num_squarings
        rung, *self.terms = _polynomial(scaled, scaling.coefficients)
        self.rungs = []
        for step in range(num_squarings):
            if step == SQUARINGS_WITHOUT_IDENTITY:
                _add_identity(rung)
            self.rungs.append(rung)
            with_identity = step >= SQUARINGS_WITHOUT_IDENTITY
            rung = torch.bmm(rung, rung) if with_identity else torch.baddbmm(rung, rung, rung, beta=2)
        self.rotations = {1: rung if num_squarings > SQUARINGS_WITHOUT_IDENTITY else _add_identity(rung)}
        for multiple in multiples[1:]:
            half, rest = multiple // 2, multiple - multiple // 2
            self.rotations[multiple] = torch.bmm(self.rotations[half], self.rotations[rest])

    def num_bytes(self) -> int:
        """What the ladder holds for the gradient."""
        tensors = (self.scaled, *self.terms, *self.rungs, *self.rotations.values())
        return sum(tensor.nbytes for tensor in tensors)

    def backward(self, grads: dict[int, torch.Tensor]) -> torch.Tensor:
        """From the gradients with respect to `rotations` to 2^num_squarings times the one with respect to A."""
        grads = {multiple: grad.to(self.scaled.dtype) for multiple, grad in grads.items()}
        for multiple in sorted(grads, reverse=True)[:-1]:
            half, rest = multiple // 2, multiple - multiple // 2
            grad = grads.pop(multiple)
            grads[half] = torch.baddbmm(grads[half], grad, self.rotations[rest].mT)
            grads[rest] = torch.baddbmm(grads[rest], self.rotations[half].mT, grad)
        grad = grads[1]
        for step, rung in reversed(list(enumerate(self.rungs))):
            transposed = rung.mT
            if step >= SQUARINGS_WITHOUT_IDENTITY:
                grad = torch.bmm(grad, transposed).baddbmm_(transposed, grad)
            else:
                grad = torch.baddbmm(grad, grad, transposed, beta=2).baddbmm_(transposed, grad)
        return self._polynomial_backward(grad)

    def _polynomial_backward(self, grad: torch.Tensor) -> torch.Tensor:
        r, x1, x3, x5, k, x4, y2 = self.coefficients
        b, (square, q) = self.scaled, self.terms
        v = torch.add(q, square, alpha=k).add_(b, alpha=x5)
        grad_v = torch.bmm(q.mT, grad)
        grad_q = torch.baddbmm(grad, grad, v.mT, beta=x4).add_(grad_v)
        grad_cube = torch.bmm(square, grad_q).mul_(x1)
        cube = torch.add(b, square, alpha=r)
        grad_square = torch.baddbmm(grad, grad_q, cube.mT, beta=y2, alpha=x1)
        grad_square.add_(grad_v, alpha=k).add_(grad_q, alpha=x3).add_(grad_cube, alpha=r)
        grad_b = torch.add(grad, grad_v, alpha=x5).add_(grad_cube)
        # B^T = -B
        return grad_b.baddbmm_(grad_square, b, alpha=-1).baddbmm_(b, grad_square, alpha=-1)


class KeptLadders:
    """Ladders of a forward pass, kept for the gradient unless they take too many bytes; then all are made again."""

    def __init__(self, max_bytes: int):
        self.free_bytes = max_bytes
        self.ladders = []

    def add(self, chunk: torch.Tensor, ladder: SquaringLadder) -> None:
        """Keep the ladder of a chunk (indices) if all fit."""
        self.free_bytes -= ladder.num_bytes()
        if self.free_bytes < 0:
            self.ladders = None
        if self.ladders is not None:
            self.ladders.append((chunk, ladder))

    def take(self) -> list[tuple[torch.Tensor, SquaringLadder]] | None:
        """What was kept, once."""
        ladders, self.ladders = self.ladders, None
        return ladders


def _add_identity(matrices: torch.Tensor) -> torch.Tensor:
    matrices.diagonal(dim1=-2, dim2=-1).add_(1)
    return matrices


def count_squarings(norm_bound: float, scaling: Scaling) -> int:
    """Halvings that bring a spectral norm down to `scaling.norm`; none of a norm that is not finite."""
    if not scaling.norm < norm_bound < math.inf:
        return 0
    return math.ceil(math.log2(norm_bound / scaling.norm))


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
        ctx.kept = KeptLadders(KEPT_BYTES if ctx.needs_input_grad[0] else 0)
        rotations = torch.empty_like(matrices)
        for chunk, ladder in _ladders(matrices):
            ctx.kept.add(chunk, ladder)
            rotations[chunk] = ladder.rotations[1].to(matrices.dtype)
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
        matrices_grad = torch.empty_like(matrices)
        for chunk, ladder in ctx.kept.take() or _ladders(matrices):
            chunk_grad = ladder.backward({1: grad[chunk]})
            matrices_grad[chunk] = chunk_grad.mul_(2.0**-ladder.num_squarings).to(matrices.dtype)
        return matrices_grad


def _ladders(matrices: torch.Tensor) -> Iterator[tuple[torch.Tensor, SquaringLadder]]:
    """Indices of matrices of similar norm, and their ladder."""
    if not len(matrices):
        return
    scaling = choose_scaling(matrices.dtype, matrices.shape[-1], matrices.abs().max().item())
    bounds, order = norm_bounds(matrices).sort()
    chunk_size = max(1, CHUNK_BYTES // (matrices[0].numel() * scaling.dtype.itemsize))
    for chunk, chunk_bounds in zip(order.split(chunk_size), bounds.split(chunk_size), strict=True):
        num_squarings = count_squarings(chunk_bounds[-1].item(), scaling)
        yield chunk, SquaringLadder(matrices[chunk].to(scaling.dtype) * 2.0**-num_squarings, scaling, num_squarings)


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
    rotation, *_ = _polynomial(work * scales[wanted.long(), None, None], scaling.coefficients)
    for step in range(MAX_SQUARINGS):
        squared = torch.baddbmm(rotation, rotation, rotation, beta=2)
        rotation = torch.where((step < wanted)[:, None, None], squared, rotation)
    identity = torch.eye(work.shape[-1], dtype=work.dtype, device=work.device)
    return (rotation + identity).to(matrices.dtype)
