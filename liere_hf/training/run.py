"""One training run: a recipe's data and model through transformers' Trainer, into an output directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from torch import distributed
from torch.utils.data import default_collate
from transformers import EvalPrediction, PreTrainedModel, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from ..cards import build_model_card
from ..configuration import DataArguments, RunArguments
from ..data import PreparedData, load_splits, prepare
from ..errors import InputError, RunError
from ..hardware import hardware
from ..model_loading import build_model
from ..output_files import write_bytes
from ..run_directory import RECIPE_FILE, read_checkpoint, recipe_options
from .annealing import PositionTableAnnealing
from .epochs import EpochCallback
from .interruption import InterruptionCallback
from .metrics import ClassificationMetric
from .trainer import LiereTrainer

# Options that may differ between a run and its continuation.
RESUMABLE_OPTIONS = {
    "resume_from_checkpoint",
    "output_dir",
    "logging_dir",
    "disable_tqdm",
    "report_to",
    "data_num_proc",
    "local_rank",
}


class TrainingInterruptedError(Exception):
    """The run was stopped early, after saving a checkpoint."""


def train(model_arguments: Any, data_arguments: DataArguments, training_arguments: RunArguments) -> dict[str, float]:
    """Train, evaluate and save a model, in one process or, started by Accelerate or torchrun, in each of several.

    `output_dir` then holds the model with its code, its processor and card, `recipe.yaml` (every option),
    `train_results.json`, `eval_results.json` and `trainer_state.json` (the curves). With `push_to_hub` it is published
    as `liere-hf publish` does.

    Returns:
        The metrics of the final evaluation.

    Raises:
        InputError: options, data or a directory that do not fit together.
        RunError: a loss that is not finite, a disk that is full, another process that ended, a Hub that cannot be
            reached.
        TrainingInterruptedError: stopped by a signal; a checkpoint is saved.
    """
    output_dir = Path(training_arguments.output_dir)
    options = recipe_options(model_arguments, data_arguments, training_arguments)
    checkpoint = _checkpoint_to_resume(output_dir, training_arguments, options)
    training_arguments.resolve_batch_size()
    # Every process has looked at the directory before one of them writes there.
    training_arguments.distributed_state.wait_for_everyone()
    set_seed(training_arguments.seed)
    with training_arguments.main_process_first(desc="loading data"):
        splits = load_splits(data_arguments, training_arguments.seed)
    model = build_model(model_arguments, splits.label_names)
    data = prepare(splits, model.config, data_arguments, training_arguments, model_arguments.model_name_or_path)
    trainer = build_trainer(model, data, training_arguments)
    if model_arguments.anneal_position_embeddings_steps:
        trainer.add_callback(PositionTableAnnealing(model, model_arguments.anneal_position_embeddings_steps))

    if trainer.is_world_process_zero():
        write_bytes(output_dir / RECIPE_FILE, yaml.safe_dump(options, sort_keys=False).encode())
    with _other_processes_expected(trainer):
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_state()
        if trainer.state.global_step < trainer.state.max_steps:
            raise TrainingInterruptedError(
                f"interrupted after step {trainer.state.global_step} of {trainer.state.max_steps}, checkpoint saved "
                f"in {output_dir}; go on with --resume_from_checkpoint true"
            )
        metrics = trainer.evaluate()
        with trainer.saving_aside(output_dir) as unfinished:
            trainer.save_model(str(unfinished), _internal_call=True)
    facts = {
        "num_parameters": model.num_parameters(),
        "num_processes": training_arguments.world_size,
        "train_data_wait_share": trainer.data_wait_seconds / result.metrics["train_runtime"],
        "skipped_files": len(splits.skipped_files),
        "skipped_file_names": splits.skipped_files,
        "hardware": hardware(),
    }
    trainer.save_metrics("train", result.metrics | facts, combined=False)
    trainer.save_metrics("eval", metrics, combined=False)
    if trainer.is_world_process_zero():
        write_bytes(output_dir / "README.md", str(build_model_card(read_checkpoint(output_dir))).encode())
    if training_arguments.push_to_hub:
        trainer.push_to_hub()
    return metrics


def build_trainer(model: PreTrainedModel, data: PreparedData, training_arguments: TrainingArguments) -> LiereTrainer:
    """A Trainer that evaluates with confidence intervals and saves when interrupted."""
    metric = ClassificationMetric(keep_in_memory=True)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        views = data.evaluation.num_views
        logits = prediction.predictions.reshape(-1, views, prediction.predictions.shape[-1]).mean(axis=1)
        return metric.compute(predictions=logits, references=prediction.label_ids[::views])

    try:
        return LiereTrainer(
            model=model,
            args=training_arguments,
            train_dataset=data.train,
            eval_dataset=data.evaluation,
            processing_class=data.processor,
            # Unlike transformers' own, it collates into the memory that workers share.
            data_collator=default_collate,
            compute_metrics=compute_metrics,
            callbacks=[InterruptionCallback(), EpochCallback(data.train.transform)],
        )
    except (ImportError, RuntimeError) as error:
        if "install" not in str(error):
            raise
        # A tracker of report_to that is not there.
        raise InputError(f"report_to is {training_arguments.report_to}: {' '.join(str(error).split())}") from error


@contextmanager
def _other_processes_expected(trainer: LiereTrainer) -> Iterator[None]:
    """Turns what the libraries say when another process has ended into one sentence."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, RunError) or not _is_lost_connection(error):
            raise
        raise RunError(f"another process of this run has ended; {trainer.how_to_go_on()}") from error


def _is_lost_connection(error: RuntimeError) -> bool:
    if not distributed.is_initialized():
        return False
    # gloo raises plain RuntimeErrors.
    words = ("connection closed by peer", "connection reset by peer", "broken pipe", "timed out waiting")
    return isinstance(error, distributed.DistError) or any(word in str(error).lower() for word in words)


def _checkpoint_to_resume(output_dir: Path, arguments: TrainingArguments, options: dict[str, Any]) -> str | None:
    """The checkpoint that the run goes on from; None for a new run, whose directory must then be empty."""
    resume = arguments.resume_from_checkpoint
    wanted = resume is not None and str(resume).lower() != "false"
    if not wanted:
        if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
            raise InputError(
                f"output_dir {output_dir} already holds another run or other files: choose a new one, or go on with "
                "--resume_from_checkpoint true"
            )
        return None
    if str(resume).lower() == "true":
        checkpoint = get_last_checkpoint(output_dir) if output_dir.is_dir() else None
        if checkpoint is None:
            raise InputError(f"output_dir {output_dir} holds no checkpoint to resume from")
    else:
        checkpoint = str(resume)
        if not Path(checkpoint).is_dir():
            raise InputError(f"resume_from_checkpoint {checkpoint} is not a directory")
    _require_same_options(Path(checkpoint).parent / RECIPE_FILE, options)
    return checkpoint


def _require_same_options(recipe_file: Path, options: dict[str, Any]) -> None:
    if not recipe_file.is_file():
        raise InputError(f"{recipe_file} is missing, so the run to resume is not one of liere-hf train")
    before = yaml.safe_load(recipe_file.read_text())
    for name in sorted((before.keys() | options.keys()) - RESUMABLE_OPTIONS):
        if before.get(name) != options.get(name):
            raise InputError(
                f"{name} is {options.get(name)!r}, but the run to resume was started with {before.get(name)!r}"
            )
