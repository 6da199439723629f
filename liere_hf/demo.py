"""The demo: learned rotations solve on a laptop the paper's spatial task that absolute positions do not."""

import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel, pipeline

from .configuration import compared_encodings, parse_recipe
from .data.data_sets.arrows import DIRECTIONS, EVALUATION_START, arrows_task
from .errors import InputError
from .hardware import hardware
from .metric_display import with_interval
from .output_files import write_json
from .plots import attention_maps
from .run_directory import learning_curve
from .training.run import train

RECIPE = "arrows_demo"
# By title.
ENCODINGS = ("LieRE8", "RoPE-Mixed", "absolute")
# The one that is reloaded, and whose attention is drawn.
SHOWN = "LieRE8"
NUM_PICTURES = 4


def run_demo(output_dir: Path) -> dict[str, Any]:
    """Train the encodings, reload the LieRE model through AutoModel and a pipeline, and draw what was learned.

    `output_dir` then holds a run for each encoding, `results.json` and the figure `demo.png`.

    Returns:
        What is in `results.json`: accuracies with intervals and training seconds by encoding, and the hardware.

    Raises:
        InputError: `output_dir` is not empty.
    """
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise InputError(f"output_dir {output_dir} already holds files: choose a new one or remove it")
    console = Console()
    encodings = [compared_encodings()[title] for title in ENCODINGS]
    results = {}
    for encoding in encodings:
        console.rule(f"Training {encoding.title} on arrows")
        flags = [text for name, value in encoding.options.items() for text in (f"--{name}", str(value))]
        flags += ["--output_dir", str(output_dir / encoding.name)]
        arguments = parse_recipe(RECIPE, flags)
        start = time.perf_counter()
        metrics = train(*arguments)
        accuracies = {key.removeprefix("eval_"): metrics[key] for key in metrics if "accuracy" in key}
        results[encoding.name] = accuracies | {
            "training_examples": arguments[1].train_examples,
            "evaluation_examples": arguments[1].eval_examples,
            "seconds": round(time.perf_counter() - start, 1),
        }
    _print_table(console, {encoding.title: results[encoding.name] for encoding in encodings})

    model_dir = output_dir / compared_encodings()[SHOWN].name
    model = AutoModelForImageClassification.from_pretrained(model_dir, attn_implementation="eager").eval()
    pixels, labels = arrows_task(arguments[1]).images(EVALUATION_START, EVALUATION_START + NUM_PICTURES)
    classify = pipeline("image-classification", model=str(model_dir))
    answers = [classify(_to_image(picture))[0]["label"] for picture in pixels]
    console.print(f"Reloaded {model_dir} with AutoModel and a pipeline. On {NUM_PICTURES} pictures it says:")
    for answer, label in zip(answers, labels, strict=True):
        console.print(f"  {answer:<6} (truth: {DIRECTIONS[label]})")

    figure = output_dir / "demo.png"
    curves = {encoding.title: learning_curve(output_dir / encoding.name) for encoding in encodings}
    draw(figure, curves, pixels, answers, [DIRECTIONS[label] for label in labels], model, model_dir)
    console.print(f"Learning curves and where the CLS token looks: {figure}")
    report = {"encodings": results, "hardware": hardware()}
    write_json(output_dir / "results.json", report)
    return report


def draw(
    path: Path,
    curves: dict[str, list[dict[str, float]]],
    pixels: np.ndarray,
    answers: list[str],
    truths: list[str],
    model: PreTrainedModel,
    model_dir: Path,
) -> None:
    """Write the figure: accuracy over training examples, and pictures with CLS attention laid over.

    Above each picture is the model's answer with the true one, in red where they differ.
    """
    processor = AutoImageProcessor.from_pretrained(model_dir)
    inputs = processor([_to_image(picture) for picture in pixels], return_tensors="pt")
    attention = attention_maps(model, inputs["pixel_values"]).rollout[-1].numpy()

    figure = plt.figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.1, 1))
    axes = left.subplots()
    for title, curve in curves.items():
        examples, accuracy = zip(*((point["examples"], 100 * point["accuracy"]) for point in curve), strict=True)
        axes.plot(examples, accuracy, marker="o", markersize=3, color=compared_encodings()[title].color, label=title)
    axes.axhline(25, color="grey", linestyle=":", label="chance")
    axes.set(xlabel="training examples", ylabel="accuracy, %", ylim=(0, 102), title="Spatial reasoning, 5 x 5 cells")
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.75))

    right.suptitle("Where CLS looks (attention rollout)")
    panels = right.subplots(2, 2).flat
    for axes, picture, patches, answer, truth in zip(panels, pixels, attention, answers, truths, strict=True):
        extent = (0, picture.shape[1], picture.shape[0], 0)
        axes.imshow(picture, cmap="gray", extent=extent)
        axes.imshow(patches, cmap="viridis", alpha=0.6, extent=extent)
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"answer: {answer}, true: {truth}", fontsize=10, color="black" if answer == truth else "red")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _to_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).convert("RGB")


def _print_table(console: Console, results: dict[str, Any]) -> None:
    table = Table("encoding", "accuracy, % (95% interval)", "training examples", "seconds", title="Spatial reasoning")
    for title, row in results.items():
        table.add_row(title, with_interval(row, "accuracy"), str(row["training_examples"]), str(row["seconds"]))
    console.print(table)
