"""Renaming of weights that checks that every tensor is used."""

from collections.abc import Callable

import torch

from ..errors import InputError, first_names


class Tensors:
    """A state dict whose tensors are taken out one by one. Errors name those that are missing or left over."""

    def __init__(self, source: str, tensors: dict[str, torch.Tensor]):
        self.source = source
        self._tensors = dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def count(self, prefix: str) -> int:
        """Number of different indices after a prefix such as `blocks.`."""
        return len({name.removeprefix(prefix).split(".")[0] for name in self._tensors if name.startswith(prefix)})

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, which is not removed."""
        return tuple(self._get(name).shape)

    def take(self, name: str) -> torch.Tensor:
        """Remove a tensor and return it in float32, or in float64 if it is."""
        tensor = self._get(name)
        del self._tensors[name]
        return tensor if tensor.dtype == torch.float64 else tensor.float()

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """A tensor that the source has implicitly, such as a bias of zeros."""
        self._tensors[name] = tensor

    def take_linear(self, name: str, target: str, into: dict[str, torch.Tensor]) -> None:
        """Move the weight and, if it exists, the bias of a linear layer."""
        into[f"{target}.weight"] = self.take(f"{name}.weight")
        if f"{name}.bias" in self:
            into[f"{target}.bias"] = self.take(f"{name}.bias")

    def drop(self, is_unused: Callable[[str], bool]) -> None:
        """Remove tensors that the model does not use."""
        self._tensors = {name: tensor for name, tensor in self._tensors.items() if not is_unused(name)}

    def require_empty(self) -> None:
        """Raise InputError if tensors are left."""
        if self._tensors:
            raise InputError(
                f"{self.source} has {len(self._tensors)} unknown weights: {first_names(sorted(self._tensors))}"
            )

    def _get(self, name: str) -> torch.Tensor:
        if name not in self._tensors:
            raise InputError(f"{self.source} lacks the weight {name} (it has {first_names(sorted(self._tensors))})")
        return self._tensors[name]


def load_exactly(model: torch.nn.Module, state_dict: dict[str, torch.Tensor], source: str) -> None:
    """Load converted weights into a model. Names and shapes must match exactly, else InputError is raised."""
    expected = model.state_dict()
    missing, extra = sorted(expected.keys() - state_dict.keys()), sorted(state_dict.keys() - expected.keys())
    if missing or extra:
        problem = f"lacks {first_names(missing)}" if missing else f"additionally has {first_names(extra)}"
        raise InputError(f"{source} {problem}, in the names of LiereViT")
    for name, tensor in state_dict.items():
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"{source} has {name} of shape {tuple(tensor.shape)} where {tuple(expected[name].shape)} is expected"
            )
    model.load_state_dict(state_dict)
