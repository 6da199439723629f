"""What goes to the Hub beside the weights: the model card of a finished run."""

from .model_card import build_model_card

__all__ = ["build_model_card"]
