"""exp(sum_i p_i A_i) at many points p on a CPU, and the gradient with respect to the A_i.

Scaling and squaring, with two savings over one exponential per point:

- B = sum_i p_i A_i and B^2 = sum_ij p_i p_j A_i A_j are linear combinations of a few matrices that all points share.
- A point m p that is a multiple of another point p costs one product, since exp(m A) = exp(A)^m. On the grid of an
  image most points are such multiples.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from .scaling_and_squaring import (
    CHUNK_BYTES,
    ExponentialPowers,
    ScratchBuffers,
    choose_scaling,
    count_squarings,
    norm_bound_from_square,
    quadratic_coefficients,
)

# The norm that determines the number of squarings is at least this fraction of sum_i |p_i| ||A_i||. Where the terms
# p_i A_i nearly cancel, the rounding error of their sum still has the size of the terms. A larger fraction would cost
# squarings, which round too. Measured for terms that cancel: errors up to 5.5e-6, and 8.8e-6 without this limit.
MIN_NORM_FRACTION = 1 / 8
# A chunk that would be smaller than this fraction is merged with the points that need one squaring more, because a few
# matrices take about as much time as some more.
MIN_CHUNK_FRACTION = 1 / 4
# Decimals of the coordinates by which multiples of a point are looked up. A tighter tolerance then decides.
LOOKUP_DECIMALS = 5

# Indices of the points p, 2 p, 3 p, ...
Multiples = tuple[int, ...]


def point_exponentials(positions: torch.Tensor, bases: torch.Tensor, scratch: ScratchBuffers) -> torch.Tensor:
    """exp(sum_i p_i A_i) for positions (points, axes) and A of shape (axes, blocks, n, n): (points, blocks, n, n)."""
    rotations = bases.new_empty(len(positions), *bases.shape[1:])
    rotations[(positions == 0).all(1)] = torch.eye(bases.shape[-1], dtype=bases.dtype, device=bases.device)
    for chunk in _Exponents(positions, bases).chunks(scratch):
        powers = chunk.exponential_powers(scratch)
        for indices, power in zip(chunk.indices, powers.rotations, strict=True):
            for index, rotation in zip(indices, power.unflatten(0, (len(indices), -1)), strict=True):
                rotations[index].copy_(rotation)
    return rotations


def point_exponentials_backward(
    positions: torch.Tensor,
    bases: torch.Tensor,
    grad: torch.Tensor,
    scratch: ScratchBuffers,
    gradient_scratch: ScratchBuffers,
) -> torch.Tensor:
    """The gradient with respect to A, (axes, blocks, n, n), from the one with respect to `point_exponentials`.

    Exact along skew-symmetric directions only. `grad` is read fastest if its matrices are transposed in memory.
    """
    exponents = _Exponents(positions, bases, for_gradient_only=True)
    monomials_grad = torch.zeros_like(exponents.monomials[1:])
    for chunk in exponents.chunks(scratch):
        gradient_scratch.reset()
        powers = chunk.exponential_powers(scratch, for_gradient=True)
        grads = [
            torch.index_select(grad.mT, 0, torch.tensor(indices, device=grad.device))
            .flatten(0, 1)
            .to(powers.quadratics.dtype)
            for indices in chunk.indices
        ]
        quadratics_grad = powers.backward(grads, gradient_scratch).view(len(chunk.coefficients), -1)
        monomials_grad.flatten(1).addmm_(chunk.coefficients[:, 1:].T, quadratics_grad)
    # Undo the transposition: for the skew-symmetric part, the only one that counts, that is a change of sign.
    return exponents.bases_grad(monomials_grad).neg_().to(bases.dtype)


class _Chunk(NamedTuple):
    """Points that are computed together, with their multiples.

    Attributes:
        indices: of the points p, of their multiples 2 p, of their multiples 3 p, ...
        coefficients: of `monomials` in the quadratics P1 ... P4 at the scaled points p: (4 * points, monomials).
        monomials: as in `_Exponents`.
        num_squarings: how often the points p are halved.
    """

    indices: list[list[int]]
    coefficients: torch.Tensor
    monomials: torch.Tensor
    num_squarings: int

    def exponential_powers(self, scratch: ScratchBuffers, for_gradient: bool = False) -> ExponentialPowers:
        num_blocks = self.monomials.shape[1]
        counts = [num_blocks * len(indices) for indices in self.indices]
        quadratics = scratch.empty(4, counts[0], *self.monomials.shape[2:], dtype=self.monomials.dtype)
        torch.mm(self.coefficients, self.monomials.flatten(1), out=quadratics.view(len(self.coefficients), -1))
        return ExponentialPowers(quadratics, self.num_squarings, counts, scratch, for_gradient)


class _Exponents:
    """The exponents sum_i p_i A_i of all points, and their squares, as linear combinations of `monomials`.

    Attributes:
        monomials: 1, A_i, A_i^2 and A_i A_j + A_j A_i, shape (1 + axes + axes * (axes + 1) / 2, blocks, n, n).
        point_monomials: 1, p_i, p_i^2 and p_i p_j in the same order, shape (points, monomials).
        multiples: the points but the origin, in groups p, 2 p, 3 p, ...
        norm_bounds: an upper bound of the spectral norms of each point's exponents.
    """

    def __init__(self, positions: torch.Tensor, bases: torch.Tensor, for_gradient_only: bool = False):
        num_axes, num_blocks, size, _ = bases.shape
        largest_entry = (positions.abs() @ bases.abs().amax((1, 2, 3))).max().item()
        self.scaling = choose_scaling(bases, largest_entry, for_gradient_only)
        # Coordinates such as 1 / 3 are rounded, so multiples agree to rounding only. That is as accurate as
        # exponentials in float32, but not as those in float64.
        tolerance = 0.0 if self.scaling.dtype != bases.dtype else 2 * torch.finfo(bases.dtype).eps
        self.multiples = _group_multiples(tuple(map(tuple, positions.tolist())), tolerance)
        positions, self.bases = positions.to(self.scaling.dtype), bases.to(self.scaling.dtype)
        self.pairs = list(itertools.combinations_with_replacement(range(num_axes), 2))
        first, second = map(list, zip(*self.pairs, strict=True))
        squares = [self._symmetric_product(*pair) for pair in self.pairs]
        identity = torch.eye(size, dtype=self.scaling.dtype, device=bases.device).expand(1, num_blocks, -1, -1)
        self.monomials = torch.cat((identity, self.bases, torch.stack(squares)))
        pair_positions = positions[:, first] * positions[:, second]
        self.point_monomials = torch.cat((torch.ones_like(positions[:, :1]), positions, pair_positions), dim=1)
        self.norm_bounds = self._bound_norms(positions, pair_positions)

    def _symmetric_product(self, i: int, j: int) -> torch.Tensor:
        product = torch.bmm(self.bases[i], self.bases[j])
        return product if i == j else product + product.mT

    def _bound_norms(self, positions: torch.Tensor, pair_positions: torch.Tensor) -> list[float]:
        squares = self.monomials[1 + positions.shape[1] :]
        gram = torch.einsum("amij,bmij->mab", squares, squares)
        bounds = norm_bound_from_square(torch.einsum("ta,mab,tb->tm", pair_positions, gram, pair_positions))
        axis_grams = [gram[:, k, k] for k, (i, j) in enumerate(self.pairs) if i == j]
        without_cancellation = positions.abs() @ norm_bound_from_square(torch.stack(axis_grams))
        return torch.maximum(bounds, MIN_NORM_FRACTION * without_cancellation).amax(1).tolist()

    def chunks(self, scratch: ScratchBuffers) -> Iterator[_Chunk]:
        """Points of the same number of squarings, as many as stay in the cache. Each chunk reuses all of `scratch`."""
        degree_index = [0] + [1] * len(self.bases) + [2] * len(self.pairs)
        factors = self.monomials.new_tensor(quadratic_coefficients(self.scaling))[:, None, degree_index]
        degrees = self.monomials.new_tensor(degree_index)
        for num_squarings, groups in self._groups_by_squarings():
            scratch.reset()
            indices = [[group[k] for group in groups if k < len(group)] for k in range(len(groups[0]))]
            scale = factors * torch.exp2(-num_squarings * degrees)
            coefficients = (scale * self.point_monomials[indices[0]]).flatten(0, 1)
            yield _Chunk(indices, coefficients, self.monomials, num_squarings)

    def _groups_by_squarings(self) -> Iterator[tuple[int, list[Multiples]]]:
        """The groups of each chunk, longest first, and the number of squarings of their first points."""
        chunk_size = max(1, CHUNK_BYTES // self.monomials[0].nbytes)
        squarings = {group: count_squarings(self.norm_bounds[group[0]], self.scaling) for group in self.multiples}
        waiting = []
        for num_squarings in sorted(set(squarings.values())):
            waiting += [group for group in self.multiples if squarings[group] == num_squarings]
            if len(waiting) < MIN_CHUNK_FRACTION * chunk_size and num_squarings < max(squarings.values()):
                continue
            waiting.sort(key=len, reverse=True)
            for start in range(0, len(waiting), chunk_size):
                yield num_squarings, waiting[start : start + chunk_size]
            waiting = []

    def bases_grad(self, monomials_grad: torch.Tensor) -> torch.Tensor:
        """Transposed gradients with respect to A, from those with respect to all monomials but the first, 1."""
        grad, squares_grad = monomials_grad.split((len(self.bases), len(self.pairs)))
        for (i, j), square_grad in zip(self.pairs, squares_grad, strict=True):
            for this, other in {(i, j), (j, i)}:
                grad[this].baddbmm_(self.bases[other], square_grad).baddbmm_(square_grad, self.bases[other])
        return grad


# Every forward pass asks for the same few grids: those of training and evaluation.
@functools.lru_cache(maxsize=8)
def _group_multiples(points: tuple[tuple[float, ...], ...], tolerance: float) -> list[Multiples]:
    """Partition all points but the origin into groups p, 2 p, 3 p, ..., which end at the first missing multiple.

    Args:
        tolerance: relative error of each coordinate up to which a point counts as a multiple.
    """
    lookup = {_rounded(point): index for index, point in reversed(list(enumerate(points)))}
    grouped, groups = set(), []
    for index in sorted(range(len(points)), key=lambda index: sum(x * x for x in points[index])):
        if index in grouped or not any(points[index]):
            continue
        group, following = [], index
        while following is not None:
            group.append(following)
            grouped.add(following)
            multiple = [(len(group) + 1) * coordinate for coordinate in points[index]]
            following = lookup.get(_rounded(multiple))
            if following in grouped or (
                following is not None and not _is_near(points[following], multiple, tolerance)
            ):
                following = None
        groups.append(tuple(group))
    return groups


def _is_near(point: Sequence[float], other: Sequence[float], tolerance: float) -> bool:
    return all(abs(x - y) <= tolerance * abs(y) for x, y in zip(point, other, strict=True))


def _rounded(point: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(coordinate, LOOKUP_DECIMALS) for coordinate in point)
