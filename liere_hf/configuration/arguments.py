"""The options of a run, beside transformers' own TrainingArguments: which model, which data."""

import dataclasses
import math
import os
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from ..errors import InputError
from ..modeling.configuration_liere_vit import LiereViTConfig
from .data_sets import DATASETS

PRESETS: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "presets.yaml").read_text())


@dataclass
class _ModelSource:
    model_preset: str | None = field(
        default=None, metadata={"help": f"Size of the model: {', '.join(PRESETS)}.", "choices": [*PRESETS, None]}
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Start from this checkpoint, a directory or a Hub id, instead of from scratch."},
    )
    ignore_mismatched_sizes: bool = field(
        default=False,
        metadata={"help": "Give layers whose shapes differ from the checkpoint's, a new head say, new weights."},
    )
    anneal_position_embeddings_steps: int | None = field(
        default=None,
        metadata={"help": "Shrink the absolute table beside another encoding to nothing over so many first steps."},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa, flash_attention_2, flex_attention: as in from_pretrained."}
    )

    def __post_init__(self):
        if self.model_name_or_path == "":
            raise InputError("model_name_or_path is not given, this recipe starts from a checkpoint")
        if self.anneal_position_embeddings_steps is not None and self.anneal_position_embeddings_steps < 1:
            raise InputError(
                f"anneal_position_embeddings_steps is {self.anneal_position_embeddings_steps}, allowed is 1 or more"
            )


def _architecture_fields() -> list[tuple[str, type, Any]]:
    """Every field that LiereViTConfig itself declares, as an option that is None unless given."""
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
ModelArguments.__doc__ = "Which model: a preset or a checkpoint, and any field of LiereViTConfig on top of it."


@dataclass
class RunArguments(TrainingArguments):
    """transformers' TrainingArguments, and the batch of all processes together."""

    effective_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Examples of one optimizer step over all processes; gradients are accumulated so that it comes "
            "out, with at most per_device_train_batch_size at a time."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.dataloader_num_workers == 0:
            # There are none to persist, which a DataLoader refuses.
            self.dataloader_persistent_workers = False
        if self.train_sampling_strategy != "random":
            raise InputError(f"train_sampling_strategy is {self.train_sampling_strategy!r}, allowed is 'random'")
        if self.push_to_hub and self.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            raise InputError(
                f"hub_strategy is {self.hub_strategy.value!r}, allowed are 'end' and 'every_save': optimizer states "
                "are not published"
            )

    def resolve_batch_size(self) -> None:
        """Set per_device_train_batch_size and gradient_accumulation_steps so that effective_batch_size comes out.

        Raises:
            InputError: the number of devices does not divide it.
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
    """Which data, how it is augmented and normalized."""

    dataset: str | None = field(default=None, metadata={"help": "The data set.", "choices": [*DATASETS, None]})
    data_dir: str | None = field(
        default=None, metadata={"help": "Directory of local files, in one of the formats in docs/data.md."}
    )
    hub_id: str | None = field(
        default=None, metadata={"help": "Hub id of another copy of the data set than the usual one."}
    )
    train_examples: int | None = field(
        default=None, metadata={"help": "Use this many training examples (arrows: draw them)."}
    )
    eval_examples: int | None = field(
        default=None, metadata={"help": "Use this many evaluation examples (arrows: draw them)."}
    )
    train_fraction: float | None = field(
        default=None,
        metadata={"help": "Use this share of each class for training; smaller shares are part of larger ones."},
    )
    eval_fraction: float = field(
        default=0.2,
        metadata={"help": "Share held out for evaluation, by class, where the data has no split of its own."},
    )
    data_num_proc: int | None = field(
        default=None, metadata={"help": "Processes that prepare data (default: one per core)."}
    )
    skip_corrupt_files: bool = field(
        default=False, metadata={"help": "Leave out files that cannot be read and count them, instead of stopping."}
    )
    shuffle_buffer_size: int = field(
        default=10_000, metadata={"help": "Streamed examples that are shuffled among each other in each process."}
    )
    image_mean: list[float] = field(
        default_factory=lambda: [0.4914, 0.4822, 0.4465],
        metadata={"help": "Mean per channel (default: the authors')."},
    )
    image_std: list[float] = field(
        default_factory=lambda: [0.2023, 0.1994, 0.2010],
        metadata={"help": "Deviation per channel (default: the authors')."},
    )
    shuffle_patches: bool = field(
        default=False, metadata={"help": "Evaluate with the patches of each example in a random order."}
    )
    input_size: list[int] | None = field(
        default=None,
        metadata={"help": "Pixels per axis of inputs that are not of the model's image_size, its training size."},
    )
    fit: Literal["resize", "crop", "pad"] = field(
        default="resize",
        metadata={
            "help": "How images come to their size: resize both sides, crop the middle after resizing the shorter "
            "one, or pad."
        },
    )
    crop_fraction: float = field(
        default=0.875, metadata={"help": "fit crop: share of the shorter side that evaluation crops."}
    )
    random_crop_padding: int = field(
        default=0, metadata={"help": "Pad by this many pixels and crop at random in training."}
    )
    random_resized_crop: list[float] | None = field(
        default=None, metadata={"help": "Train on random crops, of areas between these two shares of the image."}
    )
    horizontal_flip: bool = field(default=False, metadata={"help": "Flip half of the training images."})
    rand_augment_num_ops: int = field(default=0, metadata={"help": "RandAugment: operations; 0 for none."})
    rand_augment_magnitude: float = field(default=9.0, metadata={"help": "RandAugment: magnitude, 0 to 30."})
    rand_augment_magnitude_std: float = field(
        default=0.0, metadata={"help": "RandAugment: deviation of the magnitude."}
    )
    rand_augment_probability: float = field(
        default=1.0, metadata={"help": "RandAugment: probability of each operation."}
    )
    random_erasing: float = field(default=0.0, metadata={"help": "Share of the images with an erased rectangle."})
    mixup_alpha: float = field(default=0.0, metadata={"help": "MixUp: alpha of its Beta distribution; 0 for none."})
    cutmix_alpha: float = field(default=0.0, metadata={"help": "CutMix: alpha of its Beta distribution; 0 for none."})
    ucf101_split: int = field(default=1, metadata={"help": "ucf101: official split, 1 to 3."})
    frame_stride: int = field(default=4, metadata={"help": "Video: every how many frames one is taken."})
    eval_segments: int = field(default=5, metadata={"help": "Video: clips of each that are evaluated."})
    eval_crops: int = field(default=3, metadata={"help": "Video: crops of each clip that are evaluated, 1 or 3."})
    intensity_window: list[float] | None = field(
        default=None,
        metadata={"help": "Volumes: intensities that become black and white (default: 0.5th and 99.5th percentile)."},
    )
    arrows_grid_size: int = field(default=9, metadata={"help": "arrows: cells a side (paper: 9, 14, 23)."})
    arrows_cell_size: int = field(default=12, metadata={"help": "arrows: pixels a side of a cell."})
    arrows_num_distractor_arrows: int = field(default=7, metadata={"help": "arrows: arrows off the ray."})
    arrows_num_distractor_letters: int = field(
        default=5, metadata={"help": "arrows: letters beside the Y, at most 5."}
    )
    arrows_seed: int = field(default=0, metadata={"help": "arrows: seed of the drawings."})

    def __post_init__(self):
        for name, minimum in _MINIMUM_VALUES.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise InputError(f"{name} is {value}, allowed is {minimum} or more")
        if not 0 < self.eval_fraction < 1:
            raise InputError(f"eval_fraction is {self.eval_fraction}, allowed is more than 0 and less than 1")
        for name in ("train_fraction", "crop_fraction"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise InputError(f"{name} is {value}, allowed is more than 0 and at most 1")
        for name in ("random_erasing", "rand_augment_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}, allowed is 0 to 1")
        if not 0 <= self.rand_augment_magnitude <= 30:
            raise InputError(f"rand_augment_magnitude is {self.rand_augment_magnitude}, allowed is 0 to 30")
        if self.ucf101_split not in (1, 2, 3):
            raise InputError(f"ucf101_split is {self.ucf101_split}, allowed are 1, 2 and 3")
        if self.eval_crops not in (1, 3):
            raise InputError(f"eval_crops is {self.eval_crops}, allowed are 1 and 3")
        for name, low, high in (("random_resized_crop", 0.0, 1.0), ("intensity_window", -math.inf, math.inf)):
            pair = getattr(self, name)
            if pair is not None and not (
                len(pair) == 2 and all(map(math.isfinite, pair)) and low <= pair[0] < pair[1] <= high
            ):
                raise InputError(f"{name} is {pair}, allowed are two values of {low} to {high}, the smaller one first")
        if len(self.image_mean) != len(self.image_std):
            raise InputError(
                f"image_mean has {len(self.image_mean)} values and image_std {len(self.image_std)}, both need one per "
                "channel"
            )
        if min(self.image_std) <= 0:
            raise InputError(f"image_std is {self.image_std}, allowed are values above 0")

    @property
    def num_processes(self) -> int:
        """How many processes prepare data."""
        return self.data_num_proc or os.cpu_count() or 1


_MINIMUM_VALUES = {
    "train_examples": 1,
    "eval_examples": 1,
    "data_num_proc": 1,
    "shuffle_buffer_size": 1,
    "random_crop_padding": 0,
    "rand_augment_num_ops": 0,
    "rand_augment_magnitude_std": 0,
    "mixup_alpha": 0,
    "cutmix_alpha": 0,
    "frame_stride": 1,
    "eval_segments": 1,
}


def model_overrides(arguments: "ModelArguments") -> dict[str, Any]:
    """The fields of LiereViTConfig that the arguments set: the preset's, then those given by name."""
    overrides = dict(PRESETS[arguments.model_preset]) if arguments.model_preset else {}
    for name in ARCHITECTURE_OPTIONS - {"model_preset"}:
        value = getattr(arguments, name)
        if value is not None:
            overrides[name] = value[0] if isinstance(value, list) and len(value) == 1 else value
    return overrides


def build_model_config(arguments: "ModelArguments", **labels: Any) -> LiereViTConfig:
    """A new model's configuration.

    Args:
        labels: id2label and label2id, or other fields of the configuration that the data decides.

    Raises:
        InputError: a value that LiereViTConfig does not allow.
    """
    try:
        return LiereViTConfig(**model_overrides(arguments), **labels)
    except ValueError as error:
        raise InputError(str(error)) from error
