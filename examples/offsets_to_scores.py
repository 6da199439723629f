"""How position encodings turn the places of two patches into scores: absolute, RoPE-Mixed and LieRE side by side.

Draws `figure.png` in a directory that holds, for each encoding, the parameters of the positions of a small model, and
writes the numbers to `scores.json`:

    python examples/offsets_to_scores.py results/offsets_to_scores

With `--train`, it first trains these models and writes their parameters there. They classify scikit-learn's digits,
one patch a pixel, so that the grid has 8 x 8 patches. That takes a minute or two on a CPU core.
"""

import argparse
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

from liere_hf import grid_positions
from liere_hf.configuration import compared_encodings, parse_recipe
from liere_hf.hardware import hardware
from liere_hf.modeling.rotations import liere_rotations
from liere_hf.output_files import write_json
from liere_hf.plots import rotation_scores, table_similarities
from liere_hf.training.run import train

ENCODINGS = ("absolute", "RoPE-Mixed", "LieRE8")
# Ends of the names of what a model learns about positions.
PARAMETERS = ("position_embeddings", "generators")
SIDE = 8
# (row, column) of patches whose scores with all others are shown.
QUERIES = ((1, 1), (4, 5))
FLAGS = {
    "patch_size": 1,
    "num_hidden_layers": 2,
    "per_device_train_batch_size": 16,
    "max_steps": 300,
    "eval_strategy": "no",
    "save_strategy": "no",
    "random_crop_padding": 1,
    "dataloader_num_workers": 0,
}


def train_positions(directory: Path) -> None:
    """Train a model for each encoding, and write what it learned about positions to `ENCODING.safetensors`."""
    accuracies = {}
    for title in ENCODINGS:
        encoding = compared_encodings()[title]
        with tempfile.TemporaryDirectory() as run:
            flags = FLAGS | encoding.options | {"output_dir": run}
            words = [f"--{name}={value}" for name, value in flags.items()]
            # Generators that do not commute: others start as planar rotations.
            metrics = train(*parse_recipe("digits", words, preset="published"))
            model = AutoModelForImageClassification.from_pretrained(run)
        learned = {name: value for name, value in model.state_dict().items() if name.endswith(PARAMETERS)}
        directory.mkdir(parents=True, exist_ok=True)
        save_file(learned, directory / f"{encoding.name}.safetensors")
        accuracies[title] = metrics["eval_accuracy"]
    write_json(directory / "training.json", {"accuracy": accuracies, "hardware": hardware()})


def place_scores(directory: Path, title: str) -> torch.Tensor:
    """Scores between equal contents at every two patches, (rows, columns, rows, columns); 1 at one place.

    With rotations, those of the first head of the first layer. For a table, the cosine similarity of its entries.
    """
    (parameters,) = load_file(directory / f"{compared_encodings()[title].name}.safetensors").values()
    if title == "absolute":
        scores = table_similarities(parameters[0].double())
    else:
        positions = grid_positions((SIDE, SIDE), (SIDE, SIDE), dtype=torch.float64)
        (scores,) = rotation_scores(liere_rotations(positions[None], parameters[:1, :, :1].double())[0, 0])
    return scores.unflatten(0, (SIDE, SIDE)).unflatten(-1, (SIDE, SIDE))


def spread(scores: torch.Tensor) -> float:
    """Standard deviation of scores between pairs with the same offset, over all pairs. 0: only the offset counts."""
    places = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE))
    offsets = (places[:, None] - places[None]).flatten(0, 1) @ torch.tensor([2 * SIDE, 1])
    _, offsets = offsets.unique(return_inverse=True)
    scores = scores.reshape(-1)
    means = offsets.bincount(scores) / offsets.bincount()
    return (scores - means[offsets]).square().mean().sqrt().item()


def draw(path: Path, scores: dict[str, torch.Tensor]) -> None:
    """A column for each encoding, a row for each query."""
    figure, grid = plt.subplots(len(QUERIES), len(scores), figsize=(7.6, 4.9), layout="constrained")
    for column, (title, each) in zip(grid.T, scores.items(), strict=True):
        for axes, (row, place) in zip(column, QUERIES, strict=True):
            image = axes.imshow(each[row, place].numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
            axes.plot(place, row, "k+", markersize=10)
            axes.set(xticks=[], yticks=[])
        column[0].set_title(title)
        column[-1].set_xlabel(f"spread at an offset: {spread(each):.2f}")
    for axes, (row, place) in zip(grid[:, 0], QUERIES, strict=True):
        axes.set_ylabel(f"patch at row {row + 1}, column {place + 1}")
    figure.colorbar(image, ax=grid, label="score between equal contents", shrink=0.8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--train", action="store_true", help="train the models first")
    arguments = parser.parse_args()
    if arguments.train:
        train_positions(arguments.directory)
    scores = {title: place_scores(arguments.directory, title) for title in ENCODINGS}
    draw(arguments.directory / "figure.png", scores)
    shown = {
        title: {
            "spread": round(spread(each), 4),
            "scores": [[[round(value, 4) for value in row] for row in each[query].tolist()] for query in QUERIES],
        }
        for title, each in scores.items()
    }
    write_json(arguments.directory / "scores.json", {"queries": QUERIES, "encodings": shown})


if __name__ == "__main__":
    main()
