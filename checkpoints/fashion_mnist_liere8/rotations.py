"""Rotations of queries and keys: coordinates and generators -> rotations -> rotated vectors.

Every rotary encoding of this package is exp(sum_i p_i A_i) with block-diagonal skew-symmetric A_i (LieRE, equation 3):
LieRE learns A_i with blocks of any even width, RoPE-Mixed is width 2, VisionLLaMA's axial RoPE is width 2 and fixed.
A generator is a raw (b, b) matrix of which the strict upper triangle U gives A = U - U^T.
"""

import itertools
from collections.abc import Iterator

import torch
from torch.utils.checkpoint import checkpoint
from transformers.utils.generic import maybe_autocast

from .skew_exponential import (
    CHUNK_BYTES,
    FLOAT32_BY_FLOAT64,
    SquaringLadder,
    choose_scaling,
    count_squarings,
    graph_exponential,
    kernel_scaling,
    runs_eagerly,
    skew_matrix_exp,
    values_are_known,
)

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
    return torch.stack([layer_rotations(positions, layer) for layer in generators])


def layer_rotations(positions: torch.Tensor, generators: torch.Tensor) -> torch.Tensor:
    """`liere_rotations` of one layer: generators (axes, heads, ...) give (batch or 1, tokens, heads, ...).

    In training this holds no more memory than the rotations: the gradient computes what else it needs again.
    """
    upper = generators.triu(1)
    bases = (upper - upper.mT).flatten(1, 2)
    rotations = _point_rotations(positions.flatten(0, 1), bases)
    return rotations.unflatten(1, generators.shape[1:3]).unflatten(0, positions.shape[:2])


def _point_rotations(positions: torch.Tensor, bases: torch.Tensor) -> torch.Tensor:
    """exp(sum_i p_i A_i) for positions (points, axes) and A of shape (axes, blocks, b, b): (points, blocks, b, b)."""
    if bases.shape[-1] <= 4:
        return skew_matrix_exp(_exponents(positions, bases))
    if runs_eagerly(bases):
        return _PointRotations.apply(positions, bases)
    if torch.is_grad_enabled() and (positions.requires_grad or bases.requires_grad):
        return checkpoint(_graph_rotations, positions, bases, use_reentrant=False, preserve_rng_state=False)
    return _graph_rotations(positions, bases)


def _graph_rotations(positions: torch.Tensor, bases: torch.Tensor) -> torch.Tensor:
    exponents = _exponents(positions, bases)
    return graph_exponential(exponents.flatten(0, 1)).view_as(exponents)


def _exponents(positions: torch.Tensor, bases: torch.Tensor) -> torch.Tensor:
    # A sum of products, not a matmul: reduced-precision matrix units would spoil the angles.
    return sum(positions[:, axis, None, None, None] * basis for axis, basis in enumerate(bases))


class _PointRotations(torch.autograd.Function):
    """`_point_rotations` by squaring ladders on a CPU, by kernels on a GPU.

    On a CPU, a point that is a multiple of another one costs one product: exp(2 A) = exp(A)^2.
    """

    @staticmethod
    def forward(ctx, positions: torch.Tensor, bases: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(positions, bases)
        if bases.is_cuda:
            return exponential(positions, bases, bases.dtype, kernel_scaling(bases.shape[-1]))
        rotations = bases.new_empty(positions.shape[0], *bases.shape[1:])
        for rays, _, ladder in _ladders(positions, bases):
            for multiple, tokens in rays.items():
                rotation = ladder.rotations[multiple].to(rotations.dtype)
                rotations[tokens] = rotation.view(-1, *bases.shape[1:])
        return rotations

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        with maybe_autocast(grad.device.type, enabled=False):
            return _PointRotations._gradients(ctx, grad)

    @staticmethod
    def _gradients(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        positions, bases = ctx.saved_tensors
        if torch.is_grad_enabled() or ctx.needs_input_grad[0]:
            return _graph_gradients(positions, bases, grad, create_graph=torch.is_grad_enabled())
        if bases.is_cuda:
            exponents_grad = exponential_backward(positions, bases, grad, FLOAT32_BY_FLOAT64)
            return None, torch.einsum("pa,pmij->amij", positions, exponents_grad)
        bases_grad = torch.zeros_like(bases)
        for rays, points, ladder in _ladders(positions, bases):
            scaled_grad = ladder.backward({multiple: grad[tokens].flatten(0, 1) for multiple, tokens in rays.items()})
            products = points.T @ scaled_grad.view(len(points), -1)
            bases_grad += products.view_as(bases).to(bases.dtype)
        return None, bases_grad


def _ladders(
    positions: torch.Tensor, bases: torch.Tensor
) -> Iterator[tuple[dict[int, list[int]], torch.Tensor, SquaringLadder]]:
    """Chunks of points with their ladders.

    Yields:
        The indices of points and of their multiples, by the multiple; the points, scaled (points, axes); and the
        ladder over (points * blocks). Made in the forward pass and again for the gradient: those of all layers would
        take more memory, and more time to come back from it, than that.
    """
    largest_entry = (positions.abs() @ bases.abs().amax((1, 2, 3))).max().item()
    scaling = choose_scaling(bases.dtype, bases.shape[-1], largest_entry)
    chunk_size = max(1, CHUNK_BYTES // (bases[0].numel() * scaling.dtype.itemsize))
    # Coordinates are rounded: a third of them is exact only to that, which float32 ladders are not beyond either.
    tolerance = 0.0 if scaling.dtype != bases.dtype else 2 * torch.finfo(bases.dtype).eps
    bounds = _norm_bounds(positions, bases)
    bases = bases.to(scaling.dtype)
    for rays in _rays(positions.tolist(), bounds, chunk_size, tolerance):
        num_squarings = count_squarings(max(bounds[token] for token in rays[1]), scaling)
        points = positions[rays[1]].to(scaling.dtype) * 2.0**-num_squarings
        scaled = (points @ bases.flatten(1)).view(-1, *bases.shape[2:])
        yield rays, points, SquaringLadder(scaled, scaling, num_squarings, tuple(rays))


def _norm_bounds(positions: torch.Tensor, bases: torch.Tensor) -> list[float]:
    """At least the spectral norm of sum_i p_i A_i, the largest of the blocks, at each point: from products of A_i."""
    products = torch.einsum("amij,bmij->mab", bases, bases)
    squares = torch.einsum("ta,mab,tb->tm", positions, products, positions).amax(1) / 2
    return squares.clamp(min=0).sqrt().tolist()


def _rays(
    points: list[list[float]], bounds: list[float], chunk_size: int, tolerance: float
) -> Iterator[dict[int, list[int]]]:
    """Chunks of points p with the same multiples among the points, p, 2 p, 3 p, ..., and similar norms.

    Args:
        tolerance: relative, of a coordinate for being a multiple.
    """
    index = {_rounded(point): token for token, point in reversed(list(enumerate(points)))}
    taken, rays = set(), []
    for token in sorted(range(len(points)), key=lambda token: (bounds[token], token)):
        if token in taken:
            continue
        ray, multiple = {1: token}, 2
        while any(points[token]) and multiple <= 2 * max(ray):
            goal = [multiple * coordinate for coordinate in points[token]]
            other = index.get(_rounded(goal))
            if other is not None and other not in taken and {multiple // 2, multiple - multiple // 2} <= ray.keys():
                pairs = zip(points[other], goal, strict=True)
                if all(abs(there - here) <= tolerance * abs(here) for there, here in pairs):
                    ray[multiple] = other
            multiple += 1
        taken.update(ray.values())
        rays.append(ray)
    rays.sort(key=tuple)
    for multiples, group in itertools.groupby(rays, key=tuple):
        group = list(group)
        for start in range(0, len(group), chunk_size):
            chunk = group[start : start + chunk_size]
            yield {multiple: [ray[multiple] for ray in chunk] for multiple in multiples}


def _rounded(point: list[float]) -> tuple[float, ...]:
    return tuple(round(coordinate, 5) for coordinate in point)


def _graph_gradients(
    positions: torch.Tensor, bases: torch.Tensor, grad: torch.Tensor, create_graph: bool
) -> tuple[torch.Tensor | None, ...]:
    """Gradients with respect to positions and bases that can be differentiated again."""
    inputs = (positions, bases)
    with torch.enable_grad():
        rotations = _graph_rotations(*inputs)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    grads = iter(torch.autograd.grad(rotations, wanted, grad, create_graph=create_graph))
    return tuple(next(grads) if tensor.requires_grad else None for tensor in inputs)


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
        matrices = _head_matrices(rotations, states[0].shape[2])
        return tuple(_states_by_token(torch.bmm(_rows(each, each.shape[-1]), matrices.mT), each) for each in states)

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
    """The blocks of the sum of all grad states^T, of pairs (states, grad)."""
    num_tokens, num_heads, _, size, _ = rotations.shape
    head_dim = pairs[0][0].shape[-1]
    # Of the outer products only the blocks count: tiles that hold a few of them leave most of the rest out.
    width = max(size, 32) if head_dim % 32 == 0 and 32 % min(size, 32) == 0 else head_dim
    products = None
    for states, grad in pairs:
        factors = (_rows(grad, width).mT, _rows(states, width))
        products = torch.bmm(*factors) if products is None else products.baddbmm_(*factors)
    products = products.view(-1, width // size, size, width // size, size)
    blocks = products.diagonal(dim1=1, dim2=3).movedim(-1, 1).reshape(num_tokens, -1, *rotations.shape[2:])
    return blocks.sum(1, keepdim=True) if num_heads == 1 else blocks


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
