"""Recipes: YAML files with the options of a run. Every option is also a flag, which overrides the file."""

import difflib
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from transformers import HfArgumentParser

from ..errors import InputError
from .arguments import ARCHITECTURE_OPTIONS, DataArguments, ModelArguments, RunArguments
from .paper import PUBLISHED_START

T = TypeVar("T")
RECIPES = Path(__file__).parent / "recipes"
# Options that a checkpoint replaces: it brings its architecture, and its generators have learned.
OF_NEW_MODELS = ARCHITECTURE_OPTIONS | {"generator_learning_rate_factor"}
# Options that override those of any recipe, by the name that `--preset` takes.
RECIPE_PRESETS: dict[str, dict[str, Any]] = {"published": PUBLISHED_START}
# libyaml, where PyYAML was built with it: experiments read a recipe for each of their hundreds of runs.
_SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Parser(HfArgumentParser):
    """Raises an error instead of printing several hundred lines of usage."""

    def error(self, message: str):
        raise InputError(message)


@functools.cache
def recipe_parser() -> HfArgumentParser:
    """The parser of all options of a recipe."""
    parser = _Parser((ModelArguments, DataArguments, RunArguments), allow_abbrev=False)
    # As plain words they reach the check that says what is allowed.
    parser._option_string_actions["--debug"].type = str
    return parser


def recipe_names() -> list[str]:
    """Names of the built-in recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_path(recipe: str) -> Path:
    """Path of a recipe: a built-in one by name, or any YAML file by path."""
    if recipe in recipe_names():
        return RECIPES / f"{recipe}.yaml"
    if Path(recipe).is_file():
        return Path(recipe)
    raise InputError(f"recipe {recipe!r} is neither a file nor one of: {', '.join(recipe_names())}")


def read_recipe(path: Path, known: set[str]) -> dict[str, Any]:
    """The options of a recipe, on top of those of the recipe that it `extends`.

    Raises:
        InputError: as for `read_options`, or a recipe extends itself, at once or by way of others.
    """
    layers, seen = [], []
    while path is not None:
        if path.resolve() in seen:
            raise InputError(f"recipe {seen[0].name} extends itself: {' extends '.join(each.name for each in seen)}")
        seen.append(path.resolve())
        options = read_options(path, known | {"extends"})
        base = options.pop("extends", None)
        if not isinstance(base, str | None):
            raise InputError(f"{path} has extends {base!r}, allowed is the name or the path of one recipe")
        path = recipe_path(base) if base is not None else None
        layers.insert(0, options)
    return functools.reduce(_on_top, layers)


def _on_top(options: dict[str, Any], further: dict[str, Any]) -> dict[str, Any]:
    """Options, overridden by further ones."""
    return (_of_checkpoint(options) if further.get("model_name_or_path") else options) | further


def _of_checkpoint(options: dict[str, Any]) -> dict[str, Any]:
    """Without those of new models, unless they were given for a checkpoint."""
    if options.get("model_name_or_path"):
        return options
    return {name: value for name, value in options.items() if name not in OF_NEW_MODELS}


def read_options(path: Path, known: set[str]) -> dict[str, Any]:
    """The options in a YAML file.

    Raises:
        InputError: the file is not YAML, or has an unknown option.
    """
    try:
        options = yaml.load(path.read_text(), Loader=_SAFE_LOADER)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(options, dict):
        raise InputError(f"{path} must hold one mapping of options to values")
    for name in options:
        if name not in known:
            raise InputError(f"{path} has the unknown option {name!r}{_suggest(str(name), known)}")
    return options


def parse_recipe(
    recipe: str, flags: Sequence[str] = (), config: str | None = None, preset: str | None = None
) -> tuple[Any, DataArguments, RunArguments]:
    """Model, data and training arguments of a recipe, overridden by a preset, by a further YAML file, and by flags.

    bf16 is the default where the hardware supports it. A checkpoint (`model_name_or_path`) replaces what the recipe
    below it says of new models: the architecture, and the pace of generators.

    Args:
        recipe: name of a built-in recipe, or path of a YAML file.
        flags: `--option value ...`, any field of ModelArguments, DataArguments or RunArguments.
        config: path of a YAML file of options.
        preset: a name of `RECIPE_PRESETS`.

    Raises:
        InputError: an unknown option or a value that is not allowed.
    """
    if preset is not None and preset not in RECIPE_PRESETS:
        raise InputError(f"preset is {preset!r}, allowed is {', '.join(RECIPE_PRESETS)}")
    parser = recipe_parser()
    known = _known_options(parser)
    path = recipe_path(recipe)
    argv = ["--output_dir", f"runs/{path.stem}", "--report_to", "none"]
    argv += ["--dataloader_pin_memory", str(torch.accelerator.is_available())]
    options = read_recipe(path, known)
    if preset is not None:
        left_out = ARCHITECTURE_OPTIONS if options.get("model_name_or_path") else frozenset()
        options |= {name: value for name, value in RECIPE_PRESETS[preset].items() if name not in left_out}
    if config:
        options = _on_top(options, read_options(Path(config), known))
    flagged = {flag.split("=")[0].lstrip("-").replace("-", "_") for flag in flags}
    if "model_name_or_path" in flagged:
        options = _of_checkpoint(options)
    if _computes_in_bf16() and not options.get("use_cpu") and "use_cpu" not in flagged:
        argv += ["--bf16", "true"]
    return _parse(parser, [*argv, *_as_flags(options), *flags], known)


def parse_flags(dataclass: type[T], flags: Sequence[str]) -> T:
    """An instance of the dataclass with the values of the flags `--field value ...`.

    Raises:
        InputError: an unknown option or a value that is not allowed.
    """
    parser = _Parser(dataclass, allow_abbrev=False)
    return _parse(parser, flags, _known_options(parser))[0]


def _parse(parser: _Parser, flags: Sequence[str], known: set[str]) -> tuple[Any, ...]:
    try:
        *arguments, unknown = parser.parse_args_into_dataclasses(
            list(flags), return_remaining_strings=True, look_for_args_file=False
        )
    except InputError:
        raise
    except (ValueError, TypeError, ImportError, OSError, NotImplementedError) as error:
        raise InputError(" ".join(str(error).split())) from error
    if unknown:
        raise InputError(f"unknown option {unknown[0]!r}{_suggest(unknown[0].lstrip('-'), known)}")
    return tuple(arguments)


def _computes_in_bf16() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _known_options(parser: _Parser) -> set[str]:
    return {option.lstrip("-").replace("-", "_") for option in parser._option_string_actions}


def _as_flags(options: dict[str, Any]) -> list[str]:
    flags = []
    for name, value in options.items():
        if value is None:
            continue
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        else:
            flags += [f"--{name}", json.dumps(value) if isinstance(value, dict | bool) else str(value)]
    return flags


def _suggest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""
