"""Weights from untrusted files: safetensors, or pickles, which are read without executing code."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..errors import InputError


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, a state dict, or a checkpoint with a `state_dict` or `model` entry.

    Raises:
        InputError: the file does not exist, is truncated or not a checkpoint, or is a pickle that contains more than
            tensors and plain data.
    """
    if not path.is_file():
        raise InputError(f"checkpoint {path} is not a file")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except pickle.UnpicklingError as error:
        reason = str(error).split("WeightsUnpickler error:")[-1].split("Please file")[0]
        raise InputError(
            f"checkpoint {path} is rejected, it is not a state dict or contains more than tensors: {_sentence(reason)}"
        ) from error
    except Exception as error:  # Damaged pickles and archives raise errors of any type.
        raise InputError(
            f"checkpoint {path} cannot be read, it is truncated or not a checkpoint: {_sentence(str(error))}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"checkpoint {path} does not contain a state dict")
    for name, tensor in content.items():
        if not isinstance(tensor, torch.Tensor):
            raise InputError(
                f"checkpoint {path} does not contain a state dict: {name!r} has type {type(tensor).__name__}"
            )
    return dict(content)


def _load_pickle(path: Path) -> object:
    return torch.load(path, map_location="cpu", weights_only=True)


def _sentence(text: str) -> str:
    return " ".join(text.split())[:200].rstrip(". ")
