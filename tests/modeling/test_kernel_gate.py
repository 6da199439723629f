"""Kernels are used after a check at first use; whatever is wrong ends in plain operations and one warning."""

import pytest
import torch
from factory import random_skew, uniform_generators, uniform_positions

pytest.importorskip("triton", reason="needs Triton")

from selection import mostly_extensive
from triton_interpreter import packed, run_interpreted, unpacked

from liere_hf.modeling import exponential, kernel_gate
from liere_hf.modeling.kernel_gate import EXPONENTIAL_WIDTHS, ROTATION_WIDTHS, check_exponential, check_rotation
from liere_hf.modeling.rotations import liere_rotations

pytestmark = pytest.mark.xdist_group("interpreter")
CPU = torch.device("cpu")
CHECKS = [
    *((check_exponential, width, torch.float32) for width in EXPONENTIAL_WIDTHS),
    *(
        (check_rotation, width, dtype)
        for width in ROTATION_WIDTHS
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ),
]


@pytest.fixture
def warnings(monkeypatch):
    messages = []
    monkeypatch.setattr(kernel_gate.logger, "warning", messages.append)
    kernel_gate.works.cache_clear()
    yield messages
    kernel_gate.works.cache_clear()


@pytest.mark.parametrize("width", mostly_extensive(EXPONENTIAL_WIDTHS, [16]))
def test_right_exponentials_pass(interpreter, width):
    run_interpreted(interpreter, "check_exponential", CPU, width, torch.float32)


@pytest.mark.parametrize("dtype", mostly_extensive([torch.float32, torch.float16, torch.bfloat16], [torch.bfloat16]))
@pytest.mark.parametrize("width", ROTATION_WIDTHS)
def test_right_rotations_pass(interpreter, width, dtype):
    run_interpreted(interpreter, "check_rotation", CPU, width, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize(("check", "width", "dtype"), CHECKS)
def test_kernels_are_used_on_the_device(warnings, check, width, dtype):
    assert kernel_gate.works(check, torch.device("cuda"), width, dtype), warnings


def rotations_and_gradients(data):
    """Of `liere_rotations` and `skew_matrix_exp`."""
    positions, generators = unpacked(data)
    results = []
    for needed in (True, False):
        inputs = positions.requires_grad_(needed), generators.requires_grad_()
        rotated = liere_rotations(*inputs)
        wanted = inputs if needed else inputs[1:]
        results += [rotated.detach(), *torch.autograd.grad(rotated.cumsum(-1).sin().sum(), wanted)]
    skew = (generators.triu(1) - generators.triu(1).mT).detach().requires_grad_()
    rotated = exponential.skew_matrix_exp(skew)
    (grad,) = torch.autograd.grad(rotated.cumsum(-1).sin().sum(), skew)
    return packed([*results, rotated.detach(), grad - grad.mT])


def by_interpreted_kernels(data):
    exponential.has_exponential = lambda _: True
    return rotations_and_gradients(data)


@pytest.mark.parametrize("width", [8, pytest.param(32, marks=pytest.mark.extensive)])
def test_rotations_and_gradients_by_kernels_equal_those_on_a_cpu(interpreter, width):
    inputs = uniform_positions(1, 5, 2).float(), uniform_generators(2, 2, 1, 2, width).float() / width**0.5
    by_kernels = unpacked(interpreter.submit(by_interpreted_kernels, packed(inputs)).result())
    expected = unpacked(rotations_and_gradients(packed(inputs)))
    for actual, each in zip(by_kernels, expected, strict=True):
        assert (actual - each).abs().max() < 1e-4 * max(1, each.abs().max())


@pytest.mark.parametrize(
    ("check", "name"), [(check_exponential, "exponential"), (check_rotation, "rotations_backward")]
)
def test_wrong_results_do_not_pass(warnings, monkeypatch, check, name):
    """The kernels are replaced by torch's own operations, one of which is then disturbed."""

    class Plain:
        exponential = staticmethod(lambda p, a, *_: torch.linalg.matrix_exp(torch.einsum("pa,amij->pmij", p, a)))
        rotate = staticmethod(
            lambda x, r, t: torch.einsum(
                "thnij,bthnj->bthni", r.mT if t else r, x.unflatten(-1, r.shape[2:4])
            ).flatten(-2)
        )

        @staticmethod
        def rotations_backward(x, g, heads, width):
            return torch.einsum("bthni,bthnj->thnij", *(each.unflatten(-1, (-1, width)) for each in (g, x)))

        @staticmethod
        def exponential_backward(p, a, grad, *_):
            exponents = torch.einsum("pa,amij->pmij", p, a).requires_grad_()
            with torch.enable_grad():
                (found,) = torch.autograd.grad(torch.linalg.matrix_exp(exponents), exponents, grad)
            return (found - found.mT) / 2

    for function in ("exponential", "exponential_backward", "rotate", "rotations_backward"):
        monkeypatch.setattr(kernel_gate, function, getattr(Plain, function))
    assert kernel_gate.works(check, CPU, 16, torch.float32)
    assert not warnings
    right = getattr(Plain, name)
    monkeypatch.setattr(kernel_gate, name, lambda *arguments: right(*arguments) * (1 + 1e-3))
    kernel_gate.works.cache_clear()
    assert not kernel_gate.works(check, CPU, 16, torch.float32)
    assert "is off by" in warnings[0]


def test_kernels_that_cannot_be_compiled_warn_once(warnings):
    """Without its interpreter Triton cannot run on a CPU: its own error ends in plain operations."""
    for _ in range(3):
        assert not kernel_gate.works(check_exponential, CPU, 8, torch.float32)
    assert len(warnings) == 1
    assert "rotations of width 8 in torch.float32 cannot be used on cpu" in warnings[0]
    assert "plain operations take their place" in warnings[0]


class OnDevice:
    """What the gate asks a CUDA tensor for."""

    is_cuda, dtype, device = True, torch.float32, CPU

    def __init__(self, width):
        self.shape = (3, width, width)


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), False), ((8, 0), True), ((8, 9), True), ((12, 0), True)]
)
def test_old_devices_and_the_variable_turn_kernels_off(monkeypatch, capability, expected):
    monkeypatch.setattr(kernel_gate, "works", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert kernel_gate.has_exponential(OnDevice(8)) == expected
    assert kernel_gate.has_rotation(OnDevice(8), 2) == expected
    assert not kernel_gate.has_exponential(OnDevice(24))
    monkeypatch.setenv("LIERE_HF_KERNELS", "0")
    assert not kernel_gate.has_exponential(OnDevice(8))


def test_cpu_tensors_take_no_kernel(warnings):
    assert not kernel_gate.has_exponential(random_skew(2, 8, 8).float())
    assert not kernel_gate.has_rotation(torch.zeros(1, 2, 1, 8), 8)
    assert not warnings
