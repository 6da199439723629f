"""Multiplication of queries and keys by their rotations."""

import torch

from .differentiation import FastFunction, Tensors, compiles, halves, pull_back, runs_eagerly
from .kernel_gate import has_rotation, rotate, rotations_backward

# On a CPU neighbouring blocks are merged into one block-diagonal matrix of up to this size: many small products cost
# more than multiplying by zeros.
MAX_MERGED_SIZE = 16
# In smaller batches, merging costs more than it saves.
MIN_BATCH_SIZE_TO_MERGE = 8


def rotate_queries_and_keys(
    query: torch.Tensor, key: torch.Tensor, rotations: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`apply_rotations` to both, for orthogonal matrices.

    With kernels, the backward pass recovers query and key from the results (x = R^T y), which are all that is kept.

    Args:
        query, key: shape (batch, tokens, heads, head_dim).
        rotations: shape (batch or 1, tokens, heads or 1, blocks, b, b), with blocks * b = head_dim.

    Returns:
        Rotated query and key, of their shapes and dtype.
    """
    if rotations.shape[0] == 1 and runs_eagerly(query, rotations) and has_rotation(query, rotations.shape[-1]):
        return _Rotation.call(rotations[0].to(query.dtype), query, key)
    if rotations.shape[-1] == 2:
        return apply_plane_rotations(query, rotations), apply_plane_rotations(key, rotations)
    if query.device.type == "cpu" and rotations.shape[0] == 1 and (compiles() or runs_eagerly(query, rotations)):
        if rotations.shape[-1] > max(MAX_MERGED_SIZE, len(query)):
            # Large matrices for few vectors are read once, and have one gradient.
            return apply_rotations(torch.cat((query, key)), rotations).chunk(2)
        rotations = _merged_blocks(rotations, len(query))
    return apply_rotations(query, rotations), apply_rotations(key, rotations)


def apply_plane_rotations(states: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """`apply_rotations` for blocks of size 2, by complex multiplication, which is faster on a CPU (docs/speed.md)."""
    cos, sin = rotations[..., 0, 0], rotations[..., 1, 0]
    pairs = states.unflatten(-1, (-1, 2))
    if not runs_eagerly(states, rotations) or states.dtype not in (torch.float32, torch.float64):
        # Compilers fuse real arithmetic only, and complex numbers of half precision are rarely supported.
        cos, sin = cos.to(states.dtype), sin.to(states.dtype)
        first, second = pairs.unbind(-1)
        rotated = torch.stack((cos * first - sin * second, sin * first + cos * second), dim=-1)
    else:
        turn = torch.complex(cos.to(states.dtype), sin.to(states.dtype))
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * turn)
    return rotated.flatten(-2)


def apply_rotations(states: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Multiply each block of each head of each token by its matrix.

    Args:
        states: queries or keys, shape (batch, tokens, heads, head_dim).
        rotations: shape (batch or 1, tokens, heads or 1, blocks, b, b), with blocks * b = head_dim.

    Returns:
        Tensor of the shape and dtype of `states`.
    """
    rotations = rotations.to(states.dtype)
    blocks = states.unflatten(-1, rotations.shape[-3:-1])
    # Dimensions that share a rotation are left out of its subscripts, so that they become rows of one matrix product.
    batch, head = ("" if rotations.shape[dim] == 1 else name for dim, name in ((0, "b"), (2, "h")))
    shared = [dim for dim, name in ((0, batch), (2, head)) if not name]
    rotated = torch.einsum(f"{batch}t{head}nij,bthnj->bthni", rotations.squeeze(shared), blocks)
    return rotated.flatten(-2)


def _merged_blocks(rotations: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Small blocks, merged to block-diagonal matrices of `MAX_MERGED_SIZE` where a batch is large enough."""
    num_blocks, size = rotations.shape[-3:-1]
    most = MAX_MERGED_SIZE // size if batch_size >= MIN_BATCH_SIZE_TO_MERGE else 1
    count = max([1, *(count for count in range(2, most + 1) if num_blocks % count == 0)])
    if count == 1:
        return rotations
    groups = rotations.unflatten(3, (-1, count)).movedim(4, -1)
    return torch.diag_embed(groups, dim1=4, dim2=6).flatten(6).flatten(4, 5)


class _Rotation(FastFunction):
    """y = R x for queries and keys x, by a Triton kernel.

    Only R and y are kept for the backward pass, and attention keeps y anyway. The gradient g of y gives R^T g for x
    and, since x = R^T y, g x^T = g y^T R for R.
    """

    @staticmethod
    def fast(rotations: torch.Tensor, *states: torch.Tensor) -> Tensors:
        return tuple(rotate(each, rotations) for each in states)

    @staticmethod
    def plain(rotations: torch.Tensor, *states: torch.Tensor) -> Tensors:
        return tuple(apply_rotations(each, rotations[None]) for each in states)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        rotations, *_ = inputs
        ctx.save_for_backward(rotations, *output)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, *grads):
        rotations, *rotated = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, *_Rotation.call(rotations.mT, *grads)
        return _RotationGradient.call(rotations, *rotated, *grads)


class _RotationGradient(FastFunction):
    """Gradients with respect to R and all x, from R, all y = R x and the gradients with respect to them."""

    @staticmethod
    def fast(rotations: torch.Tensor, *rotated_and_grads: torch.Tensor) -> Tensors:
        rotated, grads = halves(rotated_and_grads)
        _, num_heads, _, size, _ = rotations.shape
        outer = sum(rotations_backward(each, grad, num_heads, size) for each, grad in zip(rotated, grads, strict=True))
        rotations_grad = (outer @ rotations.to(outer.dtype)).to(rotations.dtype)
        return rotations_grad, *(rotate(grad, rotations, transpose=True) for grad in grads)

    @staticmethod
    def plain(rotations: torch.Tensor, *rotated_and_grads: torch.Tensor) -> Tensors:
        rotated, grads = halves(rotated_and_grads)
        return pull_back(_Rotation.plain, (rotations, *_Rotation.plain(rotations.mT, *rotated)), grads)
