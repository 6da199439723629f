"""The data sets of the recipes: `datasets.Dataset`s with an `Image` column and a `ClassLabel` column, `label`."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import PIL

from ..configuration import DataArguments
from ..errors import InputError
from .arrows import ArrowsTask
from .png import encode_png

# Evaluation drawings start here, far behind any training drawing.
ARROWS_EVAL_START = 1_000_000_000
ARROWS_TRAIN_EXAMPLES, ARROWS_EVAL_EXAMPLES = 800_000, 10_000

FASHION_MNIST_HUB_ID = "zalando-datasets/fashion_mnist"
FASHION_MNIST_LABELS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

IMAGE_FOLDER_EVAL_SPLITS = ("test", "validation", "val")


class ImageData(NamedTuple):
    """Training and evaluation examples, and the names of the images that were left out because they are corrupt."""

    train: datasets.Dataset
    test: datasets.Dataset
    skipped_images: list[str]

    @property
    def label_names(self) -> list[str]:
        return self.train.features["label"].names


def load_data(arguments: DataArguments, seed: int) -> ImageData:
    """Load the data set that the arguments name.

    Args:
        seed: of the held-out split and of subsets.

    Raises:
        InputError: no data set named, or files that are missing or cannot be read.
    """
    if arguments.dataset is None:
        raise InputError(f"dataset is not given, allowed are {', '.join(LOADERS)}")
    data = LOADERS[arguments.dataset](arguments, seed)
    return data._replace(
        train=_subset(data.train, "train_examples", arguments.train_examples, seed),
        test=_subset(data.test, "eval_examples", arguments.eval_examples, seed),
    )


def arrows_task(arguments: DataArguments) -> ArrowsTask:
    """The setting of the spatial-reasoning task that the arguments describe."""
    try:
        return ArrowsTask(
            grid_size=arguments.arrows_grid_size,
            cell_size=arguments.arrows_cell_size,
            num_distractor_arrows=arguments.arrows_num_distractor_arrows,
            num_distractor_letters=arguments.arrows_num_distractor_letters,
            seed=arguments.arrows_seed,
        )
    except ValueError as error:
        raise InputError(f"arrows: {error}") from error


def load_arrows(arguments: DataArguments, seed: int) -> ImageData:
    """The paper's spatial-reasoning task, drawn by worker processes."""
    task = arrows_task(arguments)
    num_proc = _num_proc(arguments)
    num_eval = arguments.eval_examples or ARROWS_EVAL_EXAMPLES
    return ImageData(
        train=task.dataset(0, arguments.train_examples or ARROWS_TRAIN_EXAMPLES, num_proc),
        test=task.dataset(ARROWS_EVAL_START, ARROWS_EVAL_START + num_eval, num_proc),
        skipped_images=[],
    )


def load_fashion_mnist(arguments: DataArguments, seed: int) -> ImageData:
    """Fashion-MNIST from the four idx files in `data_dir` (plain or .gz), else from the Hub."""
    if arguments.data_dir is None:
        try:
            splits = datasets.load_dataset(FASHION_MNIST_HUB_ID)
        except Exception as error:
            raise InputError(
                f"{FASHION_MNIST_HUB_ID} could not be loaded from the Hub ({type(error).__name__}); give data_dir, a "
                "directory with the four idx files, to read local ones"
            ) from error
        return ImageData(splits["train"], splits["test"], [])
    directory = _existing_directory(arguments.data_dir)
    splits = []
    for prefix in ("train", "t10k"):
        images = _read_idx(directory, f"{prefix}-images-idx3-ubyte")
        labels = _read_idx(directory, f"{prefix}-labels-idx1-ubyte")
        if len(images) != len(labels):
            raise InputError(f"{directory} has {len(images)} {prefix} images but {len(labels)} labels")
        splits.append(_from_arrays(images, labels, FASHION_MNIST_LABELS))
    return ImageData(*splits, [])


def load_digits(arguments: DataArguments, seed: int) -> ImageData:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, `eval_fraction` of them held out."""
    from sklearn import datasets as sklearn_datasets

    digits = sklearn_datasets.load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    dataset = _from_arrays(images, digits.target, [str(name) for name in digits.target_names])
    return ImageData(*_hold_out(dataset, arguments.eval_fraction, seed), [])


def load_imagefolder(arguments: DataArguments, seed: int) -> ImageData:
    """Class folders in `data_dir`, or in its `train` and `test`, `validation` or `val` folders.

    Every image is read once beforehand, so that a corrupt one ends the run at its start, or is left out and counted.
    """
    if arguments.data_dir is None:
        raise InputError("data_dir is not given, imagefolder needs a directory of class folders")
    directory = _existing_directory(arguments.data_dir)
    folders = {"train": directory}
    if (directory / "train").is_dir():
        folders["train"] = directory / "train"
        tests = [directory / name for name in IMAGE_FOLDER_EVAL_SPLITS if (directory / name).is_dir()]
        folders |= {"test": tests[0]} if tests else {}
    try:
        splits = datasets.load_dataset(
            "imagefolder", data_files={name: f"{folder}/**" for name, folder in folders.items()}, drop_labels=False
        )
    except (FileNotFoundError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise InputError(f"data_dir {directory} holds no images in class folders") from error
    skipped = []
    for name in splits:
        splits[name], corrupt = _without_corrupt_images(splits[name], _num_proc(arguments))
        skipped += corrupt
    if skipped and not arguments.skip_corrupt_images:
        shown = ", ".join(skipped[:3]) + (f" and {len(skipped) - 3} more" if len(skipped) > 3 else "")
        raise InputError(f"corrupt images: {shown}; remove them or set skip_corrupt_images to leave them out")
    if "test" in splits:
        return ImageData(splits["train"], splits["test"], skipped)
    return ImageData(*_hold_out(splits["train"], arguments.eval_fraction, seed), skipped)


LOADERS: dict[str, Callable[[DataArguments, int], ImageData]] = {
    "arrows": load_arrows,
    "fashion_mnist": load_fashion_mnist,
    "digits": load_digits,
    "imagefolder": load_imagefolder,
}


def _num_proc(arguments: DataArguments) -> int:
    return arguments.data_num_proc or os.cpu_count() or 1


def _existing_directory(path: str) -> Path:
    directory = Path(path)
    if not directory.is_dir():
        raise InputError(f"data_dir {path} is not a directory")
    if not any(directory.iterdir()):
        raise InputError(f"data_dir {path} is empty")
    return directory


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


def _from_arrays(images: np.ndarray, labels: np.ndarray, names: list[str] | tuple[str, ...]) -> datasets.Dataset:
    """Greyscale uint8 images (examples, height, width) and class indices as a data set."""
    return datasets.Dataset.from_dict(
        {"image": [{"bytes": encode_png(image), "path": None} for image in images], "label": labels},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}),
    )


def _hold_out(dataset: datasets.Dataset, fraction: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    try:
        splits = dataset.train_test_split(fraction, stratify_by_column="label", seed=seed)
    except ValueError as error:
        raise InputError(f"eval_fraction {fraction} cannot be held out of {len(dataset)} images: {error}") from error
    return splits["train"], splits["test"]


def _subset(dataset: datasets.Dataset, field: str, count: int | None, seed: int) -> datasets.Dataset:
    if count is None or count == len(dataset):
        return dataset
    if count > len(dataset):
        raise InputError(f"{field} is {count}, the data set has {len(dataset)}")
    return dataset.shuffle(seed=seed).select(range(count))


def _without_corrupt_images(dataset: datasets.Dataset, num_proc: int) -> tuple[datasets.Dataset, list[str]]:
    encoded = dataset.cast_column("image", datasets.Image(decode=False))
    readable = encoded.map(
        lambda image: {"readable": _is_readable(image)},
        input_columns="image",
        num_proc=min(num_proc, len(dataset)),
        remove_columns=encoded.column_names,
        desc="Checking images",
    )["readable"]
    readable = np.array(readable)
    corrupt = [encoded[int(index)]["image"]["path"] for index in np.flatnonzero(~readable)]
    return (dataset.select(np.flatnonzero(readable)), corrupt) if corrupt else (dataset, corrupt)


def _is_readable(image: dict) -> bool:
    try:
        with PIL.Image.open(image["path"]) as opened:
            opened.load()
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError):
        return False
    return True
