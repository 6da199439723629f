"""Small CIFAR data sets in the formats of the real ones."""

import pickle
import tarfile
from pathlib import Path

import datasets
import numpy as np

NAMES = {"cifar10": [f"class {label}" for label in range(10)], "cifar100": [f"class{label}" for label in range(100)]}
SPLITS = {"train": 60, "test": 23}
# The number of classes that have examples.
NUM_CLASSES = {"cifar10": 10, "cifar100": 100}


def examples(dataset: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 pixels (examples, 3, 32, 32), with a coarse pattern for each class under noise, and labels."""
    count = SPLITS[split]
    random = np.random.default_rng([len(split), len(dataset)])
    labels = np.arange(count) % NUM_CLASSES[dataset]
    patterns = np.random.default_rng(7).integers(40, 216, size=(100, 3, 4, 4)).repeat(8, 2).repeat(8, 3)
    noise = random.integers(-30, 31, size=(count, 3, 32, 32))
    return (patterns[labels] + noise).clip(0, 255).astype(np.uint8), labels


def _batches(dataset: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The contents of each file in the archives."""
    if dataset == "cifar100":
        return {split: examples(dataset, split) for split in SPLITS}
    images, labels = examples(dataset, "train")
    parts = np.array_split(np.arange(len(images)), 5)
    batches = {f"data_batch_{number + 1}": (images[part], labels[part]) for number, part in enumerate(parts)}
    return batches | {"test_batch": examples(dataset, "test")}


def write_python(dataset: str, directory: Path) -> Path:
    folder = directory / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[dataset]
    folder.mkdir(parents=True)
    label_key, meta, names_key = {
        "cifar10": ("labels", "batches.meta", "label_names"),
        "cifar100": ("fine_labels", "meta", "fine_label_names"),
    }[dataset]
    for name, (images, labels) in _batches(dataset).items():
        batch = {"data": images.reshape(len(images), -1), label_key: labels.tolist(), "filenames": ["x.png"]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / meta).write_bytes(pickle.dumps({names_key: NAMES[dataset]}, protocol=2))
    return folder


def write_binary(dataset: str, directory: Path) -> Path:
    folder = directory / {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}[dataset]
    folder.mkdir(parents=True)
    for name, (images, labels) in _batches(dataset).items():
        columns = [labels[:, None].astype(np.uint8), images.reshape(len(images), -1)]
        if dataset == "cifar100":
            columns.insert(0, labels[:, None].astype(np.uint8) // 5)
        (folder / f"{name}.bin").write_bytes(np.concatenate(columns, axis=1).tobytes())
    names_file = {"cifar10": "batches.meta.txt", "cifar100": "fine_label_names.txt"}[dataset]
    (folder / names_file).write_text("\n".join(name.replace(" ", "_") for name in NAMES[dataset]) + "\n\n")
    return folder


def write_archive(folder: Path) -> Path:
    archive = folder.with_name(
        {
            "cifar-10-batches-py": "cifar-10-python.tar.gz",
            "cifar-10-batches-bin": "cifar-10-binary.tar.gz",
            "cifar-100-python": "cifar-100-python.tar.gz",
            "cifar-100-binary": "cifar-100-binary.tar.gz",
        }[folder.name]
    )
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name)
    return archive


def write_parquet(dataset: str, directory: Path) -> Path:
    folder = directory / {"cifar10": "plain_text", "cifar100": "cifar100"}[dataset]
    folder.mkdir(parents=True)
    labels_column = {"cifar10": "label", "cifar100": "fine_label"}[dataset]
    for split in SPLITS:
        images, labels = examples(dataset, split)
        columns = {"img": list(images.transpose(0, 2, 3, 1)), labels_column: labels}
        features = {"img": datasets.Image(), labels_column: datasets.ClassLabel(names=NAMES[dataset])}
        if dataset == "cifar100":
            columns["coarse_label"] = labels // 5
            features["coarse_label"] = datasets.ClassLabel(names=[f"coarse{label}" for label in range(20)])
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder
