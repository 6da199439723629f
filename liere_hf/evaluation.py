"""Evaluation of a saved classifier on data that it was not trained on."""

import copy
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from transformers import AutoImageProcessor, AutoVideoProcessor

from .configuration import DataArguments, RunArguments
from .configuration.metric_names import measured
from .data import HeldOut, Splits, load_evaluation, prepare
from .data.batching import EvaluationExamples
from .errors import InputError
from .hardware import hardware
from .hub_access import hub_or_cache
from .model_loading import load_checkpoint
from .run_directory import trained_on, training_data
from .training.progress import shown_progress
from .training.run import build_trainer


class Evaluation(NamedTuple):
    """
    Attributes:
        metrics: as `evaluate` gives them.
        examples: measures of single examples, in the order of the data: see `EvaluationMetrics.per_example`.
        rows: which examples of the data set these are; equal for the same ones.
    """

    metrics: dict[str, Any]
    examples: dict[str, np.ndarray]
    rows: tuple[Any, ...]


def evaluate(model_arguments: Any, data_arguments: DataArguments, training_arguments: RunArguments) -> dict[str, Any]:
    """Evaluate the checkpoint `model_name_or_path` with its own processor, at its own size or at `input_size`.

    What is evaluated is the test split of the data, else the validation split, else what the model's run held out from
    its training examples, else everything.

    Returns:
        The measures of the model's problem (`MEASURES_OF`) with the ends of 95% confidence intervals, those of each
        class as `per_class`, the number of `examples`, which `split` they are, the `input_size` in pixels per axis,
        and the `hardware`.

    Raises:
        InputError: checkpoint or data cannot be read, or the data has a class that the model lacks.
    """
    return evaluate_examples(model_arguments, data_arguments, training_arguments).metrics


def evaluate_examples(
    model_arguments: Any, data_arguments: DataArguments, training_arguments: RunArguments
) -> Evaluation:
    """As `evaluate`, with the measures of single examples.

    Raises:
        InputError: as `evaluate`.
    """
    name = model_arguments.model_name_or_path
    model = load_checkpoint(model_arguments)
    auto = AutoVideoProcessor if model.config.num_axes == 3 else AutoImageProcessor
    try:
        with hub_or_cache("model", name):
            processor = auto.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"model {name} has no readable processor: {' '.join(str(error).split())}") from error
    facts = training_data(name)
    if "volume_spacing" in facts:
        data_arguments = replace(data_arguments, volume_spacing=facts["volume_spacing"])
    held_out = HeldOut(**facts["held_out"]) if facts.get("held_out") else None
    rows = load_evaluation(data_arguments, training_arguments.seed, model.config, held_out)
    if rows.part == "all" and "held_out" not in facts and trained_on(name) == data_arguments.dataset:
        raise InputError(
            f"model {name} was trained on {data_arguments.dataset} and does not say on which examples: give a "
            "validation or test split"
        )
    if data_arguments.input_size is not None:
        # The saved processor resizes to the training size.
        processor = None
    splits = Splits.of(validation=rows.table)
    data = prepare(splits, model.config, data_arguments, training_arguments, name, processor)
    # Trainer creates its output directory, in which an evaluation leaves nothing.
    training_arguments = copy.copy(training_arguments)
    with TemporaryDirectory() as training_arguments.output_dir:
        trainer = build_trainer(model, data, training_arguments)
        with shown_progress(trainer):
            metrics = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
    evaluated = {"examples": len(rows.table), "split": rows.part, "input_size": _input_size(data.evaluation)}
    scores = trainer.compute_metrics
    return Evaluation(
        evaluated | measured(metrics) | {"per_class": scores.per_class(), "hardware": hardware()},
        scores.per_example(),
        (rows.part, held_out if rows.part == "held out" else None),
    )


def _input_size(examples: EvaluationExamples) -> list[int]:
    """Pixels per axis of the inputs: a saved processor may resize to another size than the model's."""
    *frames, _, height, width = examples[0]["pixel_values"].shape
    return [*frames, height, width]
