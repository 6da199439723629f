"""Evaluation of a saved classifier on a recipe's evaluation data."""

from typing import Any

from transformers import AutoImageProcessor, AutoVideoProcessor

from .configuration import DataArguments, RunArguments
from .configuration.metric_names import measured
from .data import load_splits, prepare
from .errors import InputError
from .hardware import hardware
from .hub_access import hub_or_cache
from .model_loading import load_checkpoint
from .training.run import build_trainer


def evaluate(model_arguments: Any, data_arguments: DataArguments, training_arguments: RunArguments) -> dict[str, Any]:
    """Evaluate the checkpoint `model_name_or_path` with its own processor, at its own size or at `input_size`.

    Returns:
        The measures of the model's problem (`MEASURES_OF`) with the ends of 95% confidence intervals, those of each
        class as `per_class`, the number of `examples`, the `input_size` in pixels per axis, and the `hardware`.

    Raises:
        InputError: checkpoint or data cannot be read, or their classes differ.
    """
    name = model_arguments.model_name_or_path
    model = load_checkpoint(model_arguments)
    auto = AutoVideoProcessor if model.config.num_axes == 3 else AutoImageProcessor
    try:
        with hub_or_cache("model", name):
            processor = auto.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"model {name} has no readable processor: {' '.join(str(error).split())}") from error
    splits = load_splits(data_arguments, training_arguments.seed)
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    if names != splits.label_names:
        raise InputError(
            f"model {name} has the {len(names)} classes {', '.join(names[:3])} ..., the data set the "
            f"{len(splits.label_names)} classes {', '.join(splits.label_names[:3])} ..."
        )
    if data_arguments.input_size is not None:
        # The saved processor resizes to the training size.
        processor = None
    data = prepare(splits, model.config, data_arguments, training_arguments, name, processor)
    trainer = build_trainer(model, data, training_arguments)
    metrics = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
    facts = {"examples": len(splits.test), "input_size": list(data.input_size)}
    return facts | measured(metrics) | {"per_class": trainer.compute_metrics.per_class(), "hardware": hardware()}
