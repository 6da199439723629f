"""Coordinates of patches, and the absolute position table read at those coordinates."""

from collections.abc import Sequence

import torch

POSITION_MODES = ("sequential", "linspace", "rescaled")


def grid_positions(
    grid_size: Sequence[int],
    training_grid_size: Sequence[int],
    mode: str = "sequential",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Coordinates of the patches of a grid, the last axis varying fastest.

    At the training size every mode spans [0, 1] along each axis (paper, section 5.6, compares them at other sizes):

    - `sequential`: index / (training patches - 1), the training spacing at every size;
    - `linspace`: `steps` points from 0 to steps / training steps, what the authors' code computes;
    - `rescaled`: `steps` points from 0 to 1.

    Args:
        grid_size: patches along each axis, for example (rows, columns).
        training_grid_size: patches along each axis at the size that the model was trained at.

    Returns:
        Tensor of shape (prod(grid_size), len(grid_size)).
    """
    if mode not in POSITION_MODES:
        raise ValueError(f"position_mode is {mode!r}, allowed are {', '.join(POSITION_MODES)}")
    axes = []
    for steps, training_steps in zip(grid_size, training_grid_size, strict=True):
        index = torch.arange(steps, dtype=dtype, device=device)
        if mode == "sequential":
            axes.append(index / max(training_steps - 1, 1))
        elif mode == "linspace":
            axes.append(index * (steps / training_steps / max(steps - 1, 1)))
        else:
            axes.append(index / max(steps - 1, 1))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def stretched_positions(
    grid_size: Sequence[int], training_grid_size: Sequence[int], device: torch.device | str | None = None
) -> torch.Tensor:
    """Coordinates of a grid laid over the training grid so that the outer edges of their patches coincide.

    With `interpolate_position_table` this is bicubic interpolation with `align_corners=False`, by which ViT and the
    authors of LieRE read their tables at other sizes.

    Returns:
        Tensor of shape (prod(grid_size), len(grid_size)).
    """
    axes = []
    for steps, training_steps in zip(grid_size, training_grid_size, strict=True):
        center = (torch.arange(steps, dtype=torch.float32, device=device) + 0.5) / steps
        axes.append((center * training_steps - 0.5) / max(training_steps - 1, 1))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def interpolate_position_table(
    table: torch.Tensor, grid_size: Sequence[int], positions: torch.Tensor, antialias: Sequence[float] | None = None
) -> torch.Tensor:
    """Read a table of position embeddings, given on a regular grid over [0, 1] per axis, at any coordinates.

    Cubic convolution along every axis, as torch's bicubic interpolation: with a = -0.75 and the border going on
    outside, or with antialiasing a = -0.5 and a kernel that is as wide as the spacing and ends at the border.

    Args:
        table: shape (prod(grid_size), hidden_size).
        grid_size: patches along each axis.
        positions: shape (batch, tokens, axes).
        antialias: along each axis, the spacing of the positions in units of the table's; None without antialiasing.

    Returns:
        Tensor of shape (batch, tokens, hidden_size).
    """
    weights = torch.ones((*positions.shape[:2], 1), dtype=torch.float32, device=positions.device)
    for axis, steps in enumerate(grid_size):
        coordinates = positions[..., axis].float() * (steps - 1)
        if antialias is None:
            axis_weights = _cubic_weights(coordinates, steps)
        else:
            axis_weights = _antialiased_weights(coordinates, steps, max(antialias[axis], 1.0))
        weights = (weights.unsqueeze(-1) * axis_weights.unsqueeze(-2)).flatten(-2)
    return weights.to(table.dtype) @ table


def _cubic_weights(coordinates: torch.Tensor, steps: int) -> torch.Tensor:
    """Weights of the points 0 ... steps - 1 in a cubic convolution read at `coordinates`: (..., steps)."""
    floor = coordinates.floor()
    offsets = torch.arange(-1, 3, device=coordinates.device)
    taps = _cubic_kernel(coordinates.unsqueeze(-1) - (floor.unsqueeze(-1) + offsets), a=-0.75)
    index = (floor.long().unsqueeze(-1) + offsets).clamp(0, steps - 1)
    return torch.zeros((*coordinates.shape, steps), dtype=taps.dtype, device=taps.device).scatter_add(-1, index, taps)


def _antialiased_weights(coordinates: torch.Tensor, steps: int, spacing: float) -> torch.Tensor:
    """The same with a kernel stretched by `spacing` (1 or more), normalized within the grid."""
    points = torch.arange(steps, dtype=coordinates.dtype, device=coordinates.device)
    weights = _cubic_kernel((coordinates.clamp(-0.5, steps - 0.5).unsqueeze(-1) - points) / spacing, a=-0.5)
    return weights / weights.sum(-1, keepdim=True)


def _cubic_kernel(distance: torch.Tensor, a: float) -> torch.Tensor:
    """Keys' cubic convolution kernel."""
    distance = distance.abs()
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
