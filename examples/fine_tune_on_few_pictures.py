"""How many pictures fine-tuning needs: drawn shapes of any size at any place, by a checkpoint trained on clothes.

The checkpoint is the LieRE8 of checkpoints/, trained on Fashion-MNIST. The recipe `imagefolder_finetune` is used
without flags but the paths. The pictures for training and for testing are drawn with different seeds.

    python examples/fine_tune_on_few_pictures.py OUTPUT_DIR

The results are written to OUTPUT_DIR/results.json. It takes about three minutes on one CPU core.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from liere_hf.configuration import parse_recipe
from liere_hf.hardware import hardware
from liere_hf.metric_display import with_interval
from liere_hf.output_files import write_json
from liere_hf.training.run import train

CHECKPOINT = Path(__file__).parent.parent / "checkpoints" / "liere-fashion-mnist"
SHAPES = ("circle", "square", "triangle")
# Number of shapes, and of pictures of each for training and for testing.
CASES = ((3, 40, 15), (2, 10, 30))
FLAGS = ["--use_cpu", "true", "--disable_tqdm", "true"]


def draw(shape: str, random: np.random.Generator, size: int = 64) -> Image.Image:
    """A bright shape of any size at any place, on noise."""
    picture = Image.new("L", (size, size), int(random.integers(60)))
    canvas, radius = ImageDraw.Draw(picture), random.integers(10, 22)
    x, y = random.integers(radius + 2, size - radius - 2, size=2)
    box, color = [x - radius, y - radius, x + radius, y + radius], int(random.integers(140, 255))
    if shape == "circle":
        canvas.ellipse(box, fill=color)
    elif shape == "square":
        canvas.rectangle(box, fill=color)
    else:
        canvas.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=color)
    noisy = np.asarray(picture).astype(int) + random.integers(-15, 16, size=(size, size))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_pictures(directory: Path, classes: int, pictures: int, others: int) -> Path:
    """Class folders of drawn pictures, `pictures` a class below `train` and `others` below `validation`."""
    for split, count in (("train", pictures), ("validation", others)):
        for label, shape in enumerate(SHAPES[:classes]):
            folder = directory / split / shape
            folder.mkdir(parents=True)
            for number in range(count):
                draw(shape, np.random.default_rng([label, number, count])).save(folder / f"{number}.png")
    return directory


def fine_tune(output_dir: Path, classes: int, pictures: int, others: int) -> dict[str, float]:
    """The metrics on the other pictures."""
    data = write_pictures(output_dir / "pictures", classes, pictures, others)
    flags = ["--model_name_or_path", CHECKPOINT, "--data_dir", data, "--output_dir", output_dir / "run"]
    metrics = train(*parse_recipe("imagefolder_finetune", [*map(str, flags), *FLAGS]))
    return {name.removeprefix("eval_"): value for name, value in metrics.items()}


def main(output_dir: Path) -> None:
    """Run all of it and write the results."""
    rows = []
    for classes, pictures, others in CASES:
        metrics = fine_tune(output_dir / f"{classes}_classes", classes, pictures, others)
        rows.append({"classes": classes, "pictures": classes * pictures, "tested_on": classes * others})
        rows[-1] |= {name: metrics[name] for name in ("accuracy", "accuracy_low", "accuracy_high")}
        print(f"{classes * pictures} pictures of {classes} classes: {with_interval(metrics, 'accuracy')}")
        write_json(output_dir / "results.json", {"fine_tuning": rows, "hardware": hardware()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
