"""How long a run has trained, over all its sessions."""

import time

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


class DurationCallback(TrainerCallback, ExportableState):
    """Keeps the seconds of training in the `trainer_state.json` of each checkpoint, for a run that is resumed from it.

    Time after the checkpoint from which a run is resumed does not count.
    """

    def __init__(self):
        self._seconds_before = 0.0
        self._start: float | None = None

    @classmethod
    def seconds(cls, state: TrainerState) -> float:
        """Seconds of training up to the last checkpoint or the end; 0 if they were not kept."""
        kept = state.stateful_callbacks.get(cls.__name__)
        return kept["attributes"]["seconds"] if kept else 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._seconds_before = self.seconds(state)
        self._start = time.perf_counter()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        state.stateful_callbacks[type(self).__name__] = self.state()

    def state(self) -> dict:
        session = 0.0 if self._start is None else time.perf_counter() - self._start
        return {"args": {}, "attributes": {"seconds": self._seconds_before + session}}
