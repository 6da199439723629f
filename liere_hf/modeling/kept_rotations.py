"""Rotations that are kept from one forward pass to the next."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from .differentiation import Tensors, pull_back, push_forward, runs_eagerly
from .rotary_application import in_fast_layout
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

    def clear(self) -> None:
        self._kept = _Kept(None, ())

    def rotations(self, positions: torch.Tensor, generators: torch.Tensor, dtype: torch.dtype) -> Tensors:
        """`rotations_by_layer` in the given dtype."""
        trains = torch.is_grad_enabled() and (positions.requires_grad or generators.requires_grad)
        if not runs_eagerly(positions, generators):
            return _compute(positions, generators, dtype)
        if positions.shape[0] > 1 or trains:
            self.clear()
            return _compute(positions, generators, dtype)
        return _Lookup.apply(positions, generators, dtype, self)

    def look_up(self, positions: torch.Tensor, generators: torch.Tensor, dtype: torch.dtype) -> Tensors:
        """The same, from what is kept if possible."""
        kept = self._kept
        if kept.generators is None or not _equal(kept.generators, generators):
            kept = _Kept(generators.clone(), ())
        found = next((grid for grid in kept.grids if grid.dtype == dtype and _equal(grid.positions, positions)), None)
        if found is None:
            # Before the computation, so that memory need not hold both.
            kept = self._kept = kept._replace(grids=kept.grids[-(MAX_GRIDS - 1) :])
            # Layer by layer, since another dtype and another layout are further copies.
            layers = (_compute(positions, layer, dtype)[0] for layer in kept.generators.split(1))
            found = _Grid(positions, dtype, tuple(map(in_fast_layout, layers)))
        self._kept = kept._replace(grids=(*(grid for grid in kept.grids if grid is not found), found))
        return found.rotations

    def __reduce__(self):
        """Copies of a model keep nothing."""
        return KeptRotations, ()


class _Grid(NamedTuple):
    positions: torch.Tensor
    dtype: torch.dtype
    rotations: Tensors


class _Kept(NamedTuple):
    """Generators, and the rotations that were computed from them: the least recently used first."""

    generators: torch.Tensor | None
    grids: tuple[_Grid, ...]


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
            return tuple(rotation.detach() for rotation in kept.look_up(positions.clone(), generators, dtype))

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
