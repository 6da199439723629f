"""Seconds until commands answer, each as a process of its own, without a network."""

import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from ..configuration.allowed_values import require_allowed
from ..errors import InputError
from ..hardware import hardware
from ..progress import tracked

LIERE_HF = str(Path(sysconfig.get_path("scripts")) / "liere-hf")
ADDRESS = "The page is at "


def benchmark_startup(model: str, rounds: int = 9) -> dict[str, Any]:
    """Time help, a wrong flag, `explain` until its picture is written, and `app` until its page is served.

    The import of argparse and yaml, which help needs, is timed beside them. All in turn, in each round.

    Args:
        model: directory or Hub id of an image classifier.

    Returns:
        For each command the median, least and greatest seconds; the rounds, the hardware and the load of the machine.

    Raises:
        InputError: rounds is below 1, or a command fails, for example as the model cannot be read.
    """
    require_allowed({"rounds": rounds})
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        Image.fromarray(np.random.default_rng(0).integers(256, size=(64, 64), dtype=np.uint8)).save(picture)
        commands: dict[str, Callable[[], None]] = {
            "import argparse, yaml": lambda: _run([sys.executable, "-c", "import argparse, yaml"]),
            "liere-hf --help": lambda: _run([LIERE_HF, "--help"]),
            "liere-hf train, wrong flag": lambda: _run([LIERE_HF, "train", "digits", "--no_such_flag", "1"], 2),
            "liere-hf explain": lambda: _run([LIERE_HF, "explain", model, str(picture), "--output_dir", folder]),
            "liere-hf app": lambda: _serve([LIERE_HF, "app", model, "--use_cpu"]),
        }
        seconds = {name: [] for name in commands}
        # The first round reads programs and libraries from the disk.
        for round_number in tracked(range(rounds + 1), "Startup"):
            for name, command in commands.items():
                start = time.perf_counter()
                command()
                if round_number:
                    seconds[name].append(time.perf_counter() - start)
    rows = [
        {"command": name, "seconds": statistics.median(times), "least": min(times), "greatest": max(times)}
        for name, times in seconds.items()
    ]
    _print(rows)
    return {"rows": rows, "rounds": rounds, "load_before": load, "hardware": hardware()}


def _environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


def _run(command: list[str], expected: int = 0) -> None:
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode != expected:
        raise InputError(f"{' '.join(command[1:3])} ended with exit code {done.returncode}: {_last_line(done.stderr)}")


def _serve(command: list[str]) -> None:
    """Until the page is read. The end of the process is timed, too; it is short."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=_environment(), stdout=pipe, stderr=pipe, text=True) as process:
        line = process.stdout.readline()
        try:
            if not line.startswith(ADDRESS):
                raise InputError(f"{' '.join(command[1:3])} serves no page: {_last_line(process.stderr.read())}")
            with urllib.request.urlopen(line.removeprefix(ADDRESS).split()[0]) as page:
                page.read()
        finally:
            process.kill()


def _last_line(text: str) -> str:
    return (text.splitlines() or [""])[-1]


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table("command", "s", "least", "greatest", title="Startup")
    for row in rows:
        table.add_row(row["command"], *(f"{row[name]:.2f}" for name in ("seconds", "least", "greatest")))
    Console().print(table)
