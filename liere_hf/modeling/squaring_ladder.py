"""Scaling and squaring of batches of skew-symmetric matrices: a polynomial, squarings, and the gradient of both.

The polynomial is of degree 8 in three products (the scheme of Bader, Blanes and Casas, arXiv 1710.10989, with
coefficients for imaginary eigenvalues), then E <- 2E + E E on E = exp(B) - 1. Keeping E instead of 1 + E is what keeps
float32 accurate over eight squarings: small entries are not rounded against the ones of the diagonal.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

# The error of float32 is 1e-7 to 3e-7 times the largest entry, more in narrow matrices: beyond these entries products
# are taken in float64.
LARGEST_FLOAT32_ENTRY = 40
LARGEST_FLOAT32_ENTRY_OF_NARROW = 16
NARROW = 16
# So many squarings keep exp(B) - 1; on the few that follow, rounding has no time to grow.
SQUARINGS_WITHOUT_IDENTITY = 4
# Bytes of a chunk whose ladder is computed at a time, so that it stays in the cache of a CPU.
CHUNK_BYTES = 1 << 19


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
FLOAT32 = Scaling(torch.float32, 0.9, polynomial_coefficients(0.9))
# A ladder that is made for a gradient only may be a squaring lower: errors of 1e-5 of a gradient do no harm.
FLOAT32_OF_GRADIENT = Scaling(torch.float32, 1.3, polynomial_coefficients(1.3))
FLOAT64 = Scaling(torch.float64, 0.12, polynomial_coefficients(0.12))
FLOAT32_BY_FLOAT64 = Scaling(torch.float64, 0.5, polynomial_coefficients(0.5))


def choose_scaling(dtype: torch.dtype, width: int, largest_entry: float, for_gradient_only: bool = False) -> Scaling:
    """The scaling for matrices on a CPU."""
    if dtype == torch.float64:
        return FLOAT64
    limit = LARGEST_FLOAT32_ENTRY_OF_NARROW if width < NARROW else LARGEST_FLOAT32_ENTRY
    if largest_entry > limit or _float32_is_reduced():
        return FLOAT32_BY_FLOAT64
    return FLOAT32_OF_GRADIENT if for_gradient_only else FLOAT32


def _float32_is_reduced() -> bool:
    """Whether float32 products may be rounded to fewer bits on a CPU (torch.set_float32_matmul_precision)."""
    settings = (torch.backends.mkldnn.matmul.fp32_precision, torch.backends.fp32_precision)
    return any(setting not in ("none", "ieee") for setting in settings)


def kernel_scaling(width: int) -> Scaling:
    """The scaling for the Triton kernels, which take narrow matrices in float64."""
    return FLOAT32 if width >= 32 else FLOAT32_BY_FLOAT64


def polynomial_terms(scaling: Scaling) -> tuple[tuple[float, float, float], ...]:
    """The matrices that the polynomial is made of, as coefficients of 1, B and B^2.

    In this order `square`, `cubic`, `inner` and `linear`, from which two products give

        Q = square cubic;  exp(B) - 1 = linear + Q (Q + inner)
    """
    r, x1, x3, x5, k, x4, y2 = scaling.coefficients
    return (0.0, 0.0, 1.0), (x3, x1, x1 * r), (x4, x5, k), (0.0, 1.0, y2)


class Workspace:
    """Memory for one chunk after the other: on a CPU, memory fresh from the system costs more than a product in it."""

    def __init__(self):
        self._slots: list[torch.Tensor] = []
        self._tensors: dict[tuple, torch.Tensor] = {}
        self._next = 0

    def reset(self) -> None:
        """Use all memory again."""
        self._next = 0

    def take(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """A tensor that nothing else has taken since `reset`, of any values."""
        key = (self._next, shape, dtype)
        if key not in self._tensors:
            num_bytes = math.prod(shape) * dtype.itemsize
            if self._next == len(self._slots):
                self._slots.append(torch.empty(num_bytes, dtype=torch.uint8))
            elif len(self._slots[self._next]) < num_bytes:
                self._slots[self._next] = torch.empty(num_bytes, dtype=torch.uint8)
                self._tensors.clear()
            self._tensors[key] = self._slots[self._next][:num_bytes].view(dtype).view(shape)
        self._next += 1
        return self._tensors[key]


class SquaringLadder:
    """exp(A), exp(2 A), exp(3 A), ... of a batch of skew-symmetric matrices, and the gradient.

    Args:
        terms: of the polynomial of B = 2^-num_squarings A, shape (4, batch, n, n); overwritten.
        num_squarings: squarings up to exp(A).
        counts: how many of the batch, from its start, have exp(A), exp(2 A), ...: the first is all, none is larger
            than the one before.
        workspace: where all results are.
        for_gradient: whether `backward` will be called.
    """

    def __init__(
        self,
        terms: torch.Tensor,
        num_squarings: int,
        counts: Sequence[int],
        workspace: Workspace,
        for_gradient: bool = False,
    ):
        self.terms, self.num_squarings, self.counts = terms, num_squarings, counts
        square, cubic, inner, rung = terms
        self.q = torch.bmm(square, cubic, out=self._take(workspace, counts[0]))
        rung.baddbmm_(self.q, inner.add_(self.q))
        spare, self.rungs = square, []
        for step in range(num_squarings):
            following = self._take(workspace, counts[0]) if for_gradient else spare
            if step < SQUARINGS_WITHOUT_IDENTITY:
                torch.baddbmm(rung, rung, rung, beta=2, out=following)
            else:
                torch.bmm(_add_identity(rung) if step == SQUARINGS_WITHOUT_IDENTITY else rung, rung, out=following)
            if for_gradient:
                self.rungs.append(_add_identity(rung) if step < SQUARINGS_WITHOUT_IDENTITY else rung)
            rung, spare = following, rung
        self.rotations = [rung if num_squarings > SQUARINGS_WITHOUT_IDENTITY else _add_identity(rung)]
        for multiple, count in enumerate(counts[1:], start=2):
            halves = self.rotations[multiple // 2 - 1], self.rotations[multiple - multiple // 2 - 1]
            self.rotations.append(torch.bmm(*(half[:count] for half in halves), out=self._take(workspace, count)))

    def _take(self, workspace: Workspace, *shape: int) -> torch.Tensor:
        size = self.terms.shape[-1]
        return workspace.take(*shape, size, size, dtype=self.terms.dtype)

    def backward(self, grads: list[torch.Tensor], workspace: Workspace) -> torch.Tensor:
        """The transposed gradients with respect to the terms, from those with respect to the rotations.

        Transposed gradients need no transposed factors: of S S it is S G + G S.

        Args:
            grads: transposed, of the shapes of `rotations`, contiguous; overwritten.
            workspace: where the result is.

        Returns:
            Tensor of the shape of the terms.
        """
        for multiple in range(len(grads), 1, -1):
            half, rest, grad = multiple // 2 - 1, multiple - multiple // 2 - 1, grads[multiple - 1]
            grads[half][: len(grad)].baddbmm_(self.rotations[rest][: len(grad)], grad)
            grads[rest][: len(grad)].baddbmm_(grad, self.rotations[half][: len(grad)])
        grad, spare = grads[0], self._take(workspace, self.counts[0])
        for rung in reversed(self.rungs):
            grad, spare = torch.bmm(rung, grad, out=spare).baddbmm_(grad, rung), grad
        square, cubic, inner, _ = self.terms
        terms_grad = self._take(workspace, 4, self.counts[0])
        square_grad, cubic_grad, inner_grad, linear_grad = terms_grad
        linear_grad.copy_(grad)
        torch.bmm(grad, self.q, out=inner_grad)
        q_grad = torch.bmm(inner, grad, out=spare).add_(inner_grad)
        torch.bmm(cubic, q_grad, out=square_grad)
        torch.bmm(q_grad, square, out=cubic_grad)
        return terms_grad


def _add_identity(matrices: torch.Tensor) -> torch.Tensor:
    matrices.diagonal(dim1=-2, dim2=-1).add_(1)
    return matrices


def count_squarings(norm_bound: float, scaling: Scaling) -> int:
    """Halvings that bring a spectral norm down to `scaling.norm`; none of a norm that is not finite."""
    if not scaling.norm < norm_bound < math.inf:
        return 0
    return math.ceil(math.log2(norm_bound / scaling.norm))


def norm_from_square(squared_norm: torch.Tensor) -> torch.Tensor:
    """At least the spectral norm of a skew-symmetric B from the sum of squares in B^2, whose eigenvalues are pairs."""
    return (squared_norm.clamp(min=0) / 2).sqrt().sqrt()
