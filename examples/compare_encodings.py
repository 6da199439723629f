"""All encodings of the paper on Fashion-MNIST through the recipe of CIFAR, with several seeds.

    python examples/compare_encodings.py --data_dir .cache/fashion-mnist

Finished runs are kept and not repeated, so that an interrupted comparison goes on; runs of different encodings or
seeds may be made by several of these at once. The table is of all finished runs.
"""

import argparse
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from liere_hf.configuration import parse_recipe
from liere_hf.report import hardware, write_bytes, write_json
from liere_hf.training.run import train

RECIPE = "fashion_mnist_32"
ENCODINGS = {
    "absolute": ["--position_encoding", "absolute"],
    "visionllama": ["--position_encoding", "visionllama"],
    "rope_mixed": ["--position_encoding", "rope_mixed"],
    "liere8": ["--position_encoding", "liere", "--generator_block_size", "8"],
    "liere64": ["--position_encoding", "liere", "--generator_block_size", "64"],
}


def run_all(arguments: argparse.Namespace) -> None:
    """Make the runs that are not yet there, each in its own directory."""
    for seed in arguments.seeds:
        for encoding in arguments.encodings:
            directory = arguments.output_dir / f"{encoding}_{seed}"
            if (directory / "README.md").exists():
                continue
            flags = [*ENCODINGS[encoding], "--seed", str(seed), "--output_dir", str(directory)]
            flags += ["--resume_from_checkpoint", str(any(directory.glob("checkpoint-*"))).lower()]
            if arguments.data_dir:
                flags += ["--data_dir", arguments.data_dir]
            train(*parse_recipe(RECIPE, flags))


def summarize(output_dir: Path) -> dict[str, Any]:
    """Accuracies of all finished runs, and their means with 95% intervals (Student's t over the seeds)."""
    rows = {}
    for encoding in ENCODINGS:
        runs = sorted(path.parent for path in output_dir.glob(f"{encoding}_*/README.md"))
        if not runs:
            continue
        accuracies = [json.loads((run / "eval_results.json").read_text())["eval_accuracy"] for run in runs]
        training = [json.loads((run / "train_results.json").read_text()) for run in runs]
        mean, spread = float(np.mean(accuracies)), float("inf")
        if len(accuracies) > 1:
            spread = float(stats.t.ppf(0.975, len(accuracies) - 1) * stats.sem(accuracies))
        rows[encoding] = {
            "accuracies": accuracies,
            "accuracy": mean,
            "accuracy_low": mean - spread,
            "accuracy_high": mean + spread,
            "seeds": [int(run.name.rsplit("_", 1)[1]) for run in runs],
            "num_parameters": training[0]["num_parameters"],
            "training_seconds": [round(run["train_runtime"]) for run in training],
        }
    return {"recipe": RECIPE, "encodings": rows, "hardware": hardware()}


def report(results: dict[str, Any], results_dir: Path) -> None:
    """Print the table, and write it as JSON and CSV."""
    table = Table("encoding", "parameters", "accuracy, % (95% interval)", "of the seeds", title="Fashion-MNIST, 32 px")
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["encoding", "seed", "accuracy", "training_seconds"])
    for encoding, row in results["encodings"].items():
        interval = f"{100 * row['accuracy_low']:.2f} to {100 * row['accuracy_high']:.2f}"
        each = ", ".join(f"{100 * accuracy:.2f}" for accuracy in row["accuracies"])
        table.add_row(encoding, f"{row['num_parameters']:,}", f"{100 * row['accuracy']:.2f} ({interval})", each)
        writer.writerows(
            (encoding, *run) for run in zip(row["seeds"], row["accuracies"], row["training_seconds"], strict=True)
        )
    Console().print(table)
    write_json(results_dir / "results.json", results)
    write_bytes(results_dir / "results.csv", text.getvalue().encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", help="the four idx files of Fashion-MNIST; from the Hub if not given")
    parser.add_argument("--encodings", nargs="+", choices=ENCODINGS, default=list(ENCODINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/compare_encodings"))
    parser.add_argument("--results_dir", type=Path, default=Path("results/compare_encodings"))
    arguments = parser.parse_args()
    run_all(arguments)
    report(summarize(arguments.output_dir), arguments.results_dir)


if __name__ == "__main__":
    main()
