"""Files in Fashion-MNIST's format with random images."""

import gzip
import struct
from pathlib import Path

import numpy as np


def write_fashion_mnist(directory: Path, num_train: int, num_test: int) -> Path:
    """Write four idx files, two of them compressed."""
    random = np.random.default_rng(0)
    for prefix, count in (("train", num_train), ("t10k", num_test)):
        images = random.integers(256, size=(count, 28, 28), dtype=np.uint8)
        (directory / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        labels = np.arange(count, dtype=np.uint8) % 10
        (directory / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return directory


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()
