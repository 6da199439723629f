"""Model presets and training recipes, and the dataclasses that check them."""

from .arguments import DataArguments, ModelArguments, RunArguments, build_model_config
from .compared_encodings import ComparedEncoding, compared_encodings, encoding_options
from .data_sets import DATASETS
from .paper import paper_accuracy, paper_flops_overhead
from .recipe_parsing import parse_flags, parse_recipe, recipe_names

__all__ = [
    "DATASETS",
    "ComparedEncoding",
    "DataArguments",
    "ModelArguments",
    "RunArguments",
    "build_model_config",
    "compared_encodings",
    "encoding_options",
    "paper_accuracy",
    "paper_flops_overhead",
    "parse_flags",
    "parse_recipe",
    "recipe_names",
]
