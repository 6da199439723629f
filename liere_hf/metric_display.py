"""Metrics with their confidence intervals as text."""

from rich.console import Console
from rich.table import Table


def with_interval(metrics: dict[str, float], name: str, percent: bool = True) -> str:
    """`name` and its 95% interval, as `99.10 (98.59 to 99.43)`."""
    scale, digits = (100, 2) if percent else (1, 4)
    value, low, high = (scale * metrics[key] for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def print_metrics(metrics: dict[str, float], prefix: str = "") -> None:
    """Print accuracies and loss with their intervals."""
    metrics = {name.removeprefix(prefix): value for name, value in metrics.items()}
    table = Table("metric", "value (95% interval)")
    table.add_row("top-1 accuracy, %", with_interval(metrics, "accuracy"))
    table.add_row("top-5 accuracy, %", with_interval(metrics, "top5_accuracy"))
    table.add_row("loss", with_interval(metrics, "loss", percent=False))
    Console().print(table)
