"""Coordinates of patches, and interpolation of the absolute position table at coordinates."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from transformers.utils.generic import maybe_autocast

POSITION_MODES = ("sequential", "linspace", "rescaled", "centered", "left_edges", "right_edges")
INTERPOLATIONS = ("cubic", "antialiased_cubic", "linear", "antialiased_linear")


def grid_positions(
    grid_size: Sequence[int],
    training_grid_size: Sequence[int],
    mode: str = "rescaled",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Coordinates of the patches of a grid, in row-major order (the last axis varies fastest).

    At the training size the coordinates of the first three modes are evenly spaced from 0 to 1 along each axis. At
    other sizes they differ (compared in section 5.6 of the paper). Along an axis of n patches, m at the training size:

    - `sequential`: index / (m - 1), which keeps the spacing of the training grid;
    - `linspace`: n points from 0 to n / m, as in the authors' code;
    - `rescaled`: n points from 0 to 1;
    - `centered`: the centers of n equal parts of [-1, 1], as in DINOv3;
    - `left_edges`, `right_edges`: the lower or upper ends of n equal parts of [0, 1].

    Args:
        grid_size: patches along each axis, for example (rows, columns).
        training_grid_size: patches along each axis at the training size.

    Returns:
        Tensor of shape (prod(grid_size), len(grid_size)).

    Raises:
        ValueError: an unknown mode, or grids with different numbers of axes.
    """
    if mode not in POSITION_MODES:
        raise ValueError(f"position_mode is {mode!r}, allowed are {', '.join(POSITION_MODES)}")
    axes = [
        _coordinates(torch.arange(steps, dtype=dtype, device=device), steps, max(steps - 1, 1), training_steps, mode)
        for steps, training_steps in zip(grid_size, training_grid_size, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def padded_grid_positions(
    mask: torch.Tensor, grid_size: Sequence[int], training_grid_size: Sequence[int], mode: str
) -> torch.Tensor:
    """`grid_positions` of samples that are padded at the end of each axis to a common grid, each at its own size.

    Args:
        mask: 1 for patches, 0 for padding, shape (batch, prod(grid_size)).

    Returns:
        Tensor of shape (batch, prod(grid_size), len(grid_size)). Those of padding go on beyond the sample.
    """
    is_patch = mask.bool().unflatten(1, grid_size)
    axes = []
    for axis, (steps, training_steps) in enumerate(zip(grid_size, training_grid_size, strict=True), start=1):
        index = torch.arange(steps, dtype=torch.float32, device=mask.device)
        others = tuple(other for other in range(1, is_patch.ndim) if other != axis)
        own_steps = ((is_patch.any(others) if others else is_patch) * (index + 1)).amax(1, keepdim=True).clamp(min=1)
        coordinates = _coordinates(index, own_steps, (own_steps - 1).clamp(min=1), training_steps, mode)
        shape = [steps if other == axis else 1 for other in range(1, is_patch.ndim)]
        axes.append(coordinates.expand(mask.shape[0], steps).unflatten(1, shape).expand(is_patch.shape))
    return torch.stack(axes, dim=-1).flatten(1, -2)


def _coordinates(
    index: torch.Tensor, steps: int | torch.Tensor, intervals: int | torch.Tensor, training_steps: int, mode: str
) -> torch.Tensor:
    """Along one axis of `steps` patches, with `intervals` between them, but at least 1."""
    if mode == "sequential":
        return index / max(training_steps - 1, 1)
    if mode == "linspace":
        return index * (steps / training_steps / intervals)
    if mode == "centered":
        return (2 * index + 1) / steps - 1
    if mode == "left_edges":
        return index / steps
    if mode == "right_edges":
        return (index + 1) / steps
    return index / intervals


def augment_positions(
    positions: torch.Tensor, shift: float | None = None, jitter: float | None = None, rescale: float | None = None
) -> torch.Tensor:
    """Coordinates changed at random, the same for all patches and samples of a batch (DINOv3, arXiv 2508.10104).

    Args:
        positions: (batch or 1, patches, axes).
        shift: largest shift, drawn for each axis, in units of the coordinates. DINOv3's unit is half the image.
        jitter: largest factor, drawn for each axis between 1 / jitter and jitter, evenly in its logarithm.
        rescale: largest factor, the same for all axes.
    """
    num_axes, like = positions.shape[-1], {"device": positions.device, "dtype": positions.dtype}
    if shift is not None:
        positions = positions + shift * (2 * torch.rand(num_axes, **like) - 1)
    for factor, count in ((jitter, num_axes), (rescale, 1)):
        if factor is not None:
            positions = positions * factor ** (2 * torch.rand(count, **like) - 1)
    return positions


def stretched_positions(
    grid_size: Sequence[int], training_grid_size: Sequence[int], device: torch.device | str | None = None
) -> torch.Tensor:
    """Coordinates of a grid that covers the same area as the training grid: the outer edges of the patches coincide.

    With `interpolate_position_table` this gives interpolation with `align_corners=False`, as ViT and the authors of
    LieRE resize their position tables.

    Returns:
        Tensor of shape (prod(grid_size), len(grid_size)).
    """
    axes = []
    for steps, training_steps in zip(grid_size, training_grid_size, strict=True):
        center = (torch.arange(steps, dtype=torch.float32, device=device) + 0.5) / steps
        axes.append((center * training_steps - 0.5) / max(training_steps - 1, 1))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def interpolate_position_table(
    table: torch.Tensor,
    grid_size: Sequence[int],
    positions: torch.Tensor,
    interpolation: str = "cubic",
    spacing: Sequence[float] | None = None,
) -> torch.Tensor:
    """Interpolate a table of position embeddings, given on a regular grid over [0, 1] per axis, at any coordinates.

    The same along every axis:

    - `cubic`: cubic convolution (Keys 1981) with a = -0.75, the border replicated outside the grid, as in torch's
      bicubic interpolation;
    - `antialiased_cubic`: a = -0.5, the kernel stretched by the spacing, its weights cut off at the border and
      normalized, as in Pillow;
    - `linear`: the border replicated, as in torch's trilinear interpolation;
    - `antialiased_linear`: as `antialiased_cubic`, with a linear kernel.

    Weights and sums are float32 (float64 for a table in float64), also under autocast.

    Args:
        table: shape (prod(grid_size), hidden_size).
        grid_size: patches of the table along each axis.
        positions: coordinates, shape (batch, tokens, axes).
        spacing: for the antialiased ones, per axis, that of the positions in units of the table's spacing; 1 if None.

    Returns:
        Tensor of shape (batch, tokens, hidden_size), with the dtype of the table.

    Raises:
        ValueError: an unknown interpolation.
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(
            f"position_embedding_interpolation is {interpolation!r}, allowed are {', '.join(INTERPOLATIONS)}"
        )
    weights = torch.ones((*positions.shape[:2], 1), dtype=torch.float32, device=positions.device)
    for axis, steps in enumerate(grid_size):
        coordinates = positions[..., axis].float() * (steps - 1)
        if interpolation == "cubic":
            axis_weights = _replicated_weights(coordinates, steps, taps=4, kernel=_cubic_kernel)
        elif interpolation == "linear":
            axis_weights = _replicated_weights(coordinates, steps, taps=2, kernel=_linear_kernel)
        else:
            kernel = partial(_cubic_kernel, a=-0.5) if interpolation == "antialiased_cubic" else _linear_kernel
            stretch = max(spacing[axis], 1.0) if spacing else 1.0
            axis_weights = _antialiased_weights(coordinates, steps, stretch, kernel)
        weights = (weights.unsqueeze(-1) * axis_weights.unsqueeze(-2)).flatten(-2)
    dtype = torch.promote_types(table.dtype, torch.float32)
    with maybe_autocast(table.device.type, enabled=False):
        return (weights.to(dtype) @ table.to(dtype)).to(table.dtype)


def _replicated_weights(
    coordinates: torch.Tensor, steps: int, taps: int, kernel: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Weights of the grid points 0 ... steps - 1 at `coordinates`, from the nearest `taps` points: (..., steps)."""
    offsets = torch.arange(1 - taps // 2, 1 + taps // 2, device=coordinates.device)
    floor = coordinates.floor()
    weights = kernel(coordinates.unsqueeze(-1) - (floor.unsqueeze(-1) + offsets))
    index = (floor.long().unsqueeze(-1) + offsets).clamp(0, steps - 1)
    return weights.new_zeros((*coordinates.shape, steps)).scatter_add(-1, index, weights)


def _antialiased_weights(
    coordinates: torch.Tensor, steps: int, spacing: float, kernel: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Weights as above, of a kernel stretched by `spacing` (1 or more) and normalized within the grid."""
    points = torch.arange(steps, dtype=coordinates.dtype, device=coordinates.device)
    weights = kernel((coordinates.clamp(-0.5, steps - 0.5).unsqueeze(-1) - points) / spacing)
    return weights / weights.sum(-1, keepdim=True)


def _linear_kernel(distance: torch.Tensor) -> torch.Tensor:
    return (1 - distance.abs()).clamp(min=0)


def _cubic_kernel(distance: torch.Tensor, a: float = -0.75) -> torch.Tensor:
    """The cubic convolution kernel of Keys (1981)."""
    distance = distance.abs()
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
