"""Rotations that are kept from one forward pass to the next, in eager mode and under the compiler."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch

from .differentiation import Tensors, compiles, custom_operator, pull_back, push_forward, runs_eagerly
from .rotary_application import apply_rotations, rotate_queries_and_keys
from .rotations import rotations_by_layer

# A model that reads pictures of more sizes than this in turn computes the rotations of the oldest again.
MAX_GRIDS = 4


class KeptRotations:
    """The rotations of the last few sets of positions, for as long as the generators stay.

    Positions and generators are compared by value, since weights can change in many ways. Nothing is kept while
    generators or positions train, nor where the samples of a batch have positions of their own.
    """

    def __init__(self):
        # Assigned at once, so that threads can share it.
        self._kept = _Kept(None, ())
        self.number = next(_numbers)
        _all_kept[self.number] = self

    def clear(self) -> None:
        self._kept = _Kept(None, ())

    def rotations(
        self, positions: torch.Tensor, generators: torch.Tensor, dtype: torch.dtype
    ) -> "tuple[torch.Tensor | Reference, ...]":
        """`rotations_by_layer` in the given dtype; in graphs of the compiler, references to those that are kept."""
        trains = torch.is_grad_enabled() and (positions.requires_grad or generators.requires_grad)
        can_be_kept = positions.shape[0] == 1 and not trains
        if can_be_kept and compiles():
            grid = _look_up(positions, generators, dtype, self.number)
            return tuple(Reference(positions, layer, grid, index) for index, layer in enumerate(generators.split(1)))
        if not runs_eagerly(positions, generators):
            return _compute(positions, generators, dtype)
        if not can_be_kept:
            self.clear()
            return _compute(positions, generators, dtype)
        return _Lookup.apply(positions, generators, dtype, self)

    def look_up(self, positions: torch.Tensor, generators: torch.Tensor, dtype: torch.dtype) -> "Grid":
        """The rotations, from what is kept if possible."""
        kept = self._kept
        if kept.generators is None or not _equal(kept.generators, generators):
            kept = _Kept(generators.clone(), ())
        found = next((grid for grid in kept.grids if grid.dtype == dtype and _equal(grid.positions, positions)), None)
        if found is None:
            # Before the computation, so that memory need not hold both.
            kept = self._kept = kept._replace(grids=kept.grids[-(MAX_GRIDS - 1) :])
            # Layer by layer, since another dtype is a further copy.
            layers = tuple(_compute(positions, layer, dtype)[0] for layer in kept.generators.split(1))
            found = Grid(positions, dtype, layers, next(_numbers))
            _all_grids[found.number] = found
        self._kept = kept._replace(grids=(*(grid for grid in kept.grids if grid is not found), found))
        return found

    def __reduce__(self):
        """Copies of a model keep nothing."""
        return KeptRotations, ()


@dataclass(frozen=True, eq=False)
class Grid:
    positions: torch.Tensor
    dtype: torch.dtype
    rotations: Tensors
    number: int


class _Kept(NamedTuple):
    """Generators, and the rotations that were computed from them: the least recently used first."""

    generators: torch.Tensor | None
    grids: tuple[Grid, ...]


# Compiled graphs hold numbers, since operators take no objects.
_numbers = itertools.count()
_all_kept: WeakValueDictionary[int, KeptRotations] = WeakValueDictionary()
_all_grids: WeakValueDictionary[int, Grid] = WeakValueDictionary()


def _equal(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    same_kind = tensor.shape == other.shape and tensor.dtype == other.dtype and tensor.device == other.device
    return same_kind and torch.equal(tensor, other)


def _compute(positions: torch.Tensor, generators: torch.Tensor, dtype: torch.dtype) -> Tensors:
    return tuple(rotation.to(dtype) for rotation in rotations_by_layer(positions, generators))


class _Lookup(torch.autograd.Function):
    """`KeptRotations.look_up`. Under a transform of torch.func, or if there are tangents, rotations are computed."""

    @staticmethod
    def forward(positions: torch.Tensor, generators: torch.Tensor, dtype: torch.dtype, kept: KeptRotations) -> Tensors:
        # Tensors of inference mode could not be used in training later.
        with torch.inference_mode(False), torch.no_grad():
            return tuple(
                rotation.detach() for rotation in kept.look_up(positions.clone(), generators, dtype).rotations
            )

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        positions, generators, ctx.dtype, _ = inputs
        ctx.save_for_backward(positions, generators)
        ctx.save_for_forward(positions, generators)

    @staticmethod
    def backward(ctx, *grads):
        return *pull_back(_computation(ctx.dtype), ctx.saved_tensors, grads), None, None

    @staticmethod
    def jvp(ctx, *tangents):
        return push_forward(_computation(ctx.dtype), ctx.saved_tensors, tangents[:2])

    @staticmethod
    def vmap(info, in_dims, positions, generators, dtype, kept):
        rotations = torch.vmap(_computation(dtype), in_dims[:2])(positions, generators)
        return rotations, (0,) * len(rotations)


def _computation(dtype: torch.dtype) -> Callable[..., Tensors]:
    return lambda positions, generators: _compute(positions, generators, dtype)


class Reference(NamedTuple):
    """The rotations of one layer in a compiled graph: what they are computed from, and where they are kept.

    A graph may reuse the memory of its intermediate results, so that the kept rotations cannot be among them.

    Attributes:
        positions: shape (1, tokens, axes).
        generators: of the layer, shape (1, axes, heads, blocks, b, b).
        grid: the number of the `Grid` that was looked up for them, an int64 tensor.
        layer: index among the layers of the grid.
    """

    positions: torch.Tensor
    generators: torch.Tensor
    grid: torch.Tensor
    layer: int

    def rotate(self, query: torch.Tensor, key: torch.Tensor) -> Tensors:
        """`rotate_queries_and_keys`."""
        return tuple(_rotate([query, key], *self, inverse=False))


@custom_operator
def _look_up(positions: torch.Tensor, generators: torch.Tensor, dtype: torch.dtype, kept: int) -> torch.Tensor:
    """The number of the `Grid` that holds the rotations."""
    keeper = _all_kept.get(kept)
    if keeper is None:
        return torch.tensor(-1)
    with torch.inference_mode(False), torch.no_grad():
        return torch.tensor(keeper.look_up(positions.clone(), generators, dtype).number)


@_look_up.register_fake
def _(positions, generators, dtype, kept):
    return torch.empty((), dtype=torch.int64)


@_look_up.register_vmap
def _(info, in_dims, positions, generators, dtype, kept):
    return torch.tensor(-1), None


@custom_operator
def _rotate(
    states: list[torch.Tensor],
    positions: torch.Tensor,
    generators: torch.Tensor,
    grid: torch.Tensor,
    layer: int,
    inverse: bool,
) -> list[torch.Tensor]:
    """Queries and keys, or their gradients, rotated by what is kept, or else computed."""
    kept = _all_grids.get(int(grid))
    with torch.inference_mode(False), torch.no_grad():
        if kept is None:
            (rotations,) = _compute(positions, generators, states[0].dtype)
        else:
            rotations = kept.rotations[layer]
        rotations = rotations.mT if inverse else rotations
        return [each.contiguous() for each in rotate_queries_and_keys(*states, rotations)]


@_rotate.register_fake
def _(states, positions, generators, grid, layer, inverse):
    return [torch.empty_like(each, memory_format=torch.contiguous_format) for each in states]


def _keep_place(ctx, inputs, output) -> None:
    _, *place, ctx.layer, ctx.inverse = inputs
    ctx.save_for_backward(*place)


def _rotate_back(ctx, grads):
    return _rotate(grads, *ctx.saved_tensors, ctx.layer, not ctx.inverse), None, None, None, None, None


_rotate.register_autograd(_rotate_back, setup_context=_keep_place)


@_rotate.register_vmap
def _(info, in_dims, states, positions, generators, grid, layer, inverse):
    def rotated(query, key, positions, generators):
        (rotations,) = _compute(positions, generators, query.dtype)
        return [apply_rotations(each, rotations.mT if inverse else rotations) for each in (query, key)]

    results = torch.vmap(rotated, (*in_dims[0], in_dims[1], in_dims[2]))(*states, positions, generators)
    return results, [0, 0]
