"""Rotations of queries and keys, from coordinates and generators.

R(p) = exp(sum_i p_i A_i) with block-diagonal skew-symmetric A_i (LieRE, equation 3). A generator is a raw (b, b)
matrix whose strict upper triangle U gives A = U - U^T; position_encodings.py computes them.
"""

import torch

from .differentiation import Tensors
from .exponential import exponentials


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
    """`liere_rotations` as one tensor a layer, (batch or 1, tokens, heads, blocks, b, b): each can be freed."""
    upper = generators.triu(1)
    bases = (upper - upper.mT).flatten(2, 3)
    points = positions.flatten(0, 1)
    layers = (exponentials(points, layer) for layer in bases.unbind())
    return tuple(layer.unflatten(1, generators.shape[2:4]).unflatten(0, positions.shape[:2]) for layer in layers)
