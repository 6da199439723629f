"""Models: new classifiers, and checkpoints from a directory or the Hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, PreTrainedModel, logging

from .configuration.arguments import ModelArguments, build_model_config, model_overrides
from .configuration.metric_names import SINGLE_LABEL
from .errors import InputError
from .hub_access import hub_or_cache
from .modeling.configuration_liere_vit import LiereViTConfig
from .modeling.modeling_liere_vit import (
    LiereViTBackbone,
    LiereViTForImageClassification,
    LiereViTForMaskedImageModeling,
    LiereViTForVideoClassification,
    LiereViTModel,
)

_SAVED_CLASSES = (
    LiereViTBackbone,
    LiereViTForImageClassification,
    LiereViTForMaskedImageModeling,
    LiereViTForVideoClassification,
    LiereViTModel,
)


def build_model(arguments: Any, label_names: list[str], problem_type: str = SINGLE_LABEL) -> PreTrainedModel:
    """A new classifier, or the checkpoint that the arguments name, for these classes.

    Args:
        arguments: ModelArguments. With `ignore_mismatched_sizes`, the last layer is new unless the checkpoint has
            these very classes, in this order: as many classes of other names are other classes.
        problem_type: transformers' name for what the labels are.

    Raises:
        InputError: LiereViTConfig does not allow a value, or the checkpoint cannot be loaded.
    """
    labels = {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
        # transformers' default is found out from the labels.
        "problem_type": None if problem_type == SINGLE_LABEL else problem_type,
    }
    if arguments.model_name_or_path:
        model = load_checkpoint(arguments, **labels)
        if arguments.ignore_mismatched_sizes and not _may_be_named(arguments.model_name_or_path, label_names):
            # Its weights would be confident about classes that have nothing to do with these.
            model.classifier = nn.Linear(model.classifier.in_features, model.classifier.out_features)
            model._init_weights(model.classifier)
        return model
    config = build_model_config(arguments, **labels)
    _require_memory(config)
    with _explaining_attention(arguments):
        return classifier_class(config)._from_config(config, attn_implementation=arguments.attn_implementation)


def _may_be_named(checkpoint: str, label_names: list[str]) -> bool:
    """Whether the classes of a checkpoint have these names, or only transformers' LABEL_0, LABEL_1, ..."""
    names = [*load_config(checkpoint).id2label.values()]
    return names == label_names or names == [f"LABEL_{index}" for index in range(len(names))]


def require_configuration(arguments: Any) -> LiereViTConfig:
    """The configuration of the model that the arguments describe, before data and weights are read.

    Raises:
        InputError: LiereViTConfig does not allow a value, or the checkpoint has no readable configuration.
    """
    if arguments.model_name_or_path:
        return load_config(arguments.model_name_or_path, **model_overrides(arguments))
    return build_model_config(arguments)


def _require_memory(config: LiereViTConfig) -> None:
    """
    Raises:
        InputError: weights and gradients in float32 are larger than the memory of this machine.
    """
    try:
        with torch.device("meta"):
            num_parameters = classifier_class(config)(config).num_parameters()
    except RuntimeError as error:
        raise InputError(f"the model is too large: {' '.join(str(error).split())}") from error
    needed, there = 2 * 4 * num_parameters, psutil.virtual_memory().total
    if needed > there:
        raise InputError(
            f"the model has {num_parameters:,} parameters: with their gradients they take {needed / 2**30:,.0f} GiB, "
            f"this machine has {there / 2**30:,.0f} GiB of memory"
        )


@contextmanager
def _explaining_attention(arguments: Any) -> Iterator[None]:
    """Turns errors about an implementation of attention that is not available into one sentence."""
    try:
        yield
    except (ImportError, ValueError) as error:
        if arguments.attn_implementation is None or "attention" not in str(error).lower():
            raise
        raise InputError(
            f"attn_implementation is {arguments.attn_implementation!r}: {' '.join(str(error).split())}"
        ) from error


def load_checkpoint(arguments: Any, **labels: Any) -> PreTrainedModel:
    """The classifier at `model_name_or_path`, its configuration changed by the arguments' fields and these labels.

    Raises:
        InputError: it does not exist, has another architecture or is truncated, or weights are missing or have other
            shapes; with `ignore_mismatched_sizes`, except those of the classifier.
    """
    config = load_config(arguments.model_name_or_path, **model_overrides(arguments), **labels)
    return _load(classifier_class(config), config, arguments, arguments.ignore_mismatched_sizes)


def load_saved_model(name: str) -> PreTrainedModel:
    """A checkpoint with any head or none, a directory or Hub id.

    Raises:
        InputError: as in `load_checkpoint`; a classifier may be missing.
    """
    config, verbosity = load_config(name), logging.get_verbosity()
    # What has no place in the class, such as a pooler, is not worth a report.
    logging.set_verbosity_error()
    try:
        return _load(saved_class(config), config, ModelArguments(model_name_or_path=name), may_lack_classifier=True)
    finally:
        logging.set_verbosity(verbosity)


def _load(
    kind: type[PreTrainedModel], config: LiereViTConfig, arguments: Any, may_lack_classifier: bool
) -> PreTrainedModel:
    name = arguments.model_name_or_path
    try:
        with _explaining_attention(arguments), hub_or_cache("model", name):
            model, report = kind.from_pretrained(
                name,
                config=config,
                attn_implementation=arguments.attn_implementation,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except InputError:
        raise
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"the weights of {name} cannot be read: {' '.join(str(error).split())}") from error
    _require_backbone(name, report, may_lack_classifier)
    return model


def _require_backbone(name: str, report: dict[str, Any], may_lack_classifier: bool) -> None:
    """Check what from_pretrained could not take from a checkpoint: at most its classifier.

    Raises:
        InputError: weights of the backbone are missing or have other shapes, or those of the classifier without
            `may_lack_classifier`.
    """
    left_over = sorted(key for key in report["unexpected_keys"] if "rotations." in key)
    if left_over:
        raise InputError(
            f"{name} has {', '.join(left_over)}, which another position_encoding does not take: leave that option out"
        )
    missing = sorted(key for key in report["missing_keys"] if not (may_lack_classifier and _is_classifier(key)))
    if missing:
        raise InputError(f"{name} lacks {len(missing)} weights of a LiereViT classifier, {', '.join(missing[:3])} ...")
    mismatched = sorted(report["mismatched_keys"], key=lambda entry: (_is_classifier(entry[0]), entry[0]))
    if not mismatched or (may_lack_classifier and _is_classifier(mismatched[0][0])):
        return
    key, shape, expected = mismatched[0]
    advice = (
        "set ignore_mismatched_sizes to initialize these anew"
        if _is_classifier(key)
        else "only the classifier may differ: leave out the options of the architecture, and take input_size for "
        "another size of inputs"
    )
    more = f", and {len(mismatched) - 1} more such weights" if len(mismatched) > 1 else ""
    raise InputError(f"{name} has {key} of shape {tuple(shape)} where {tuple(expected)} is expected{more}; {advice}")


def _is_classifier(key: str) -> bool:
    return key.startswith("classifier.")


def classifier_class(config: LiereViTConfig) -> type[LiereViTForImageClassification]:
    """The class for the configuration's number of axes: three for video and volumes, otherwise two."""
    return LiereViTForVideoClassification if config.num_axes == 3 else LiereViTForImageClassification


def saved_class(config: LiereViTConfig) -> type[PreTrainedModel]:
    """The class of a saved model; a classifier's where the configuration does not name one of this package."""
    names = config.architectures or [""]
    return next((kind for kind in _SAVED_CLASSES if kind.__name__ == names[0]), classifier_class(config))


def load_config(name: str, **overrides: Any) -> LiereViTConfig:
    """The configuration of the checkpoint `name`, a directory or a Hub id, with some fields replaced.

    Raises:
        InputError: it does not exist, or is not a LiereViT model's.
    """
    try:
        with hub_or_cache("model", name):
            config = AutoConfig.from_pretrained(name, **overrides)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"model {name} has no readable configuration: {' '.join(str(error).split())}") from error
    if not isinstance(config, LiereViTConfig):
        raise InputError(f"model {name} has model_type {config.model_type!r}, expected {LiereViTConfig.model_type!r}")
    return config
