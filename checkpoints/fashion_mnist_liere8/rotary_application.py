"""Queries and keys, multiplied by their rotations."""

from collections.abc import Iterator, Sequence

import torch

from .skew_exponential import values_are_known

try:
    from .rotation_kernels import rotate, rotations_backward
except ImportError:
    rotate = None

# A CPU multiplies blocks side by side as one block-diagonal tile up to this width: many small products cost it more
# than zeros do. Not in batches so small that making the tiles is the larger part.
TILE_WIDTH = 16
SMALLEST_BATCH_OF_TILES = 8
# Bytes of the vectors or tiles of a chunk of tokens, so that they stay in the cache of a CPU.
CHUNK_BYTES = 1 << 21


def rotate_queries_and_keys(
    query: torch.Tensor, key: torch.Tensor, rotations: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`apply_rotations` to both, where their rotations are true ones.

    The gradient takes the results back to the arguments, so that training need not hold these.

    Args:
        query, key: shape (batch, tokens, heads, head_dim).
        rotations: shape (batch or 1, tokens, heads or 1, blocks, b, b), with blocks * b = head_dim.

    Returns:
        Rotated query and key, of their shapes and dtype.
    """
    if _in_one_pass(query, rotations):
        return _Rotation.apply(rotations[0].to(query.dtype), query, key)
    rotate_states = apply_plane_rotations if rotations.shape[-1] == 2 else apply_rotations
    return rotate_states(query, rotations), rotate_states(key, rotations)


def readily_laid_out(rotations: torch.Tensor) -> torch.Tensor:
    """The same rotations in the order of memory that `rotate_queries_and_keys` reads fastest."""
    return rotations.mT.contiguous().mT if rotations.device.type == "cpu" else rotations.contiguous()


def apply_plane_rotations(states: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of neighbouring dimensions, by one complex product.

    Args:
        states: queries or keys, shape (batch, tokens, heads, head_dim).
        rotations: rotations of planes, shape (batch or 1, tokens, heads or 1, head_dim // 2, 2, 2).

    Returns:
        Tensor of the shape and dtype of `states`.
    """
    cos, sin = rotations[..., 0, 0], rotations[..., 1, 0]
    pairs = states.unflatten(-1, (-1, 2))
    if not values_are_known() or states.dtype not in (torch.float32, torch.float64):
        # Compilers fuse real arithmetic; complex numbers of half precision are rarely supported.
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
    # Shared dimensions are left out of the equation, so that they become rows of one matrix product.
    batch, head = ("" if rotations.shape[dim] == 1 else name for dim, name in ((0, "b"), (2, "h")))
    shared = [dim for dim, name in ((0, batch), (2, head)) if not name]
    rotated = torch.einsum(f"{batch}t{head}nij,bthnj->bthni", rotations.squeeze(shared), blocks)
    return rotated.flatten(-2)


def _in_one_pass(states: torch.Tensor, rotations: torch.Tensor) -> bool:
    """Whether `_Rotation` is for these: on a CPU other matrices than planes, with a kernel all that it takes."""
    if rotations.shape[0] > 1 or not values_are_known():
        return False
    width = rotations.shape[-1]
    if states.device.type == "cpu":
        return width > 2
    is_power_of_two = width & (width - 1) == 0
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    return rotate is not None and states.is_cuda and is_power_of_two and width <= 128 and states.dtype in dtypes


class _Rotation(torch.autograd.Function):
    """y = R x for any number of states x, by a kernel on a GPU, by tiles on a CPU.

    x = R^T y, so y is all that is held, which attention holds too: the gradient is R^T g for x, g x^T = g y^T R for R.
    """

    @staticmethod
    def forward(ctx, rotations: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rotated = (rotate_by_kernel if rotations.is_cuda else _rotate_by_tiles)(rotations, states)
        ctx.save_for_backward(rotations, *rotated)
        return rotated

    @staticmethod
    def backward(ctx, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rotations, *rotated = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _graph_gradients(rotations, rotated, grads)
        gradients = gradients_by_kernel if rotations.is_cuda else _gradients_by_tiles
        return gradients(rotations, rotated, grads, of_rotations=ctx.needs_input_grad[0])


def _graph_gradients(
    rotations: torch.Tensor, rotated: Sequence[torch.Tensor], grads: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """Gradients that can be differentiated again."""
    backwards = rotations.mT[None]
    outer = 0
    for each, grad in zip(rotated, grads, strict=True):
        states = apply_rotations(each, backwards)
        blocks = (vectors.unflatten(-1, rotations.shape[2:4]) for vectors in (grad, states))
        outer = outer + torch.einsum("bthni,bthnj->thnij", *blocks)
    rotations_grad = outer.sum(1, keepdim=True) if rotations.shape[1] == 1 else outer
    return rotations_grad, *(apply_rotations(grad, backwards) for grad in grads)


def rotate_by_kernel(rotations: torch.Tensor, states: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """R x for all x."""
    return tuple(rotate(each, rotations) for each in states)


def gradients_by_kernel(
    rotations: torch.Tensor, rotated: Sequence[torch.Tensor], grads: Sequence[torch.Tensor], of_rotations: bool
) -> tuple[torch.Tensor | None, ...]:
    """With respect to R, if `of_rotations`, and all x, from those with respect to all y = R x."""
    states_grads = (rotate(grad, rotations, transpose=True) for grad in grads)
    if not of_rotations:
        return None, *states_grads
    _, num_heads, _, size, _ = rotations.shape
    outer = sum(rotations_backward(each, grad, num_heads, size) for each, grad in zip(rotated, grads, strict=True))
    return (outer @ rotations.to(outer.dtype)).to(rotations.dtype), *states_grads


def _rotate_by_tiles(rotations: torch.Tensor, states: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    rotated = tuple(torch.empty_like(each, memory_format=torch.contiguous_format) for each in states)
    for tokens, tiles in _tiles(rotations.mT, states[0]):
        for source, target in zip(states, rotated, strict=True):
            _rows(target[:, tokens], tiles).copy_(torch.bmm(_rows(source[:, tokens], tiles), tiles))
    return rotated


def _gradients_by_tiles(
    rotations: torch.Tensor, rotated: Sequence[torch.Tensor], grads: Sequence[torch.Tensor], of_rotations: bool
) -> tuple[torch.Tensor | None, ...]:
    """As `gradients_by_kernel`; that of R is transposed in memory, which its exponential's gradient reads fastest."""
    states_grads = tuple(torch.empty_like(grad, memory_format=torch.contiguous_format) for grad in grads)
    rotations_grad = torch.empty(rotations.shape, dtype=rotations.dtype) if of_rotations else None
    for tokens, tiles in _tiles(rotations, grads[0], makes_matrices=of_rotations):
        rows = [_rows(grad[:, tokens], tiles) for grad in grads]
        for each, state_grad in zip(rows, states_grads, strict=True):
            _rows(state_grad[:, tokens], tiles).copy_(torch.bmm(each, tiles))
        if of_rotations:
            tiles_grad = _transposed_grad_of_tiles(tiles, [_rows(each[:, tokens], tiles) for each in rotated], rows)
            rotations_grad[tokens] = _blocks(tiles_grad, grads[0].shape[2], rotations)
    return (None if rotations_grad is None else rotations_grad.mT), *states_grads


def _transposed_grad_of_tiles(
    tiles: torch.Tensor, rotated: Sequence[torch.Tensor], grads: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Sums of x g^T = R^T y g^T over the rows of one or more y and g, by one product a tile or one a row."""
    by_row = len(rotated) * rotated[0].shape[1] < tiles.shape[-1]
    left = [torch.bmm(each, tiles) for each in rotated] if by_row else rotated
    outer = torch.bmm(left[0].mT, grads[0])
    for each, grad in zip(left[1:], grads[1:], strict=True):
        outer.baddbmm_(each.mT, grad)
    return outer if by_row else torch.bmm(tiles.mT, outer)


def _tiles(
    rotations: torch.Tensor, states: torch.Tensor, makes_matrices: bool = False
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Chunks of tokens, and the tiles on the diagonals of their heads, (tokens * heads * tiles, width, width).

    Args:
        rotations: shape (tokens, heads or 1, blocks, b, b).
        states: what they are for, shape (batch, tokens, heads, head_dim).
        makes_matrices: whether more matrices of the same number and size will be made of them.
    """
    num_tokens, _, num_blocks, size, _ = rotations.shape
    batch_size, _, num_heads, head_dim = states.shape
    count = _blocks_of_a_tile(num_blocks, size) if batch_size >= SMALLEST_BATCH_OF_TILES else 1
    rows = max(batch_size, count * size) if makes_matrices or count > 1 else batch_size
    step = max(1, CHUNK_BYTES // (rows * num_heads * head_dim * rotations.itemsize))
    tiles = rotations.new_zeros(step, num_heads, num_blocks // count, count, size, count, size) if count > 1 else None
    for start in range(0, num_tokens, step):
        blocks = rotations[start : start + step].expand(-1, num_heads, -1, -1, -1)
        if tiles is not None:
            tiles = tiles[: len(blocks)]
            tiles.diagonal(dim1=3, dim2=5).copy_(blocks.unflatten(2, (-1, count)).movedim(3, -1))
            blocks = tiles.flatten(5).flatten(3, 4)
        yield slice(start, start + step), blocks.flatten(0, 2)


def _blocks_of_a_tile(num_blocks: int, size: int) -> int:
    return max(count for count in range(1, max(1, TILE_WIDTH // size) + 1) if num_blocks % count == 0)


def _rows(states: torch.Tensor, tiles: torch.Tensor) -> torch.Tensor:
    """(batch, tokens, heads, head_dim) as a view (tokens * heads * head_dim / width, batch, width)."""
    return states.flatten(1).unflatten(1, (-1, tiles.shape[-1])).transpose(0, 1)


def _blocks(tiles: torch.Tensor, num_heads: int, rotations: torch.Tensor) -> torch.Tensor:
    """The blocks on the diagonals of tiles: (tokens, heads or 1, blocks, b, b), as `rotations` has it."""
    _, shared_heads, num_blocks, size, _ = rotations.shape
    count = tiles.shape[-1] // size
    blocks = tiles.view(-1, num_heads, num_blocks // count, count, size, count, size).diagonal(dim1=3, dim2=5)
    blocks = blocks.movedim(-1, 3).flatten(2, 3)
    return blocks.sum(1, keepdim=True) if shared_heads == 1 else blocks
