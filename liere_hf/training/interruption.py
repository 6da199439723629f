"""Ctrl-C and SIGTERM end a training run after the current step, with a checkpoint."""

import signal
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class InterruptionCallback(TrainerCallback):
    """Saves and stops at the end of the step in which the first signal came; a second Ctrl-C stops at once."""

    def __init__(self):
        self.interrupted = False
        self._previous_handlers: dict[int, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous_handlers[number] = signal.signal(number, self._on_signal)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
