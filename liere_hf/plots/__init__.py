"""Pictures of what a model does: where it looks, what its rotations do to scores, how models compare.

Functions that begin with `plot` return a `Plot`: a matplotlib figure, the numbers in it, and how to read it. Those
numbers come from the functions beside them, which draw nothing. Layers and heads count from 1.
"""

from .attention import AttentionMaps, attention_maps
from .attention_figures import animate_attention, plot_attention
from .plot import Plot
from .rotation_figures import (
    RotationPlots,
    plot_commutators,
    plot_offset_scores,
    plot_spectrum,
    plot_table_scores,
    rotation_plots,
)
from .rotations import (
    Commutators,
    OffsetScores,
    Spectrum,
    commutators,
    offset_scores,
    rotation_scores,
    spectrum,
    table_scores,
    table_similarities,
)

__all__ = [
    "AttentionMaps",
    "Commutators",
    "OffsetScores",
    "Plot",
    "RotationPlots",
    "Spectrum",
    "animate_attention",
    "attention_maps",
    "commutators",
    "offset_scores",
    "plot_attention",
    "plot_commutators",
    "plot_offset_scores",
    "plot_spectrum",
    "plot_table_scores",
    "rotation_plots",
    "rotation_scores",
    "spectrum",
    "table_scores",
    "table_similarities",
]
