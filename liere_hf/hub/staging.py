"""The files of a published model, copied into a directory of their own: nothing else is uploaded."""

import json
import os
import re
import shutil
from pathlib import Path

import torch
import yaml
from huggingface_hub import get_token, save_torch_state_dict
from huggingface_hub.constants import REPOCARD_NAME
from safetensors import SafetensorError, safe_open
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..cards import build_model_card, build_space_card
from ..errors import InputError
from ..modeling import modeling_liere_vit
from ..modeling.configuration_liere_vit import LiereViTConfig
from ..output_files import write_json
from ..run_directory import (
    CONVERSION_FILE,
    DATA_FILE,
    METRICS_FILE,
    OTHER_SIZES,
    RECIPE_FILE,
    TEST_FILE,
    TRAINING_FILE,
    Checkpoint,
    Run,
    without_paths,
)
from ..version import __version__

MAX_SHARD_SIZE = 5 * 10**9
PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
MODELING = Path(modeling_liere_vit.__file__).parent
CODE = tuple(sorted(path.name for path in MODELING.glob("*.py") if path.name != "__init__.py"))
# Of a Space. Its files are reached through a proxy, at this port.
APP = """from liere_hf.app.page import serve

serve(["{folder}"], host="0.0.0.0", port=7860)
"""
# Further extras that a page needs, by the number of axes of its model.
EXTRAS = {3: ",video,volumes"}
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_RELATIVE_IMPORT = re.compile(r"^\s*from \.(\w+) import", re.MULTILINE)


def stage(checkpoint: Checkpoint, target: Path, repo_id: str, max_shard_size: int = MAX_SHARD_SIZE) -> None:
    """Put all files that are published into the empty directory `target`, exactly as they are published.

    Args:
        repo_id: where they will be published; the card names it.
        max_shard_size: in bytes; a larger file of weights is split into shards.

    Raises:
        InputError: weights are missing, not finite or of another architecture, code or the processor of a run is
            missing, or a file contains a token or the path of a directory of this machine.
    """
    if isinstance(checkpoint, Run):
        _require_processor(checkpoint.directory)
    stage_model(checkpoint.directory, target, max_shard_size)
    for name in (TRAINING_FILE, METRICS_FILE, TEST_FILE, DATA_FILE, CONVERSION_FILE):
        if (checkpoint.directory / name).is_file():
            write_json(target / name, without_paths(json.loads((checkpoint.directory / name).read_text())))
    for path in checkpoint.directory.glob(OTHER_SIZES):
        write_json(target / path.name, without_paths(json.loads(path.read_text())))
    if isinstance(checkpoint, Run):
        recipe = yaml.safe_dump(checkpoint.published_recipe, sort_keys=False)
        (target / RECIPE_FILE).write_text(recipe)
    (target / REPOCARD_NAME).write_text(str(build_model_card(checkpoint, repo_id)))
    _require_clean(target, checkpoint.directory)


def stage_space(checkpoint: Checkpoint, target: Path, repo_id: str) -> None:
    """Put the page of `liere-hf app` for a model into the empty directory `target`, as it is published as a Space.

    Args:
        repo_id: of the Space; the page calls the model by its second part.

    Raises:
        InputError: as `stage`.
    """
    _require_processor(checkpoint.directory)
    folder = target / folder_in_space(repo_id)
    folder.mkdir()
    stage_model(checkpoint.directory, folder)
    if isinstance(checkpoint, Run):
        (folder / RECIPE_FILE).write_text(yaml.safe_dump(checkpoint.published_recipe, sort_keys=False))
    (target / "app.py").write_text(APP.format(folder=folder.name))
    extras = EXTRAS.get(LiereViTConfig.from_pretrained(checkpoint.directory).num_axes, "")
    (target / "requirements.txt").write_text(f"liere_hf[app{extras}]=={__version__}\n")
    (target / REPOCARD_NAME).write_text(str(build_space_card(checkpoint, repo_id)))
    _require_clean(target, checkpoint.directory)


def folder_in_space(repo_id: str) -> str:
    """Where a Space has the files of its model."""
    return repo_id.rpartition("/")[2]


def stage_model(directory: Path, target: Path, max_shard_size: int = MAX_SHARD_SIZE) -> None:
    """The part of `stage` that `from_pretrained` needs: configuration, weights, processor, code."""
    weights = weight_files(directory)
    _require_sound_weights(directory, weights)
    code = [name for name in CODE if (directory / name).is_file()]
    _require_whole_code(directory, code)
    for name in (CONFIG_NAME, *PROCESSORS, *code):
        if (directory / name).is_file():
            shutil.copyfile(directory / name, target / name)
    if weights == [SAFE_WEIGHTS_NAME] and (directory / SAFE_WEIGHTS_NAME).stat().st_size > max_shard_size:
        with safe_open(directory / SAFE_WEIGHTS_NAME, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        save_torch_state_dict(tensors, target, max_shard_size=max_shard_size)
        return
    for name in [*weights, SAFE_WEIGHTS_INDEX_NAME]:
        if (directory / name).is_file():
            _link(directory / name, target / name)


def weight_files(directory: Path) -> list[str]:
    """Names of the safetensors files of a saved model.

    Raises:
        InputError: it has none, or lacks some of its shards.
    """
    if (directory / SAFE_WEIGHTS_NAME).is_file():
        return [SAFE_WEIGHTS_NAME]
    if not (directory / SAFE_WEIGHTS_INDEX_NAME).is_file():
        raise InputError(f"{directory} has no weights: neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}")
    names = sorted(set(json.loads((directory / SAFE_WEIGHTS_INDEX_NAME).read_text())["weight_map"].values()))
    for name in names:
        if Path(name).name != name or not (directory / name).is_file():
            raise InputError(f"{directory} lacks {name}, which {SAFE_WEIGHTS_INDEX_NAME} names")
    return names


def _require_sound_weights(directory: Path, names: list[str]) -> None:
    config = LiereViTConfig.from_pretrained(directory)
    (architecture,) = config.architectures
    with torch.device("meta"):
        model = getattr(modeling_liere_vit, architecture)(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {}
    for file_name in names:
        try:
            with safe_open(directory / file_name, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    tensor = file.get_tensor(name)
                    found[name] = tuple(tensor.shape)
                    if not torch.isfinite(tensor).all():
                        raise InputError(f"{directory / file_name} has values in {name} that are not finite")
        except SafetensorError as error:
            raise InputError(f"{directory / file_name} cannot be read as safetensors: {error}") from error
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise InputError(
                f"{directory} has {name} of shape {found.get(name)}, its {architecture} has {expected.get(name)}"
            )


def _require_processor(directory: Path) -> None:
    """
    Raises:
        InputError: it is missing, so that files cannot become inputs of the model.
    """
    if not any((directory / name).is_file() for name in PROCESSORS):
        raise InputError(f"{directory} has no processor, it needs one of {', '.join(PROCESSORS)}")


def _require_whole_code(directory: Path, names: list[str]) -> None:
    """Check that the directory has every module that config.json and these modules import.

    Raises:
        InputError: one is missing, so that the model would not load without this package.
    """
    auto_map = json.loads((directory / CONFIG_NAME).read_text()).get("auto_map")
    if not auto_map:
        raise InputError(f"{directory / 'config.json'} has no auto_map, without which it only loads with liere_hf")
    needed = {reference.partition(".")[0] for reference in auto_map.values()}
    for name in names:
        needed |= set(_RELATIVE_IMPORT.findall((directory / name).read_text()))
    missing = sorted(needed - {Path(name).stem for name in names})
    if missing:
        raise InputError(f"{directory} lacks {', '.join(f'{name}.py' for name in missing)}: the model needs its code")


def _require_clean(target: Path, directory: Path) -> None:
    """
    Raises:
        InputError: a text file contains a token, or the path of a directory of this machine.
    """
    tokens = {token for token in (get_token(), os.environ.get("HF_TOKEN")) if token}
    places = {
        f"{place}{os.sep}" for place in map(str, (Path.home(), Path.cwd(), directory.absolute())) if place != os.sep
    }
    for path in sorted(target.rglob("*")):
        if path.is_dir() or path.suffix == ".safetensors":
            continue
        text = path.read_text()
        if _TOKEN.search(text) or any(token in text for token in tokens):
            raise InputError(f"{path.name} of {directory} contains a Hub token: remove it")
        place = next((place for place in places if place in text), None)
        if place is not None:
            raise InputError(f"{path.name} of {directory} contains {place}, a directory of this machine: remove it")


def _link(source: Path, target: Path) -> None:
    """Make a hard link, or a copy where the file system does not support links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
