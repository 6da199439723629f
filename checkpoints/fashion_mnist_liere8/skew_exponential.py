"""The exponential of skew-symmetric matrices, which is a rotation."""

import torch


def skew_matrix_exp(skew: torch.Tensor) -> torch.Tensor:
    """exp(A) for skew-symmetric A: orthogonal, with determinant 1.

    The input is trusted to be skew-symmetric: for 2 x 2 blocks only the entry above the diagonal is read.

    Args:
        skew: shape (..., n, n), float32 or float64.

    Returns:
        Tensor of the same shape and dtype.
    """
    if skew.shape[-1] == 2:
        angle = skew[..., 0, 1]
        cos, sin = angle.cos(), angle.sin()
        return torch.stack((cos, sin, -sin, cos), dim=-1).unflatten(-1, (2, 2))
    return torch.linalg.matrix_exp(skew)
