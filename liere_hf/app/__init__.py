"""A page in the browser: what models answer for a picture, where they look, and what their rotations do to scores."""

from .page import build_page, serve

__all__ = ["build_page", "serve"]
