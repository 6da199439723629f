"""Operators with a fast implementation, whose derivatives and transforms all follow from a plain one."""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from transformers.utils.generic import maybe_autocast

Tensors = tuple[torch.Tensor, ...]


def runs_eagerly(*tensors: torch.Tensor) -> bool:
    """Whether operations on these tensors run now and on their values.

    They do not while a compiler, an exporter or torch.jit traces, nor on the meta device, nor for tensors that define
    operations of their own (fake tensors). For torch.func's transforms `FastFunction` has rules.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    plain = torch.Tensor.__torch_dispatch__
    return all(type(tensor).__torch_dispatch__ is plain and not tensor.is_meta for tensor in tensors)


@torch.compiler.assume_constant_result
def exports() -> bool:
    """Whether an exporter traces, so that a graph may hold no operator of this package.

    A constant for the compiler, whose own answer is always true in torch 2.11.
    """
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def compiles() -> bool:
    """Whether torch.compile traces."""
    return torch.compiler.is_compiling() and not exports()


def pull_back(function: Callable[..., Tensors], inputs: Tensors, grads: Sequence[torch.Tensor | None]) -> Tensors:
    """Gradients with respect to `inputs`, from those with respect to the results, where None stands for zero.

    They can be differentiated again.
    """
    results, gradients = torch.func.vjp(function, *inputs)
    return gradients(_without_none(grads, results))


def push_forward(
    function: Callable[..., Tensors], inputs: Tensors, tangents: Sequence[torch.Tensor | None]
) -> Tensors:
    """Tangents of the results, from those of `inputs`, where None stands for zero.

    By two reverse passes: forward-mode derivatives do not nest.
    """
    results, gradients = torch.func.vjp(function, *inputs)
    return pull_back(gradients, (tuple(map(torch.zeros_like, results)),), _without_none(tangents, inputs))[0]


def _without_none(tensors: Sequence[torch.Tensor | None], like: Tensors) -> Tensors:
    pairs = zip(tensors, like, strict=True)
    return tuple(torch.zeros_like(other) if tensor is None else tensor for tensor, other in pairs)


def _has_memory(tensor: torch.Tensor) -> bool:
    """False for those that stand for several tensors, as gradients do with `is_grads_batched`."""
    try:
        tensor.untyped_storage()
    except NotImplementedError:
        return False
    return True


def halves(tensors: Sequence[torch.Tensor]) -> tuple[Tensors, Tensors]:
    """The first and the second half, such as results and their gradients."""
    count = len(tensors) // 2
    return tuple(tensors[:count]), tuple(tensors[count:])


@contextmanager
def float32_products(device: torch.device) -> Iterator[None]:
    """No TF32 in products of float32 matrices on a GPU, whatever the user has chosen for others."""
    if device.type != "cuda":
        yield
        return
    chosen = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = chosen


class FastFunction(torch.autograd.Function):
    """An operator whose implementation `fast` may read values, write in place and call kernels.

    Subclasses define functions of the same tensors: `fast` and `plain`, which return a tuple of tensors, and
    `results`, empty tensors like these, for the compiler. `plain` consists of differentiable operations. Gradients,
    forward-mode derivatives and the rule for vmap follow from it, unless `gradients` is overridden.
    """

    operator: ClassVar[Callable[[list[torch.Tensor]], list[torch.Tensor]]]

    @staticmethod
    def fast(*inputs: torch.Tensor) -> Tensors:
        raise NotImplementedError

    @staticmethod
    def plain(*inputs: torch.Tensor) -> Tensors:
        raise NotImplementedError

    @staticmethod
    def results(*inputs: torch.Tensor) -> Tensors:
        raise NotImplementedError

    @classmethod
    def graph(cls, *inputs: torch.Tensor) -> Tensors:
        """What exporters record."""
        return cls.plain(*inputs)

    @classmethod
    def gradients(
        cls, inputs: Tensors, needed: Sequence[bool], grads: Sequence[torch.Tensor | None]
    ) -> Sequence[torch.Tensor | None]:
        """Gradients with respect to the inputs that need them, by functions that can be differentiated again."""
        return pull_back(cls.plain, inputs, grads)

    @classmethod
    def call(cls, *inputs: torch.Tensor) -> Tensors:
        """Apply the operator, whether eagerly or while the compiler or an exporter traces."""
        with maybe_autocast(inputs[0].device.type, enabled=False):
            if runs_eagerly(*inputs):
                return cls.apply(*inputs)
            if exports():
                return cls.graph(*inputs)
            return tuple(cls.operator(list(inputs)))

    @classmethod
    def forward(cls, *inputs: torch.Tensor) -> Tensors:
        if not all(map(_has_memory, inputs)):
            return cls.plain(*inputs)
        with float32_products(inputs[0].device):
            return cls.fast(*inputs)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @classmethod
    def backward(cls, ctx, *grads):
        if all(grad is None for grad in grads):
            return (None,) * len(ctx.needs_input_grad)
        inputs = ctx.saved_tensors
        with maybe_autocast(inputs[0].device.type, enabled=False):
            return tuple(cls.gradients(inputs, ctx.needs_input_grad, grads))

    @classmethod
    def jvp(cls, ctx, *tangents):
        return push_forward(cls.plain, ctx.saved_tensors, tangents)

    @classmethod
    def vmap(cls, info, in_dims, *inputs):
        results = torch.vmap(cls.plain, in_dims)(*inputs)
        return results, (0,) * len(results)


def custom_operator(function: Callable) -> torch.library.CustomOpDef:
    """Register a function with torch.library: one opaque node in graphs of the compiler.

    Several copies of this code can live in one process, so the name has that of the module, and a number.
    """
    name = re.sub(r"\W", "_", f"{function.__module__}_{function.__name__}", flags=re.ASCII)
    free = next(number for number in itertools.count() if not hasattr(torch.ops.liere, f"{name}_{number}"))
    return torch.library.custom_op(f"liere::{name}_{free}", function, mutates_args=())


def compiled_as_operator(cls: type[FastFunction]) -> type[FastFunction]:
    """Give a FastFunction its operator."""

    def forward(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        device = inputs[0].device
        with maybe_autocast(device.type, enabled=False), float32_products(device):
            return [result.contiguous() for result in cls.fast(*inputs)]

    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs[0])

    def backward(ctx, grads):
        return list(cls.gradients(ctx.saved_tensors, ctx.needs_input_grad[0], grads))

    def vmap(info, in_dims, inputs):
        results = torch.vmap(cls.plain, tuple(in_dims[0]))(*inputs)
        return list(results), [0] * len(results)

    forward.__module__, forward.__name__ = cls.__module__, cls.__name__
    operator = custom_operator(forward)
    operator.register_fake(lambda inputs: list(cls.results(*inputs)))
    operator.register_autograd(backward, setup_context=setup_context)
    operator.register_vmap(vmap)
    # A function around it, because the compiler traces only these in an autograd.Function.
    cls.operator = staticmethod(lambda inputs: operator(inputs))
    return cls
