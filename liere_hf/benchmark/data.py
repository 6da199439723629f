"""How fast the input side is."""

import os
import time
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..data.arrows import ArrowsTask
from ..report import hardware

NUM_EXAMPLES = 100_000
REPEATS = 5


def benchmark_data() -> dict[str, Any]:
    """Images a second of the arrows task at 9 x 9 cells, drawn to a data set by one process per core.

    Returns:
        The rates of all repeats, their median, and the hardware.
    """
    num_proc = os.cpu_count() or 1
    rates = []
    for _ in track(range(REPEATS), description="Drawing arrows"):
        start = time.perf_counter()
        ArrowsTask().dataset(0, NUM_EXAMPLES, num_proc=num_proc)
        rates.append(NUM_EXAMPLES / (time.perf_counter() - start))
    median = sorted(rates)[REPEATS // 2]
    table = Table("data", "processes", "images a second (median, range)")
    table.add_row(
        "arrows, 9 x 9 cells of 12 px", str(num_proc), f"{median:,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
    )
    Console().print(table)
    return {
        "arrows": {
            "examples": NUM_EXAMPLES,
            "processes": num_proc,
            "images_per_second": [round(rate) for rate in rates],
            "median_images_per_second": round(median),
        },
        "hardware": hardware(),
    }
