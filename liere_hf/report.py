"""Results for people and for programs: tables on the screen, JSON files."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from .version import __version__


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


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def hardware() -> dict[str, Any]:
    """What a result was measured on and with."""
    cpu = f"{_cpu_name()}, {os.cpu_count()} cores"
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "liere_hf": __version__,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
