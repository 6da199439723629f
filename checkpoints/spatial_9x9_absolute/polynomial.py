"""The polynomials for the exponential of small skew-symmetric matrices, and up to which norm each is used."""

import math
from typing import NamedTuple

import torch


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


def quadratic_coefficients(scaling: Scaling) -> tuple[tuple[float, float, float], ...]:
    """Coefficients of 1, B and B^2 in the quadratics P1, P2, P3 and P4 that give, with two products,

    Q = P1 P2;  exp(B) - 1 = P4 + Q (Q + P3)
    """
    r, x1, x3, x5, k, x4, y2 = scaling.coefficients
    return (0.0, 0.0, 1.0), (x3, x1, x1 * r), (x4, x5, k), (0.0, 1.0, y2)


def kernel_scaling(size: int) -> Scaling:
    """The scaling of (size, size) matrices in the Triton kernels, which compute small ones in float64."""
    return FLOAT32 if size >= 32 else FLOAT32_VIA_FLOAT64
