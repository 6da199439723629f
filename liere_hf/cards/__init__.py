"""Cards of models and Spaces: every number in them is read from the files of a run or of a conversion."""

from .model_card import build_model_card, progress_card
from .space_card import build_space_card

__all__ = ["build_model_card", "build_space_card", "progress_card"]
