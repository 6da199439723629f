"""Multiplication of queries and keys by their rotations."""

from collections.abc import Iterator, Sequence

import torch

from .differentiation import FastFunction, Tensors, halves, runs_eagerly
from .kernel_gate import has_rotation, rotate, rotations_backward

# On a CPU neighbouring blocks are merged into one block-diagonal matrix of up to this size: many small products cost
# more than multiplying by zeros.
MAX_MERGED_SIZE = 16
# In smaller batches, merging costs more than it saves.
MIN_BATCH_SIZE_TO_MERGE = 8
# Size of the vectors or of the matrices, whichever is larger, of the tokens that are processed at a time. They stay in
# the cache of a CPU.
CHUNK_BYTES = 1 << 21


def rotate_queries_and_keys(
    query: torch.Tensor, key: torch.Tensor, rotations: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`apply_rotations` to both, for orthogonal matrices.

    The backward pass recovers query and key from the results (x = R^T y), so that training need not keep them.

    Args:
        query, key: shape (batch, tokens, heads, head_dim).
        rotations: shape (batch or 1, tokens, heads or 1, blocks, b, b), with blocks * b = head_dim.

    Returns:
        Rotated query and key, of their shapes and dtype.
    """
    if _has_fast_path(query, rotations):
        return _Rotation.call(rotations[0].to(query.dtype), query, key)
    rotate_states = apply_plane_rotations if rotations.shape[-1] == 2 else apply_rotations
    return rotate_states(query, rotations), rotate_states(key, rotations)


def in_fast_layout(rotations: torch.Tensor) -> torch.Tensor:
    """The same rotations in the memory layout that `rotate_queries_and_keys` reads fastest."""
    return rotations.mT.contiguous().mT if rotations.device.type == "cpu" else rotations.contiguous()


def apply_plane_rotations(states: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of neighbouring dimensions, by complex multiplication.

    Args:
        states: queries or keys, shape (batch, tokens, heads, head_dim).
        rotations: 2 x 2 rotations, shape (batch or 1, tokens, heads or 1, head_dim // 2, 2, 2).

    Returns:
        Tensor of the shape and dtype of `states`.
    """
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


def _has_fast_path(states: torch.Tensor, rotations: torch.Tensor) -> bool:
    """Whether `_Rotation` applies: to blocks of more than 2 x 2 on a CPU, to all that the Triton kernel supports."""
    if rotations.shape[0] > 1 or not runs_eagerly(states, rotations):
        return False
    width = rotations.shape[-1]
    if states.device.type == "cpu":
        return width > 2
    return has_rotation(states, width)


class _Rotation(FastFunction):
    """y = R x for queries and keys x: by a Triton kernel on a GPU, by batched matrix products on a CPU.

    Only R and y are kept for the backward pass, and attention keeps y anyway. The gradient g of y gives R^T g for x
    and, since x = R^T y, g x^T = g y^T R for R.
    """

    @staticmethod
    def fast(rotations: torch.Tensor, *states: torch.Tensor) -> Tensors:
        return (rotate_by_kernel if rotations.is_cuda else _rotate_by_bmm)(rotations, states)

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
        gradient = _RotationGradients if ctx.needs_input_grad[0] else _StatesGradients
        found = gradient.call(rotations, *rotated, *grads)
        return found if ctx.needs_input_grad[0] else (None, *found)


class _RotationGradients(FastFunction):
    """Gradients with respect to R and all x, from R, all y = R x and the gradients with respect to them."""

    @staticmethod
    def fast(rotations: torch.Tensor, *rotated_and_grads: torch.Tensor) -> Tensors:
        gradients = gradients_by_kernel if rotations.is_cuda else _gradients_by_bmm
        return gradients(rotations, *halves(rotated_and_grads), of_rotations=True)

    @staticmethod
    def plain(rotations: torch.Tensor, *rotated_and_grads: torch.Tensor) -> Tensors:
        inverse, outer = rotations.mT[None], 0
        rotated, grads = halves(rotated_and_grads)
        for each, grad in zip(rotated, grads, strict=True):
            states = apply_rotations(each, inverse)
            blocks = (vectors.unflatten(-1, rotations.shape[2:4]) for vectors in (grad, states))
            outer = outer + torch.einsum("bthni,bthnj->thnij", *blocks)
        rotations_grad = outer.sum(1, keepdim=True) if rotations.shape[1] == 1 else outer
        return rotations_grad, *(apply_rotations(grad, inverse) for grad in grads)


class _StatesGradients(FastFunction):
    """The same with respect to all x only."""

    @staticmethod
    def fast(rotations: torch.Tensor, *rotated_and_grads: torch.Tensor) -> Tensors:
        gradients = gradients_by_kernel if rotations.is_cuda else _gradients_by_bmm
        return gradients(rotations, *halves(rotated_and_grads), of_rotations=False)[1:]

    @staticmethod
    def plain(rotations: torch.Tensor, *rotated_and_grads: torch.Tensor) -> Tensors:
        return _RotationGradients.plain(rotations, *rotated_and_grads)[1:]


def rotate_by_kernel(rotations: torch.Tensor, states: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """R x for all states x."""
    return tuple(rotate(each, rotations) for each in states)


def gradients_by_kernel(
    rotations: torch.Tensor, rotated: Sequence[torch.Tensor], grads: Sequence[torch.Tensor], of_rotations: bool
) -> tuple[torch.Tensor | None, ...]:
    """Gradients with respect to R (None unless `of_rotations`) and all x, from those with respect to all y = R x."""
    states_grads = (rotate(grad, rotations, transpose=True) for grad in grads)
    if not of_rotations:
        return None, *states_grads
    _, num_heads, _, size, _ = rotations.shape
    outer = sum(rotations_backward(each, grad, num_heads, size) for each, grad in zip(rotated, grads, strict=True))
    return (outer @ rotations.to(outer.dtype)).to(rotations.dtype), *states_grads


def _rotate_by_bmm(rotations: torch.Tensor, states: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    rotated = tuple(torch.empty_like(each, memory_format=torch.contiguous_format) for each in states)
    for tokens, matrices in _merged_blocks(rotations.mT, states[0]):
        for source, target in zip(states, rotated, strict=True):
            _rows(target[:, tokens], matrices).copy_(torch.bmm(_rows(source[:, tokens], matrices), matrices))
    return rotated


def _gradients_by_bmm(
    rotations: torch.Tensor, rotated: Sequence[torch.Tensor], grads: Sequence[torch.Tensor], of_rotations: bool
) -> tuple[torch.Tensor | None, ...]:
    """As `gradients_by_kernel`.

    The gradient of R is transposed in memory, which `point_exponentials_backward` reads fastest.
    """
    states_grads = tuple(torch.empty_like(grad, memory_format=torch.contiguous_format) for grad in grads)
    rotations_grad = rotations.new_empty(rotations.shape) if of_rotations else None
    for tokens, matrices in _merged_blocks(rotations, grads[0], for_rotations_grad=of_rotations):
        rows = [_rows(grad[:, tokens], matrices) for grad in grads]
        for each, state_grad in zip(rows, states_grads, strict=True):
            _rows(state_grad[:, tokens], matrices).copy_(torch.bmm(each, matrices))
        if of_rotations:
            outer = _transposed_matrices_grad(matrices, [_rows(each[:, tokens], matrices) for each in rotated], rows)
            rotations_grad[tokens] = _diagonal_blocks(outer, grads[0].shape[2], rotations)
    return (None if rotations_grad is None else rotations_grad.mT), *states_grads


def _transposed_matrices_grad(
    matrices: torch.Tensor, rotated: Sequence[torch.Tensor], grads: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Sums of x g^T = R^T y g^T over the rows y and g of all states.

    The factor R^T is applied to the rows where there are fewer of them than columns, else to the sum.
    """
    has_few_rows = len(rotated) * rotated[0].shape[1] < matrices.shape[-1]
    left = [torch.bmm(each, matrices) for each in rotated] if has_few_rows else rotated
    outer = torch.bmm(left[0].mT, grads[0])
    for each, grad in zip(left[1:], grads[1:], strict=True):
        outer.baddbmm_(each.mT, grad)
    return outer if has_few_rows else torch.bmm(matrices.mT, outer)


def _merged_blocks(
    rotations: torch.Tensor, states: torch.Tensor, for_rotations_grad: bool = False
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Chunks of tokens, and their blocks merged to matrices of shape (tokens * heads * matrices, size, size).

    The next chunk overwrites the matrices.

    Args:
        rotations: shape (tokens, heads or 1, blocks, b, b).
        states: what they will be multiplied with, shape (batch, tokens, heads, head_dim).
        for_rotations_grad: whether as many matrices again are computed for the gradient, which then limit the chunk.
    """
    num_tokens, _, num_blocks, size, _ = rotations.shape
    batch_size, _, num_heads, head_dim = states.shape
    count = _blocks_per_matrix(num_blocks, size) if batch_size >= MIN_BATCH_SIZE_TO_MERGE else 1
    rows = max(batch_size, count * size) if for_rotations_grad or count > 1 else batch_size
    step = max(1, CHUNK_BYTES // (rows * num_heads * head_dim * rotations.itemsize))
    merged = rotations.new_zeros(step, num_heads, num_blocks // count, count, size, count, size) if count > 1 else None
    for start in range(0, num_tokens, step):
        blocks = rotations[start : start + step].expand(-1, num_heads, -1, -1, -1)
        if merged is not None:
            merged = merged[: len(blocks)]
            merged.diagonal(dim1=3, dim2=5).copy_(blocks.unflatten(2, (-1, count)).movedim(3, -1))
            blocks = merged.flatten(5).flatten(3, 4)
        yield slice(start, start + step), blocks.flatten(0, 2)


def _blocks_per_matrix(num_blocks: int, size: int) -> int:
    return max(count for count in range(1, max(1, MAX_MERGED_SIZE // size) + 1) if num_blocks % count == 0)


def _rows(states: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """(batch, tokens, heads, head_dim) as a view (tokens * heads * head_dim / size, batch, size) for `matrices`."""
    return states.flatten(1).unflatten(1, (-1, matrices.shape[-1])).transpose(0, 1)


def _diagonal_blocks(matrices: torch.Tensor, num_heads: int, rotations: torch.Tensor) -> torch.Tensor:
    """The blocks of merged matrices, of the shape of `rotations`, (tokens, heads or 1, blocks, b, b)."""
    _, shared_heads, num_blocks, size, _ = rotations.shape
    count = matrices.shape[-1] // size
    blocks = matrices.view(-1, num_heads, num_blocks // count, count, size, count, size).diagonal(dim1=3, dim2=5)
    blocks = blocks.movedim(-1, 3).flatten(2, 3)
    return blocks.sum(1, keepdim=True) if shared_heads == 1 else blocks
