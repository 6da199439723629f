"""Rotations of queries and keys, from coordinates and generators.

R(p) = exp(sum_i p_i A_i) with block-diagonal skew-symmetric A_i (LieRE, equation 3). A generator is a raw (b, b)
matrix whose strict upper triangle U gives A = U - U^T; position_encodings.py computes them.
"""

from collections.abc import Sequence

import torch
from torch.utils.checkpoint import checkpoint
from transformers.utils.generic import maybe_autocast

from .point_exponential import point_exponentials, point_exponentials_backward
from .scaling_and_squaring import FLOAT32_VIA_FLOAT64, ScratchBuffers, kernel_scaling
from .skew_exponential import has_fast_path, skew_matrix_exp, traceable_exponential

try:
    from .rotation_kernels import exponential, exponential_backward
except ImportError:
    exponential = None


def liere_rotations(positions: torch.Tensor, generators: torch.Tensor) -> torch.Tensor:
    """R(p) = exp(sum_i p_i A_i) for every layer, head and block.

    Args:
        positions: coordinates, shape (batch or 1, tokens, axes).
        generators: raw matrices, shape (layers, axes, heads, blocks, b, b).

    Returns:
        Tensor of shape (layers, batch or 1, tokens, heads, blocks, b, b), in the generators' dtype.
    """
    return torch.stack(rotations_by_layer(positions, generators))


def rotations_by_layer(positions: torch.Tensor, generators: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`liere_rotations` as one tensor per layer, (batch or 1, tokens, heads, blocks, b, b), so that each can be freed.

    Training keeps positions and bases only: the backward pass computes the exponentials again.
    """
    upper = generators.triu(1)
    bases = (upper - upper.mT).flatten(2, 3)
    rotations = _point_rotations(positions.flatten(0, 1), bases)
    return tuple(layer.unflatten(1, generators.shape[2:4]).unflatten(0, positions.shape[:2]) for layer in rotations)


def _point_rotations(positions: torch.Tensor, bases: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """exp(sum_i p_i A_i) for positions (points, axes) and A (layers, axes, blocks, b, b): (points, blocks, b, b)."""
    if bases.shape[-1] <= 4:
        return tuple(skew_matrix_exp(_exponents(positions, layer)) for layer in bases)
    if has_fast_path(bases):
        return _PointRotations.apply(positions, bases)
    if torch.is_grad_enabled() and (positions.requires_grad or bases.requires_grad):
        options = {"use_reentrant": False, "preserve_rng_state": False}
        return tuple(checkpoint(_traceable_rotations, positions, layer, **options) for layer in bases)
    return tuple(_traceable_rotations(positions, layer) for layer in bases)


def _traceable_rotations(positions: torch.Tensor, bases: torch.Tensor) -> torch.Tensor:
    exponents = _exponents(positions, bases)
    return traceable_exponential(exponents.flatten(0, 1)).view_as(exponents)


def _exponents(positions: torch.Tensor, bases: torch.Tensor) -> torch.Tensor:
    # A sum of products, not a matmul, which may run at reduced precision (TF32): angles of many radians need float32.
    return sum(positions[:, axis, None, None, None] * basis for axis, basis in enumerate(bases))


class _PointRotations(torch.autograd.Function):
    """`_point_rotations` by scaling and squaring at all points together: on a CPU, or by Triton kernels on a GPU."""

    @staticmethod
    def forward(ctx, positions: torch.Tensor, bases: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(positions, bases)
        ctx.set_materialize_grads(False)
        if bases.is_cuda:
            scaling = kernel_scaling(bases.shape[-1])
            return tuple(exponential(positions, layer, bases.dtype, scaling) for layer in bases)
        scratch = ScratchBuffers()
        return tuple(point_exponentials(positions, layer, scratch) for layer in bases)

    @staticmethod
    def backward(ctx, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if all(grad is None for grad in grads):
            return None, None
        positions, bases = ctx.saved_tensors
        with maybe_autocast(positions.device.type, enabled=False):
            if torch.is_grad_enabled() or ctx.needs_input_grad[0]:
                return _traceable_gradients(positions, bases, grads, create_graph=torch.is_grad_enabled())
            buffers, bases_grad = (ScratchBuffers(), ScratchBuffers()), torch.zeros_like(bases)
            for layer, grad, layer_grad in zip(bases, grads, bases_grad, strict=True):
                if grad is None:
                    continue
                if bases.is_cuda:
                    exponents_grad = exponential_backward(positions, layer, grad, FLOAT32_VIA_FLOAT64)
                    layer_grad.copy_(torch.einsum("pa,pmij->amij", positions, exponents_grad))
                else:
                    layer_grad.copy_(point_exponentials_backward(positions, layer, grad, *buffers))
            return None, bases_grad


def _traceable_gradients(
    positions: torch.Tensor, bases: torch.Tensor, grads: Sequence[torch.Tensor | None], create_graph: bool
) -> tuple[torch.Tensor | None, ...]:
    """Gradients with respect to positions and bases, from autograd, so that they can be differentiated again."""
    inputs = (positions, bases)
    with torch.enable_grad():
        rotations = [_traceable_rotations(positions, layer) for layer in bases]
    used = [(rotation, grad) for rotation, grad in zip(rotations, grads, strict=True) if grad is not None]
    outputs, output_grads = zip(*used, strict=True)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    input_grads = iter(torch.autograd.grad(outputs, wanted, output_grads, create_graph=create_graph))
    return tuple(next(input_grads) if tensor.requires_grad else None for tensor in inputs)
