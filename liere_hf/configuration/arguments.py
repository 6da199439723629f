"""The options of a run: model, data, and transformers' TrainingArguments."""

import dataclasses
import os
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import TrainingArguments, integrations
from transformers.trainer_utils import HubStrategy

from ..errors import InputError
from ..modeling.configuration_liere_vit import LiereViTConfig
from .allowed_values import require_allowed
from .data_sets import DATASETS
from .metric_names import MEASURES

# The trackers of the extra `tracking`.
TRACKERS = ("tensorboard", "trackio", "wandb")
PRESETS: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "presets.yaml").read_text())

# The authors of LieRE normalize every data set by these values, which are CIFAR-10's.
AUTHORS_IMAGE_MEAN, AUTHORS_IMAGE_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@dataclass
class _ModelSource:
    model_preset: str | None = field(
        default=None, metadata={"help": f"Model size: {', '.join(PRESETS)}.", "choices": [*PRESETS, None]}
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Checkpoint to start from, a directory or Hub id. Default: train from scratch."},
    )
    ignore_mismatched_sizes: bool = field(
        default=False,
        metadata={
            "help": "Start with a new classifier where that of the checkpoint has other classes, by number or by name."
        },
    )
    anneal_position_embeddings_steps: int | None = field(
        default=None,
        metadata={"help": "Number of first steps over which an additional absolute position table shrinks to zero."},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa, flash_attention_2 or flex_attention, as in from_pretrained."}
    )

    def __post_init__(self):
        if self.model_name_or_path == "":
            raise InputError("model_name_or_path is not given, this recipe starts from a checkpoint")
        require_allowed(vars(self))


def _architecture_fields() -> list[tuple[str, type, Any]]:
    """All fields that LiereViTConfig declares, as options that default to None."""
    fields = []
    for name, annotation in LiereViTConfig.__annotations__.items():
        if name.startswith("_"):
            continue
        kinds = typing.get_args(annotation) or (annotation,)
        kind = list[int] if list[int] in kinds else kinds[0]
        fields.append((name, kind | None, field(default=None, metadata={"help": f"LiereViTConfig.{name}"})))
    return fields


ARCHITECTURE_OPTIONS = frozenset({"model_preset"} | {name for name, _, _ in _architecture_fields()})

ModelArguments = dataclasses.make_dataclass("ModelArguments", _architecture_fields(), bases=(_ModelSource,))
ModelArguments.__doc__ = "The model: a preset or a checkpoint, and fields of LiereViTConfig that override it."


@dataclass
class RunArguments(TrainingArguments):
    """transformers' TrainingArguments, the total batch size, and the pace of generators."""

    effective_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Total batch size of an optimizer step over all devices. Gradients are accumulated over batches "
            "of at most per_device_train_batch_size."
        },
    )
    layer_learning_rate_decay: float | None = field(
        default=None,
        metadata={
            "help": "Factor of the learning rate from the classifier to the last layer and from layer to layer."
        },
    )
    head_learning_rate_factor: float | None = field(
        default=None,
        metadata={"help": "Learning rate of the classifier, as a multiple of learning_rate (default: 1)."},
    )
    freeze: list[str] | None = field(
        default=None,
        metadata={"help": "Parameters or modules that are not trained, by name or pattern: liere_vit.layers.[01]."},
    )
    train_only: list[str] | None = field(
        default=None, metadata={"help": "The only parameters or modules that are trained: classifier rotations."}
    )
    lora_rank: int | None = field(
        default=None,
        metadata={
            "help": "Rank of LoRA adapters of all linear layers, which are trained in their place, beside the "
            "classifier and the rotations (peft)."
        },
    )
    min_steps: int | None = field(
        default=None,
        metadata={"help": "Fewest optimizer steps: with little data, as many epochs as they take."},
    )
    predict_paths: list[str] | None = field(
        default=None,
        metadata={"help": "Files and folders that do_predict predicts for (default: the evaluation examples)."},
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after as many evaluations without a better metric_for_best_model; keep the best weights."
        },
    )
    class_weights: str | None = field(
        default=None,
        metadata={"help": "balanced: every class counts as much in the loss.", "choices": ["balanced", None]},
    )
    balanced_sampling: bool = field(
        default=False, metadata={"help": "Draw training examples with replacement, every class equally often."}
    )
    # Unlike transformers' default, metrics are computed batch by batch.
    batch_eval_metrics: bool = field(default=True, metadata={"help": "Compute metrics batch by batch."})
    generator_learning_rate_factor: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of the parameters of rotations, as a multiple of learning_rate (default: 1)."
        },
    )

    def __post_init__(self):
        # Before transformers' own checks, which name neither the option nor what is allowed.
        require_allowed(vars(self) | {"debug": self.debug.split() if isinstance(self.debug, str) else self.debug})
        if self.early_stopping_patience is not None:
            if self.eval_strategy == "no":
                raise InputError("eval_strategy is 'no', allowed are steps and epoch with early_stopping_patience")
            self.load_best_model_at_end = True
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = MEASURES[self.metric_for_best_model.removeprefix("eval_")].greater_is_better
        super().__post_init__()
        if self.dataloader_num_workers == 0:
            # A DataLoader raises an error for what concerns workers if there are none.
            self.dataloader_persistent_workers = False
            self.dataloader_prefetch_factor = self.dataloader_multiprocessing_context = None
        if self.auto_find_batch_size and self.effective_batch_size is not None:
            raise InputError(
                "auto_find_batch_size is True, allowed is False with effective_batch_size "
                f"{self.effective_batch_size}: it changes the batch size"
            )
        chosen = [name for name in ("freeze", "train_only", "lora_rank") if getattr(self, name)]
        if len(chosen) > 1:
            raise InputError(f"{' and '.join(chosen)} are set, allowed is one of them")
        if self.report_to:
            self._require_trackers()
        if self.push_to_hub and self.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            raise InputError(
                f"hub_strategy is {self.hub_strategy.value!r}, allowed are 'end' and 'every_save': optimizer states "
                "are not published"
            )

    def _require_trackers(self) -> None:
        installed = integrations.get_available_reporting_integrations()
        for name in self.report_to:
            if name in TRACKERS and name not in installed:
                raise InputError(
                    f'report_to is {self.report_to}, but {name} is not installed: pip install "liere_hf[tracking]"'
                )

    def resolve_batch_size(self) -> None:
        """Set per_device_train_batch_size and gradient_accumulation_steps to get effective_batch_size.

        Raises:
            InputError: effective_batch_size is not a multiple of the number of devices.
        """
        if self.effective_batch_size is None:
            return
        devices = self.world_size * max(self.n_gpu, 1)
        if self.effective_batch_size < 1 or self.effective_batch_size % devices:
            raise InputError(
                f"effective_batch_size is {self.effective_batch_size}, allowed are multiples of the number of "
                f"devices, {devices}"
            )
        share = self.effective_batch_size // devices
        largest = min(share, self.per_device_train_batch_size)
        self.per_device_train_batch_size = next(size for size in range(largest, 0, -1) if share % size == 0)
        self.gradient_accumulation_steps = share // self.per_device_train_batch_size


@dataclass
class DataArguments:
    """The data, and its augmentation and normalization."""

    dataset: str | None = field(default=None, metadata={"help": "Name of the data set.", "choices": [*DATASETS, None]})
    data_dir: str | None = field(
        default=None, metadata={"help": "Directory of local files, in one of the formats of docs/data.md."}
    )
    hub_id: str | None = field(
        default=None,
        metadata={
            "help": "Hub id of the data set (default: that of the usual copy), or a directory that `datasets` reads."
        },
    )
    train_file: str | None = field(
        default=None, metadata={"help": "CSV, TSV, JSON lines or Parquet file of training examples and their labels."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same of validation examples."})
    test_file: str | None = field(default=None, metadata={"help": "The same of test examples."})
    image_column_name: str | None = field(
        default=None,
        metadata={
            "help": "Column of images, videos or volumes (default: image, video or volume, file_name, path or file)."
        },
    )
    label_column_name: list[str] | None = field(
        default=None, metadata={"help": "Column or columns of the labels (default: label)."}
    )
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] = field(
        default="single_label_classification", metadata={"help": "What the label columns are."}
    )
    label_separator: str = field(
        default="|", metadata={"help": "Between the classes in a column of multi_label_classification."}
    )
    group_column: str | None = field(
        default=None,
        metadata={"help": "Column of groups, such as patients, each of which is held out as a whole or not at all."},
    )
    group_pattern: str | None = field(
        default=None,
        metadata={
            "help": "Regular expression that finds the group in the path of a file, for example '(patient[0-9]+)'."
        },
    )
    train_examples: int | None = field(
        default=None, metadata={"help": "Number of training examples to use (arrows: to draw)."}
    )
    eval_examples: int | None = field(
        default=None, metadata={"help": "Number of evaluation examples to use (arrows: to draw)."}
    )
    train_fraction: float | None = field(
        default=None,
        metadata={"help": "Share of each class to train on. Smaller shares are subsets of larger ones."},
    )
    eval_fraction: float = field(
        default=0.2,
        metadata={"help": "Share of each class to hold out for evaluation if the data has no evaluation split."},
    )
    data_num_proc: int | None = field(
        default=None, metadata={"help": "Number of processes that prepare data (default: one per core)."}
    )
    skip_corrupt_files: bool = field(
        default=False, metadata={"help": "Skip and count files that cannot be read, instead of stopping."}
    )
    shuffle_buffer_size: int = field(
        default=10_000, metadata={"help": "Number of streamed examples in the shuffle buffer of each process."}
    )
    image_mean: list[float] = field(
        default_factory=lambda: [*AUTHORS_IMAGE_MEAN],
        metadata={"help": "Mean of each channel, pixels scaled to 0 to 1 (default: the authors')."},
    )
    image_std: list[float] = field(
        default_factory=lambda: [*AUTHORS_IMAGE_STD],
        metadata={"help": "Standard deviation of each channel (default: the authors')."},
    )
    shuffle_patches: bool = field(
        default=False, metadata={"help": "Shuffle the patches of each example in evaluation."}
    )
    input_size: list[int] | None = field(
        default=None,
        metadata={"help": "Input size in pixels per axis (default: image_size, the model's training size)."},
    )
    fit: Literal["resize", "crop", "pad"] = field(
        default="resize",
        metadata={
            "help": "How images are brought to the input size: resize both sides, resize the shorter side and crop "
            "the center, or pad."
        },
    )
    crop_fraction: float = field(
        default=0.875, metadata={"help": "fit crop: share of the shorter side that is kept in evaluation."}
    )
    random_crop_padding: float = field(
        default=0,
        metadata={
            "help": "Padding before a random crop of training images, in pixels, or below 1 as a share of the shorter "
            "side."
        },
    )
    random_resized_crop: list[float] | None = field(
        default=None,
        metadata={"help": "Train on resized random crops, with an area between these shares of the image."},
    )
    train_input_sizes: list[int] | None = field(
        default=None,
        metadata={
            "help": "Heights and widths in pixels, one of which, drawn at random, the images of a training batch "
            "have: a model that is trained at several sizes is good at others, too (default: the input size)."
        },
    )
    horizontal_flip: bool = field(
        default=False, metadata={"help": "Flip training images horizontally with probability 0.5."}
    )
    rand_augment_num_ops: int = field(default=0, metadata={"help": "RandAugment: number of operations, 0 for none."})
    rand_augment_magnitude: float = field(default=9.0, metadata={"help": "RandAugment: magnitude, 0 to 30."})
    rand_augment_magnitude_std: float = field(
        default=0.0, metadata={"help": "RandAugment: standard deviation of the magnitude."}
    )
    rand_augment_probability: float = field(
        default=1.0, metadata={"help": "RandAugment: probability of each operation."}
    )
    random_erasing: float = field(default=0.0, metadata={"help": "Probability of erasing a random rectangle."})
    mixup_alpha: float = field(default=0.0, metadata={"help": "MixUp: alpha of its Beta distribution, 0 for none."})
    cutmix_alpha: float = field(default=0.0, metadata={"help": "CutMix: alpha of its Beta distribution, 0 for none."})
    ucf101_split: int = field(default=1, metadata={"help": "ucf101: official split, 1 to 3."})
    frame_stride: int = field(default=4, metadata={"help": "Video: distance between sampled frames."})
    eval_segments: int = field(default=5, metadata={"help": "Video: number of clips to evaluate per video."})
    eval_crops: int = field(default=3, metadata={"help": "Video: number of crops to evaluate per clip, 1 or 3."})
    intensity_window: list[float] | None = field(
        default=None,
        metadata={
            "help": "Intensities mapped to black and white, of volumes (default: 0.5th and 99.5th percentile) and of "
            "grey images of more than 8 bits (default: 0 and 65535, of floats 0 and 1)."
        },
    )
    volume_spacing: list[float] | None = field(
        default=None,
        metadata={
            "help": "Volumes: millimetres of a voxel of the model's input along depth, height and width. Positions "
            "are then scaled by the size of each volume's voxels, so that they are distances in millimetres."
        },
    )
    arrows_grid_size: int = field(
        default=9, metadata={"help": "arrows: cells per side of the canvas (paper: 9, 14, 23)."}
    )
    arrows_cell_size: int = field(default=12, metadata={"help": "arrows: pixels per side of a cell."})
    arrows_num_distractor_arrows: int = field(default=7, metadata={"help": "arrows: number of distractor arrows."})
    arrows_num_distractor_letters: int = field(
        default=5, metadata={"help": "arrows: number of letters in addition to the Y, at most 5."}
    )
    arrows_seed: int = field(default=0, metadata={"help": "arrows: random seed of the images."})

    def __post_init__(self):
        require_allowed(vars(self))
        if self.random_crop_padding == int(self.random_crop_padding):
            self.random_crop_padding = int(self.random_crop_padding)
        for name in ("random_resized_crop", "intensity_window"):
            pair = getattr(self, name)
            if pair is not None and not (len(pair) == 2 and pair[0] < pair[1]):
                raise InputError(f"{name} is {pair}, allowed are two values, the smaller one first")
        if self.volume_spacing is not None and len(self.volume_spacing) != 3:
            raise InputError(f"volume_spacing is {self.volume_spacing}, allowed are three values")
        if len(self.image_mean) != len(self.image_std):
            raise InputError(
                f"image_mean has {len(self.image_mean)} values and image_std {len(self.image_std)}, both need one per "
                "channel"
            )

    @property
    def num_processes(self) -> int:
        """How many processes prepare data."""
        return self.data_num_proc or os.cpu_count() or 1


def model_overrides(arguments: "ModelArguments") -> dict[str, Any]:
    """The fields of LiereViTConfig that the arguments set: those of the preset, overridden by those given by name."""
    overrides = dict(PRESETS[arguments.model_preset]) if arguments.model_preset else {}
    for name in ARCHITECTURE_OPTIONS - {"model_preset"}:
        value = getattr(arguments, name)
        if value is not None:
            overrides[name] = value[0] if isinstance(value, list) and len(value) == 1 else value
    return overrides


def build_model_config(arguments: "ModelArguments", **labels: Any) -> LiereViTConfig:
    """The configuration of a new model.

    Args:
        labels: id2label and label2id, or other fields of the configuration that depend on the data.

    Raises:
        InputError: a value that LiereViTConfig does not allow.
    """
    try:
        return LiereViTConfig(**model_overrides(arguments), **labels)
    except ValueError as error:
        raise InputError(str(error)) from error
