"""Triton kernels for rotations: exponentials of small skew-symmetric matrices, block-diagonal products, gradients.

Plain functions of CUDA tensors, without autograd. No atomics: the same input gives the same bits.
"""

from typing import NamedTuple

import torch

# In a `try`, so that transformers does not require Triton when it checks the imports of remote code. Modules that
# import this one handle the ImportError.
try:
    import triton
    import triton.language as tl
except ImportError:
    raise

# Exponentials of size 32 and more are computed in float32. Smaller ones are computed in float64, several in a program:
# tl.dot does not support the smallest sizes, and float32 is not accurate enough for them at large norms.

# Warps per program by matrix size, 4 for the other sizes: the registers of a program hold its matrices.
NUM_WARPS = {64: 8, 128: 16}
# The elementwise products of a program of small matrices, n^3 per matrix, are in registers too.
MAX_PRODUCTS = 2048


@triton.jit
def _product(a, b, size: tl.constexpr):
    """a b of matrices (size, size) or, below size 32, of batches (batch, size, size)."""
    if size < 32:
        result = tl.sum(a[:, :, :, None] * b[:, None, :, :], axis=2)
    else:
        # A sum over panels of 16 columns of a and 16 rows of b: a single tl.dot would hold all of both in registers,
        # and spill.
        panels: tl.constexpr = size // 16
        panel = tl.arange(0, panels)
        a = tl.reshape(a, (size, panels, 16))
        b = tl.reshape(b, (panels, 16, size))
        result = tl.zeros((size, size), dtype=tl.float32)
        for current in range(panels):
            columns = tl.sum(tl.where(panel[None, :, None] == current, a, 0.0), axis=1)
            rows = tl.sum(tl.where(panel[:, None, None] == current, b, 0.0), axis=0)
            result = tl.dot(columns, rows, result, input_precision="ieee")
    return result


@triton.jit
def _transpose(a, size: tl.constexpr):
    return tl.permute(a, (0, 2, 1)) if size < 32 else tl.trans(a)


@triton.jit
def _power_of_half(steps):
    """2^-steps, exact: assembled from the exponent bits of a float32."""
    return ((127 - steps) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _matrices(size: tl.constexpr, per_program: tl.constexpr):
    """Indices of the program's matrices, and row and column indices of their elements.

    Shapes (per_program, 1, 1), (1, size, 1) and (1, 1, size) below size 32, else a scalar, (size, 1) and (1, size).
    """
    program = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, size)
    if size < 32:
        matrix = program * per_program + tl.arange(0, per_program)[:, None, None]
        row = index[None, :, None]
        column = index[None, None, :]
    else:
        matrix = program
        row = index[:, None]
        column = index[None, :]
    return matrix, row, column


@triton.jit
def _scaled_exponent(
    positions, skew, matrix, element, count, blocks, axes: tl.constexpr, size: tl.constexpr, theta: tl.constexpr
):
    """B = 2^-s sum_i p_i A_i of spectral norm <= theta, and s, of the shape of `matrix`."""
    inside = matrix < count
    position = positions + matrix // blocks * axes
    block = skew + matrix % blocks * (size * size) + element
    # Summed in float64 at every size, which costs little: in float32 it adds 8e-7 to the error at norm 250.
    exponent = tl.load(position, inside, 0.0).to(tl.float64) * tl.load(block, inside, 0.0)
    for axis in tl.static_range(1, axes):
        block += tl.cast(blocks, tl.int64) * (size * size)
        exponent += tl.load(position + axis, inside, 0.0).to(tl.float64) * tl.load(block, inside, 0.0)
    # Singular values come in pairs: the spectral norm is at most the Frobenius norm over sqrt(2).
    squares = exponent * exponent
    if size < 32:
        norm = tl.sum(tl.sum(squares, axis=2, keep_dims=True), axis=1, keep_dims=True)
    else:
        norm = tl.sum(squares)
        exponent = exponent.to(tl.float32)
    ratio = (norm * (0.5 / (theta * theta))).to(tl.float32)
    # 64 is reached only by exponents that are not finite.
    steps = tl.minimum(tl.ceil(tl.log2(tl.maximum(ratio, 1.0)) / 2), 64.0).to(tl.int32)
    return exponent * _power_of_half(steps), steps


@triton.jit
def _small_exponential(
    b,
    r: tl.constexpr,
    x1: tl.constexpr,
    x3: tl.constexpr,
    x5: tl.constexpr,
    k: tl.constexpr,
    x4: tl.constexpr,
    y2: tl.constexpr,
    size: tl.constexpr,
):
    """exp(B) - 1, as in polynomial.py."""
    b2 = _product(b, b, size)
    q = x3 * b2 + x1 * _product(b2, b + r * b2, size)
    return b + y2 * b2 + x4 * q + _product(q, x5 * b + k * b2 + q, size)


@triton.jit
def _largest(steps, size: tl.constexpr):
    return tl.max(tl.max(tl.max(steps, axis=2), axis=1), axis=0) if size < 32 else steps


@triton.jit(do_not_specialize=["count", "blocks"])
def _exponential_kernel(
    positions,
    skew,
    rotations,
    count,
    blocks,
    r: tl.constexpr,
    x1: tl.constexpr,
    x3: tl.constexpr,
    x5: tl.constexpr,
    k: tl.constexpr,
    x4: tl.constexpr,
    y2: tl.constexpr,
    axes: tl.constexpr,
    size: tl.constexpr,
    per_program: tl.constexpr,
    theta: tl.constexpr,
):
    matrix, row, column = _matrices(size, per_program)
    element = row * size + column
    b, steps = _scaled_exponent(positions, skew, matrix, element, count, blocks, axes, size, theta)
    # Squarings of R - 1, not of R, where the ones on the diagonal would cost the low digits of small entries.
    e = _small_exponential(b, r, x1, x3, x5, k, x4, y2, size)
    for step in range(_largest(steps, size)):
        e = tl.where(step < steps, 2 * e + _product(e, e, size), e)
    e = tl.where(row == column, 1.0, 0.0) + e
    result = e.to(tl.float32).to(rotations.dtype.element_ty)
    tl.store(rotations + matrix * (size * size) + element, result, matrix < count)


@triton.jit(do_not_specialize=["count", "blocks"])
def _exponential_backward_kernel(
    positions,
    skew,
    rotations_grad,
    exponent_grad,
    count,
    blocks,
    r: tl.constexpr,
    x1: tl.constexpr,
    x3: tl.constexpr,
    x5: tl.constexpr,
    k: tl.constexpr,
    x4: tl.constexpr,
    y2: tl.constexpr,
    axes: tl.constexpr,
    size: tl.constexpr,
    per_program: tl.constexpr,
    theta: tl.constexpr,
):
    matrix, row, column = _matrices(size, per_program)
    element = row * size + column
    b, steps = _scaled_exponent(positions, skew, matrix, element, count, blocks, axes, size, theta)
    small = _small_exponential(b, r, x1, x3, x5, k, x4, y2, size)
    e = small
    for step in range(_largest(steps, size)):
        e = tl.where(step < steps, 2 * e + _product(e, e, size), e)
    # M = (R^T G - G^T R) / 2 would be the gradient if the exponent commuted with it.
    place = matrix * (size * size) + element
    g = tl.load(rotations_grad + place, matrix < count, 0.0).to(tl.float32).to(b.dtype)
    g += _product(_transpose(e, size), g, size)
    m = (g - _transpose(g, size)) / 2
    # J = integral of exp(tB) M exp(-tB) over t in [0, 1] = sum_k ad_B^k(M) / (k + 1)!, k = 0 .. 9, by Horner's scheme.
    # With theta <= 0.5 the norm of ad_B is at most 1, and the rest of the series is below 1 / 11! = 3e-8.
    j = m
    for term in range(9):
        p = _product(b, j, size)
        j = m + (p - _transpose(p, size)) / (10 - term)
    # A squaring of exp(B) doubles the interval: the integral over [0, 2] is J + exp(B) J exp(-B).
    e = small
    for step in range(_largest(steps, size)):
        p = j + _product(e, j, size)
        p += _product(p, _transpose(e, size), size)
        j = tl.where(step < steps, j + p, j)
        e = tl.where(step < steps, 2 * e + _product(e, e, size), e)
    j = (j - _transpose(j, size)) * (_power_of_half(steps) / 2)
    tl.store(exponent_grad + place, j.to(tl.float32), matrix < count)


def _launch_exponential(kernel, positions, skew, *matrices: torch.Tensor, scaling: NamedTuple) -> None:
    """Run a kernel on all matrices of (P, M, n, n), several per program where they are small."""
    positions, skew = positions.contiguous(), skew.contiguous()
    axes, blocks, size, _ = skew.shape
    count = len(positions) * blocks
    per_program = max(1, MAX_PRODUCTS // size**3) if size < 32 else 1
    with torch.cuda.device_of(positions):
        kernel[(triton.cdiv(count, per_program),)](
            positions,
            skew,
            *matrices,
            count,
            blocks,
            *scaling.coefficients,
            axes=axes,
            size=size,
            per_program=per_program,
            theta=scaling.theta,
            num_warps=NUM_WARPS.get(size, 4),
        )


def exponential(positions: torch.Tensor, skew: torch.Tensor, dtype: torch.dtype, scaling: NamedTuple) -> torch.Tensor:
    """exp(sum_i p_i A_i), to 1e-5 for sums of spectral norm up to 250.

    Args:
        positions: p, shape (P, axes), float32.
        skew: A, shape (axes, M, n, n), float32, skew-symmetric, n a power of two from 4 to 128.
        dtype: of the result: float32, bfloat16 or float16.
        scaling: `theta`, the norm that exponents are scaled down to, and the `coefficients` of the polynomial.

    Returns:
        Tensor of shape (P, M, n, n).
    """
    rotations = positions.new_empty((len(positions), *skew.shape[1:]), dtype=dtype)
    _launch_exponential(_exponential_kernel, positions, skew, rotations, scaling=scaling)
    return rotations


def exponential_backward(
    positions: torch.Tensor, skew: torch.Tensor, rotations_grad: torch.Tensor, scaling: NamedTuple
) -> torch.Tensor:
    """The gradient with respect to the exponents sum_i p_i A_i of `exponential`.

    Args:
        positions: p, shape (P, axes), float32.
        skew: A, shape (axes, M, n, n), float32.
        rotations_grad: the gradient with respect to the rotations, shape (P, M, n, n), of any floating dtype.
        scaling: as in `exponential`, with `theta` at most 0.5: up to there ten terms of a series suffice.

    Returns:
        Tensor of shape (P, M, n, n), float32, skew-symmetric.
    """
    exponent_grad = torch.empty_like(rotations_grad, dtype=torch.float32, memory_format=torch.contiguous_format)
    matrices = (rotations_grad.contiguous(), exponent_grad)
    _launch_exponential(_exponential_backward_kernel, positions, skew, *matrices, scaling=scaling)
    return exponent_grad


@triton.jit
def _block_group(group, row, column, block: tl.constexpr, dim: tl.constexpr, width: tl.constexpr):
    """Offsets of the elements (row, column) of a group of neighbouring blocks, and whether they are inside a block.

    A group spans `width` dimensions: one block, or as many as make up the 16 that tl.dot needs.
    """
    row += group * width
    column += group * width
    return row * block + column % block, (row // block == column // block) & (row < dim) & (column < dim)


@triton.jit
def _rotate_kernel(
    states,
    rotations,
    out,
    batch,
    tokens,
    heads,
    chunks,
    stride_batch,
    stride_token,
    stride_head,
    stride_dim,
    rotation_stride_token,
    rotation_stride_head,
    transpose: tl.constexpr,
    block: tl.constexpr,
    dim: tl.constexpr,
    width: tl.constexpr,
    rows: tl.constexpr,
    depth: tl.constexpr,
):
    groups: tl.constexpr = (dim + width - 1) // width
    program = tl.program_id(0).to(tl.int64)
    chunk = program % chunks
    group = program // chunks % groups
    head = program // chunks // groups % heads
    token = program // chunks // groups // heads
    rotations += token * rotation_stride_token + head * rotation_stride_head
    states += token * stride_token + head * stride_head
    row = chunk * rows + tl.arange(0, rows)[:, None]
    index = tl.arange(0, width)[None, :]
    total = tl.zeros((rows, width), dtype=tl.float32)
    for start in range(0, width, depth):
        # States are rows, multiplied from the right: element (k, i) of the matrix takes dimension k to dimension i.
        part = start + tl.arange(0, depth)
        column = group * width + part[None, :]
        x = tl.load(states + row * stride_batch + column * stride_dim, (row < batch) & (column < dim), 0.0)
        if transpose:
            offset, exists = _block_group(group, part[:, None], index, block, dim, width)
        else:
            offset, exists = _block_group(group, index, part[:, None], block, dim, width)
        matrix = tl.load(rotations + offset, exists, 0.0).to(x.dtype)
        total = tl.dot(x, matrix, total, input_precision="ieee")
    column = group * width + index
    place = out + ((row * tokens + token) * heads + head) * dim + column
    tl.store(place, total.to(out.dtype.element_ty), (row < batch) & (column < dim))


def rotate(states: torch.Tensor, rotations: torch.Tensor, transpose: bool = False) -> torch.Tensor:
    """Multiply each block of each head of each token by its rotation, or by the transpose.

    Args:
        states: shape (B, T, H, D), of any strides.
        rotations: shape (T, H or 1, D / b, b, b), in the dtype of `states` or float32, b a power of two from 2 to 128.

    Returns:
        Tensor of the shape and dtype of `states`, contiguous.
    """
    rotations = rotations.contiguous()
    batch, tokens, heads, dim = states.shape
    block = rotations.shape[-1]
    width, rows = max(16, block), _rows(batch)
    chunks = triton.cdiv(batch, rows)
    out = torch.empty_like(states, memory_format=torch.contiguous_format)
    stride_token, stride_head = rotations.stride()[:2]
    with torch.cuda.device_of(states):
        _rotate_kernel[(tokens * heads * triton.cdiv(dim, width) * chunks,)](
            states,
            rotations,
            out,
            batch,
            tokens,
            heads,
            chunks,
            *states.stride(),
            stride_token,
            stride_head if rotations.shape[1] > 1 else 0,
            transpose=transpose,
            block=block,
            dim=dim,
            width=width,
            rows=rows,
            depth=_depth(states, width),
            num_warps=8 if width == 128 else 4,
        )
    return out


def _rows(count: int) -> int:
    """Samples per program: at least the 16 that tl.dot needs, at most 64, and no more than the batch fills."""
    return min(64, max(16, triton.next_power_of_2(count)))


def _depth(states: torch.Tensor, most: int) -> int:
    """Inner dimension of one tl.dot. It is small in float32, which tensor cores do not support, to save registers."""
    return 16 if states.dtype == torch.float32 else most


@triton.jit
def _rotations_backward_kernel(
    states,
    grad,
    rotations_grad,
    count,
    num_heads,
    shared,
    states_stride_batch,
    states_stride_token,
    states_stride_head,
    states_stride_dim,
    grad_stride_batch,
    grad_stride_token,
    grad_stride_head,
    grad_stride_dim,
    block: tl.constexpr,
    dim: tl.constexpr,
    width: tl.constexpr,
    rows: tl.constexpr,
):
    groups: tl.constexpr = (dim + width - 1) // width
    program = tl.program_id(0).to(tl.int64)
    group = program % groups
    head = program // groups % num_heads
    token = program // groups // num_heads
    index = tl.arange(0, width)
    column = group * width + index[None, :]
    states += token * states_stride_token + head * states_stride_head + column * states_stride_dim
    grad += token * grad_stride_token + head * grad_stride_head + column * grad_stride_dim
    total = tl.zeros((width, width), dtype=tl.float32)
    for start in range(0, count, rows):
        # Rows are the samples and, where heads share rotations, the heads of each sample.
        row = start + tl.arange(0, rows)[:, None]
        sample = (row // shared).to(tl.int64)
        other = (row % shared).to(tl.int64)
        inside = (row < count) & (column < dim)
        x = tl.load(states + sample * states_stride_batch + other * states_stride_head, inside, 0.0)
        g = tl.load(grad + sample * grad_stride_batch + other * grad_stride_head, inside, 0.0)
        total = tl.dot(tl.trans(g), x, total, input_precision="ieee")
    offset, exists = _block_group(group, index[:, None], index[None, :], block, dim, width)
    place = rotations_grad + (token * num_heads + head) * dim * block + offset
    tl.store(place, total, exists)


def rotations_backward(states: torch.Tensor, grad: torch.Tensor, num_heads: int, block_size: int) -> torch.Tensor:
    """The gradient with respect to the rotations of `rotate` (not transposed): sums of the blocks of grad states^T.

    Args:
        states: shape (B, T, H, D), of any strides.
        grad: the gradient with respect to the result, of the shape and dtype of `states`, of any strides.
        num_heads: H, or 1 if the heads share their rotations.
        block_size: b, a power of two from 2 to 128.

    Returns:
        Tensor of shape (T, num_heads, D / b, b, b), float32: sums over the batch and over heads that share.
    """
    batch, tokens, heads, dim = states.shape
    shape = (tokens, num_heads, dim // block_size, block_size, block_size)
    rotations_grad = states.new_empty(shape, dtype=torch.float32)
    width, shared = max(16, block_size), heads // num_heads
    with torch.cuda.device_of(states):
        _rotations_backward_kernel[(tokens * num_heads * triton.cdiv(dim, width),)](
            states,
            grad,
            rotations_grad,
            batch * shared,
            num_heads,
            shared,
            *states.stride(),
            *grad.stride(),
            block=block_size,
            dim=dim,
            width=width,
            rows=_depth(states, _rows(batch * shared)),
            num_warps=8 if width == 128 else 4,
        )
    return rotations_grad
