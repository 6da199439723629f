"""How the paper trains generators, and the results that it reports."""

import math
from pathlib import Path
from typing import Any

import yaml

# How generators start and how fast they learn, in options of a recipe.
PUBLISHED_START: dict[str, Any] = {
    "generator_init": "uniform",
    "generator_init_scale": 2 * math.pi,
    "generator_learning_rate_factor": 1.0,
}
_FIGURES = yaml.safe_load((Path(__file__).parent / "paper.yaml").read_text())


def paper_accuracy(setting: str, encoding: str) -> float | None:
    """Top-1 accuracy in per cent that the paper reports, or None.

    Args:
        setting: a data set of recipes, for spatial reasoning with its canvas: `arrows_108`.
        encoding: the paper's name of an encoding, with the width of LieRE's blocks: `liere8`.
    """
    return _FIGURES["accuracy"].get(setting, {}).get(encoding)


def paper_flops_overhead(encoding: str) -> float | None:
    """FLOPs of the base model with an encoding above those with absolute positions, in per cent (table 8)."""
    return _FIGURES["flops_overhead"].get(encoding)
