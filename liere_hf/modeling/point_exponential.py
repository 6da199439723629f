"""exp(sum_i p_i A_i) at many points p on a CPU, and the gradient with respect to the A_i.

What points have in common is computed once: B = sum_i p_i A_i and B^2 = sum_ij p_i p_j A_i A_j are sums of a few
matrices, and a point that is a multiple of another one costs one product, as exp(2 A) = exp(A)^2.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from .squaring_ladder import (
    CHUNK_BYTES,
    SquaringLadder,
    Workspace,
    choose_scaling,
    count_squarings,
    norm_from_square,
    polynomial_terms,
)

# Indices of points p, 2 p, 3 p, ...
Ray = tuple[int, ...]


def point_exponentials(positions: torch.Tensor, bases: torch.Tensor, workspace: Workspace) -> torch.Tensor:
    """exp(sum_i p_i A_i) for positions (points, axes) and A of shape (axes, blocks, n, n): (points, blocks, n, n)."""
    rotations = bases.new_empty(len(positions), *bases.shape[1:])
    rotations[(positions == 0).all(1)] = torch.eye(bases.shape[-1], dtype=bases.dtype)
    for chunk in _Exponents(positions, bases).chunks(workspace):
        for tokens, multiples in zip(chunk.tokens, chunk.ladder(workspace).rotations, strict=True):
            for token, rotation in zip(tokens, multiples.unflatten(0, (len(tokens), -1)), strict=True):
                rotations[token].copy_(rotation)
    return rotations


def point_exponentials_backward(
    positions: torch.Tensor,
    bases: torch.Tensor,
    grad: torch.Tensor,
    workspace: Workspace,
    gradient_workspace: Workspace,
) -> torch.Tensor:
    """The gradient with respect to A, (axes, blocks, n, n), from that with respect to `point_exponentials`.

    It is exact along skew-symmetric directions. `grad` is read fastest if its matrices are transposed in memory.
    """
    exponents = _Exponents(positions, bases, for_gradient_only=True)
    monomials_grad = torch.zeros_like(exponents.monomials[1:])
    for chunk in exponents.chunks(workspace):
        gradient_workspace.reset()
        ladder = chunk.ladder(workspace, for_gradient=True)
        grads = [
            torch.index_select(grad.mT, 0, torch.tensor(tokens)).flatten(0, 1).to(ladder.terms.dtype)
            for tokens in chunk.tokens
        ]
        terms_grad = ladder.backward(grads, gradient_workspace).view(len(chunk.coefficients), -1)
        monomials_grad.flatten(1).addmm_(chunk.coefficients[:, 1:].T, terms_grad)
    # The skew-symmetric parts of a transposed matrix and of its negative are the same.
    return exponents.bases_grad(monomials_grad).neg_().to(bases.dtype)


class _Chunk(NamedTuple):
    """Rays that are computed together.

    Attributes:
        tokens: the indices of their first points, of those points' doubles, of their triples, ...
        coefficients: of `monomials` in the polynomial's terms at the first points, scaled: (4 * rays, monomials).
        monomials: those of `_Exponents`.
        num_squarings: that undo the scaling.
    """

    tokens: list[list[int]]
    coefficients: torch.Tensor
    monomials: torch.Tensor
    num_squarings: int

    def ladder(self, workspace: Workspace, for_gradient: bool = False) -> SquaringLadder:
        num_blocks = self.monomials.shape[1]
        counts = [num_blocks * len(tokens) for tokens in self.tokens]
        terms = workspace.take(4, counts[0], *self.monomials.shape[2:], dtype=self.monomials.dtype)
        torch.mm(self.coefficients, self.monomials.flatten(1), out=terms.view(len(self.coefficients), -1))
        return SquaringLadder(terms, self.num_squarings, counts, workspace, for_gradient)


class _Exponents:
    """sum_i p_i A_i of all points, as sums of `monomials`: 1, A_i, A_i^2 and A_i A_j + A_j A_i.

    Attributes:
        monomials: shape (1 + axes + axes * (axes + 1) / 2, blocks, n, n).
    """

    def __init__(self, positions: torch.Tensor, bases: torch.Tensor, for_gradient_only: bool = False):
        num_axes, num_blocks, width, _ = bases.shape
        largest_entry = (positions.abs() @ bases.abs().amax((1, 2, 3))).max().item()
        self.scaling = choose_scaling(bases.dtype, width, largest_entry, for_gradient_only)
        # Coordinates are rounded: a third of them is exact only to that, which float32 ladders are not beyond either.
        tolerance = 0.0 if self.scaling.dtype != bases.dtype else 2 * torch.finfo(bases.dtype).eps
        self.rays = _rays(tuple(map(tuple, positions.tolist())), tolerance)
        positions, self.bases = positions.to(self.scaling.dtype), bases.to(self.scaling.dtype)
        self.pairs = list(itertools.combinations_with_replacement(range(num_axes), 2))
        first, second = map(list, zip(*self.pairs, strict=True))
        squares = [self._product(*pair) for pair in self.pairs]
        identity = torch.eye(width, dtype=self.scaling.dtype).expand(1, num_blocks, -1, -1)
        self.monomials = torch.cat((identity, self.bases, torch.stack(squares)))
        pair_positions = positions[:, first] * positions[:, second]
        self.point_monomials = torch.cat((torch.ones_like(positions[:, :1]), positions, pair_positions), dim=1)
        self.bounds = self._norm_bounds(positions, pair_positions)

    def _product(self, i: int, j: int) -> torch.Tensor:
        product = torch.bmm(self.bases[i], self.bases[j])
        return product if i == j else product + product.mT

    def _norm_bounds(self, positions: torch.Tensor, pair_positions: torch.Tensor) -> list[float]:
        """At least the spectral norm of the exponents of each point, the largest of the blocks."""
        squares = self.monomials[1 + positions.shape[1] :]
        gram = torch.einsum("amij,bmij->mab", squares, squares)
        bounds = norm_from_square(torch.einsum("ta,mab,tb->tm", pair_positions, gram, pair_positions))
        # Where the sum nearly vanishes between large terms, rounding goes with the terms. An eighth of them is enough:
        # more squarings would add more rounding of their own.
        of_axes = norm_from_square(torch.stack([gram[:, k, k] for k, (i, j) in enumerate(self.pairs) if i == j]))
        return torch.maximum(bounds, positions.abs() @ of_axes / 8).amax(1).tolist()

    def chunks(self, workspace: Workspace) -> Iterator[_Chunk]:
        """Rays of the same number of squarings, as many as stay in the cache, which each use all of the workspace."""
        kinds = [0] + [1] * len(self.bases) + [2] * len(self.pairs)
        factors = self.monomials.new_tensor(polynomial_terms(self.scaling))[:, None, kinds]
        exponents = self.monomials.new_tensor(kinds)
        for num_squarings, rays in self._rays_by_squarings():
            workspace.reset()
            tokens = [[ray[k] for ray in rays if k < len(ray)] for k in range(len(rays[0]))]
            scale = factors * torch.exp2(-num_squarings * exponents)
            coefficients = (scale * self.point_monomials[tokens[0]]).flatten(0, 1)
            yield _Chunk(tokens, coefficients, self.monomials, num_squarings)

    def _rays_by_squarings(self) -> Iterator[tuple[int, list[Ray]]]:
        size = max(1, CHUNK_BYTES // self.monomials[0].nbytes)
        squarings = {ray: count_squarings(self.bounds[ray[0]], self.scaling) for ray in self.rays}
        waiting = []
        for num_squarings in sorted(set(squarings.values())):
            waiting += [ray for ray in self.rays if squarings[ray] == num_squarings]
            # Few matrices cost about as much as some more: they are squared once more, with the next ones.
            if 4 * len(waiting) < size and num_squarings < max(squarings.values()):
                continue
            waiting.sort(key=len, reverse=True)
            for start in range(0, len(waiting), size):
                yield num_squarings, waiting[start : start + size]
            waiting = []

    def bases_grad(self, monomials_grad: torch.Tensor) -> torch.Tensor:
        """Transposed gradients with respect to A from those with respect to all monomials but 1."""
        grad, squares_grad = monomials_grad.split((len(self.bases), len(self.pairs)))
        for (i, j), square_grad in zip(self.pairs, squares_grad, strict=True):
            for this, other in {(i, j), (j, i)}:
                grad[this].baddbmm_(self.bases[other], square_grad).baddbmm_(square_grad, self.bases[other])
        return grad


@functools.lru_cache(maxsize=8)
def _rays(points: tuple[tuple[float, ...], ...], tolerance: float) -> list[Ray]:
    """Every point but the origin once.

    Args:
        tolerance: relative, of a coordinate for being a multiple.
    """
    index = {_rounded(point): token for token, point in reversed(list(enumerate(points)))}
    taken, rays = set(), []
    for token in sorted(range(len(points)), key=lambda token: sum(x * x for x in points[token])):
        if token in taken or not any(points[token]):
            continue
        ray, following = [], token
        while following is not None:
            ray.append(following)
            taken.add(following)
            goal = [(len(ray) + 1) * coordinate for coordinate in points[token]]
            following = index.get(_rounded(goal))
            if following in taken or (following is not None and not _is_near(points[following], goal, tolerance)):
                following = None
        rays.append(tuple(ray))
    return rays


def _is_near(point: Sequence[float], goal: Sequence[float], tolerance: float) -> bool:
    return all(abs(there - here) <= tolerance * abs(here) for there, here in zip(point, goal, strict=True))


def _rounded(point: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(coordinate, 5) for coordinate in point)
