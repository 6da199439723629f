"""Training examples learn which epoch it is, as their augmentation depends on it."""

import math

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.batching import TrainingTransform


class EpochCallback(TrainerCallback):
    """Sets the epoch of the training examples."""

    def __init__(self, transform: TrainingTransform):
        self.transform = transform

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        # A resumed run's epoch is a quotient, which rounding may leave just below a whole number.
        self.transform.epoch = math.floor(state.epoch + 1e-6)
