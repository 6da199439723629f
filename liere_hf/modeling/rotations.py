"""Rotations of queries and keys: coordinates and generators -> rotations -> rotated vectors.

Every rotary encoding of this package is exp(sum_i p_i A_i) with block-diagonal skew-symmetric A_i (LieRE, equation 3):
LieRE learns A_i with blocks of any even width, RoPE-Mixed is width 2, VisionLLaMA's axial RoPE is width 2 and fixed.
A generator is a raw (b, b) matrix of which the strict upper triangle U gives A = U - U^T.
"""

from collections.abc import Sequence

import torch
from torch.utils.checkpoint import checkpoint
from transformers.utils.generic import maybe_autocast

from .point_exponential import point_exponentials, point_exponentials_backward
from .skew_exponential import graph_exponential, runs_eagerly, skew_matrix_exp, values_are_known
from .squaring_ladder import FLOAT32_BY_FLOAT64, Workspace, kernel_scaling

try:
    from .rotation_kernels import exponential, exponential_backward, rotate, rotations_backward
except ImportError:
    rotate = None


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
    return torch.stack(rotations_by_layer(positions, generators))


def rotations_by_layer(positions: torch.Tensor, generators: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`liere_rotations` as one tensor a layer, (batch or 1, tokens, heads, blocks, b, b), so that each can be freed.

    In training this holds no more memory than the rotations: the gradient computes what else it needs again.
    """
    upper = generators.triu(1)
    bases = (upper - upper.mT).flatten(2, 3)
    rotations = _point_rotations(positions.flatten(0, 1), bases)
    return tuple(layer.unflatten(1, generators.shape[2:4]).unflatten(0, positions.shape[:2]) for layer in rotations)


def _point_rotations(positions: torch.Tensor, bases: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """exp(sum_i p_i A_i) for positions (points, axes) and A (layers, axes, blocks, b, b): (points, blocks, b, b)."""
    if bases.shape[-1] <= 4:
        return tuple(skew_matrix_exp(_exponents(positions, layer)) for layer in bases)
    if runs_eagerly(bases):
        return _PointRotations.apply(positions, bases)
    if torch.is_grad_enabled() and (positions.requires_grad or bases.requires_grad):
        keep_none = {"use_reentrant": False, "preserve_rng_state": False}
        return tuple(checkpoint(_graph_rotations, positions, layer, **keep_none) for layer in bases)
    return tuple(_graph_rotations(positions, layer) for layer in bases)


def _graph_rotations(positions: torch.Tensor, bases: torch.Tensor) -> torch.Tensor:
    exponents = _exponents(positions, bases)
    return graph_exponential(exponents.flatten(0, 1)).view_as(exponents)


def _exponents(positions: torch.Tensor, bases: torch.Tensor) -> torch.Tensor:
    # A sum of products, not a matmul: reduced-precision matrix units would spoil the angles.
    return sum(positions[:, axis, None, None, None] * basis for axis, basis in enumerate(bases))


class _PointRotations(torch.autograd.Function):
    """`_point_rotations` by ladders on a CPU, by kernels on a GPU."""

    @staticmethod
    def forward(ctx, positions: torch.Tensor, bases: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(positions, bases)
        ctx.set_materialize_grads(False)
        if bases.is_cuda:
            scaling = kernel_scaling(bases.shape[-1])
            return tuple(exponential(positions, layer, bases.dtype, scaling) for layer in bases)
        workspace = Workspace()
        return tuple(point_exponentials(positions, layer, workspace) for layer in bases)

    @staticmethod
    def backward(ctx, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if all(grad is None for grad in grads):
            return None, None
        positions, bases = ctx.saved_tensors
        with maybe_autocast(positions.device.type, enabled=False):
            if torch.is_grad_enabled() or ctx.needs_input_grad[0]:
                return _graph_gradients(positions, bases, grads, create_graph=torch.is_grad_enabled())
            workspaces, bases_grad = (Workspace(), Workspace()), torch.zeros_like(bases)
            for layer, grad, layer_grad in zip(bases, grads, bases_grad, strict=True):
                if grad is None:
                    continue
                if bases.is_cuda:
                    exponents_grad = exponential_backward(positions, layer, grad, FLOAT32_BY_FLOAT64)
                    layer_grad.copy_(torch.einsum("pa,pmij->amij", positions, exponents_grad))
                else:
                    layer_grad.copy_(point_exponentials_backward(positions, layer, grad, *workspaces))
            return None, bases_grad


def _graph_gradients(
    positions: torch.Tensor, bases: torch.Tensor, grads: Sequence[torch.Tensor | None], create_graph: bool
) -> tuple[torch.Tensor | None, ...]:
    """Gradients with respect to positions and bases that can be differentiated again."""
    inputs = (positions, bases)
    with torch.enable_grad():
        rotations = [_graph_rotations(positions, layer) for layer in bases]
    used = [(rotation, grad) for rotation, grad in zip(rotations, grads, strict=True) if grad is not None]
    outputs, output_grads = zip(*used, strict=True)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    input_grads = iter(torch.autograd.grad(outputs, wanted, output_grads, create_graph=create_graph))
    return tuple(next(input_grads) if tensor.requires_grad else None for tensor in inputs)


def rotate_queries_and_keys(
    query: torch.Tensor, key: torch.Tensor, rotations: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`apply_rotations` to both, where their rotations are true ones.

    Args:
        query, key: shape (batch, tokens, heads, head_dim).
        rotations: shape (batch or 1, tokens, heads or 1, blocks, b, b), with blocks * b = head_dim.

    Returns:
        Rotated query and key, of their shapes and dtype.
    """
    if _in_one_pass(query, rotations):
        return _HeadProduct.apply(rotations[0].to(query.dtype), query, key)
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
    if _in_one_pass(states, rotations):
        return _HeadProduct.apply(rotations[0], states)[0]
    blocks = states.unflatten(-1, rotations.shape[-3:-1])
    # Shared dimensions are left out of the equation, so that they become rows of one matrix product.
    batch, head = ("" if rotations.shape[dim] == 1 else name for dim, name in ((0, "b"), (2, "h")))
    shared = [dim for dim, name in ((0, batch), (2, head)) if not name]
    rotated = torch.einsum(f"{batch}t{head}nij,bthnj->bthni", rotations.squeeze(shared), blocks)
    return rotated.flatten(-2)


def _in_one_pass(states: torch.Tensor, rotations: torch.Tensor) -> bool:
    """Whether `_HeadProduct` is for these: on a CPU other matrices than planes, with a kernel all that it takes."""
    if rotations.shape[0] > 1 or not values_are_known():
        return False
    width = rotations.shape[-1]
    if states.device.type == "cpu":
        return width > 2
    is_power_of_two = width & (width - 1) == 0
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    return rotate is not None and states.is_cuda and is_power_of_two and width <= 128 and states.dtype in dtypes


class _HeadProduct(torch.autograd.Function):
    """Rotations of any number of states in one pass: by a kernel on a GPU, on a CPU as one product a head, on views.

    Many small products cost a CPU more than the zeros of a full matrix do.
    """

    @staticmethod
    def forward(ctx, rotations: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(rotations, *states)
        if rotations.is_cuda:
            return tuple(rotate(each, rotations) for each in states)
        matrices = _head_matrices(rotations.mT, states[0].shape[2])
        return tuple(_states_by_token(torch.bmm(_rows(each, each.shape[-1]), matrices), each) for each in states)

    @staticmethod
    def backward(ctx, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rotations, *states = ctx.saved_tensors
        pairs = list(zip(states, grads, strict=True))
        if rotations.is_cuda and not torch.is_grad_enabled():
            num_heads, size = rotations.shape[1], rotations.shape[-1]
            parts = (
                rotations_backward(each, grad, num_heads, size) for each, grad in pairs if ctx.needs_input_grad[0]
            )
            rotations_grad = sum(parts).to(rotations.dtype) if ctx.needs_input_grad[0] else None
            return rotations_grad, *(rotate(grad, rotations, transpose=True) for grad in grads)
        matrices = _head_matrices(rotations, states[0].shape[2])
        states_grads = [_states_by_token(torch.bmm(_rows(grad, grad.shape[-1]), matrices), grad) for grad in grads]
        del matrices
        return _rotations_grad(rotations, pairs) if ctx.needs_input_grad[0] else None, *states_grads


def _rotations_grad(rotations: torch.Tensor, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The blocks of the sum of all grad states^T, of pairs (states, grad): transposed in memory.

    That is how the gradient of the exponential reads them fastest.
    """
    num_tokens, num_heads, _, size, _ = rotations.shape
    head_dim = pairs[0][0].shape[-1]
    # Of the outer products only the blocks count: tiles that hold a few of them leave most of the rest out.
    width = max(size, 32) if head_dim % 32 == 0 and 32 % min(size, 32) == 0 else head_dim
    products = None
    for states, grad in pairs:
        factors = (_rows(states, width).mT, _rows(grad, width))
        products = torch.bmm(*factors) if products is None else products.baddbmm_(*factors)
    products = products.view(-1, width // size, size, width // size, size)
    blocks = products.diagonal(dim1=1, dim2=3).movedim(-1, 1).reshape(num_tokens, -1, *rotations.shape[2:])
    return (blocks.sum(1, keepdim=True) if num_heads == 1 else blocks).mT


def _rows(states: torch.Tensor, width: int) -> torch.Tensor:
    """(batch, tokens, heads, head_dim) as a view (tokens * heads * head_dim / width, batch, width)."""
    return states.flatten(1).unflatten(1, (-1, width)).transpose(0, 1)


def _states_by_token(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return rows.transpose(0, 1).view_as(like)


def _head_matrices(rotations: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Blocks (tokens, heads or 1, blocks, b, b) as block-diagonal matrices (tokens * heads, head_dim, head_dim)."""
    num_tokens, _, num_blocks, size, _ = rotations.shape
    rotations = rotations.expand(-1, num_heads, -1, -1, -1)
    if num_blocks == 1:
        return rotations.flatten(0, 2)
    matrices = rotations.new_zeros(num_tokens, num_heads, num_blocks, size, num_blocks, size)
    matrices.diagonal(dim1=2, dim2=4).copy_(rotations.movedim(2, -1))
    return matrices.view(num_tokens * num_heads, num_blocks * size, num_blocks * size)
