"""Evaluation of a saved classifier on a recipe's evaluation data."""

from typing import Any

from transformers import AutoImageProcessor, AutoVideoProcessor

from .configuration import DataArguments, RunArguments
from .data.inputs import build_processor, input_size
from .data.loading import load_data
from .errors import InputError
from .hardware import hardware
from .model_loading import load_checkpoint
from .training.run import build_trainer


def evaluate(model_arguments: Any, data_arguments: DataArguments, training_arguments: RunArguments) -> dict[str, Any]:
    """Top-1 and top-5 accuracy and loss of the checkpoint `model_name_or_path`, with its own image processor,
    at the size that it says unless `input_size` is given.

    Returns:
        The metrics of `ClassificationMetric`, each with a 95% confidence interval, the number of `examples`, the
        `input_size` in pixels per axis, and the `hardware`.

    Raises:
        InputError: a checkpoint or data that cannot be read, or that have different classes.
    """
    name = model_arguments.model_name_or_path
    model = load_checkpoint(model_arguments)
    auto = AutoVideoProcessor if model.config.num_axes == 3 else AutoImageProcessor
    try:
        processor = auto.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"model {name} has no processor to read") from error
    data = load_data(data_arguments, training_arguments.seed)
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    if names != data.label_names:
        raise InputError(
            f"model {name} has the {len(names)} classes {', '.join(names[:3])} ..., the data set the "
            f"{len(data.label_names)} classes {', '.join(data.label_names[:3])} ..."
        )
    if data_arguments.input_size is not None:
        processor = build_processor(data.column, model.config, data_arguments, name)
    trainer = build_trainer(model, processor, data, data_arguments, training_arguments)
    metrics = trainer.evaluate()
    measured = [f"{metric}{end}" for metric in ("accuracy", "top5_accuracy", "loss") for end in ("", "_low", "_high")]
    facts = {"examples": len(data.test), "input_size": list(input_size(model.config, data_arguments))}
    return facts | {metric: metrics[f"eval_{metric}"] for metric in measured} | {"hardware": hardware()}
