"""Models on each device, in training and inference, eager, compiled and as CUDA graphs: against float64 on a CPU."""

import pytest
import torch
from devices import DEVICES
from factory import random_model
from selection import all_pairs
from torch.utils._python_dispatch import TorchDispatchMode

from liere_hf import LiereViTConfig, LiereViTForImageClassification

ENCODINGS = {
    "absolute": {"position_encoding": "absolute"},
    "visionllama": {"position_encoding": "visionllama"},
    "rope_mixed": {"position_encoding": "rope_mixed"},
    **{f"liere{width}": {"generator_block_size": width} for width in (4, 8, 16, 32, 64, 128)},
    **{
        name: {"position_encoding": name, "generator_block_size": 8} for name in ("comrope_ld", "comrope_ap", "string")
    },
    **{
        start: {"generator_block_size": 8, "generator_init": start}
        for start in ("planar", "random_basis", "random_bases")
    },
}
# The largest error of logits and gradients, relative to their norms. Half precision rounds activations, not rotations.
PRECISIONS = {torch.float32: 1e-3, torch.bfloat16: 0.25}
# The compiler takes many seconds.
COMPILING_DEVICES = (pytest.param("cpu", marks=pytest.mark.end_to_end), DEVICES[1])


def built(encoding, **overrides):
    settings = {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "head_dim": 128,
        "intermediate_size": 64,
        "num_labels": 10,
        "image_size": 32,
        "patch_size": 8,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "generator_init": "uniform",
        **ENCODINGS[encoding],
        **overrides,
    }
    return random_model(LiereViTForImageClassification, LiereViTConfig(**settings))


def images(batch_size=3, seed=0, size=(32, 40)):
    return torch.randn(batch_size, 3, *size, generator=torch.Generator().manual_seed(seed))


def trained(model, forward, pixel_values, dtype):
    """Logits, and the gradients of a loss by parameter, with autocast to `dtype`."""
    model.train()
    with torch.autocast(pixel_values.device.type, dtype, enabled=dtype not in (torch.float32, torch.float64)):
        logits = forward(pixel_values).logits
    logits.double().softmax(-1)[:, 0].log().sum().backward()
    return {"logits": logits.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@torch.no_grad()
def evaluated(model, forward, pixel_values, dtype):
    model.eval()
    with torch.autocast(pixel_values.device.type, dtype, enabled=dtype not in (torch.float32, torch.float64)):
        return {"logits": forward(pixel_values).logits}


def exact(run, encoding, pixel_values):
    model = built(encoding).double()
    return run(model, model, pixel_values.double(), torch.float64)


def assert_near(actual, expected, tolerance):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        error = (actual[name].double().cpu() - value).norm() / value.norm()
        assert error < tolerance, (name, error)


@all_pairs("dtype, encoding, run", [*PRECISIONS], [*ENCODINGS], [trained, evaluated])
@pytest.mark.parametrize("device", DEVICES)
def test_eager(device, run, encoding, dtype):
    model = built(encoding).to(device)
    actual = run(model, model, images().to(device), dtype)
    assert_near(actual, exact(run, encoding, images()), PRECISIONS[dtype])


@pytest.mark.parametrize(("run", "encoding"), [(trained, "rope_mixed"), (trained, "liere64"), (evaluated, "liere8")])
@pytest.mark.parametrize("device", COMPILING_DEVICES)
def test_compiled(device, run, encoding):
    torch.compiler.reset()
    model = built(encoding).to(device)
    compiled = torch.compile(model, fullgraph=True)
    actual = run(model, compiled, images().to(device), torch.float32)
    assert_near(actual, exact(run, encoding, images()), PRECISIONS[torch.float32])
    torch.compiler.reset()


class NoWait(TorchDispatchMode):
    """Refuses, on a CPU, what a CUDA graph cannot capture: operations that wait for values on the device."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        waiting = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        if operation in waiting:
            raise RuntimeError(f"{operation} waits for a value")
        return operation(*args, **(kwargs or {}))


def captured(model, pixel_values):
    """The model as a function of further inputs of the same shape: a CUDA graph, or eager without waiting."""
    if pixel_values.device.type == "cpu":
        with NoWait():
            model(pixel_values)
        return lambda values: model(values).logits
    held, stream, graph = pixel_values.clone(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(held)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        logits = model(held).logits

    def replayed(values):
        held.copy_(values)
        graph.replay()
        return logits.clone()

    return replayed


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("device", DEVICES)
@torch.no_grad()
def test_cuda_graphs_of_a_frozen_model(device, encoding):
    model = built(encoding).to(device)
    model.freeze_rotations((32, 40))
    function = captured(model, images().to(device))
    for seed in (1, 2):
        actual = {"logits": function(images(seed=seed).to(device))}
        assert_near(actual, exact(evaluated, encoding, images(seed=seed)), PRECISIONS[torch.float32])


@torch.no_grad()
def test_a_model_that_is_not_frozen_waits():
    with pytest.raises(RuntimeError, match="waits for a value"):
        captured(built("liere8"), images())


@pytest.mark.parametrize(("frozen", "encoding"), [(False, "rope_mixed"), (False, "liere8"), (True, "liere64")])
@pytest.mark.parametrize("device", COMPILING_DEVICES)
@torch.no_grad()
def test_compiled_for_little_overhead(device, frozen, encoding):
    """By CUDA graphs on a CUDA device."""
    torch.compiler.reset()
    model = built(encoding).to(device)
    if frozen:
        model.freeze_rotations((32, 40))
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    for seed in (1, 2, 3):
        actual = {"logits": compiled(images(seed=seed).to(device)).logits.clone()}
        assert_near(actual, exact(evaluated, encoding, images(seed=seed)), PRECISIONS[torch.float32])
    torch.compiler.reset()
