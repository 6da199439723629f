"""One training run: a recipe's data and model through transformers' Trainer, into an output directory."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import REPOCARD_NAME
from torch import distributed
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint
from torch.utils.data import default_collate
from transformers import PreTrainedModel, TrainingArguments, get_scheduler, set_seed
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from ..cards import build_model_card
from ..configuration import DataArguments, ModelArguments, RunArguments
from ..configuration.prediction_options import PredictionOptions
from ..data import PreparedData, Splits, load_splits, prepare
from ..data.summary import summary
from ..errors import InputError, RunError, TrainingInterruptedError
from ..hardware import explaining_lack_of_memory, hardware
from ..model_loading import build_model, load_checkpoint, require_configuration
from ..output_files import removed_unless_kept, require_writable_directory, write_bytes
from ..prediction import Predictor
from ..prediction_files import find_files, write_predictions
from ..run_directory import (
    CONFUSION_MATRIX,
    PREDICTIONS_FILE,
    checkpoint_to_resume,
    has_optimizer_state,
    how_to_resume,
    how_to_start_from,
    read_checkpoint,
    recipe_options,
)
from .annealing import PositionTableAnnealing
from .class_balance import balanced_class_weights
from .confusion import write_confusion_matrix
from .duration import DurationCallback
from .epochs import EpochCallback
from .interruption import InterruptionCallback, ignore_sigterm
from .metrics import EvaluationMetrics
from .progress import shown_progress
from .publication import PublishingCallback
from .recipe_record import RecipeRecord, require_same_data
from .resumption import EarlyStopping
from .saving import atomic_save
from .trained_parameters import choose_trained_parameters, without_adapters
from .trainer import LiereTrainer


def train(model_arguments: Any, data_arguments: DataArguments, training_arguments: RunArguments) -> dict[str, Any]:
    """Train, evaluate and save a model, in one process or in several that Accelerate or torchrun started.

    `output_dir` then holds the model with its code, its processor and card, `recipe.yaml` (every option),
    `training_data.json` (what the examples are), `train_results.json`, `eval_results.json`, `test_results.json` where
    the data has a test split beside the one that chose the checkpoint, `trainer_state.json` (the learning curves) and
    the confusion matrix of the last evaluation; with `do_predict`, `predictions.csv`. With `push_to_hub` it is
    published as by `liere-hf publish`.

    Returns:
        The metrics of the final evaluation with the prefix `eval_`, those of the test split with `test_`.

    Raises:
        InputError: options, data or a directory that do not fit together.
        RunError: the loss is not finite, the disk is full, another process has ended, or the Hub cannot be reached.
        TrainingInterruptedError: stopped by a signal, after the current step.
    """
    output_dir = Path(training_arguments.output_dir)
    require_writable_directory("output_dir", output_dir)
    options = recipe_options(model_arguments, data_arguments, training_arguments) | _start(model_arguments)
    checkpoint = checkpoint_to_resume(output_dir, training_arguments.resume_from_checkpoint, options)
    training_arguments.resolve_batch_size()
    # No process writes to the directory before all have checked it.
    training_arguments.distributed_state.wait_for_everyone()
    with removed_unless_kept(output_dir) as keep:
        return _train(model_arguments, data_arguments, training_arguments, options, checkpoint, keep)


def _start(model_arguments: Any) -> dict[str, str]:
    """How the generators of a new model start, so that its recipe stays what it is if the default changes."""
    if model_arguments.model_name_or_path:
        return {}
    start = require_configuration(model_arguments).generator_init
    return {"generator_init": start} if start else {}


def _train(
    model_arguments: Any,
    data_arguments: DataArguments,
    training_arguments: RunArguments,
    options: dict[str, Any],
    checkpoint: str | None,
    keep: Callable[[], None],
) -> dict[str, Any]:
    output_dir = Path(training_arguments.output_dir)
    config = require_configuration(model_arguments)
    set_seed(training_arguments.seed)
    with training_arguments.main_process_first(desc="loading data"):
        splits = load_splits(data_arguments, training_arguments.seed, config)
    facts = splits.facts() | {"volume_spacing": data_arguments.volume_spacing}
    if training_arguments.do_predict and training_arguments.predict_paths:
        # Missing files are found before the training rather than after it.
        find_files(training_arguments.predict_paths, splits.column)
    if checkpoint is not None:
        require_same_data(Path(checkpoint).parent, facts)
    model = build_model(model_arguments, splits.label_names, splits.problem_type)
    data = prepare(splits, model.config, data_arguments, training_arguments, model_arguments.model_name_or_path)
    _require_usable_optimizer(model, training_arguments)
    _require_usable_checkpointing(training_arguments)
    _set_min_epochs(splits, training_arguments)
    model = choose_trained_parameters(model, training_arguments)
    publishing = PublishingCallback(training_arguments)
    publishing.prepare(model)
    class_weights = balanced_class_weights(splits) if training_arguments.class_weights else None
    trainer = build_trainer(model, data, training_arguments, class_weights)
    interruption = InterruptionCallback()
    for callback in (RecipeRecord(output_dir, options, facts, keep), interruption, publishing):
        trainer.add_callback(callback)
    if model_arguments.anneal_position_embeddings_steps:
        trainer.add_callback(PositionTableAnnealing(model, model_arguments.anneal_position_embeddings_steps))
    if training_arguments.early_stopping_patience is not None:
        trainer.add_callback(EarlyStopping(training_arguments.early_stopping_patience))

    if trainer.is_world_process_zero():
        print(*summary(facts), sep="\n")
    advice = f"take a smaller per_device_train_batch_size or model; {how_to_resume(output_dir)}"
    with (
        _other_processes_expected(output_dir),
        explaining_lack_of_memory(training_arguments.device, advice),
        shown_progress(trainer),
    ):
        with interruption.handling_signals():
            result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.require_finite()
        trainer.save_state()
        trainer.model = without_adapters(trainer.model)
        if interruption.has_stopped or training_arguments.early_stopping_patience is None:
            _require_all_steps(trainer)
        metrics = trainer.evaluate() | {"eval_per_class": trainer.compute_metrics.per_class()}
        test_metrics = {}
        if data.test is not None:
            # Not `evaluate`, which has one DataLoader for all data sets if its workers are persistent.
            test_metrics = trainer.predict(data.test, metric_key_prefix="test").metrics
            test_metrics["test_per_class"] = trainer.compute_metrics.per_class()
        with atomic_save(trainer) as unfinished:
            trainer.save_model(str(unfinished))
    trainer.save_metrics("train", result.metrics | _training_facts(trainer, splits, facts, result), combined=False)
    trainer.save_metrics("eval", metrics, combined=False)
    if test_metrics:
        trainer.save_metrics("test", test_metrics, combined=False)
    if trainer.is_world_process_zero():
        confusion = trainer.compute_metrics.confusion_matrix()
        if confusion is not None:
            write_confusion_matrix(output_dir / CONFUSION_MATRIX, *confusion)
        if training_arguments.do_predict:
            _predict(data, splits.column, training_arguments)
        write_bytes(output_dir / REPOCARD_NAME, str(build_model_card(read_checkpoint(output_dir))).encode())
    publishing.publish()
    return metrics | test_metrics


def _predict(data: PreparedData, column: str, arguments: RunArguments) -> None:
    """Predictions of the saved model for the files that the arguments name, or else for the test examples.

    Without a test split, for the validation examples. Only the main process predicts, with a model that is whole.
    """
    if arguments.predict_paths:
        names = find_files(arguments.predict_paths, column)
        files = [{"bytes": None, "path": name} for name in names]
    else:
        files = (data.evaluation if data.test is None else data.test).dataset[column]
        names = [file["path"] or f"{column} {index}" for index, file in enumerate(files)]
    options = PredictionOptions(
        batch_size=arguments.per_device_eval_batch_size, num_workers=arguments.dataloader_num_workers
    )
    model = load_checkpoint(ModelArguments(model_name_or_path=arguments.output_dir)).to(arguments.device)
    predictor = Predictor(model, column, data.evaluation.to_pixels, data.evaluation.to_positions)
    predictions = predictor(files, names, options)
    write_predictions(Path(arguments.output_dir) / PREDICTIONS_FILE, predictions)


def _set_min_epochs(splits: Splits, arguments: RunArguments) -> None:
    """As many epochs as `min_steps` take, where `num_train_epochs` take fewer."""
    if arguments.min_steps is None or arguments.max_steps > 0:
        return
    batches = splits.num_train / (arguments.train_batch_size * arguments.world_size)
    batches = math.floor(batches) if arguments.dataloader_drop_last else math.ceil(batches)
    steps = max(math.ceil(batches / arguments.gradient_accumulation_steps), 1)
    arguments.num_train_epochs = max(arguments.num_train_epochs, math.ceil(arguments.min_steps / steps))


def _require_usable_optimizer(model: PreTrainedModel, arguments: RunArguments) -> None:
    """Build what Trainer builds when training starts: later, its errors would leave a directory behind.

    Raises:
        InputError: a package is missing, the optimizer or the schedule lacks an option of its own or does not allow
            its value, or the learning rate becomes negative or infinite.
    """
    parameter = torch.zeros(1, requires_grad=True)
    try:
        kind, options = LiereTrainer.get_optimizer_cls_and_kwargs(arguments, model)
        if "model" not in options:
            kind(**{"params": [parameter], **options})
    except (ImportError, TypeError, ValueError) as error:
        given = "" if arguments.optim_args is None else f", with optim_args {arguments.optim_args!r}"
        raise InputError(f"optim is {arguments.optim.value!r}{given}: {' '.join(str(error).split())}") from error
    schedule = (
        f"lr_scheduler_type is {arguments.lr_scheduler_type.value!r}, with lr_scheduler_kwargs "
        f"{arguments.lr_scheduler_kwargs}"
    )
    try:
        rates = _learning_rates(torch.optim.SGD([parameter], lr=arguments.learning_rate), arguments)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise InputError(f"{schedule}: {' '.join(str(error).split())}") from error
    for step, rate in enumerate(rates):
        if not (math.isfinite(rate) and rate >= 0):
            raise InputError(
                f"{schedule}: after {step}% of the steps the learning rate is {rate:g}, allowed are 0 or more"
            )


def _require_usable_checkpointing(arguments: RunArguments) -> None:
    """
    Raises:
        InputError: torch.utils.checkpoint does not take the options in `gradient_checkpointing_kwargs`.
    """
    options = arguments.gradient_checkpointing_kwargs
    if not arguments.gradient_checkpointing or options is None:
        return
    try:
        checkpoint(torch.nn.Identity(), torch.zeros(1, requires_grad=True), **{"use_reentrant": False, **options})
    except (TypeError, ValueError) as error:
        raise InputError(
            f"gradient_checkpointing_kwargs is {options!r}, allowed are options of torch.utils.checkpoint: "
            f"{' '.join(str(error).split())}"
        ) from error


def _learning_rates(optimizer: torch.optim.Optimizer, arguments: RunArguments) -> list[float]:
    """Of a training of 100 steps; of a schedule that depends on metrics only the first one."""
    num_steps = 100
    scheduler = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        arguments.get_warmup_steps(num_steps),
        num_steps,
        arguments.lr_scheduler_kwargs,
    )
    rates = [arguments.learning_rate]
    if isinstance(scheduler, LambdaLR):
        for _ in range(num_steps):
            optimizer.step()
            scheduler.step()
            rates += scheduler.get_last_lr()
    return rates


def build_trainer(
    model: PreTrainedModel,
    data: PreparedData,
    training_arguments: TrainingArguments,
    class_weights: torch.Tensor | None = None,
) -> LiereTrainer:
    """A Trainer that evaluates with confidence intervals."""
    try:
        return LiereTrainer(
            model=model,
            args=training_arguments,
            train_dataset=data.train,
            eval_dataset=data.evaluation,
            processing_class=data.processor,
            # Unlike transformers' default, it collates into shared memory of the workers.
            data_collator=default_collate,
            class_weights=class_weights,
            compute_metrics=EvaluationMetrics(model.config, data.evaluation.num_views),
            callbacks=[DurationCallback(), *([EpochCallback(data.train.transform)] if data.train is not None else [])],
        )
    except (ImportError, RuntimeError) as error:
        if "install" not in str(error):
            raise
        # A tracker of report_to that is not installed.
        raise InputError(f"report_to is {training_arguments.report_to}: {' '.join(str(error).split())}") from error
    except ValueError as error:
        # Trainer checks how the arguments fit together.
        raise InputError(" ".join(str(error).split())) from error


def _require_all_steps(trainer: LiereTrainer) -> None:
    """
    Raises:
        TrainingInterruptedError: training stopped before its last step.
    """
    state = trainer.state
    if state.global_step < state.max_steps:
        checkpoint = Path(trainer.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        saved = f"checkpoint saved in {checkpoint}" if checkpoint.is_dir() else "no checkpoint of this step was saved"
        can_resume = has_optimizer_state(checkpoint)
        if checkpoint.is_dir() and not can_resume:
            saved += f"; {how_to_start_from(checkpoint)}"
        raise TrainingInterruptedError(
            f"interrupted after step {state.global_step} of {state.max_steps}, {saved}", can_resume
        )


def _training_facts(
    trainer: LiereTrainer, splits: Splits, facts: dict[str, Any], result: TrainOutput
) -> dict[str, Any]:
    """What train_results.json says beside Trainer's own metrics."""
    state, step_size = trainer.state, trainer.get_total_train_batch_size(trainer.args)
    return {
        "num_parameters": trainer.model.num_parameters(),
        "num_processes": trainer.args.world_size,
        # Trainer's own numbers are of the last session of a run that was resumed. Without drop_last, the last step of
        # an epoch is smaller than others.
        "train_examples_seen": min(state.global_step * step_size, round(state.epoch * splits.num_train)),
        "train_seconds": round(DurationCallback.seconds(state), 4),
        "train_data_wait_share": trainer.data_wait_seconds / result.metrics["train_runtime"],
        "data": facts,
        "hardware": hardware(),
    }


@contextmanager
def _other_processes_expected(output_dir: Path) -> Iterator[None]:
    """Turns what the libraries raise when another process has ended into one sentence."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, RunError) or not _is_lost_connection(error):
            raise
        # The launcher is about to end this process, too.
        ignore_sigterm()
        raise RunError(f"another process of this run has ended; {how_to_resume(output_dir)}") from error


def _is_lost_connection(error: RuntimeError) -> bool:
    if not distributed.is_initialized():
        return False
    # gloo raises plain RuntimeErrors.
    words = ("connection closed by peer", "connection reset by peer", "broken pipe", "timed out waiting")
    return isinstance(error, distributed.DistError) or any(word in str(error).lower() for word in words)
