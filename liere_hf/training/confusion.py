"""The confusion matrix of an evaluation, as a table and as a figure."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..output_files import write_bytes

# Numbers are written into the cells of a figure of at most as many classes.
MAX_NUMBERS = 20


def write_confusion_matrix(path: Path, names: Sequence[str], matrix: np.ndarray) -> None:
    """Write `path`.csv and, where matplotlib is installed, `path`.png: rows are true classes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["true class", *names])
    writer.writerows([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))
    write_bytes(path.with_name(f"{path.name}.csv"), text.getvalue().encode())
    try:
        from matplotlib.figure import Figure
        from sklearn.metrics import ConfusionMatrixDisplay
    except ModuleNotFoundError:
        return
    side = min(3 + 0.4 * len(names), 20)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    display = ConfusionMatrixDisplay(matrix, display_labels=names if len(names) <= 3 * MAX_NUMBERS else None)
    style = {"cmap": "Blues", "values_format": "d", "xticks_rotation": "vertical", "colorbar": False}
    display.plot(include_values=len(names) <= MAX_NUMBERS, ax=axes, **style)
    axes.set(xlabel="predicted class", ylabel="true class")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_bytes(path.with_name(f"{path.name}.png"), content.getvalue())
