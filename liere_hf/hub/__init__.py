"""Checkpoints on the Hub: cards, what goes up, publication, the list of releases."""

from .checkpoint import read_checkpoint
from .model_card import build_model_card
from .publishing import Publication, preview, publish

__all__ = ["Publication", "build_model_card", "preview", "publish", "read_checkpoint"]
