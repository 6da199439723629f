"""One training run: a recipe's data and model through transformers' Trainer, into an output directory."""

import json
from pathlib import Path
from typing import Any

import yaml
from transformers import (
    BaseImageProcessor,
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from ..configuration import DataArguments, build_model_config, load_checkpoint
from ..data.loading import ImageData, load_data
from ..data.transforms import EpochCallback, TransformedImages, build_augmentation, build_image_processor
from ..errors import InputError
from ..hub import build_model_card
from ..modeling.modeling_liere_vit import LiereViTForImageClassification
from ..report import hardware
from .annealing import PositionTableAnnealing
from .interruption import InterruptionCallback
from .metrics import ClassificationMetric

RECIPE_FILE = "recipe.yaml"
# Options that may differ between a run and its continuation.
RESUMABLE_OPTIONS = {
    "resume_from_checkpoint",
    "output_dir",
    "logging_dir",
    "disable_tqdm",
    "report_to",
    "data_num_proc",
}


class TrainingInterruptedError(Exception):
    """The run was stopped early, after saving a checkpoint."""


def train(
    model_arguments: Any, data_arguments: DataArguments, training_arguments: TrainingArguments
) -> dict[str, float]:
    """Train, evaluate and save a model.

    `output_dir` then holds the model with its code, its image processor and card, `recipe.yaml` (every option),
    `train_results.json`, `eval_results.json` and `trainer_state.json` (the curves).

    Returns:
        The metrics of the final evaluation.

    Raises:
        InputError: options, data or a directory that do not fit together.
        TrainingInterruptedError: stopped by a signal; a checkpoint is saved.
    """
    output_dir = Path(training_arguments.output_dir)
    options = _options(model_arguments, data_arguments, training_arguments)
    checkpoint = _checkpoint_to_resume(output_dir, training_arguments, options)
    set_seed(training_arguments.seed)
    data = load_data(data_arguments, training_arguments.seed)
    model = build_model(model_arguments, data.label_names)
    processor = build_image_processor(model.config, data_arguments, model_arguments.model_name_or_path)
    trainer = build_trainer(model, processor, data, data_arguments, training_arguments)
    if model_arguments.anneal_position_embeddings_steps:
        trainer.add_callback(PositionTableAnnealing(model, model_arguments.anneal_position_embeddings_steps))

    output_dir.mkdir(parents=True, exist_ok=True)
    if trainer.is_world_process_zero():
        (output_dir / RECIPE_FILE).write_text(yaml.safe_dump(options, sort_keys=False))
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_state()
    if trainer.state.global_step < trainer.state.max_steps:
        raise TrainingInterruptedError(
            f"interrupted after step {trainer.state.global_step} of {trainer.state.max_steps}, checkpoint saved in "
            f"{output_dir}; go on with --resume_from_checkpoint true"
        )
    trainer.save_model()
    facts = {
        "num_parameters": model.num_parameters(),
        "skipped_images": len(data.skipped_images),
        "hardware": hardware(),
    }
    trainer.save_metrics("train", result.metrics | facts, combined=False)
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics, combined=False)
    if trainer.is_world_process_zero():
        build_model_card(output_dir).save(output_dir / "README.md")
    return metrics


def build_model(arguments: Any, label_names: list[str]) -> PreTrainedModel:
    """A new model, or the checkpoint that the arguments name, with these labels."""
    labels = {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
    }
    if arguments.model_name_or_path:
        return load_checkpoint(arguments, **labels)
    config = build_model_config(arguments, **labels)
    return LiereViTForImageClassification._from_config(config, attn_implementation=arguments.attn_implementation)


def build_trainer(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    data: ImageData,
    data_arguments: DataArguments,
    training_arguments: TrainingArguments,
) -> Trainer:
    """A Trainer that augments, evaluates with confidence intervals, and saves when interrupted."""
    metric = ClassificationMetric(keep_in_memory=True)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        return metric.compute(predictions=prediction.predictions, references=prediction.label_ids)

    augmentation = build_augmentation(model.config, data_arguments)
    train_images = TransformedImages(data.train, processor, augmentation, seed=training_arguments.seed)
    return Trainer(
        model=model,
        args=training_arguments,
        train_dataset=train_images,
        eval_dataset=TransformedImages(data.test, processor),
        processing_class=processor,
        data_collator=default_data_collator,
        compute_metrics=compute_metrics,
        callbacks=[InterruptionCallback(), EpochCallback(train_images)],
    )


def _options(
    model_arguments: Any, data_arguments: DataArguments, training_arguments: TrainingArguments
) -> dict[str, Any]:
    """Every option of the run that is set, as plain data without secrets."""
    options = {**vars(model_arguments), **vars(data_arguments)}
    options |= {name: value for name, value in training_arguments.to_dict().items() if not name.endswith("_token")}
    return {name: value for name, value in json.loads(json.dumps(options, default=str)).items() if value is not None}


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
