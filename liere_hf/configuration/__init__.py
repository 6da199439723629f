"""Model presets and training recipes, and the dataclasses that check them."""

from .arguments import DataArguments, ModelArguments, RunArguments, build_model_config
from .data_sets import DATASETS
from .paper import paper_accuracy
from .recipe_parsing import parse_flags, parse_recipe, recipe_names

__all__ = [
    "DATASETS",
    "DataArguments",
    "ModelArguments",
    "RunArguments",
    "build_model_config",
    "paper_accuracy",
    "parse_flags",
    "parse_recipe",
    "recipe_names",
]
