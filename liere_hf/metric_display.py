"""Metrics with their confidence intervals as text and tables."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .configuration.metric_names import ENDS, MEASURES

# More classes than these are no table for a screen or a card: the results file has them.
MAX_SHOWN_CLASSES = 30
_SHARES = {"precision": "precision", "recall": "recall", "f1": "F1", "average_precision": "average precision"}


def with_interval(metrics: dict[str, float], name: str, percent: bool = True) -> str:
    """`name` and its 95% interval, as `99.10 (98.59 to 99.43)`; without one where there is none."""
    scale, digits = (100, 2) if percent else (1, 4)
    return interval_text(*(scale * metrics[key] for key in _keys(metrics, name)), digits=digits)


def interval_text(value: float, *ends: float, digits: int = 2) -> str:
    """A number and the ends of an interval, if it has one: `1.04 (1.02 to 1.07)`."""
    text, *ends = (f"{number:,.{digits}f}" for number in (value, *ends))
    return f"{text} ({' to '.join(ends)})" if ends else text


def measure_rows(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Title and value with interval of every measure in some metrics."""
    return [
        (f"{measure.title}, %" if measure.is_share else measure.title, with_interval(metrics, name, measure.is_share))
        for name, measure in MEASURES.items()
        if name in metrics
    ]


def class_rows(per_class: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table of classes; none of more than `MAX_SHOWN_CLASSES`."""
    if not 0 < len(per_class) <= MAX_SHOWN_CLASSES:
        return [], []
    error = "mean_absolute_error"
    if any(error in row for row in per_class.values()):
        rows = [[name, with_interval(row, error, percent=False)] for name, row in per_class.items()]
        return ["number", MEASURES[error].title], rows
    shares = [share for share in _SHARES if any(share in row for row in per_class.values())]
    rows = [
        [name, f"{row['examples']:,}", *(with_interval(row, share) if share in row else "" for share in shares)]
        for name, row in per_class.items()
    ]
    return ["class", "examples", *(f"{_SHARES[share]}, %" for share in shares)], rows


def print_metrics(metrics: dict[str, Any], prefix: str = "") -> None:
    """Print all measures with their intervals, and those of each class."""
    metrics = {name.removeprefix(prefix): value for name, value in metrics.items()}
    table = Table("metric", "value (95% interval)")
    for row in measure_rows(metrics):
        table.add_row(*row)
    Console().print(table)
    header, rows = class_rows(metrics.get("per_class", {}))
    if rows:
        table = Table(*header)
        for row in rows:
            table.add_row(*map(escape, row))
        Console().print(table)


def _keys(metrics: dict[str, float], name: str) -> list[str]:
    return [name, *(name + end for end in ENDS if name + end in metrics)]
