"""Rotations of queries and keys, from coordinates and generators.

R(p) = exp(sum_i p_i A_i) with block-diagonal skew-symmetric A_i (LieRE, equation 3). A generator is a raw (b, b)
matrix whose strict upper triangle U gives A = U - U^T; position_encodings.py computes them.
"""

from collections.abc import Sequence

import torch

from .differentiation import FastFunction, Tensors, compiled_as_operator, halves, pull_back
from .kernel_gate import exponential, exponential_backward, has_exponential
from .point_exponential import point_exponentials, point_exponentials_backward
from .scaling_and_squaring import FLOAT32_VIA_FLOAT64, ScratchBuffers, kernel_scaling
from .skew_exponential import plain_exponential, skew_matrix_exp, skew_matrix_exp_backward, traceable_exponential


def liere_rotations(positions: torch.Tensor, generators: torch.Tensor) -> torch.Tensor:
    """R(p) = exp(sum_i p_i A_i) for every layer, head and block.

    Args:
        positions: coordinates, shape (batch or 1, tokens, axes).
        generators: raw matrices, shape (layers, axes, heads, blocks, b, b).

    Returns:
        Tensor of shape (layers, batch or 1, tokens, heads, blocks, b, b), in the generators' dtype.
    """
    return torch.stack(rotations_by_layer(positions, generators))


def rotations_by_layer(positions: torch.Tensor, generators: torch.Tensor) -> Tensors:
    """`liere_rotations` as one tensor per layer, (batch or 1, tokens, heads, blocks, b, b), so that each can be freed.

    Training keeps positions and bases only: the backward pass computes the exponentials again.
    """
    upper = generators.triu(1)
    bases = (upper - upper.mT).flatten(2, 3)
    points = positions.flatten(0, 1)
    if bases.shape[-1] <= 4:
        rotations = tuple(skew_matrix_exp(_exponents(points, layer)) for layer in bases)
    else:
        rotations = _PointRotations.call(points, *bases)
    return tuple(layer.unflatten(1, generators.shape[2:4]).unflatten(0, positions.shape[:2]) for layer in rotations)


def _exponents(positions: torch.Tensor, bases: torch.Tensor) -> torch.Tensor:
    # A sum of products, not a matmul, which may run at reduced precision (TF32): angles of many radians need float32.
    return sum(positions[:, axis, None, None, None] * basis for axis, basis in enumerate(bases))


@compiled_as_operator
class _PointRotations(FastFunction):
    """exp(sum_i p_i A_i) for positions (points, axes) and, per layer, A of shape (axes, blocks, b, b).

    Returns per layer (points, blocks, b, b).
    """

    @staticmethod
    def fast(positions: torch.Tensor, *layers: torch.Tensor) -> Tensors:
        if has_exponential(layers[0]):
            scaling = kernel_scaling(layers[0].shape[-1])
            return tuple(exponential(positions, layer, layer.dtype, scaling) for layer in layers)
        if positions.device.type == "cpu":
            scratch = ScratchBuffers(positions.device)
            return tuple(point_exponentials(positions, layer, scratch) for layer in layers)
        return tuple(skew_matrix_exp(_exponents(positions, layer)) for layer in layers)

    @staticmethod
    def plain(positions: torch.Tensor, *layers: torch.Tensor) -> Tensors:
        return tuple(plain_exponential(_exponents(positions, layer)) for layer in layers)

    @staticmethod
    def graph(positions: torch.Tensor, *layers: torch.Tensor) -> Tensors:
        exponents = (_exponents(positions, layer) for layer in layers)
        return tuple(traceable_exponential(each.flatten(0, 1)).view_as(each) for each in exponents)

    @staticmethod
    def results(positions: torch.Tensor, *layers: torch.Tensor) -> Tensors:
        return tuple(layer.new_empty(len(positions), *layer.shape[1:]) for layer in layers)

    @staticmethod
    def gradients(inputs: Tensors, needed: Sequence[bool], grads: Sequence[torch.Tensor | None]):
        positions, *layers = inputs
        used = [index for index, grad in enumerate(grads) if grad is not None]
        gradient = _Gradients if needed[0] else _LayersGradients
        found = list(gradient.call(positions, *(layers[index] for index in used), *(grads[index] for index in used)))
        positions_grad = found.pop(0) if needed[0] else None
        found = dict(zip(used, found, strict=True))
        return positions_grad, *(found.get(index) for index in range(len(layers)))


@compiled_as_operator
class _LayersGradients(FastFunction):
    """Gradients with respect to all A, from those with respect to `_PointRotations`. Positions are constant."""

    @staticmethod
    def fast(positions: torch.Tensor, *layers_and_grads: torch.Tensor) -> Tensors:
        pairs = zip(*halves(layers_and_grads), strict=True)
        if positions.device.type == "cpu" and not has_exponential(layers_and_grads[0]):
            scratch = (ScratchBuffers(positions.device), ScratchBuffers(positions.device))
            return tuple(point_exponentials_backward(positions, layer, grad, *scratch) for layer, grad in pairs)
        exponents_grads = (_exponents_grad(positions, layer, grad) for layer, grad in pairs)
        return tuple(torch.einsum("pa,pmij->amij", positions, exponents_grad) for exponents_grad in exponents_grads)

    @staticmethod
    def plain(positions: torch.Tensor, *layers_and_grads: torch.Tensor) -> Tensors:
        layers, grads = halves(layers_and_grads)
        return pull_back(lambda *layers: _PointRotations.plain(positions, *layers), layers, grads)

    @staticmethod
    def results(positions: torch.Tensor, *layers_and_grads: torch.Tensor) -> Tensors:
        layers, _ = halves(layers_and_grads)
        return tuple(map(torch.empty_like, layers))


@compiled_as_operator
class _Gradients(FastFunction):
    """Gradients with respect to positions and all A, from those with respect to `_PointRotations`."""

    @staticmethod
    def fast(positions: torch.Tensor, *layers_and_grads: torch.Tensor) -> Tensors:
        positions_grad, layers_grads = torch.zeros_like(positions), []
        # Layer by layer, each with exponents of its own in memory.
        for layer, grad in zip(*halves(layers_and_grads), strict=True):
            exponents_grad = _exponents_grad(positions, layer, grad)
            positions_grad += torch.einsum("pmij,amij->pa", exponents_grad, layer)
            layers_grads.append(torch.einsum("pa,pmij->amij", positions, exponents_grad))
        return positions_grad, *layers_grads

    @staticmethod
    def plain(positions: torch.Tensor, *layers_and_grads: torch.Tensor) -> Tensors:
        layers, grads = halves(layers_and_grads)
        return pull_back(_PointRotations.plain, (positions, *layers), grads)

    @staticmethod
    def results(positions: torch.Tensor, *layers_and_grads: torch.Tensor) -> Tensors:
        layers, _ = halves(layers_and_grads)
        return tuple(map(torch.empty_like, (positions, *layers)))


def _exponents_grad(positions: torch.Tensor, bases: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """The gradient with respect to the exponents, (points, blocks, b, b), from that with respect to the rotations."""
    if has_exponential(bases):
        return exponential_backward(positions, bases, grad, FLOAT32_VIA_FLOAT64)
    return skew_matrix_exp_backward(_exponents(positions, bases), grad)
