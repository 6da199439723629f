"""Triton's interpreter in a process of its own, and calls of the kernels there."""

import io

import numpy as np
import torch

from liere_hf.modeling import kernel_gate, rotary_application, rotation_kernels
from liere_hf.modeling.kernel_gate import kernel_scaling
from liere_hf.modeling.polynomial import FLOAT32_VIA_FLOAT64


def start_interpreter() -> None:
    """Work around two bugs of Triton's interpreter, once in its process.

    Its tl.dot reads the bits of a bfloat16 as an integer, and before Triton 3.8 NumPy 2.4 rejects its loop bounds.
    """
    import triton
    import triton.language as tl
    from triton.runtime import interpreter

    torch.set_num_threads(1)
    create_dot = interpreter.InterpreterBuilder.create_dot

    def decoded(operand):
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        return interpreter.TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot_of_decoded(self, a, b, *others):
        return create_dot(self, decoded(a), decoded(b), *others)

    interpreter.InterpreterBuilder.create_dot = create_dot_of_decoded
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8):
        patch_tensor = interpreter._patch_lang_tensor

        def patch_tensor_and_index(tensor, *others):
            patch_tensor(tensor, *others)
            tensor.__index__ = lambda self: self.handle.data.item()

        interpreter._patch_lang_tensor = patch_tensor_and_index


def packed(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def unpacked(data: bytes):
    return torch.load(io.BytesIO(data))


def call(name: str, *arguments):
    """Call a function of rotation_kernels, or one that uses them, with the scaling that the package chooses."""
    if name == "exponential":
        arguments += (kernel_scaling(arguments[1].shape[-1]),)
    elif name == "exponential_backward":
        arguments += (FLOAT32_VIA_FLOAT64,)
    modules = (kernel_gate, rotary_application, rotation_kernels)
    function = getattr(next(module for module in modules if hasattr(module, name)), name)
    return getattr(function, "fast", function)(*arguments)


def run_packed(name: str, arguments: bytes) -> bytes:
    return packed(call(name, *unpacked(arguments)))


def run_interpreted(pool, name, *arguments):
    return unpacked(pool.submit(run_packed, name, packed(arguments)).result())
