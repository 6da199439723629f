"""What a trained checkpoint is worth on other data: fine-tuning it, against the same model with new weights.

    python examples/fine_tune_checkpoint.py clothes|digits|clips OUTPUT_DIR

`clothes`: the LieRE8 of checkpoints/, trained on 60,000 pictures of Fashion-MNIST, on 2,000 others of its test split
in five new classes, with the recipe `imagefolder_finetune`. `make fashion-mnist` downloads them.

`digits`: the same model and recipe on scikit-learn's 1,797 handwritten digits.

`clips`: the video model of checkpoints/, which has learned in which of eight directions a square moves, on 100 MP4
files in which discs move in four directions, with the recipe `clips_finetune`; 200 further files are the test split.

A fifth of the pictures is the test split. The recipes are used without flags but the paths. The other model has the
same architecture, recipe and number of steps, and new weights. The seed determines the pictures or clips, the test
split, the held-out examples, the order of the data and the new weights. The results are written to
OUTPUT_DIR/results.json. Runs that are finished are not repeated.
"""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from datasets import Image as Encoded
from PIL import Image, ImageDraw
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from liere_hf import LiereViTConfig
from liere_hf.configuration import DataArguments, parse_recipe
from liere_hf.data import load_splits
from liere_hf.data.decoding.images import decode_image
from liere_hf.hardware import hardware
from liere_hf.metric_display import interval_text
from liere_hf.model_loading import classifier_class
from liere_hf.output_files import new_directory, write_json
from liere_hf.reproduction.statistics import over_seeds, paired_permutation_test
from liere_hf.training.run import train

ROOT = Path(__file__).parent.parent
CLOTHES_MODEL, CLIPS_MODEL = ROOT / "checkpoints" / "liere-fashion-mnist", ROOT / "checkpoints" / "liere-clips"
FASHION_MNIST = ROOT / ".cache" / "fashion-mnist"
SEEDS = range(5)
NUM_CLOTHES = 2000
CLOTHES = {
    "tops": ("T-shirt/top", "Pullover", "Coat", "Shirt"),
    "trousers": ("Trouser",),
    "dresses": ("Dress",),
    "footwear": ("Sandal", "Sneaker", "Ankle boot"),
    "bags": ("Bag",),
}
# The directions in which a disc moves: to the right, and downwards.
MOTIONS = {"to the right": (1, 0), "to the left": (-1, 0), "upwards": (0, -1), "downwards": (0, 1)}
CLIPS = {"train": 100, "test": 200}
WIDTH, HEIGHT, NUM_FRAMES, RADIUS = 64, 48, 24, 5
NUM_STILL_DISCS = 3
FLAGS = ["--use_cpu", "true", "--disable_tqdm", "true"]


def write_clothes(directory: Path, seed: int) -> None:
    """2,000 pictures of Fashion-MNIST's test split."""
    table = load_splits(DataArguments(dataset="fashion_mnist", data_dir=str(FASHION_MNIST)), seed).test
    table = table.shuffle(seed).select(range(NUM_CLOTHES))
    new_class = {name: new for new, names in CLOTHES.items() for name in names}
    pictures = [decode_image(image)[0].numpy() for image in table.cast_column("image", Encoded(decode=False))["image"]]
    names = table.features["label"].names
    write_pictures(directory, pictures, [new_class[names[label]] for label in table["label"]], seed)


def write_digits(directory: Path, seed: int) -> None:
    """All digits of scikit-learn."""
    digits = load_digits()
    pictures = (digits.images / 16 * 255).astype(np.uint8)
    write_pictures(directory, pictures, [str(digit) for digit in digits.target], seed)


def write_pictures(directory: Path, pictures: Sequence[np.ndarray], labels: Sequence[str], seed: int) -> None:
    """Pictures as PNG files in class folders, below `train` and, a fifth of them, `test`."""
    splits = train_test_split(range(len(labels)), test_size=0.2, random_state=seed, stratify=labels)
    for split, chosen in zip(("train", "test"), splits, strict=True):
        for row in chosen:
            path = directory / split / labels[row] / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pictures[row]).save(path)


def write_clips(directory: Path, seed: int) -> None:
    """MP4 files in class folders, below `train` and `test`."""
    for number, (split, count) in enumerate(CLIPS.items()):
        for index in range(count):
            motion = [*MOTIONS][index % len(MOTIONS)]
            path = directory / split / motion / f"{index}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            with av.open(str(path), "w") as container:
                stream = container.add_stream("mpeg4", rate=12)
                stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 2_000_000
                for picture in draw_clip(motion, np.random.default_rng([seed, number, index])):
                    container.mux(stream.encode(av.VideoFrame.from_image(picture)))
                container.mux(stream.encode(None))


def draw_clip(motion: str, random: np.random.Generator) -> list[Image.Image]:
    """Frames of one moving disc among still ones, all of one color, in noise. It stays within the middle."""
    color, step = tuple(random.integers(120, 256, 3)), random.uniform(0.8, 1.4) * np.array(MOTIONS[motion])
    way = step * (NUM_FRAMES - 1)
    # Centers from which the disc stays within the square, as (x, y).
    offset = np.array([(WIDTH - HEIGHT) / 2, 0])
    low = offset + RADIUS + np.maximum(0, -way)
    high = offset + HEIGHT - RADIUS - np.maximum(0, way)
    start, still = random.uniform(low, high), random.uniform((0, 0), (WIDTH, HEIGHT), (NUM_STILL_DISCS, 2))
    frames = []
    for index in range(NUM_FRAMES):
        frame = Image.fromarray(random.integers(0, 40, (HEIGHT, WIDTH, 3), np.uint8))
        for x, y in (*still, start + index * step):
            ImageDraw.Draw(frame).ellipse((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS), color)
        frames.append(frame)
    return frames


class Study(NamedTuple):
    """A recipe, the checkpoint that it starts from, and what writes the files that it trains on."""

    recipe: str
    checkpoint: Path
    write: Callable[[Path, int], None]


STUDIES = {
    "clothes": Study("imagefolder_finetune", CLOTHES_MODEL, write_clothes),
    "digits": Study("imagefolder_finetune", CLOTHES_MODEL, write_digits),
    "clips": Study("clips_finetune", CLIPS_MODEL, write_clips),
}


def write_new_model(checkpoint: Path, directory: Path, seed: int) -> None:
    """The checkpoint's architecture and processor, with new weights."""
    set_seed(seed)
    config = LiereViTConfig.from_pretrained(checkpoint)
    classifier_class(config)(config).save_pretrained(directory)
    for path in checkpoint.glob("*preprocessor_config.json"):
        shutil.copy(path, directory)


def fine_tune(recipe: str, model: Path, files: Path, output_dir: Path, seed: int) -> float:
    """The accuracy on the test split."""
    results = output_dir / "test_results.json"
    if results.is_file():
        return json.loads(results.read_text())["test_accuracy"]
    resume = output_dir.is_dir() and get_last_checkpoint(str(output_dir)) is not None
    flags = ["--resume_from_checkpoint", str(resume).lower(), "--model_name_or_path", model, "--data_dir", files]
    flags += ["--output_dir", output_dir, "--seed", seed, *FLAGS]
    return train(*parse_recipe(recipe, [*map(str, flags)]))["test_accuracy"]


def main(subject: str, output_dir: Path) -> None:
    """Run all of it and write the results."""
    study = STUDIES[subject]
    accuracies: dict[str, list[float]] = {"checkpoint": [], "new weights": []}
    for seed in track(SEEDS, description="Fine-tuning"):
        runs = output_dir / f"seed{seed}"
        models = {"checkpoint": study.checkpoint, "new weights": runs / "new"}
        if not (runs / "files").is_dir():
            with new_directory(runs / "files") as unfinished:
                study.write(unfinished, seed)
        if not models["new weights"].is_dir():
            write_new_model(study.checkpoint, models["new weights"], seed)
        for name, model in models.items():
            directory = runs / name.replace(" ", "_")
            accuracies[name].append(100 * fine_tune(study.recipe, model, runs / "files", directory, seed))

    first, second = accuracies.values()
    accuracies["gain"] = [one - other for one, other in zip(first, second, strict=True)]
    rows = {name: {**over_seeds(values)._asdict(), "seeds": values} for name, values in accuracies.items()}
    for name, values in accuracies.items():
        print(f"{name:<12} {interval_text(*over_seeds(values))}")
    results = {"accuracy, %": rows, "p": paired_permutation_test(first, second), "hardware": hardware()}
    write_json(output_dir / "results.json", results)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
