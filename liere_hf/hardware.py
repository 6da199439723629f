"""The machine and the library versions that a result was measured with, and the limits of its memory."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from .errors import RunError
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


@contextmanager
def explaining_lack_of_memory(device: torch.device, advice: str) -> Iterator[None]:
    """Turns what torch raises when memory runs out into one sentence.

    Args:
        advice: what to do about it.

    Raises:
        RunError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On a CPU, torch raises plain RuntimeErrors.
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise RunError(f"the memory of {device} ran out; {advice}") from error


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
