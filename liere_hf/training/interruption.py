"""Ctrl-C and SIGTERM end a training run after its current step, with a checkpoint."""

import signal
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class InterruptionCallback(TrainerCallback):
    """Saves a checkpoint and stops at the end of the step in which a signal arrives; a second Ctrl-C stops at once.

    With several processes, a signal to one of them stops all after the same step.
    """

    def __init__(self):
        self.interrupted = False
        self._group: distributed.ProcessGroup | None = None
        self._previous_handlers: dict[int, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous_handlers[number] = signal.signal(number, self._on_signal)
        if args.world_size > 1:
            # With gloo, the processes agree without waiting for their devices.
            self._group = distributed.new_group(backend="gloo")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self._any_interrupted():
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _any_interrupted(self) -> bool:
        if self._group is None:
            return self.interrupted
        flag = torch.tensor(int(self.interrupted))
        distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self._group)
        return bool(flag)

    def _on_signal(self, number: int, frame: Any) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
