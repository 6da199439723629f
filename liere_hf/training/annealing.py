"""Annealing of absolute position embeddings, for a converted model whose rotations take their place."""

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import InputError
from ..modeling.modeling_liere_vit import LiereViTEmbeddings, LiereViTPreTrainedModel
from ..modeling.position_encodings import POSITION_ENCODINGS


class PositionTableAnnealing(TrainerCallback):
    """Scales the absolute position embeddings linearly to zero over the first steps of a run, and keeps them there.

    Args:
        num_steps: optimizer steps until they are zero.

    Raises:
        InputError: the model has no absolute position embeddings in addition to a rotary encoding.
    """

    def __init__(self, model: LiereViTPreTrainedModel, num_steps: int):
        self.num_steps = num_steps
        self.table = _find_table(model)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        remaining = self.num_steps - state.global_step
        if remaining > 0:
            self.table.data.mul_((remaining - 1) / remaining)
        if remaining <= 1:
            self.table.requires_grad_(False)


def _find_table(model: LiereViTPreTrainedModel) -> nn.Parameter:
    for module in model.modules():
        if isinstance(module, LiereViTEmbeddings) and module.position_embeddings is not None:
            if POSITION_ENCODINGS[model.config.position_encoding].has_table:
                break
            return module.position_embeddings
    raise InputError(
        "anneal_position_embeddings_steps is set, but the model (position_encoding "
        f"{model.config.position_encoding!r}) has no absolute position embeddings in addition to a rotary encoding"
    )
