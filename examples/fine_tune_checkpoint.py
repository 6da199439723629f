"""What a released checkpoint is worth on other data: fine-tuning it on 1,797 pictures, against the same model anew.

The checkpoint is the LieRE8 of checkpoints/, trained on Fashion-MNIST. The pictures are scikit-learn's handwritten
digits in class folders: a fifth of them, chosen by the seed, is the test split. The recipe `imagefolder_finetune` is
used without flags but the paths. The other model has the same architecture, recipe and number of steps, and new
weights. The seed determines the test pictures, the held-out pictures, the order of the data and the new weights.

    python examples/fine_tune_checkpoint.py OUTPUT_DIR

The results are written to OUTPUT_DIR/results.json. Runs that are finished are not repeated. It takes about an hour on
one CPU core.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import AutoImageProcessor, set_seed
from transformers.trainer_utils import get_last_checkpoint

from liere_hf import LiereViTConfig, LiereViTForImageClassification
from liere_hf.configuration import parse_recipe
from liere_hf.hardware import hardware
from liere_hf.metric_display import interval_text
from liere_hf.output_files import new_directory, write_json
from liere_hf.reproduction.statistics import over_seeds, paired_permutation_test
from liere_hf.training.run import train

CHECKPOINT = Path(__file__).parent.parent / "checkpoints" / "fashion_mnist_liere8"
SEEDS = range(5)


def write_pictures(directory: Path, seed: int) -> Path:
    """All digits as PNG files in class folders, below `train` and `test`."""
    digits = load_digits()
    rows = np.arange(len(digits.target))
    splits = train_test_split(rows, test_size=0.2, random_state=seed, stratify=digits.target)
    for split, chosen in zip(("train", "test"), splits, strict=True):
        for row in chosen:
            path = directory / split / str(digits.target[row]) / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[row] / 16 * 255).astype(np.uint8)).save(path)
    return directory


def new_model(directory: Path, seed: int) -> Path:
    """The checkpoint's architecture and processor, with new weights."""
    set_seed(seed)
    LiereViTForImageClassification(LiereViTConfig.from_pretrained(CHECKPOINT)).save_pretrained(directory)
    AutoImageProcessor.from_pretrained(CHECKPOINT).save_pretrained(directory)
    return directory


def fine_tune(model: Path, pictures: Path, output_dir: Path, seed: int) -> float:
    """The accuracy on the test split."""
    results = output_dir / "test_results.json"
    if results.is_file():
        return json.loads(results.read_text())["test_accuracy"]
    resume = output_dir.is_dir() and get_last_checkpoint(str(output_dir)) is not None
    flags = ["--resume_from_checkpoint", str(resume).lower(), "--use_cpu", "true", "--disable_tqdm", "true"]
    flags += ["--model_name_or_path", model, "--data_dir", pictures, "--output_dir", output_dir, "--seed", seed]
    return train(*parse_recipe("imagefolder_finetune", [*map(str, flags)]))["test_accuracy"]


def main(output_dir: Path) -> None:
    """Run all of it and write the results."""
    accuracies: dict[str, list[float]] = {"checkpoint": [], "new weights": []}
    for seed in track(SEEDS, description="Fine-tuning"):
        runs = output_dir / f"seed{seed}"
        if not (runs / "pictures").is_dir():
            with new_directory(runs / "pictures") as unfinished:
                write_pictures(unfinished, seed)
        models = {"checkpoint": CHECKPOINT, "new weights": runs / "new"}
        if not models["new weights"].is_dir():
            new_model(models["new weights"], seed)
        for name, model in models.items():
            directory = runs / name.replace(" ", "_")
            accuracies[name].append(100 * fine_tune(model, runs / "pictures", directory, seed))

    first, second = accuracies.values()
    accuracies["gain"] = [one - other for one, other in zip(first, second, strict=True)]
    rows = {name: {**over_seeds(values)._asdict(), "seeds": values} for name, values in accuracies.items()}
    for name, values in accuracies.items():
        print(f"{name:<12} {interval_text(*over_seeds(values))}")
    results = {"accuracy, %": rows, "p": paired_permutation_test(first, second), "hardware": hardware()}
    write_json(output_dir / "results.json", results)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
