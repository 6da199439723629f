"""Ctrl-C and SIGTERM end a training run after its current step, with a checkpoint."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


def ignore_sigterm() -> None:
    """For a process that ends with an error of its own, which a launcher must not cut off. Only in the main thread."""
    if _is_main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class InterruptionCallback(TrainerCallback):
    """Saves a checkpoint and stops at the end of the step in which a signal arrives; a second Ctrl-C stops at once.

    With several processes, a signal to one of them stops all after the same step. Signals are heard within
    `handling_signals`.
    """

    def __init__(self):
        self.interrupted = False
        self._stops = False
        self._saved_step = -1
        self._group: distributed.ProcessGroup | None = None

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Only the main thread can handle signals: in another one, this does nothing."""
        if not _is_main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @property
    def has_stopped(self) -> bool:
        """Whether it has ended the training."""
        return self._stops

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if args.world_size > 1:
            # With gloo, the processes agree without waiting for their devices.
            self._group = distributed.new_group(backend="gloo")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self._any_interrupted():
            self._stops = True
            control.should_save = True
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._saved_step = state.global_step

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        # Trainer comes here when training stops, too. With save_strategy "best", an evaluation at the end of the step
        # has prevented its checkpoint if it was no new best.
        if self._stops and self._saved_step != state.global_step:
            control.should_save = True

    def _any_interrupted(self) -> bool:
        if self._group is None:
            return self.interrupted
        flag = torch.tensor(int(self.interrupted))
        distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self._group)
        return bool(flag)

    def _on_signal(self, number: int, frame: Any) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
