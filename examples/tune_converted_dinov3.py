"""What a little training gives a converted DINOv3 on a canvas that it was not trained on.

A small DINOv3 (transformers' architecture) learns the paper's spatial task on 5 x 5 cells. `liere-hf convert` makes it
a LieRE model that computes the same, with blocks of 2 as DINOv3 has, or of 8. On 9 x 9 cells, which are more and
crowded, it is then tuned with 3,200 examples: the classifier alone, rotations and classifier, LoRA adapters, or all
parameters. The seed determines the tuning examples and their order. Run it as

    python examples/tune_converted_dinov3.py OUTPUT_DIR

The results are written to OUTPUT_DIR/results.json. Runs that are finished are not repeated. It takes about three
quarters of an hour on one CPU core.
"""

import json
import multiprocessing
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import nn
from transformers import AutoImageProcessor, DINOv3ViTConfig, DINOv3ViTModel, Trainer, TrainingArguments, set_seed

from liere_hf import LiereViTConfig, LiereViTForImageClassification
from liere_hf.configuration import parse_recipe
from liere_hf.conversion import ConversionOptions, convert
from liere_hf.data import load_splits
from liere_hf.data.batching import EvaluationExamples
from liere_hf.data.data_sets.arrows import DIRECTIONS
from liere_hf.data.resizing.images import EvaluationImages
from liere_hf.data.resizing.processors import build_processor
from liere_hf.evaluation import evaluate
from liere_hf.hardware import hardware
from liere_hf.metric_display import interval_text
from liere_hf.output_files import new_directory, write_json
from liere_hf.reproduction.statistics import over_seeds, paired_permutation_test
from liere_hf.training.run import train
from liere_hf.training.trained_parameters import choose_trained_parameters

SOURCE_EXAMPLES, TUNING_EXAMPLES = 12_800, 3_200
CELLS, CELL_SIZE = 9, 8
SEEDS = range(5)
# What is trained, by its name in the table: block size, and flags.
TUNINGS: dict[str, tuple[int, list[str]]] = {
    "classifier": (2, ["--train_only", "classifier"]),
    "rotations and classifier": (2, ["--train_only", "rotations", "classifier"]),
    "rotations and classifier, blocks of 8": (8, ["--train_only", "rotations", "classifier"]),
    "LoRA, rank 8": (2, ["--lora_rank", "8"]),
    "all parameters": (2, []),
}


class SourceClassifier(nn.Module):
    """DINOv3 and a linear classifier of the mean of its patches."""

    def __init__(self, config: DINOv3ViTConfig, num_labels: int):
        super().__init__()
        self.backbone = DINOv3ViTModel(config)
        self.classifier = nn.Linear(config.hidden_size, num_labels)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Logits of pixels (batch, 3, height, width), and the loss if there are labels (batch,)."""
        tokens = self.backbone(pixel_values).last_hidden_state
        logits = self.classifier(tokens[:, 1:].mean(1))
        outputs = {"logits": logits}
        return outputs if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), **outputs}


def train_source(directory: Path) -> None:
    """Train on 5 x 5 cells with the settings of the recipe `arrows_demo`. Saves the backbone and the classifier."""
    flags = ["--train_examples", str(SOURCE_EXAMPLES), "--output_dir", str(directory)]
    _, data_arguments, recipe = parse_recipe("arrows_demo", flags)
    data = load_splits(data_arguments, seed=0)
    processor = build_processor("image", LiereViTConfig(image_size=40, patch_size=8), data_arguments)
    set_seed(0)
    config = DINOv3ViTConfig(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=2, intermediate_size=256, image_size=40,
        patch_size=8, initializer_range=0.09, num_register_tokens=0, layerscale_value=1.0,
    )  # fmt: skip
    model = SourceClassifier(config, len(data.label_names))
    training_arguments = TrainingArguments(
        str(directory / "training"), num_train_epochs=1, per_device_train_batch_size=64, learning_rate=1e-3,
        lr_scheduler_type="cosine", warmup_steps=50, max_grad_norm=recipe.max_grad_norm, report_to="none",
        save_strategy="no", use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True,
    )  # fmt: skip
    examples = EvaluationExamples(data.train, "image", EvaluationImages(processor))
    Trainer(model, training_arguments, train_dataset=examples).train()
    with new_directory(directory / "source") as unfinished:
        model.backbone.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
        torch.save(model.classifier.state_dict(), unfinished / "classifier.pt")


def convert_source(source: Path, directory: Path, block_size: int) -> None:
    """The source as a LieRE model, with its classifier. Both compute the same at both sizes."""
    with new_directory(directory) as unfinished:
        options = ConversionOptions(pooling="patches", generator_block_size=block_size)
        convert(str(source), unfinished / "backbone", "dinov3", options)
        classifier = torch.load(source / "classifier.pt", weights_only=True)
        labels = dict(enumerate(DIRECTIONS))
        model = LiereViTForImageClassification.from_pretrained(unfinished / "backbone", id2label=labels).eval()
        model.classifier.load_state_dict(classifier)
        original = SourceClassifier(DINOv3ViTConfig.from_pretrained(source), len(labels)).eval()
        original.backbone = DINOv3ViTModel.from_pretrained(source).eval()
        original.classifier.load_state_dict(classifier)
        with torch.no_grad():
            for size in (40, CELLS * CELL_SIZE):
                pixels = torch.randn(2, 3, size, size)
                torch.testing.assert_close(model(pixels).logits, original(pixels)["logits"], atol=1e-4, rtol=1e-4)
        model.save_pretrained(unfinished)
        AutoImageProcessor.from_pretrained(source).save_pretrained(unfinished)


def flags_for(model: Path, output_dir: Path, seed: int) -> list[str]:
    """Of the recipe `arrows_9x9` for a model that was trained on another canvas."""
    flags = ["--model_name_or_path", model, "--output_dir", output_dir, "--seed", seed, "--arrows_seed", seed]
    flags += ["--input_size", CELLS * CELL_SIZE, "--train_examples", TUNING_EXAMPLES, "--eval_strategy", "no"]
    flags += ["--per_device_eval_batch_size", "64"]  # So that the training takes the most memory.
    return [*map(str, flags), "--warmup_steps", "5", "--disable_tqdm", "true"]


def tune(model: Path, output_dir: Path, seed: int, further: list[str]) -> dict[str, float]:
    """Accuracy, number of trained parameters, and seconds."""
    torch.set_num_threads(1)
    arguments = parse_recipe("arrows_9x9", [*flags_for(model, output_dir, seed), *further])
    accuracy = 100 * train(*arguments)["eval_accuracy"]
    chosen = choose_trained_parameters(LiereViTForImageClassification.from_pretrained(model), arguments[2])
    return {
        "accuracy": accuracy,
        "trained_parameters": sum(each.numel() for each in chosen.parameters() if each.requires_grad),
        "seconds": json.loads((output_dir / "train_results.json").read_text())["train_runtime"],
    }


def peak_memory(model: Path, output_dir: Path, further: list[str]) -> float:
    """MiB that five steps take at their peak, above the memory before them. On Linux."""
    torch.set_num_threads(1)
    shutil.rmtree(output_dir, ignore_errors=True)
    flags = [*flags_for(model, output_dir, 0), *further, "--max_steps", "5", "--eval_examples", "64"]
    arguments = parse_recipe("arrows_9x9", flags)
    # The peak of the imports is forgotten.
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_kib()
    train(*arguments)
    return (_peak_kib() - before) / 1024


def _peak_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """So that memory and threads are its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main(output_dir: Path) -> None:
    """Run all of it and write the results."""
    if not (output_dir / "source").is_dir():
        train_source(output_dir)
    models = {size: output_dir / f"blocks_of_{size}" for size in (2, 8)}
    for size, directory in models.items():
        if not directory.is_dir():
            convert_source(output_dir / "source", directory, size)
    untuned = {
        f"{cells} x {cells}": 100 * evaluate_on(models[2], cells, output_dir / "evaluation") for cells in (5, CELLS)
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in TUNINGS}
    for seed in track(SEEDS, description="Tuning"):
        for name, (block_size, further) in TUNINGS.items():
            directory = output_dir / f"seed{seed}" / name.replace(", ", "_").replace(" ", "_")
            path = directory.with_suffix(".json")
            if not path.is_file():
                write_json(path, in_new_process(tune, models[block_size], directory, seed, further))
            runs[name].append(json.loads(path.read_text()))
    rows = {}
    for name, (block_size, further) in TUNINGS.items():
        each = runs[name]
        accuracies = [run["accuracy"] for run in each]
        rows[name] = {
            "accuracy, %": {**over_seeds(accuracies)._asdict(), "seeds": accuracies},
            "trained_parameters": each[0]["trained_parameters"],
            "memory_mib": in_new_process(peak_memory, models[block_size], output_dir / "memory", further),
            "seconds": over_seeds([run["seconds"] for run in each]).mean,
        }
        print(f"{name:<40} {interval_text(*over_seeds(accuracies))} %")
    reference = rows["rotations and classifier"]["accuracy, %"]["seeds"]
    p_values = {
        name: paired_permutation_test(row["accuracy, %"]["seeds"], reference)
        for name, row in rows.items()
        if name != "rotations and classifier"
    }
    results = {"untuned": untuned, "tuned": rows, "p, against rotations and classifier": p_values}
    write_json(output_dir / "results.json", results | {"hardware": hardware()})


def evaluate_on(model: Path, cells: int, output_dir: Path) -> float:
    """The accuracy on a canvas."""
    recipe = "arrows_demo" if cells == 5 else "arrows_9x9"
    flags = ["--model_name_or_path", model, "--input_size", cells * CELL_SIZE, "--output_dir", output_dir]
    return evaluate(*parse_recipe(recipe, [*map(str, flags), "--disable_tqdm", "true"]))["accuracy"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
