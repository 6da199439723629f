"""Parameters sharded over two processes, in float32 and bfloat16, against one process and the reference in float64."""

import multiprocessing
import sys
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model

sys.path.append(str(Path(__file__).parents[1] / "modeling"))
from factory import random_input, random_model, tiny_config
from reference import reference_logits

from liere_hf import LiereViTForImageClassification, grid_positions
from liere_hf.training.sharding import keep_inputs, shard_rotations_in_float32

# Encoding, axes and mixed precision.
CASES = [
    (encoding, num_axes, mixed_precision)
    for encoding, num_axes in (("liere", 2), ("rope_mixed", 3), ("visionllama", 1))
    for mixed_precision in (None, "bf16")
]

pytestmark = pytest.mark.end_to_end


def built(encoding, num_axes):
    return random_model(LiereViTForImageClassification, tiny_config(num_axes, position_encoding=encoding))


def crop_positions(config):
    """Coordinates that bfloat16 does not hold."""
    return 3 + grid_positions(config.grid_size, config.grid_size)[None] / 7


def sharded_step(model, rank, mixed_precision):
    """Logits, rotations and gradients of a model that accelerate shards by the shipped configuration."""
    settings = yaml.safe_load((files("liere_hf") / "configuration/launch/fsdp.yaml").read_text())["fsdp_config"]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=settings["fsdp_version"],
        auto_wrap_policy=settings["fsdp_auto_wrap_policy"],
        transformer_cls_names_to_wrap=[settings["fsdp_transformer_layer_cls_to_wrap"]],
        reshard_after_forward=settings["fsdp_reshard_after_forward"],
        cpu_ram_efficient_loading=settings["fsdp_cpu_ram_efficient_loading"],
        mixed_precision_policy=mixed_precision,
    )
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision=mixed_precision or "no", is_main_process=rank == 0
    )
    pixel_values, positions = random_input(model.config), crop_positions(model.config)
    shard_rotations_in_float32(model)
    keep_inputs(plugin)
    model = fsdp2_prepare_model(accelerator, model)
    rotations = []
    model.liere_vit.rotations.register_forward_hook(lambda module, inputs, outputs: rotations.append(outputs))
    with torch.no_grad():
        logits = model(pixel_values).logits
        model(pixel_values, positions=positions)
    # Each process has a sample of its own, as in training.
    model(pixel_values[rank : rank + 1]).logits.float().square().sum().backward()
    gradients = {
        name: parameter.grad.full_tensor() for name, parameter in model.named_parameters() if "rotations" in name
    }
    return logits, rotations[:2], gradients


def run_process(rank, directory):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, store=dist.FileStore(f"{directory}/store", 2))
    results = {case: sharded_step(built(*case[:2]), rank, case[2]) for case in CASES}
    if rank == 0:
        torch.save(results, f"{directory}/results")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sharded")
    # Forks of one process that has imported what both need.
    multiprocessing.set_forkserver_preload([__name__])
    mp.start_processes(run_process, (str(directory),), nprocs=2, start_method="forkserver")
    return torch.load(directory / "results")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_equal_one(results, case):
    logits, rotations, gradients = results[case]
    model = built(*case[:2])
    pixel_values = random_input(model.config)
    expected = torch.from_numpy(reference_logits(model, pixel_values))
    tolerance = 1e-4 if case[2] is None else 0.1
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=tolerance)
    for sample in pixel_values:
        (model(sample[None]).logits.square().sum() / 2).backward()
    for name, gradient in gradients.items():
        exact = dict(model.named_parameters())[name].grad
        assert (gradient - exact).abs().max() < tolerance * exact.abs().max()
    positions = grid_positions(model.config.grid_size, model.config.grid_size)[None]
    model = model.double()
    for actual_rotations, each in zip(rotations, (positions, crop_positions(model.config)), strict=True):
        exact_rotations = model.liere_vit.rotations(each.double(), torch.float64)
        for actual, exact in zip(actual_rotations, exact_rotations, strict=True):
            # In bfloat16 they are rounded once, after the exponential.
            assert actual.dtype == (torch.float32 if case[2] is None else torch.bfloat16)
            tolerance = 1e-5 if case[2] is None else 2**-8
            torch.testing.assert_close(actual.double(), exact, rtol=0, atol=tolerance)
