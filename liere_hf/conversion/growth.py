"""Growth: wider generator blocks that initially compute the same as the narrow ones."""

import copy

import torch

from ..errors import InputError
from ..modeling.modeling_liere_vit import LiereViTPreTrainedModel, LiereViTRotations
from ..modeling.position_encodings import POSITION_ENCODINGS


def widen_generators(model: LiereViTPreTrainedModel, block_size: int) -> LiereViTPreTrainedModel:
    """A copy of a model with free generators whose blocks are wider, the old ones on their diagonals.

    It computes the same up to rounding. The new entries start at 0, and can be trained.

    Args:
        block_size: even, a multiple of the present block size and a divisor of head_dim.

    Raises:
        InputError: an encoding whose generators are not free (see `PositionEncoding`), or a block size that is not
            allowed.
    """
    before = model.config.generator_block_size
    encoding = POSITION_ENCODINGS[model.config.position_encoding]
    if not encoding.has_free_generators:
        raise InputError(
            f"position_encoding is {model.config.position_encoding!r}, which has no free generators to widen"
        )
    if block_size % before or model.config.head_dim % block_size:
        allowed = [
            str(width)
            for width in range(before, model.config.head_dim + 1, before)
            if model.config.head_dim % width == 0
        ]
        raise InputError(f"block_size is {block_size}, allowed are {', '.join(allowed)}")
    config = copy.deepcopy(model.config)
    if encoding.block_size is not None:
        config.position_encoding = "liere"
    config.generator_block_size = block_size
    config.validate()
    widened = type(model)._from_config(config)
    state_dict = model.state_dict()
    (name,) = (f"{path}.generators" for path, module in model.named_modules() if isinstance(module, LiereViTRotations))
    state_dict[name] = _on_the_diagonal(state_dict[name], block_size)
    widened.load_state_dict(state_dict)
    return widened.to(model.device).train(model.training)


def _on_the_diagonal(generators: torch.Tensor, block_size: int) -> torch.Tensor:
    """(..., blocks, b, b) to (..., fewer blocks, block_size, block_size), zero outside the old blocks."""
    before = generators.shape[-1]
    per_block = block_size // before
    groups = generators.unflatten(-3, (-1, per_block))
    eye = torch.eye(per_block, dtype=generators.dtype, device=generators.device)
    spread = groups.unsqueeze(-2) * eye[:, None, :, None]
    return spread.flatten(-2).flatten(-3, -2)
