"""Names of the options that dataclasses declare, read from their source code: importing them would import torch."""

import ast
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path


def recipe_option_names() -> set[str]:
    """Options of recipes: fields of their dataclasses, of LiereViTConfig and of TrainingArguments."""
    package, transformers = _package("liere_hf"), _package("transformers")
    return {
        *_fields(package / "configuration" / "arguments.py", ("_ModelSource", "RunArguments", "DataArguments")),
        *_fields(package / "modeling" / "configuration_liere_vit.py", ("LiereViTConfig",)),
        *_fields(transformers / "training_args.py", ("TrainingArguments",)),
    }


def conversion_option_names() -> set[str]:
    """Options of `liere-hf convert` in addition to its arguments."""
    return _fields(_package("liere_hf") / "conversion" / "options.py", ("ConversionOptions",))


def prediction_option_names() -> set[str]:
    """Options of `liere-hf predict` in addition to its arguments."""
    return _fields(_package("liere_hf") / "configuration" / "prediction_options.py", ("PredictionOptions",))


def _package(name: str) -> Path:
    return Path(find_spec(name).submodule_search_locations[0])


def _fields(path: Path, classes: Iterable[str]) -> set[str]:
    """Public fields of classes in a file, and `no_NAME` for booleans, some of which get one from HfArgumentParser."""
    fields = {
        statement.target.id: ast.unparse(statement.annotation)
        for node in ast.parse(path.read_bytes()).body
        if isinstance(node, ast.ClassDef) and node.name in classes
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and not statement.target.id.startswith("_")
    }
    return {*fields, *(f"no_{name}" for name, annotation in fields.items() if "bool" in annotation)}
