"""From transformers' ViT to LieRE: convert a trained ViT, fine-tune it as a LieRE8, compare with one from scratch.

A small ViT is trained on Fashion-MNIST (ten classes, 60,000 images) with transformers. `liere-hf convert` converts it
to a LieRE8 that computes the same. The LieRE8 is fine-tuned to classify five of the classes, with 50 images of each in
class folders, once with its absolute table and once with a table that shrinks to zero. The same model is also trained
from scratch with the same number of steps. All of this is repeated for several seeds, which determine the images, the
new head, the order of the data and, from scratch, all weights. Run it as

    python examples/fine_tune_converted_vit.py FASHION_MNIST_DIR OUTPUT_DIR

with the four idx files in FASHION_MNIST_DIR (`make fashion-mnist` puts them in .cache/fashion-mnist). The results are
written to OUTPUT_DIR/results.json. It takes about a quarter of an hour on two CPU cores.
"""

import statistics
import sys
from pathlib import Path

import datasets
import numpy as np
import scipy.stats
from rich.progress import track
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from liere_hf import LiereViTConfig, LiereViTForImageClassification
from liere_hf.configuration import DataArguments, parse_recipe
from liere_hf.conversion import ConversionOptions, convert
from liere_hf.data import Splits, load_splits
from liere_hf.data.batching import EvaluationExamples
from liere_hf.data.resizing.images import EvaluationImages
from liere_hf.data.resizing.processors import build_processor
from liere_hf.hardware import hardware
from liere_hf.metric_display import with_interval
from liere_hf.output_files import write_json
from liere_hf.training.run import train

VIT_STEPS = 1000
ANNEALING_STEPS = 150
SEEDS = 5
CLASSES = ("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
IMAGES_PER_CLASS = 50


def train_vit(data: Splits, directory: Path) -> None:
    """A ViT of 0.5 M parameters on Fashion-MNIST, by transformers' own classes."""
    set_seed(0)
    processor = build_processor("image", LiereViTConfig(image_size=28, patch_size=4), DataArguments())
    images = EvaluationExamples(data.train, "image", EvaluationImages(processor))
    config = ViTConfig(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=2, intermediate_size=256,
        image_size=28, patch_size=4, initializer_range=0.05, id2label=dict(enumerate(data.label_names)),
    )  # fmt: skip
    training_arguments = TrainingArguments(
        str(directory / "training"), max_steps=VIT_STEPS, per_device_train_batch_size=128, learning_rate=1e-3,
        lr_scheduler_type="cosine", warmup_steps=50, report_to="none", save_strategy="no", use_cpu=True,
        dataloader_pin_memory=False, disable_tqdm=True,
    )  # fmt: skip
    model = ViTForImageClassification(config)
    Trainer(model, training_arguments, train_dataset=images).train()
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


def write_small_set(data: Splits, directory: Path, seed: int) -> Path:
    """Class folders of the five classes: few images in `train`, all test images in `test`."""
    generator = np.random.default_rng(seed)
    for split, dataset in (("train", data.train), ("test", data.test)):
        dataset = dataset.cast_column("image", datasets.Image(decode=False))
        labels = np.array(dataset["label"])
        for name in CLASSES:
            rows = np.flatnonzero(labels == data.label_names.index(name))
            if split == "train":
                rows = generator.choice(rows, IMAGES_PER_CLASS, replace=False)
            folder = directory / split / name
            folder.mkdir(parents=True)
            for row, image in zip(rows, dataset.select(rows)["image"], strict=True):
                (folder / f"{row}.pgm").write_bytes(image["bytes"])
    return directory


def fine_tune(checkpoint: Path, data_dir: Path, output_dir: Path, seed: int, *flags: str) -> float:
    """Train with the recipe `digits_finetune` on the small set, and return the accuracy on its test images."""
    flags = (
        "--model_name_or_path", str(checkpoint), "--output_dir", str(output_dir), "--dataset", "imagefolder",
        "--data_dir", str(data_dir), "--eval_strategy", "no", "--use_cpu", "true", "--seed", str(seed),
        "--disable_tqdm", "true", *flags,
    )  # fmt: skip
    return train(*parse_recipe("digits_finetune", flags))["eval_accuracy"]


def from_scratch(converted: Path, directory: Path, seed: int) -> Path:
    """A model with new weights and the architecture of the converted one, without the table."""
    set_seed(seed)
    config = LiereViTConfig.from_pretrained(converted, use_absolute_position_embeddings=False)
    LiereViTForImageClassification(config).save_pretrained(directory)
    build_processor("image", config, DataArguments()).save_pretrained(directory)
    return directory


def mean_with_interval(values: list[float]) -> dict[str, float]:
    """The mean over seeds and its 95% interval (Student's t)."""
    mean = statistics.mean(values)
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, mean, scipy.stats.sem(values))
    return {"accuracy": mean, "accuracy_low": low, "accuracy_high": high}


def main(data_dir: str, output_dir: Path) -> None:
    """Run all of it and write the results."""
    data = load_splits(DataArguments(dataset="fashion_mnist", data_dir=data_dir), seed=0)
    train_vit(data, output_dir / "vit")
    converted = output_dir / "liere8"
    convert(str(output_dir / "vit"), converted, "vit", ConversionOptions(generator_block_size=8))
    accuracies = {"converted": [], "converted, table annealed": [], "from scratch": []}
    for seed in track(range(SEEDS), description="Fine-tuning"):
        runs = output_dir / f"seed{seed}"
        images = write_small_set(data, runs / "images", seed)
        scratch = from_scratch(converted, runs / "scratch", seed)
        anneal = ("--anneal_position_embeddings_steps", str(ANNEALING_STEPS))
        accuracies["converted"].append(fine_tune(converted, images, runs / "converted_tuned", seed))
        accuracies["converted, table annealed"].append(
            fine_tune(converted, images, runs / "annealed_tuned", seed, *anneal)
        )
        accuracies["from scratch"].append(fine_tune(scratch, images, runs / "scratch_tuned", seed))

    rows = {name: {**mean_with_interval(values), "seeds": values} for name, values in accuracies.items()}
    gain = [ours - theirs for ours, theirs in zip(accuracies["converted"], accuracies["from scratch"], strict=True)]
    rows["gain of converted"] = {**mean_with_interval(gain), "seeds": gain}
    for name, row in rows.items():
        print(f"{name:<26} {with_interval(row, 'accuracy')} %")
    write_json(output_dir / "results.json", {"fine_tuning": rows, "vit_steps": VIT_STEPS, "hardware": hardware()})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
