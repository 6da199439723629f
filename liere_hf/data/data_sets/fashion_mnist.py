"""Fashion-MNIST (arXiv 1708.07747): 70,000 images of 28 x 28 pixels in ten classes."""

import gzip
from pathlib import Path

import numpy as np

from ...configuration import DATASETS, DataArguments
from ...errors import InputError
from ...modeling.configuration_liere_vit import LiereViTConfig
from .files import existing_directory
from .hub import from_hub
from .splits import Splits
from .tables import table_of_images

LABELS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def load_fashion_mnist(arguments: DataArguments, config: LiereViTConfig | None) -> Splits:
    """From the four idx files in `data_dir` (plain or .gz), else from the Hub."""
    if arguments.data_dir is None:
        splits = from_hub(arguments.hub_id or DATASETS["fashion_mnist"].hub_id)
        return Splits.of(splits["train"], test=splits["test"])
    directory = existing_directory(arguments.data_dir)
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = _read_idx(directory, f"{prefix}-images-idx3-ubyte")
        labels = _read_idx(directory, f"{prefix}-labels-idx1-ubyte")
        if len(images) != len(labels):
            raise InputError(f"{directory} has {len(images)} {prefix} images but {len(labels)} labels")
        if labels.max(initial=0) >= len(LABELS):
            raise InputError(f"{directory} has the {prefix} label {labels.max()}, allowed are 0 to {len(LABELS) - 1}")
        splits[split] = table_of_images(images, labels, LABELS)
    return Splits.of(**splits)


def _read_idx(directory: Path, name: str) -> np.ndarray:
    """An idx file of unsigned bytes: two zero bytes, the type 8, the number of axes, the sizes, the data."""
    for path in (directory / name, directory / f"{name}.gz"):
        if path.is_file():
            break
    else:
        raise InputError(f"data_dir {directory} lacks {name} (or {name}.gz)")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        num_axes = content[3]
        shape = np.frombuffer(content, ">i4", num_axes, 4)
        if content[:3] != b"\x00\x00\x08":
            raise ValueError("not an idx file of unsigned bytes")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise InputError(f"{path} is corrupt: {error}") from error
