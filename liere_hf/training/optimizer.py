"""The optimizer's view of a model: no weight decay of rotations, and learning rates by depth and kind."""

import re

import torch
from torch import nn
from transformers import TrainingArguments

from ..modeling.modeling_liere_vit import LiereViTRotations

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_HEAD = re.compile(r"(?:^|\.)classifier\.")
_EMBEDDINGS = re.compile(r"(?:^|\.)embeddings\.")


def rotation_parameter_names(model: nn.Module) -> set[str]:
    """Names of the parameters that rotations are computed from, as in `model.named_parameters()`."""
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, LiereViTRotations)
        for name, _ in module.named_parameters()
    }


def learning_rate_factors(model: nn.Module, args: TrainingArguments) -> dict[str, float]:
    """The learning rate of every parameter as a multiple of `learning_rate`.

    With `layer_learning_rate_decay` d, the last of n layers has d, the first one d^n, and the embeddings d^(n + 1), as
    in BEiT (arXiv 2106.08254). The classifier and the rotations, which belong to all layers, have their own factors.
    """
    decay = getattr(args, "layer_learning_rate_decay", None) or 1.0
    head, generators = (
        1.0 if getattr(args, name, None) is None else getattr(args, name)
        for name in ("head_learning_rate_factor", "generator_learning_rate_factor")
    )
    num_layers, rotations = model.config.num_hidden_layers, rotation_parameter_names(model)
    factors = {}
    for name, _ in model.named_parameters():
        layer = _LAYER.search(name)
        if name in rotations:
            factors[name] = generators
        elif _HEAD.search(name):
            factors[name] = head
        elif layer:
            factors[name] = decay ** (num_layers - int(layer[1]))
        else:
            factors[name] = decay ** (num_layers + 1) if _EMBEDDINGS.search(name) else decay
    return factors


def scale_learning_rates(optimizer: torch.optim.Optimizer, model: nn.Module, factors: dict[str, float]) -> None:
    """Split the groups of an optimizer that has made no step yet, so that each parameter gets its factor.

    Parameters whose factor is 1 stay where they are; weight decay stays as it is.
    """
    factor_of = {id(parameter): factors[name] for name, parameter in model.named_parameters()}
    for group in [*optimizer.param_groups]:
        by_factor: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_factor.setdefault(factor_of.get(id(parameter), 1.0), []).append(parameter)
        group["params"] = by_factor.pop(1.0, [])
        for factor, parameters in sorted(by_factor.items()):
            changes = {"params": parameters, "lr": factor * group["lr"]}
            optimizer.add_param_group({name: value for name, value in group.items() if name != "params"} | changes)
    # Some optimizers refuse empty groups.
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
