"""Whether the Triton kernels are used: on CUDA devices of a known kind, and after a check of their results there."""

import functools
import os
from collections.abc import Callable

import torch
from transformers.utils import logging

from .polynomial import FLOAT32, FLOAT32_VIA_FLOAT64, Scaling

try:
    from .rotation_kernels import exponential, exponential_backward, rotate, rotations_backward
except ImportError:
    exponential = exponential_backward = rotate = rotations_backward = None

logger = logging.get_logger(__name__)

# The environment variable that turns the kernels off with the value 0.
VARIABLE = "LIERE_HF_KERNELS"
# On older devices the kernels spill registers heavily.
MIN_CAPABILITY = (8, 0)
EXPONENTIAL_WIDTHS = (8, 16, 32, 64, 128)
ROTATION_WIDTHS = (2, 4, *EXPONENTIAL_WIDTHS)

Check = Callable[[torch.device, int, torch.dtype], None]


def has_exponential(matrices: torch.Tensor) -> bool:
    """Whether exponentials of matrices (..., n, n), and their gradients, are computed by kernels."""
    is_supported = matrices.dtype == torch.float32 and matrices.shape[-1] in EXPONENTIAL_WIDTHS
    return (
        is_supported
        and _can_launch(matrices)
        and works(check_exponential, matrices.device, matrices.shape[-1], matrices.dtype)
    )


def kernel_scaling(size: int) -> Scaling:
    """The scaling of (size, size) matrices in the kernels, which compute small ones in float64."""
    return FLOAT32 if size >= 32 else FLOAT32_VIA_FLOAT64


def has_rotation(states: torch.Tensor, width: int) -> bool:
    """Whether states are multiplied by rotations of this width by kernels."""
    is_supported = states.dtype in (torch.float32, torch.float16, torch.bfloat16) and width in ROTATION_WIDTHS
    return is_supported and _can_launch(states) and works(check_rotation, states.device, width, states.dtype)


def _can_launch(tensor: torch.Tensor) -> bool:
    if exponential is None or not tensor.is_cuda or os.environ.get(VARIABLE) == "0":
        return False
    return torch.cuda.get_device_capability(tensor.device) >= MIN_CAPABILITY


@functools.cache
def works(check: Check, device: torch.device, width: int, dtype: torch.dtype) -> bool:
    """Whether kernels compile, run and agree with plain operations. Found out at first use; one warning if not."""
    try:
        with torch.inference_mode(False), torch.no_grad():
            check(device, width, dtype)
    # Triton raises many kinds of errors: without a compiler, without Python's headers, with an old driver, ...
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        logger.warning(
            f"The Triton kernels for rotations of width {width} in {dtype} cannot be used on {device} ({reason}): "
            f"plain operations take their place, which are slower. {VARIABLE}=0 turns the kernels off."
        )
        return False
    return True


def check_exponential(device: torch.device, width: int, dtype: torch.dtype) -> None:
    """Raise unless exponentials and gradients equal those of torch in float64."""
    positions = _numbers(3, 2, device=device)
    raw = _numbers(2, 2, width, width, device=device) / width**0.5
    skew = raw - raw.mT
    weights = _numbers(3, 2, width, width, device=device)
    exponents = torch.einsum("pa,amij->pmij", positions.double(), skew.double())
    arguments = positions.to(dtype), skew.to(dtype)
    with torch.enable_grad():
        expected = torch.linalg.matrix_exp(exponents.requires_grad_())
        (expected_grad,) = torch.autograd.grad(expected, exponents, weights.double())
    _require_near(exponential(*arguments, dtype, kernel_scaling(width)), expected, 1e-5)
    actual = exponential_backward(*arguments, weights, FLOAT32_VIA_FLOAT64)
    _require_near(actual, (expected_grad - expected_grad.mT) / 2, 1e-4)


def check_rotation(device: torch.device, width: int, dtype: torch.dtype) -> None:
    """Raise unless rotated states and the gradient of rotations equal einsums in float64."""
    blocks = max(2, 32 // width)
    states, grad = (_numbers(5, 3, 2, blocks * width, device=device, step=step).to(dtype) for step in (0.7, 1.3))
    rotations = (_numbers(3, 2, blocks, width, width, device=device) / width**0.5).to(dtype)
    vectors, grads = (each.double().unflatten(-1, (blocks, width)) for each in (states, grad))
    tolerance = 8 * torch.finfo(dtype).eps
    for transpose in (False, True):
        matrices = rotations.double().mT if transpose else rotations.double()
        expected = torch.einsum("thnij,bthnj->bthni", matrices, vectors).flatten(-2)
        _require_near(rotate(states, rotations, transpose), expected, tolerance)
    expected = torch.einsum("bthni,bthnj->thnij", grads, vectors)
    _require_near(rotations_backward(states, grad, 2, width), expected, 1e-4)


def _numbers(*shape: int, device: torch.device, step: float = 1.0) -> torch.Tensor:
    """Numbers in [-1, 1] without a random generator, whose state would change."""
    count = torch.Size(shape).numel()
    return (step * torch.arange(1, count + 1, device=device).double()).sin().float().view(shape)


def _require_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    error = (actual.double() - expected).abs().max().item()
    if not error <= tolerance * max(1.0, expected.abs().max().item()):
        raise ArithmeticError(f"a result is off by {error:.1e}")
