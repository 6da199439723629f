"""Rotations of queries and keys: coordinates and generators -> rotations -> rotated vectors.

Every rotary encoding of this package is exp(sum_i p_i A_i) with block-diagonal skew-symmetric A_i (LieRE, equation 3):
LieRE learns A_i with blocks of any even width, RoPE-Mixed is width 2, VisionLLaMA's axial RoPE is width 2 and fixed.
A generator is a raw (b, b) matrix of which the strict upper triangle U gives A = U - U^T.
"""

import torch

from .skew_exponential import skew_matrix_exp


def axial_generators(
    head_dim: int, num_axes: int, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> torch.Tensor:
    """The fixed generators of VisionLLaMA's axial RoPE, as the authors of LieRE compute it.

    Each axis has head_dim // (2 * num_axes) frequencies exp(-4 * linspace(0, 1)), one axis after another; head
    dimensions left over at the end are not rotated.

    Returns:
        Tensor of shape (1, num_axes, 1, head_dim // 2, 2, 2): one layer and one head, for all.
    """
    num_frequencies = head_dim // (2 * num_axes)
    frequencies = torch.exp(-4 * torch.linspace(0, 1, num_frequencies, dtype=dtype, device=device))
    generators = torch.zeros(1, num_axes, 1, head_dim // 2, 2, 2, dtype=dtype, device=device)
    for axis in range(num_axes):
        generators[0, axis, 0, axis * num_frequencies : (axis + 1) * num_frequencies, 0, 1] = -frequencies
    return generators


def liere_rotations(positions: torch.Tensor, generators: torch.Tensor) -> torch.Tensor:
    """R(p) = exp(sum_i p_i A_i) for every layer, head and block.

    Args:
        positions: coordinates, shape (batch or 1, tokens, axes).
        generators: raw matrices, shape (layers, axes, heads, blocks, b, b).

    Returns:
        Tensor of shape (layers, batch or 1, tokens, heads, blocks, b, b), in the generators' dtype.
    """
    upper = generators.triu(1)
    skew = upper - upper.mT
    # A sum of products, not a matmul: reduced-precision matrix units would spoil the angles.
    exponent = sum(
        positions[None, :, :, axis, None, None, None, None] * skew[:, axis, None, None]
        for axis in range(positions.shape[-1])
    )
    return skew_matrix_exp(exponent)


def apply_rotations(states: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Rotate each block of each head of each token.

    Args:
        states: queries or keys, shape (batch, tokens, heads, head_dim).
        rotations: shape (batch or 1, tokens, heads or 1, blocks, b, b), with blocks * b = head_dim.

    Returns:
        Tensor of the shape and dtype of `states`.
    """
    rotations = rotations.to(states.dtype)
    blocks = states.unflatten(-1, rotations.shape[-3:-1])
    if rotations.shape[-1] == 2:
        rotated = rotations[..., 0] * blocks[..., :1] + rotations[..., 1] * blocks[..., 1:]
        return rotated.flatten(-2)
    # Shared dimensions are left out of the equation, so that they become rows of one matrix product.
    batch, head = ("" if rotations.shape[dim] == 1 else name for dim, name in ((0, "b"), (2, "h")))
    shared = [dim for dim, name in ((0, batch), (2, head)) if not name]
    rotated = torch.einsum(f"{batch}t{head}nij,bthnj->bthni", rotations.squeeze(shared), blocks)
    return rotated.flatten(-2)
