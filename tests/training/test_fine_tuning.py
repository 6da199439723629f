"""The recipe imagefolder_finetune without further options, from the released checkpoint, on few drawn pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from liere_hf.configuration import parse_recipe
from liere_hf.training.run import train

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "fashion_mnist_liere8"
SHAPES = ("circle", "square", "triangle")


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


@pytest.mark.end_to_end
@pytest.mark.parametrize(("classes", "pictures", "others", "accuracy"), [(3, 40, 15, 0.95), (2, 10, 30, 0.9)])
def test_few_pictures_are_enough(tmp_path, classes, pictures, others, accuracy):
    """40 or 10 pictures of each class; tested on others."""
    for split, count in (("train", pictures), ("test", others)):
        for label, shape in enumerate(SHAPES[:classes]):
            folder = tmp_path / "data" / split / shape
            folder.mkdir(parents=True)
            for number in range(count):
                draw(shape, np.random.default_rng([label, number, count])).save(folder / f"{number}.png")
    flags = ["--model_name_or_path", CHECKPOINT, "--data_dir", tmp_path / "data", "--output_dir", tmp_path / "run"]
    flags += ["--use_cpu", "true", "--disable_tqdm", "true"]
    metrics = train(*parse_recipe("imagefolder_finetune", list(map(str, flags))))
    assert metrics["eval_accuracy"] >= accuracy
