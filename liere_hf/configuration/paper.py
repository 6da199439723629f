"""Results that the paper reports, for comparison."""

from pathlib import Path

import yaml

_FIGURES = yaml.safe_load((Path(__file__).parent / "paper.yaml").read_text())


def paper_accuracy(setting: str, encoding: str) -> float | None:
    """Top-1 accuracy in per cent that the paper reports, or None.

    Args:
        setting: a data set of recipes, for spatial reasoning with its canvas: `arrows_108`.
        encoding: `absolute`, `visionllama`, `rope_mixed`, or `liere` with the width of its blocks: `liere8`.
    """
    return _FIGURES["accuracy"].get(setting, {}).get(encoding)
