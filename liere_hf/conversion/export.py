"""Models of this package as checkpoints of other code."""

import contextlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoImageProcessor, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from ..errors import InputError, first_names
from ..hub_access import hub_or_cache
from ..model_loading import classifier_class, load_config
from ..modeling.modeling_liere_vit import LiereViTModel
from ..output_files import new_directory
from .dinov3 import to_dinov3
from .liere import export_state_dict


def export(source: str, output_dir: Path, kind: str, timm_model: str | None = None) -> None:
    """Write a model of this package to `output_dir` as other code loads it.

    - `dinov3`: a directory for transformers' `DINOv3ViTModel`, with the processor. A classifier is left out.
    - `timm`: a directory for `timm.create_model("local-dir:DIRECTORY")`.
    - `liere`: `model.safetensors` in the layout of the authors' code.

    The directory is complete or absent: an error leaves nothing behind.

    Args:
        source: directory or Hub id.
        output_dir: a directory that does not exist yet.
        kind: `dinov3`, `timm` or `liere`.
        timm_model: for `timm`, the architecture.

    Raises:
        InputError: the other code cannot represent the model, or it cannot be loaded.
    """
    if kind not in EXPORTS:
        raise InputError(f"to is {kind!r}, allowed are {', '.join(EXPORTS)}")
    if (kind == "timm") != (timm_model is not None):
        raise InputError(
            f"timm_model is {timm_model}, allowed with to {kind!r} is "
            + ("the name of an architecture, such as vit_small_patch16_dinov3" if kind == "timm" else "none")
        )
    if output_dir.exists():
        raise InputError(f"output directory {output_dir} already exists")
    with new_directory(output_dir) as unfinished:
        EXPORTS[kind](source, unfinished, *([timm_model] if timm_model else []))


def _export_dinov3(source: str, directory: Path) -> None:
    load_config(source)
    to_dinov3(_load(LiereViTModel, source)).save_pretrained(directory)
    # Not every model has a processor.
    with contextlib.suppress(OSError, ValueError):
        AutoImageProcessor.from_pretrained(source).save_pretrained(directory)


def _export_timm(source: str, directory: Path, timm_model: str) -> None:
    from timm.models import save_for_hf

    from .eva_export import size_options, to_eva

    config = load_config(source)
    is_classifier = any("Classification" in name for name in config.architectures or [])
    model = to_eva(_load(classifier_class(config) if is_classifier else LiereViTModel, source), timm_model)
    with contextlib.suppress(OSError, ValueError):
        processor = AutoImageProcessor.from_pretrained(source)
        model.pretrained_cfg |= {"mean": tuple(processor.image_mean), "std": tuple(processor.image_std)}
    labels = {"label_names": [*config.id2label.values()]} if is_classifier else {}
    save_for_hf(model, directory, labels, size_options(config), safe_serialization=True)


def _export_liere(source: str, directory: Path) -> None:
    model = _load(classifier_class(load_config(source)), source)
    save_file(export_state_dict(model), directory / SAFE_WEIGHTS_NAME)


EXPORTS = {"dinov3": _export_dinov3, "timm": _export_timm, "liere": _export_liere}


def _load(model_class: type[PreTrainedModel], source: str) -> PreTrainedModel:
    """
    Raises:
        InputError: the weights cannot be read, or some are missing.
    """
    try:
        with hub_or_cache("model", source):
            model, report = model_class.from_pretrained(source, output_loading_info=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"the weights of {source} cannot be read: {' '.join(str(error).split())[:300]}") from error
    if report["missing_keys"]:
        raise InputError(
            f"{source} lacks {len(report['missing_keys'])} weights: {first_names(sorted(report['missing_keys']))}"
        )
    return model.eval()
