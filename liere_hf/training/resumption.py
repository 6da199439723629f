"""What a resumed run takes over from its checkpoint, and what from its arguments."""

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Resumption(TrainerCallback):
    """A resumed run logs, evaluates and saves as its arguments say, and makes no step when all are done.

    Trainer would do these as often as before. From a checkpoint of the last step, it would make one more step.
    """

    def __init__(self):
        self._is_complete = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        state.compute_steps(args, state.max_steps)
        self._is_complete = state.global_step >= state.max_steps or control.should_training_stop
        # LiereTrainer then takes no batch.
        control.should_training_stop = self._is_complete

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self._is_complete:
            # They were done before.
            control.should_log = control.should_evaluate = control.should_save = False


class EarlyStopping(EarlyStoppingCallback):
    """transformers' callback, which goes on counting in a resumed run."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        kept = state.stateful_callbacks.get(type(self).__name__)
        if kept:
            self.early_stopping_patience_counter = kept["attributes"]["early_stopping_patience_counter"]
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True
