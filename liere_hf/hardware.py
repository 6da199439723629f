"""The machine and the library versions that a result was measured with."""

import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers

from .version import __version__


def hardware() -> dict[str, Any]:
    """Name of the GPU, or of the CPU with its number of cores, and versions of Python and the main libraries."""
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
