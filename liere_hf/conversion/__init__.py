"""Conversion of checkpoints of other code, and extension of models, without changing what they compute."""

from .convert import convert
from .dinov3 import from_dinov3, to_dinov3
from .export import export
from .growth import widen_generators
from .inflation import inflate
from .liere import export_state_dict, from_liere
from .options import ConversionOptions
from .timm import from_timm
from .vit import from_vit

__all__ = [
    "ConversionOptions",
    "convert",
    "export",
    "export_state_dict",
    "from_dinov3",
    "from_liere",
    "from_timm",
    "from_vit",
    "inflate",
    "to_dinov3",
    "widen_generators",
]
