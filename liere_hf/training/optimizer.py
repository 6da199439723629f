"""The optimizer's view of rotations: no weight decay, and a learning rate of their own."""

import torch
from torch import nn

from ..modeling.modeling_liere_vit import LiereViTRotations


def rotation_parameter_names(model: nn.Module) -> set[str]:
    """Names of the parameters that rotations are computed from, as in `model.named_parameters()`."""
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, LiereViTRotations)
        for name, _ in module.named_parameters()
    }


def set_learning_rate(
    optimizer: torch.optim.Optimizer, model: nn.Module, names: set[str], learning_rate: float
) -> None:
    """Move parameters of an optimizer that has made no step yet to a group with another learning rate, undecayed."""
    chosen = [parameter for name, parameter in model.named_parameters() if name in names and parameter.requires_grad]
    if not chosen:
        return
    identities = set(map(id, chosen))
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in identities]
    optimizer.add_param_group({"params": chosen, "lr": learning_rate, "weight_decay": 0.0})
