"""Publication of checkpoints on the Hub."""

from .publishing import Publication, preview, publish

__all__ = ["Publication", "preview", "publish"]
