"""Results that the paper reports, for comparison."""

from pathlib import Path

import yaml

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
