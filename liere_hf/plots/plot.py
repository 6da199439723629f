"""A figure with the numbers that it shows, and how to read it."""

import dataclasses
import io
import textwrap
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

# Of captions, at their size.
_CHARACTERS_PER_INCH = 13.5


class Plot(NamedTuple):
    """A matplotlib figure, what it shows, and the sentence under it."""

    figure: Figure
    numbers: Any
    caption: str

    def png(self, dpi: int = 120) -> bytes:
        """The figure as a PNG file."""
        content = io.BytesIO()
        self.figure.savefig(content, format="png", dpi=dpi)
        return content.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that belongs to no window and to no other thread."""
    return Figure(figsize=(width, height), layout="constrained")


def captioned(figure: Figure, numbers: Any, caption: str) -> Plot:
    """A plot whose caption stands under the figure."""
    width = int(figure.get_figwidth() * _CHARACTERS_PER_INCH)
    figure.supxlabel(textwrap.fill(caption, width), x=0.01, ha="left", fontsize=9, color="#404040")
    return Plot(figure, numbers, caption)


def as_lists(tensor: torch.Tensor) -> list[Any] | float:
    """Numbers for a JSON file, with six significant digits."""
    if tensor.ndim == 0:
        return float(f"{tensor.item():.6g}")
    return [as_lists(part) for part in tensor]


def as_record(numbers: Any) -> dict[str, Any]:
    """The fields of a dataclass of numbers, for a JSON file."""
    fields = {each.name: getattr(numbers, each.name) for each in dataclasses.fields(numbers)}
    return {
        name: as_lists(value) if isinstance(value, torch.Tensor) else list(value) for name, value in fields.items()
    }
