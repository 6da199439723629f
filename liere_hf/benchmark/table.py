"""The results of the model benchmark: as a table on the screen, as CSV, and as a chart."""

import csv
import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ..configuration import paper_flops_overhead
from ..output_files import write_bytes, write_json
from .models import ABSOLUTE, PUBLISHED, PUBLISHED_WAYS
from .timing import ratio_with_interval


def table_rows(results: dict[str, Any]) -> list[dict[str, str]]:
    """One row per contestant, as text."""
    absolute = next(row for row in results["models"] if row["name"] == ABSOLUTE)
    rows = []
    for row in results["models"]:
        extra = 100 * (row["gflops_per_sample"] / absolute["gflops_per_sample"] - 1)
        paper = paper_flops_overhead(row["name"])
        rows.append(
            {
                "model": row["name"],
                "training, s": f"{row['training_seconds']:.2f}",
                "training, ratio": ratio_with_interval(row, "training_ratio"),
                "evaluation, s": f"{row['evaluation_seconds']:.2f}",
                "evaluation, ratio": ratio_with_interval(row, "evaluation_ratio"),
                "peak memory, MiB": f"{row['peak_memory_mib']:,.0f}",
                "parameters": f"{row['parameters']:,}",
                "GFLOPs a sample": f"{row['gflops_per_sample']:.3f}",
                "above absolute, %": f"{extra:+.2f}",
                "paper (base), %": "" if paper is None else f"{paper:+}",
                "GFLOPs of rotations": f"{row['gflops_of_rotations']:.3f}",
            }
        )
    return rows


def report_benchmark(results: dict[str, Any], output_dir: Path) -> None:
    """Print the table and write benchmark.json, benchmark.csv and benchmark.png to `output_dir`."""
    rows = table_rows(results)
    table = Table(*rows[0], title=f"{results['preset']}, {results['dtype']}, {results['hardware']['device']}")
    for row in rows:
        table.add_row(*row.values())
    console = Console()
    console.print(table)
    for name, row in results["liere64_speedup"].items():
        speedup = ratio_with_interval(row, "training", digits=1)
        console.print(f"A training step of liere64 is {speedup} times faster than {name}.")

    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / "benchmark.json", results)
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(output_dir / "benchmark.csv", text.getvalue().encode())
    image = io.BytesIO()
    draw_benchmark(results).savefig(image, format="png", dpi=120)
    write_bytes(output_dir / "benchmark.png", image.getvalue())


def draw_benchmark(results: dict[str, Any]) -> Figure:
    """Bars of the training and evaluation ratios. The published way, if measured, is a number in the title."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    shown = [row for row in results["models"] if row["name"] not in PUBLISHED_WAYS]
    published = [row for row in results["models"] if row["name"] == PUBLISHED]
    for axes, step in zip(figure.subplots(1, 2, sharey=True), ("training", "evaluation"), strict=True):
        ratios = [row[f"{step}_ratio"] for row in shown]
        errors = [
            [row[f"{step}_ratio"] - row[f"{step}_ratio_low"] for row in shown],
            [row[f"{step}_ratio_high"] - row[f"{step}_ratio"] for row in shown],
        ]
        axes.barh([row["name"] for row in shown], ratios, xerr=errors, color="#4477aa", ecolor="#222222")
        axes.axvline(1, color="#222222", linewidth=0.8)
        published_ratios = "".join(f" (LieRE64 the published way: {row[f'{step}_ratio']:.1f})" for row in published)
        axes.set_title(f"{step} step{published_ratios}", fontsize=10)
        axes.set_xlabel("time, transformers' ViT = 1")
        axes.invert_yaxis()
    figure.suptitle(f"{results['preset']}, {results['dtype']}, {results['hardware']['device']}", fontsize=11)
    return figure
