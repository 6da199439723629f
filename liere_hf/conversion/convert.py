"""Conversion of a source checkpoint to a saved model directory."""

import dataclasses
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.constants import REPOCARD_NAME
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedModel, ViTImageProcessor
from transformers.image_utils import PILImageResampling
from transformers.utils import SAFE_WEIGHTS_NAME

from ..cards import build_model_card
from ..configuration.arguments import AUTHORS_IMAGE_MEAN, AUTHORS_IMAGE_STD
from ..errors import InputError
from ..hub_access import hub_or_cache, is_path
from ..modeling.video_processing_liere_vit import LiereViTVideoProcessor
from ..output_files import new_directory, sha256, write_json
from ..run_directory import CONVERSION_FILE, read_checkpoint
from ..version import __version__
from . import liere, timm
from .dinov3 import from_dinov3
from .eva import build_eva, from_eva
from .files import read_tensors
from .growth import widen_generators
from .options import ConversionOptions
from .vit import from_vit

SOURCES = {
    "liere": "a checkpoint of the authors' code (StanfordMIMI/LieRE)",
    "timm": "a rotary vision transformer of timm",
    "vit": "a vision transformer of transformers with absolute positions",
    "dinov3": "a DINOv3 of transformers",
}


def convert(source: str, output_dir: Path, kind: str, options: ConversionOptions) -> PreTrainedModel:
    """Convert a checkpoint and save model, code, processor and card to `output_dir`.

    The directory is complete or absent: an error leaves nothing behind.

    Args:
        source: a file. For `timm` also a model name or Hub id. For `vit` and `dinov3` a directory or Hub id.
        output_dir: a directory that does not exist yet.
        kind: one of `SOURCES`.

    Raises:
        InputError: the source cannot be converted, or an option does not fit it.
    """
    if output_dir.exists():
        raise InputError(f"output directory {output_dir} already exists")
    differences = []
    if kind == "liere":
        tensors = read_tensors(Path(source))
        model = liere.from_liere(tensors, options, source)
        differences = liere.stored_differences(model, tensors)
        processor = _processor(model, AUTHORS_IMAGE_MEAN, AUTHORS_IMAGE_STD, PILImageResampling.BILINEAR)
    elif kind == "timm":
        model, processor = _from_timm(source, options)
    elif kind in ("vit", "dinov3"):
        model = from_vit(source, options) if kind == "vit" else from_dinov3(source, options)
        processor = _processor_of(source)
    else:
        raise InputError(f"from is {kind!r}, allowed are {', '.join(SOURCES)}")
    if options.generator_block_size and kind != "vit":
        model = widen_generators(model, options.generator_block_size)
    _save(model, processor, _record(source, kind, model, options, differences), output_dir)
    return model


def _from_timm(source: str, options: ConversionOptions) -> tuple[PreTrainedModel, BaseImageProcessor]:
    file = _timm_file(source)
    tensors = read_tensors(file)
    # The Hub's ids are timm/ARCHITECTURE.WEIGHTS.
    name = options.timm_model or (None if str(file) == source else source.rpartition("/")[2].partition(".")[0])
    if name is None:
        model = timm.from_timm(tensors, options, source)
        return model, _processor(model, timm.IMAGE_MEAN, timm.IMAGE_STD, PILImageResampling.BICUBIC)
    size = {} if options.image_size is None else {"img_size": tuple(options.per_axis("image_size", 2))}
    eva = build_eva(name, tensors, **size)
    model, settings = from_eva(eva, options, source), eva.pretrained_cfg
    resample = PILImageResampling[settings["interpolation"].upper()]
    return model, _processor(model, settings["mean"], settings["std"], resample)


def _timm_file(source: str) -> Path:
    """A local file, or the weights of a timm model on the Hub, by name or id."""
    if is_path(source) or Path(source).suffix in (".safetensors", ".pth", ".pt", ".bin", ".ckpt"):
        return Path(source)
    repo_id = source if "/" in source else f"timm/{source}"
    try:
        with hub_or_cache("checkpoint", repo_id):
            return Path(hf_hub_download(repo_id, SAFE_WEIGHTS_NAME))
    except InputError:
        raise
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise InputError(
            f"{source} is not a file, and {repo_id} could not be loaded from the Hub ({type(error).__name__})"
        ) from error


def _processor(
    model: PreTrainedModel, mean: tuple[float, ...], std: tuple[float, ...], resample: PILImageResampling
) -> BaseImageProcessor | LiereViTVideoProcessor | None:
    config = model.config
    if config.num_axes < 2 or config.num_channels != 3:
        return None
    *_, height, width = config.spatial_image_size
    size = {"height": height, "width": width}
    if config.num_axes == 2:
        return ViTImageProcessor(size=size, image_mean=mean, image_std=std, resample=resample)
    return LiereViTVideoProcessor(size=size, do_center_crop=False, image_mean=mean, image_std=std, resample=resample)


def _processor_of(source: str) -> BaseImageProcessor | None:
    try:
        with hub_or_cache("model", source):
            return AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError):
        return None


def _record(
    source: str, kind: str, model: PreTrainedModel, options: ConversionOptions, differences: list[dict[str, Any]]
) -> dict[str, Any]:
    """The origin of the model, as stored in its directory, without local paths."""
    path = Path(source)
    # The authors' weights do not show how their model pools; transformers' models are known.
    pooling = "cls" if model.config.use_cls_token else "mean"
    pools_otherwise = kind in ("vit", "dinov3") and options.pooling not in (None, pooling)
    return {
        "from": kind,
        "description": SOURCES[kind],
        "source": path.name if path.exists() else source,
        "source_sha256": sha256(path) if path.is_file() else None,
        "base_model": None if path.exists() else source,
        "note": options.note,
        "options": _given(options),
        "is_exact": not (options.drop_position_embeddings or pools_otherwise),
        "largest_logit_difference": differences,
        "num_parameters": model.num_parameters(),
        "liere_hf": __version__,
    }


def _given(options: ConversionOptions) -> dict[str, list[Any]]:
    values = {field.name: (getattr(options, field.name), field.default) for field in dataclasses.fields(options)}
    given = {name: value for name, (value, default) in values.items() if value != default and name != "note"}
    return {name: value if isinstance(value, list) else [value] for name, value in given.items()}


def _save(model: PreTrainedModel, processor: Any, record: dict[str, Any], output_dir: Path) -> None:
    with new_directory(output_dir) as unfinished:
        model.save_pretrained(unfinished)
        if processor is not None:
            processor.save_pretrained(unfinished)
        write_json(unfinished / CONVERSION_FILE, record)
        (unfinished / REPOCARD_NAME).write_text(str(build_model_card(read_checkpoint(unfinished), output_dir.name)))
