"""Model presets, checkpoints and training recipes as inputs, and the dataclasses that check them."""

from .arguments import DataArguments, ModelArguments, RunArguments, build_model_config
from .checkpoints import classifier_class, load_checkpoint
from .data_sets import DATASETS
from .paper import paper_accuracy
from .recipes import parse_flags, parse_recipe, recipe_names

__all__ = [
    "DATASETS",
    "DataArguments",
    "ModelArguments",
    "RunArguments",
    "build_model_config",
    "classifier_class",
    "load_checkpoint",
    "paper_accuracy",
    "parse_flags",
    "parse_recipe",
    "recipe_names",
]
