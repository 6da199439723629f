"""The options of a run, beside transformers' own TrainingArguments: which model, which data."""

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from ..errors import InputError
from ..modeling.configuration_liere_vit import LiereViTConfig

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
class DataArguments:
    """Which data, how it is augmented and normalized."""

    dataset: Literal["arrows", "fashion_mnist", "digits", "imagefolder"] | None = field(
        default=None, metadata={"help": "The data set."}
    )
    data_dir: str | None = field(
        default=None,
        metadata={"help": "Local files: the four idx files of fashion_mnist, or class folders of imagefolder."},
    )
    train_examples: int | None = field(
        default=None, metadata={"help": "Use this many training examples (arrows: draw them)."}
    )
    eval_examples: int | None = field(
        default=None, metadata={"help": "Use this many evaluation examples (arrows: draw them)."}
    )
    eval_fraction: float = field(
        default=0.2,
        metadata={"help": "Share held out for evaluation, by class, where the data has no split of its own."},
    )
    data_num_proc: int | None = field(
        default=None, metadata={"help": "Processes that prepare data (default: one per core)."}
    )
    skip_corrupt_images: bool = field(
        default=False, metadata={"help": "Leave out images that cannot be read and count them, instead of stopping."}
    )
    image_mean: list[float] = field(
        default_factory=lambda: [0.4914, 0.4822, 0.4465],
        metadata={"help": "Mean per channel (default: the authors')."},
    )
    image_std: list[float] = field(
        default_factory=lambda: [0.2023, 0.1994, 0.2010],
        metadata={"help": "Deviation per channel (default: the authors')."},
    )
    random_crop_padding: int = field(
        default=0, metadata={"help": "Pad by this many pixels and crop at random in training."}
    )
    horizontal_flip: bool = field(default=False, metadata={"help": "Flip half of the training images."})
    arrows_grid_size: int = field(default=9, metadata={"help": "arrows: cells a side (paper: 9, 14, 23)."})
    arrows_cell_size: int = field(default=12, metadata={"help": "arrows: pixels a side of a cell."})
    arrows_num_distractor_arrows: int = field(default=7, metadata={"help": "arrows: arrows off the ray."})
    arrows_num_distractor_letters: int = field(
        default=5, metadata={"help": "arrows: letters beside the Y, at most 5."}
    )
    arrows_seed: int = field(default=0, metadata={"help": "arrows: seed of the drawings."})

    def __post_init__(self):
        for name in ("train_examples", "eval_examples", "data_num_proc"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}, allowed is 1 or more")
        if not 0 < self.eval_fraction < 1:
            raise InputError(f"eval_fraction is {self.eval_fraction}, allowed is more than 0 and less than 1")
        if self.random_crop_padding < 0:
            raise InputError(f"random_crop_padding is {self.random_crop_padding}, allowed is 0 or more")
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != 3:
                raise InputError(f"{name} is {getattr(self, name)}, allowed are three values, one per channel")
        if min(self.image_std) <= 0:
            raise InputError(f"image_std is {self.image_std}, allowed are values above 0")


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
