"""Difference between an inflated model and the image model on a still clip, by the number of tubelets.

Among the patches of many tubelets, the CLS token has a smaller share of attention than among those of one. A bias on
its scores restores the share (`balance_prefix`). Run it as

    python examples/inflate_image_model.py FASHION_MNIST_DIR RESULTS_FILE MODEL...

with the four idx files in FASHION_MNIST_DIR and image models of Fashion-MNIST: the committed checkpoint, and the model
that examples/fine_tune_converted_vit.py converts. It takes about two minutes on two CPU cores.
"""

import sys
from pathlib import Path

import torch
from rich.progress import track
from transformers import AutoImageProcessor

from liere_hf import LiereViTForImageClassification
from liere_hf.configuration import DataArguments
from liere_hf.conversion import inflate
from liere_hf.data import load_splits
from liere_hf.data.batching import EvaluationExamples
from liere_hf.data.resizing.images import EvaluationImages
from liere_hf.hardware import hardware
from liere_hf.output_files import write_json

NUM_IMAGES = 200
TUBELETS = (1, 2, 4, 8)


@torch.no_grad()
def deviations(model: LiereViTForImageClassification, pixel_values: torch.Tensor) -> list[dict[str, float]]:
    """Differences of the logits of still clips from those of images, and agreement of the classes.

    One row for each number of tubelets, which have one frame each.
    """
    expected = model(pixel_values).logits
    rows = []
    for num_tubelets in TUBELETS:
        row = {"tubelets": num_tubelets}
        for name, balance_prefix in (("plain", False), ("balanced", True)):
            video_model = inflate(model, num_tubelets, tubelet=1, balance_prefix=balance_prefix)
            clips = pixel_values[:, None].expand(-1, num_tubelets, -1, -1, -1)
            logits = torch.cat([video_model(batch).logits for batch in clips.split(50)])
            row[f"{name}_largest"] = (logits - expected).abs().max().item()
            row[f"{name}_mean"] = (logits - expected).abs().mean().item()
            row[f"{name}_same_class"] = (logits.argmax(1) == expected.argmax(1)).float().mean().item()
        rows.append(row)
    return rows


def main(data_dir: str, results_file: Path, directories: list[str]) -> None:
    """Measure every model on the same test images."""
    data = load_splits(DataArguments(dataset="fashion_mnist", data_dir=data_dir), seed=0)
    results = {}
    for directory in track(directories, description="Inflating"):
        model = LiereViTForImageClassification.from_pretrained(directory)
        processor = AutoImageProcessor.from_pretrained(directory)
        images = EvaluationExamples(data.test.select(range(NUM_IMAGES)), "image", EvaluationImages(processor))
        pixel_values = torch.stack([image["pixel_values"] for image in images.__getitems__(list(range(NUM_IMAGES)))])
        results[model.config.pooling] = deviations(model, pixel_values)
    write_json(results_file, {"pooling": results, "images": NUM_IMAGES, "hardware": hardware()})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
