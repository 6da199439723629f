"""What a terminal or a log shows of trainings and evaluations, in place of transformers' dictionaries."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import has_length

from ..configuration.metric_names import MEASURES_OF, problem_type
from ..metric_display import measure_rows
from ..progress import ProgressBar


@contextmanager
def shown_progress(trainer: Trainer) -> Iterator[None]:
    """Show the trainings and evaluations of a Trainer until the end of the block, also after an error.

    On a terminal there is one bar, which `disable_tqdm` hides, and a line for each evaluation. Elsewhere there are
    lines only, also for losses. A notebook keeps transformers' own display.
    """
    # The first is there without `disable_tqdm`, the second with it, neither in a notebook.
    found = [trainer.pop_callback(kind) for kind in (ProgressCallback, PrinterCallback)]
    bar = ProgressBar(hidden=trainer.args.disable_tqdm)
    if any(found):
        trainer.add_callback(TrainingProgress(bar))
    try:
        yield
    finally:
        bar.close()


class TrainingProgress(TrainerCallback):
    """Moves a bar and prints lines, in the main process."""

    def __init__(self, bar: ProgressBar):
        self._bar = bar
        self._is_training = self._is_evaluating = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if state.is_world_process_zero:
            self._bar.begin("Training", state.max_steps, state.global_step)
            self._is_training = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self._is_training:
            self._bar.move()

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, eval_dataloader=None, **kwargs
    ):
        if state.is_world_process_zero:
            if not self._is_evaluating:
                self._bar.begin("Evaluating", len(eval_dataloader) if has_length(eval_dataloader) else None)
                self._is_evaluating = True
            self._bar.move()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics, model=None, **kwargs
    ):
        self._end_evaluation()
        if self._is_training:
            print(f"{_step(state)}: {_evaluation(metrics, model)}", flush=True)

    def on_predict(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._end_evaluation()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs, **kwargs):
        if self._is_training and "loss" in logs:
            loss = f"training loss {logs['loss']:.4f}"
            if self._bar.is_shown:
                self._bar.move(0, loss)
            else:
                print(f"{_step(state)}: {loss}, learning rate {logs['learning_rate']:.2g}", flush=True)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._bar.close()
        self._is_training = False

    def _end_evaluation(self) -> None:
        if self._is_evaluating:
            self._bar.end()
            self._is_evaluating = False


def _step(state: TrainerState) -> str:
    return f"step {state.global_step:,} of {state.max_steps:,}"


def _evaluation(metrics: dict[str, float], model: Any) -> str:
    """The main measure of the model's problem, with its interval, and the loss."""
    main, *_ = MEASURES_OF[problem_type(model.config.to_dict())]
    chosen = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    chosen = {name: value for name, value in chosen.items() if name.startswith(main) or name == "loss"}
    return "; ".join(f"{title}: {value}" for title, value in measure_rows(chosen))
