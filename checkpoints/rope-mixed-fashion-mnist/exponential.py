"""Exponentials of skew-symmetric matrices, which are rotations: exp(A), and exp(sum_i p_i A_i) at many points p.

By scaling and squaring: exp(A) = exp(B)^(2^s), where B = 2^-s A is small enough for a polynomial (Higham 2005).

- The polynomial has degree 8 and takes three matrix products (Bader, Blanes and Casas 2019, arXiv 1710.10989). Its
  coefficients are fitted on the imaginary axis, where the eigenvalues of a skew-symmetric matrix lie.
- The number of squarings s follows from ||A^2||^(1/2), a tighter bound than ||A|| (Al-Mohy and Higham 2009).
- B = sum_i p_i A_i and B^2 = sum_ij p_i p_j A_i A_j are linear combinations of a few matrices that all points share.
- Squared is E = exp(B) - 1, by E <- 2 E + E E: small entries would be rounded against the ones on the diagonal of
  exp(B).
- A point m p that is a multiple of another point p costs one product, since exp(m A) = exp(A)^m. On the grid of an
  image two fifths of the points are such multiples.

Size 2 has a closed form. On CUDA devices Triton kernels do the same.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import torch

from .differentiation import FastFunction, Tensors, compiled_as_operator, pull_back
from .kernel_gate import exponential, exponential_backward, has_exponential, kernel_scaling
from .polynomial import FLOAT32, FLOAT32_FOR_GRADIENT, FLOAT32_VIA_FLOAT64, FLOAT64, Scaling, quadratic_coefficients

# Above this largest entry |a_ij|, float32 matrices are computed in float64. The float32 error was measured at 1e-7 to
# 3e-7 times the largest entry, so this keeps it near 1e-5. Small matrices get a lower limit: their error can be
# larger, and float64 costs them hardly more time.
MAX_FLOAT32_ENTRY = 40
MAX_FLOAT32_ENTRY_OF_SMALL_MATRICES = 16
# Matrices of fewer rows than this count as small.
SMALL_MATRIX_SIZE = 16
# Size of the matrices that are processed at a time: with all intermediate results they stay in the cache of a CPU. A
# GPU has to be kept busy.
CHUNK_BYTES = 1 << 20
GPU_CHUNK_BYTES = 1 << 26
# The norm that determines the number of squarings is at least this fraction of sum_i |p_i| ||A_i||. Where the terms
# p_i A_i nearly cancel, the rounding error of their sum still has the size of the terms. A larger fraction would cost
# squarings, which round too. Measured for terms that cancel: errors up to 5.5e-6, and 8.8e-6 without this limit.
MIN_NORM_FRACTION = 1 / 8
# A chunk smaller than this fraction is merged with the points that need more squarings, since a few matrices take
# about as much time as some more.
MIN_CHUNK_FRACTION = 1 / 4
# Squarings where the norms are not known. From theta = 0.5 (`FLOAT32_VIA_FLOAT64`) they reach norms of 500,000.
MAX_SQUARINGS = 20
# Decimals of the coordinates by which multiples of a point are looked up. A tighter tolerance then decides.
LOOKUP_DECIMALS = 5

# Indices of the points p, 2 p, 3 p, ...
Multiples = tuple[int, ...]


def skew_matrix_exp(skew: torch.Tensor) -> torch.Tensor:
    """exp(A) for skew-symmetric A, which is orthogonal with determinant 1.

    That the input is skew-symmetric is not checked. In float32 the result is within 1e-5 of the exact rotation for
    spectral norms up to 250; where all singular values are equal, within 8e-5 at width 128 (docs/speed.md).
    The gradient is exact along skew-symmetric directions. Works under torch.compile, the transforms of torch.func, and
    torch.export, there for norms up to 500,000.

    Args:
        skew: shape (..., n, n), float32 or float64.

    Returns:
        Tensor of the same shape and dtype.
    """
    one = skew.new_ones(1, 1)
    return exponentials(one, skew.reshape(1, -1, *skew.shape[-2:])).reshape(skew.shape)


def exponentials(points: torch.Tensor, bases: torch.Tensor) -> torch.Tensor:
    """exp(sum_i p_i A_i) for points (P, axes) and skew-symmetric A of shape (axes, M, n, n): (P, M, n, n).

    Nothing but the arguments is kept for the backward pass, which computes the exponentials again.
    """
    if bases.shape[-1] == 2:
        angle = _exponents(points, bases)[..., 0, 1]
        cos, sin = angle.cos(), angle.sin()
        return torch.stack((cos, sin, -sin, cos), dim=-1).unflatten(-1, (2, 2))
    (rotations,) = _Exponentials.call(points, bases)
    return rotations


def _exponents(points: torch.Tensor, bases: torch.Tensor) -> torch.Tensor:
    # A sum of products, not a matmul, which may run at reduced precision (TF32): angles of many radians need float32.
    return sum(points[:, axis, None, None, None] * basis for axis, basis in enumerate(bases))


@compiled_as_operator
class _Exponentials(FastFunction):
    """`exponentials` of other sizes."""

    @staticmethod
    def fast(points: torch.Tensor, bases: torch.Tensor) -> Tensors:
        if has_exponential(bases):
            return (exponential(points, bases, bases.dtype, kernel_scaling(bases.shape[-1])),)
        rotations = bases.new_empty(len(points), *bases.shape[1:])
        for matrices, exponents in _Exponents.parts(points, bases):
            for chunk in exponents.chunks(for_gradient=False):
                for index, power in zip(chunk.indices, chunk.powers, strict=True):
                    power = power.unflatten(0, (len(index), -1)).to(rotations.dtype)
                    rotations[:, matrices].index_copy_(0, index, power)
        return (rotations,)

    @staticmethod
    def plain(points: torch.Tensor, bases: torch.Tensor) -> Tensors:
        """By torch's own exponential, which has all derivatives, in float64 where there is."""
        exponents = _exponents(points, bases)
        work = exponents if exponents.device.type == "mps" else exponents.double()
        return (torch.linalg.matrix_exp(work).to(exponents.dtype),)

    @staticmethod
    def graph(points: torch.Tensor, bases: torch.Tensor) -> Tensors:
        exponents = _exponents(points, bases)
        return (traceable_exponential(exponents.flatten(0, 1)).view_as(exponents),)

    @staticmethod
    def results(points: torch.Tensor, bases: torch.Tensor) -> Tensors:
        return (bases.new_empty(len(points), *bases.shape[1:]),)

    @staticmethod
    def gradients(inputs: Tensors, needed: Sequence[bool], grads: Sequence[torch.Tensor | None]):
        if needed[0]:
            return _Gradients.call(*inputs, *grads)
        return None, *_BasesGradient.call(*inputs, *grads)


@compiled_as_operator
class _Gradients(FastFunction):
    """The gradients with respect to points and A, from that with respect to exp(sum_i p_i A_i)."""

    @staticmethod
    def fast(points: torch.Tensor, bases: torch.Tensor, grad: torch.Tensor) -> Tensors:
        if has_exponential(bases):
            exponents_grad = exponential_backward(points, bases, grad, FLOAT32_VIA_FLOAT64)
            bases_grad = torch.einsum("pa,pmij->amij", points, exponents_grad)
            return torch.einsum("pmij,amij->pa", exponents_grad, bases), bases_grad
        points_grad, bases_grad = torch.zeros_like(points), torch.empty_like(bases)
        for matrices, exponents in _Exponents.parts(points, bases, for_gradient=True, with_multiples=False):
            bases_grad[:, matrices] = exponents.backward(grad[:, matrices], points_grad)
        return points_grad, bases_grad

    @staticmethod
    def plain(points: torch.Tensor, bases: torch.Tensor, grad: torch.Tensor) -> Tensors:
        return pull_back(_Exponentials.plain, (points, bases), (grad,))

    @staticmethod
    def results(points: torch.Tensor, bases: torch.Tensor, grad: torch.Tensor) -> Tensors:
        return torch.empty_like(points), torch.empty_like(bases)


@compiled_as_operator
class _BasesGradient(FastFunction):
    """The gradient with respect to A only. The points are constant."""

    @staticmethod
    def fast(points: torch.Tensor, bases: torch.Tensor, grad: torch.Tensor) -> Tensors:
        if has_exponential(bases):
            exponents_grad = exponential_backward(points, bases, grad, FLOAT32_VIA_FLOAT64)
            return (torch.einsum("pa,pmij->amij", points, exponents_grad),)
        bases_grad = torch.empty_like(bases)
        for matrices, exponents in _Exponents.parts(points, bases, for_gradient=True):
            bases_grad[:, matrices] = exponents.backward(grad[:, matrices])
        return (bases_grad,)

    @staticmethod
    def plain(points: torch.Tensor, bases: torch.Tensor, grad: torch.Tensor) -> Tensors:
        return _Gradients.plain(points, bases, grad)[1:]

    @staticmethod
    def results(points: torch.Tensor, bases: torch.Tensor, grad: torch.Tensor) -> Tensors:
        return (torch.empty_like(bases),)


class _Exponents:
    """The exponents sum_i p_i A_i of all points, and their squares, as linear combinations of a few `terms`.

    Attributes:
        terms: 1, A_i, A_i^2 and A_i A_j + A_j A_i, shape (1 + axes + axes * (axes + 1) / 2, M, n, n).
        monomials: their coefficients 1, p_i, p_i^2 and p_i p_j, shape (points, terms).
        num_squarings: how often each point has to be halved.
        groups: the points and their multiples, by the number of squarings of the former.
    """

    def __init__(self, groups: Sequence[Multiples], points: torch.Tensor, bases: torch.Tensor, scaling: Scaling):
        self.points, self.bases, self.scaling = points, bases, scaling
        self.pairs = [*itertools.combinations_with_replacement(range(len(bases)), 2)]
        first, second = map(list, zip(*self.pairs, strict=True))
        products = (torch.bmm(bases[i], bases[j]) for i, j in self.pairs)
        squares = torch.stack([p if i == j else p + p.mT for p, (i, j) in zip(products, self.pairs, strict=True)])
        identity = torch.eye(bases.shape[-1], dtype=bases.dtype, device=bases.device).expand_as(bases[:1])
        self.terms = torch.cat((identity, bases, squares))
        point_pairs = points[:, first] * points[:, second]
        self.monomials = torch.cat((torch.ones_like(points[:, :1]), points, point_pairs), dim=1)
        self.degrees = [0] + [1] * len(bases) + [2] * len(self.pairs)
        norms = self._bound_norms(squares, point_pairs).tolist()
        self.num_squarings = [
            math.ceil(math.log2(norm / scaling.theta)) if scaling.theta < norm < math.inf else 0 for norm in norms
        ]
        self.groups = sorted(groups, key=lambda group: self.num_squarings[group[0]])

    @classmethod
    def parts(
        cls, points: torch.Tensor, bases: torch.Tensor, for_gradient: bool = False, with_multiples: bool = True
    ) -> Iterator[tuple[slice, "_Exponents"]]:
        """All matrices, as many at a time as stay in the cache."""
        if not len(points) or not bases.shape[1]:
            return
        largest_entry = (points.abs() @ bases.abs().amax((1, 2, 3))).max().item()
        scaling = choose_scaling(bases, largest_entry, for_gradient)
        groups = [(index,) for index in range(len(points))]
        # Coordinates such as 1 / 3 are rounded, so multiples agree to rounding only. That is as accurate as
        # exponentials in float32, but not as those in float64.
        tolerance = 0.0 if scaling.dtype != bases.dtype else 2 * torch.finfo(bases.dtype).eps
        if with_multiples:
            groups = _multiples(tuple(map(tuple, points.tolist())), tolerance)
        points, bases = points.to(scaling.dtype), bases.to(scaling.dtype)
        count = _matrices_per_chunk(bases)
        for first in range(0, bases.shape[1], count):
            matrices = slice(first, first + count)
            yield matrices, cls(groups, points, bases[:, matrices].contiguous(), scaling)

    def chunks(self, for_gradient: bool) -> Iterator["_Chunk"]:
        """Points of as many squarings together, as many as stay in the cache."""
        count = max(1, _matrices_per_chunk(self.bases) // self.bases.shape[1])
        chunk: list[Multiples] = []
        for group in self.groups:
            is_new_norm = chunk and self.num_squarings[group[0]] > self.num_squarings[chunk[-1][0]]
            if len(chunk) == count or (is_new_norm and len(chunk) >= MIN_CHUNK_FRACTION * count):
                yield _Chunk(self, chunk, for_gradient)
                chunk = []
            chunk.append(group)
        yield _Chunk(self, chunk, for_gradient)

    def backward(self, grad: torch.Tensor, points_grad: torch.Tensor | None = None) -> torch.Tensor:
        """The gradient with respect to A, and that with respect to points, which needs `groups` without multiples.

        Computed are transposed gradients, for which no factor has to be transposed: if G is the one of a product S S,
        that of S is S G + G S. For the skew-symmetric part, the only one that counts, to transpose is to change the
        sign.

        Args:
            grad: with respect to all rotations, shape (P, M, n, n). It is read fastest if its matrices are transposed
                in memory.
            points_grad: what that with respect to points is added to, shape (P, axes).
        """
        terms_grad, monomials_grad = torch.zeros_like(self.terms), torch.zeros_like(self.monomials)
        for chunk in self.chunks(for_gradient=True):
            quadratics_grad = chunk.backward(grad)
            terms_grad.flatten(1).addmm_(chunk.coefficients.T, quadratics_grad)
            if points_grad is not None:
                products = (quadratics_grad @ self.terms.flatten(1).T).unflatten(0, (4, -1))
                monomials_grad[chunk.indices[0]] = (chunk.factors * products).sum(0)
        _, bases_grad, squares_grad = terms_grad.split((1, len(self.bases), len(self.pairs)))
        for (i, j), square_grad in zip(self.pairs, squares_grad, strict=True):
            for this, other in {(i, j), (j, i)}:
                bases_grad[this].baddbmm_(self.bases[other], square_grad).baddbmm_(square_grad, self.bases[other])
        if points_grad is not None:
            _, linear_grad, pairs_grad = monomials_grad.split((1, len(self.bases), len(self.pairs)), dim=1)
            points_grad -= linear_grad
            for (i, j), pair_grad in zip(self.pairs, pairs_grad.T, strict=True):
                points_grad[:, i] += pair_grad * self.points[:, j]
                points_grad[:, j] += pair_grad * self.points[:, i]
        return -bases_grad

    def _bound_norms(self, squares: torch.Tensor, point_pairs: torch.Tensor) -> torch.Tensor:
        """Eigenvalues of A are pairs +-i x, so that ||A^2||_F^2 is twice the sum of x^4: a bound of the norm."""
        gram = torch.einsum("amij,bmij->mab", squares, squares)
        bounds = torch.einsum("pa,mab,pb->pm", point_pairs, gram, point_pairs).clamp(min=0).div(2).pow(0.25)
        of_axes = torch.stack([gram[:, k, k] for k, (i, j) in enumerate(self.pairs) if i == j]).div(2).pow(0.25)
        return torch.maximum(bounds, MIN_NORM_FRACTION * self.points.abs() @ of_axes).amax(1)


class _Chunk:
    """The exponentials of some points and of their multiples, with their gradient.

    Attributes:
        indices: of the points p, of their multiples 2 p, of their multiples 3 p, ...; each list begins like the first.
        powers: R = exp(sum_i p_i A_i), R^2, R^3, ..., each of shape (points * matrices, n, n).
        factors: of monomials and terms in the quadratics P1 ... P4 of the polynomial, shape (4, 1, terms).
        coefficients: of the terms in the quadratics at the points p, shape (4 * points, terms).
    """

    def __init__(self, exponents: _Exponents, groups: Sequence[Multiples], for_gradient: bool):
        terms, num_squarings = exponents.terms, exponents.num_squarings[groups[-1][0]]
        groups = sorted(groups, key=len, reverse=True)
        self.indices = [
            torch.tensor([group[k] for group in groups if k < len(group)], device=terms.device)
            for k in range(len(groups[0]))
        ]
        scaled = [
            [coefficient * 2.0 ** (-num_squarings * degree) for degree, coefficient in enumerate(coefficients)]
            for coefficients in quadratic_coefficients(exponents.scaling)
        ]
        self.factors = terms.new_tensor(scaled)[:, None, exponents.degrees]
        self.coefficients = (self.factors * exponents.monomials[self.indices[0]]).flatten(0, 1)
        self.quadratics = (self.coefficients @ terms.flatten(1)).view(4, -1, *terms.shape[2:])
        self.q = into_expm1(*self.quadratics)
        # Without a gradient the memory of P1 and P4 is enough: on a CPU new memory costs as much as a product in it.
        spare, *_, e = self.quadratics
        self.squared = []
        for _ in range(num_squarings):
            square = torch.baddbmm(e, e, e, beta=2, out=torch.empty_like(e) if for_gradient else spare)
            if for_gradient:
                self.squared.append(_add_identity(e))
            e, spare = square, e
        self.powers = [_add_identity(e)]
        for power in range(2, len(self.indices) + 1):
            half, rest = (self.powers[k - 1] for k in (power // 2, power - power // 2))
            count = terms.shape[1] * len(self.indices[power - 1])
            self.powers.append(torch.bmm(half[:count], rest[:count]))

    def backward(self, grad: torch.Tensor) -> torch.Tensor:
        """Transposed gradients with respect to the quadratics, shape (4 * points, matrices * n * n).

        Args:
            grad: with respect to all rotations, shape (P, M, n, n).
        """
        dtype = self.coefficients.dtype
        grads = [grad.mT.index_select(0, index).flatten(0, 1).to(dtype) for index in self.indices]
        for power in range(len(grads), 1, -1):
            half, rest, of_power = power // 2 - 1, power - power // 2 - 1, grads[power - 1]
            count = len(of_power)
            grads[half][:count].baddbmm_(self.powers[rest][:count], of_power)
            grads[rest][:count].baddbmm_(of_power, self.powers[half][:count])
        e_grad = grads[0]
        for factor in reversed(self.squared):
            e_grad = torch.bmm(factor, e_grad).baddbmm_(e_grad, factor)
        p1, p2, v, _ = self.quadratics
        quadratics_grad = e_grad.new_empty(4, *e_grad.shape)
        quadratics_grad[3] = e_grad
        p3_grad = torch.bmm(e_grad, self.q, out=quadratics_grad[2])
        q_grad = torch.baddbmm(p3_grad, v, e_grad)
        torch.bmm(p2, q_grad, out=quadratics_grad[0])
        torch.bmm(q_grad, p1, out=quadratics_grad[1])
        return quadratics_grad.view(len(self.coefficients), -1)


def _matrices_per_chunk(matrices: torch.Tensor) -> int:
    chunk_bytes = CHUNK_BYTES if matrices.device.type == "cpu" else GPU_CHUNK_BYTES
    return max(1, chunk_bytes // matrices[0, 0].nbytes)


# Every forward pass asks for the same few grids: those of training and evaluation.
@functools.lru_cache(maxsize=8)
def _multiples(points: tuple[tuple[float, ...], ...], tolerance: float) -> list[Multiples]:
    """Partition all points into groups p, 2 p, 3 p, ..., which end at the first missing multiple.

    Args:
        tolerance: relative error of each coordinate up to which a point counts as a multiple.
    """
    lookup = {_rounded(point): index for index, point in reversed([*enumerate(points)])}
    grouped, groups = set(), []
    for first in sorted(range(len(points)), key=lambda index: sum(x * x for x in points[index])):
        group, index = [], first
        while index is not None and index not in grouped:
            group.append(index)
            grouped.add(index)
            multiple = [(len(group) + 1) * coordinate for coordinate in points[first]]
            index = lookup.get(_rounded(multiple))
            if index is not None and not _is_near(points[index], multiple, tolerance):
                index = None
        groups += [tuple(group)] if group else []
    return groups


def _is_near(point: Sequence[float], other: Sequence[float], tolerance: float) -> bool:
    return all(abs(x - y) <= tolerance * abs(y) for x, y in zip(point, other, strict=True))


def _rounded(point: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(coordinate, LOOKUP_DECIMALS) for coordinate in point)


def choose_scaling(matrices: torch.Tensor, largest_entry: float, for_gradient: bool = False) -> Scaling:
    """The scaling of matrices (..., n, n) whose largest entry is known."""
    if matrices.dtype == torch.float64:
        return FLOAT64
    if matrices.device.type == "mps":  # It has no float64.
        return FLOAT32
    is_small = matrices.shape[-1] < SMALL_MATRIX_SIZE
    limit = MAX_FLOAT32_ENTRY_OF_SMALL_MATRICES if is_small else MAX_FLOAT32_ENTRY
    # A CPU may round float32 products to fewer bits (torch.set_float32_matmul_precision).
    precisions = {torch.backends.mkldnn.matmul.fp32_precision, torch.backends.fp32_precision}
    if largest_entry > limit or (matrices.device.type == "cpu" and not precisions <= {"none", "ieee"}):
        return FLOAT32_VIA_FLOAT64
    return FLOAT32_FOR_GRADIENT if for_gradient else FLOAT32


def into_expm1(p1: torch.Tensor, p2: torch.Tensor, p3: torch.Tensor, p4: torch.Tensor) -> torch.Tensor:
    """Turn P4 of `quadratic_coefficients` into exp(B) - 1 and P3 into Q + P3, and return Q."""
    q = torch.bmm(p1, p2)
    p4.baddbmm_(q, p3.add_(q))
    return q


def _add_identity(matrices: torch.Tensor) -> torch.Tensor:
    matrices.diagonal(dim1=-2, dim2=-1).add_(1)
    return matrices


def traceable_exponential(matrices: torch.Tensor) -> torch.Tensor:
    """exp(A) of a batch (matrices, n, n), without control flow that depends on the values, for exporters.

    All matrices go through `MAX_SQUARINGS` squarings, and each keeps the results of as many as its norm needs.
    Computed in float64 where the device has it: that is accurate for entries of any size, and is not affected by
    reduced precision of float32 products (TF32).
    """
    if matrices.device.type == "mps":
        scaling = FLOAT32
    else:
        scaling = FLOAT64 if matrices.dtype == torch.float64 else FLOAT32_VIA_FLOAT64
    work = matrices.to(scaling.dtype)
    # Singular values come in pairs: the spectral norm is at most the Frobenius norm over sqrt(2).
    norms = torch.linalg.matrix_norm(work.detach()) / math.sqrt(2)
    num_squarings = (norms / scaling.theta).log2().ceil().clamp(0, MAX_SQUARINGS)
    scales = work.new_tensor([2.0**-k for k in range(MAX_SQUARINGS + 1)])
    b = work * scales[num_squarings.long(), None, None]
    one, b2 = torch.eye(work.shape[-1], dtype=work.dtype, device=work.device).expand_as(b), torch.bmm(b, b)
    quadratics = [x * one + y * b + z * b2 for x, y, z in quadratic_coefficients(scaling)]
    into_expm1(*quadratics)
    expm1 = quadratics[3]
    for step in range(MAX_SQUARINGS):
        squared = torch.baddbmm(expm1, expm1, expm1, beta=2)
        expm1 = torch.where((step < num_squarings)[:, None, None], squared, expm1)
    return (expm1 + one).to(matrices.dtype)
