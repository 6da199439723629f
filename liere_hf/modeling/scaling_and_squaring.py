"""The exponential of skew-symmetric matrices by scaling and squaring, and its gradient.

exp(A) = exp(B)^(2^s), where B = 2^-s A is small enough for a polynomial (Higham 2005). Details beyond that:

- The polynomial has degree 8 and takes three matrix products (Bader, Blanes and Casas 2019, arXiv 1710.10989). Its
  coefficients are fitted on the imaginary axis, where the eigenvalues of a skew-symmetric matrix lie.
- The number of squarings s follows from ||A^2||^(1/2), a tighter bound than ||A|| (Al-Mohy and Higham 2009).
- The first squarings are of E = exp(B) - 1, by E <- 2 E + E E. In float32 this keeps the small entries, which would be
  rounded against the ones on the diagonal of exp(B).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

# Above this largest entry |a_ij|, float32 matrices are computed in float64. The float32 error was measured at 1e-7 to
# 3e-7 times the largest entry, so this keeps it near 1e-5. Small matrices get a lower limit: their error can be
# larger, and float64 costs them hardly more time.
MAX_FLOAT32_ENTRY = 40
MAX_FLOAT32_ENTRY_OF_SMALL_MATRICES = 16
# Matrices of fewer rows than this count as small.
SMALL_MATRIX_SIZE = 16
# Squarings of exp(B) - 1. The later ones square exp(B) itself, which takes one pass over memory less. The rounding of
# exp(B) to float32 at most doubles with each of them, and norms up to 250 need at most five: 2^5 * 6e-8 = 2e-6.
NUM_SQUARINGS_WITHOUT_IDENTITY = 4
# Size of one batch of matrices that is processed at a time. With all its intermediate results a chunk then stays in
# the cache of a CPU. Timings were the same from 100 kB to 1 MB.
CHUNK_BYTES = 1 << 19
# On a GPU a chunk has to keep the device busy.
GPU_CHUNK_BYTES = 1 << 26


def polynomial_coefficients(theta: float) -> tuple[float, ...]:
    """Coefficients of a polynomial for exp(B) - 1, with B skew-symmetric and of spectral norm up to `theta`.

    sum_k c_k B^k, k = 1 .. 8, interpolates sin(x) / x and (cos(x) - 1) / x^2 at four Chebyshev nodes in x^2 each, so
    that the error is relative to the angle x. In the notation of Bader, Blanes and Casas, with x7 = 1, r = x2 / x1 and
    k = x6 - x3, it is evaluated as

        B2 = B B;  Q = x3 B2 + x1 B2 (B + r B2);  V = Q + k B2 + x5 B;  exp(B) - 1 = B + y2 B2 + x4 Q + Q V

    c_1 is set to 1, which it equals up to the error of the interpolation.

    Returns:
        r, x1, x3, x5, k, x4, y2.
    """
    exact = {"dtype": torch.float64, "device": "cpu"}
    nodes = [(1 + math.cos(math.pi * (2 * i + 1) / 8)) / 2 for i in range(4)]
    angles = [theta * math.sqrt(node) for node in nodes]
    powers = torch.tensor([[node**k for k in range(4)] for node in nodes], **exact)
    values = [[math.sin(x) / x, -2 * (math.sin(x / 2) / x) ** 2] for x in angles]
    fit = torch.linalg.solve(powers, torch.tensor(values, **exact))
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], **exact)
    fit = fit * (signs * torch.tensor([theta ** (-2 * k) for k in range(4)], **exact))[:, None]
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
    """How matrices are scaled, and the polynomial for the scaled ones.

    Attributes:
        dtype: of the computation.
        theta: largest spectral norm after scaling.
        coefficients: `polynomial_coefficients(theta)`.
    """

    dtype: torch.dtype
    theta: float
    coefficients: tuple[float, ...]


# Computed at import, because compilers cannot trace it. The error of the polynomial is below the rounding of the
# result: of float32, of float64, and of float32 results computed in float64. With theta 1.1 instead of 0.9, float32
# rotations were measured to be orthogonal to 1.06e-5 only, where 1e-5 is promised.
FLOAT32 = Scaling(torch.float32, 0.9, polynomial_coefficients(0.9))
FLOAT64 = Scaling(torch.float64, 0.12, polynomial_coefficients(0.12))
FLOAT32_VIA_FLOAT64 = Scaling(torch.float64, 0.5, polynomial_coefficients(0.5))
# For exponentials that only serve to compute a gradient. It needs less precision (relative errors were measured at
# 6e-6), and the larger norm often saves a squaring. Larger values were no faster.
FLOAT32_FOR_GRADIENT = Scaling(torch.float32, 1.3, polynomial_coefficients(1.3))


def choose_scaling(matrices: torch.Tensor, largest_entry: float, for_gradient_only: bool = False) -> Scaling:
    """The scaling of matrices (..., n, n) whose largest entry is known."""
    size = matrices.shape[-1]
    if matrices.dtype == torch.float64:
        return FLOAT64
    if matrices.device.type == "mps":  # It has no float64.
        return FLOAT32
    limit = MAX_FLOAT32_ENTRY_OF_SMALL_MATRICES if size < SMALL_MATRIX_SIZE else MAX_FLOAT32_ENTRY
    if largest_entry > limit or (matrices.device.type == "cpu" and _float32_products_are_reduced()):
        return FLOAT32_VIA_FLOAT64
    return FLOAT32_FOR_GRADIENT if for_gradient_only else FLOAT32


def _float32_products_are_reduced() -> bool:
    """Whether a CPU may round float32 products to fewer bits (torch.set_float32_matmul_precision)."""
    settings = (torch.backends.mkldnn.matmul.fp32_precision, torch.backends.fp32_precision)
    return any(setting not in ("none", "ieee") for setting in settings)


def kernel_scaling(size: int) -> Scaling:
    """The scaling of (size, size) matrices in the Triton kernels, which compute small ones in float64."""
    return FLOAT32 if size >= 32 else FLOAT32_VIA_FLOAT64


def quadratic_coefficients(scaling: Scaling) -> tuple[tuple[float, float, float], ...]:
    """Coefficients of 1, B and B^2 in the four quadratic polynomials P1 ... P4 that give, with two products,

    Q = P1 P2;  exp(B) - 1 = P4 + Q (Q + P3)
    """
    r, x1, x3, x5, k, x4, y2 = scaling.coefficients
    return (0.0, 0.0, 1.0), (x3, x1, x1 * r), (x4, x5, k), (0.0, 1.0, y2)


class ScratchBuffers:
    """Memory that is reused for every chunk. On a CPU, page faults of new memory cost more than the products in it."""

    def __init__(self, device: torch.device):
        self._device = device
        self._buffers: list[torch.Tensor] = []
        self._views: dict[tuple, torch.Tensor] = {}
        self._next = 0

    def reset(self) -> None:
        """Make all buffers available again. Tensors handed out before will be overwritten."""
        self._next = 0

    def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """An uninitialized tensor that shares no memory with others handed out since `reset`."""
        key = (self._next, shape, dtype)
        if key not in self._views:
            num_bytes = math.prod(shape) * dtype.itemsize
            if self._next == len(self._buffers):
                self._buffers.append(torch.empty(num_bytes, dtype=torch.uint8, device=self._device))
            elif len(self._buffers[self._next]) < num_bytes:
                self._buffers[self._next] = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
                self._views.clear()
            self._views[key] = self._buffers[self._next][:num_bytes].view(dtype).view(shape)
        self._next += 1
        return self._views[key]


class ExponentialPowers:
    """R = exp(A) of a batch of skew-symmetric matrices A, the powers R^m = exp(m A), and the gradient.

    R takes the two products of the polynomial and one per squaring. Each further power takes one.

    Args:
        quadratics: P1 ... P4 of `quadratic_coefficients` at B = 2^-num_squarings A, shape (4, batch, n, n). They are
            overwritten.
        num_squarings: number of squarings from exp(B) to exp(A).
        counts: for how many matrices, from the start of the batch, R, R^2, R^3, ... are computed. The first count is
            the batch size, and counts do not increase.
        scratch: holds all results.
        for_gradient: keep the intermediate results, for `backward`.

    Attributes:
        rotations: R, R^2, R^3, ..., each of shape (count, n, n).
    """

    def __init__(
        self,
        quadratics: torch.Tensor,
        num_squarings: int,
        counts: Sequence[int],
        scratch: ScratchBuffers,
        for_gradient: bool = False,
    ):
        self.quadratics, self.num_squarings, self.counts = quadratics, num_squarings, counts
        p1, p2, p3, exponential = quadratics
        self.q = torch.bmm(p1, p2, out=self._empty(scratch, counts[0]))
        exponential.baddbmm_(self.q, p3.add_(self.q))
        spare, self.squared = p1, []
        for step in range(num_squarings):
            square = self._empty(scratch, counts[0]) if for_gradient else spare
            if step < NUM_SQUARINGS_WITHOUT_IDENTITY:
                torch.baddbmm(exponential, exponential, exponential, beta=2, out=square)
            else:
                if step == NUM_SQUARINGS_WITHOUT_IDENTITY:
                    _add_identity(exponential)
                torch.bmm(exponential, exponential, out=square)
            if for_gradient:
                self.squared.append(
                    _add_identity(exponential) if step < NUM_SQUARINGS_WITHOUT_IDENTITY else exponential
                )
            exponential, spare = square, exponential
        has_identity = num_squarings > NUM_SQUARINGS_WITHOUT_IDENTITY
        self.rotations = [exponential if has_identity else _add_identity(exponential)]
        for power, count in enumerate(counts[1:], start=2):
            factors = self.rotations[power // 2 - 1], self.rotations[power - power // 2 - 1]
            self.rotations.append(torch.bmm(*(factor[:count] for factor in factors), out=self._empty(scratch, count)))

    def _empty(self, scratch: ScratchBuffers, *shape: int) -> torch.Tensor:
        size = self.quadratics.shape[-1]
        return scratch.empty(*shape, size, size, dtype=self.quadratics.dtype)

    def backward(self, grads: list[torch.Tensor], scratch: ScratchBuffers) -> torch.Tensor:
        """Transposed gradients with respect to the quadratics, from transposed gradients with respect to `rotations`.

        With gradients transposed, no factor has to be: the gradient G of S S gives S G + G S for S.

        Args:
            grads: transposed and contiguous, of the shapes of `rotations`. They are overwritten.
            scratch: holds the result.

        Returns:
            Tensor of shape (4, batch, n, n).
        """
        for power in range(len(grads), 1, -1):
            half, rest, grad = power // 2 - 1, power - power // 2 - 1, grads[power - 1]
            grads[half][: len(grad)].baddbmm_(self.rotations[rest][: len(grad)], grad)
            grads[rest][: len(grad)].baddbmm_(grad, self.rotations[half][: len(grad)])
        grad, spare = grads[0], self._empty(scratch, self.counts[0])
        for factor in reversed(self.squared):
            grad, spare = torch.bmm(factor, grad, out=spare).baddbmm_(grad, factor), grad
        # p3 was overwritten by Q + P3.
        p1, p2, q_plus_p3, _ = self.quadratics
        quadratics_grad = self._empty(scratch, 4, self.counts[0])
        p1_grad, p2_grad, p3_grad, p4_grad = quadratics_grad
        p4_grad.copy_(grad)
        torch.bmm(grad, self.q, out=p3_grad)
        q_grad = torch.bmm(q_plus_p3, grad, out=spare).add_(p3_grad)
        torch.bmm(p2, q_grad, out=p1_grad)
        torch.bmm(q_grad, p1, out=p2_grad)
        return quadratics_grad


def _add_identity(matrices: torch.Tensor) -> torch.Tensor:
    matrices.diagonal(dim1=-2, dim2=-1).add_(1)
    return matrices


def count_squarings(norm_bound: float, scaling: Scaling) -> int:
    """Number of halvings that bring a spectral norm down to `scaling.theta`. 0 if the norm is not finite."""
    if not scaling.theta < norm_bound < math.inf:
        return 0
    return math.ceil(math.log2(norm_bound / scaling.theta))


def norm_bound_from_square(squared_norm: torch.Tensor) -> torch.Tensor:
    """Upper bound of the spectral norm of a skew-symmetric B, from the squared Frobenius norm of B^2.

    The eigenvalues of B are pairs +-i x, so that ||B^2||_F^2 is twice the sum of x^4.
    """
    return (squared_norm.clamp(min=0) / 2).sqrt().sqrt()
