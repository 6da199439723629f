"""Which parameters of a model are trained: all, some by name, or LoRA adapters."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from transformers import PreTrainedModel

from ..configuration import RunArguments
from ..errors import InputError

# The linear layers of LiereViT, and the modules that LoRA cannot adapt or that are new.
LORA_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
TRAINED_WHOLE = ["classifier", "rotations"]


def choose_trained_parameters(model: PreTrainedModel, arguments: RunArguments) -> nn.Module:
    """The model with what the arguments freeze, or in LoRA adapters, which `without_adapters` merges.

    Raises:
        InputError: a name that no parameter has, or nothing is left to train.
        ModuleNotFoundError: LoRA without peft.
    """
    if arguments.lora_rank is not None:
        return _with_adapters(model, arguments.lora_rank)
    for option, is_frozen in (("freeze", True), ("train_only", False)):
        patterns = getattr(arguments, option)
        if patterns:
            chosen = _find(model, option, patterns)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_((name in chosen) != is_frozen)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"freeze is {arguments.freeze}, which leaves nothing to train")
    return model


def without_adapters(model: nn.Module) -> nn.Module:
    """The model itself, with its adapters merged into its weights."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def _with_adapters(model: PreTrainedModel, rank: int) -> nn.Module:
    # Only LoRA needs it.
    from peft import LoraConfig, get_peft_model

    whole = [name for name in TRAINED_WHOLE if any(name in path.split(".") for path, _ in model.named_parameters())]
    return get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_LAYERS, modules_to_save=whole)
    )


def _find(model: nn.Module, option: str, patterns: Sequence[str]) -> set[str]:
    """Names of the parameters that patterns match, themselves or by a module that they are in, wherever it begins."""
    names = [name for name, _ in model.named_parameters()]
    found = set()
    for pattern in patterns:
        matches = {name for name in names if _matches(name, pattern)}
        if not matches:
            parts = sorted({part for name in names for part in name.split(".")[:3] if not part.isdigit()})
            raise InputError(f"{option} has {pattern!r}, allowed are names of parameters or parts: {', '.join(parts)}")
        found |= matches
    return found


def _matches(name: str, pattern: str) -> bool:
    parts, length = name.split("."), len(pattern.split("."))
    windows = (".".join(parts[start : start + length]) for start in range(len(parts) - length + 1))
    return any(fnmatchcase(window, pattern) for window in windows)
