"""The polynomials for the exponential of small skew-symmetric matrices, and up to which norm each is used.

exp(B) - 1 is computed as sum_k c_k B^k, k = 1 .. 8. For B of spectral norm up to theta it interpolates sin(x) / x and
(cos(x) - 1) / x^2 at four Chebyshev nodes in x^2 each, so that the error is relative to the angle x. In the notation
of Bader, Blanes and Casas (arXiv 1710.10989), with x7 = 1, r = x2 / x1 and k = x6 - x3, it is evaluated as

    B2 = B B;  Q = x3 B2 + x1 B2 (B + r B2);  V = Q + k B2 + x5 B;  exp(B) - 1 = B + y2 B2 + x4 Q + Q V

c_1 is set to 1, which it equals up to the error of the interpolation. The tests derive the numbers below.
"""

from typing import NamedTuple

import torch


class Scaling(NamedTuple):
    """How matrices are scaled, and the polynomial for the scaled ones.

    Attributes:
        dtype: of the computation.
        theta: largest spectral norm after scaling.
        coefficients: r, x1, x3, x5, k, x4, y2.
    """

    dtype: torch.dtype
    theta: float
    coefficients: tuple[float, ...]


# The error of the polynomial is below the rounding of the result: of float32, of float64, and of float32 results
# computed in float64. With theta 1.1 instead of 0.9, float32 rotations were measured to be orthogonal to 1.06e-5 only,
# where 1e-5 is promised.
FLOAT32 = Scaling(torch.float32, 0.9, (
    0.25113136420019805, 0.01965295824852666, -0.1413120397333147, 0.8792388459914885,
    0.4857305196114735, 14.802521679982728, 2.5917745308795164,
))  # fmt: skip
FLOAT64 = Scaling(torch.float64, 0.12, (
    0.2500200020002016, 0.01991569635399872, -0.14245177632086284, 0.8765519350417705,
    0.48417842742948314, 14.638355680205235, 2.585259769061828,
))  # fmt: skip
FLOAT32_VIA_FLOAT64 = Scaling(torch.float64, 0.5, (
    0.2503478260951186, 0.019837609211675603, -0.14211216099368687, 0.8773738317753912,
    0.4846423846434584, 14.686857880615142, 2.587181111613,
))  # fmt: skip
# For exponentials that only serve to compute a gradient. It needs less precision (relative errors were measured at
# 6e-6), and the larger norm often saves a squaring. Larger values were no faster.
FLOAT32_FOR_GRADIENT = Scaling(torch.float32, 1.3, (
    0.2523750991535261, 0.01936549318105164, -0.14007453975354417, 0.8819209591983314,
    0.4873986824041184, 14.985320031523436, 2.5990617893572168,
))  # fmt: skip


def quadratic_coefficients(scaling: Scaling) -> tuple[tuple[float, float, float], ...]:
    """Coefficients of 1, B and B^2 in the quadratics P1, P2, P3 and P4 that give, with two products,

    Q = P1 P2;  exp(B) - 1 = P4 + Q (Q + P3)
    """
    r, x1, x3, x5, k, x4, y2 = scaling.coefficients
    return (0.0, 0.0, 1.0), (x3, x1, x1 * r), (x4, x5, k), (0.0, 1.0, y2)
