"""Sharding of parameters over processes (FSDP2) that keeps rotations and positions in float32."""

from dataclasses import replace

from accelerate import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from ..modeling.modeling_liere_vit import LiereViTRotations


def shard_rotations_in_float32(model: nn.Module, mesh: DeviceMesh | None = None) -> None:
    """Shard the parameters of rotations as groups of their own, which mixed precision does not round.

    To be called before the rest of the model is sharded. In bfloat16, rotations would be off by up to 0.1.

    Args:
        mesh: as for `fully_shard`; by default all processes.
    """
    for module in list(model.modules()):
        is_learned = isinstance(module, LiereViTRotations) and any(True for _ in module.parameters())
        if is_learned and not isinstance(module, FSDPModule):
            fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))


def keep_inputs(plugin: FullyShardedDataParallelPlugin) -> None:
    """Let FSDP2 leave the inputs of the model as they are: it would round positions. The model casts pixels itself."""
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, cast_forward_inputs=False)
