"""CIFAR-10 and CIFAR-100: from the Hub, from local parquet files, or from the authors' python and binary archives."""

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np

from ...configuration import DATASETS, DataArguments
from ...errors import InputError
from ...modeling.configuration_liere_vit import LiereViTConfig
from ..decoding.images import decode_image
from ..decoding.pnm import encode_pnm
from ..media import encoded_feature
from .files import existing_directory
from .hub import from_hub, require_columns, require_split
from .splits import Splits
from .tables import table_of_images


class _Variant(NamedTuple):
    hub_id: str
    num_labels: int
    image_column: str
    label_column: str
    # The files with examples and class names, in the archive of pickled batches and in the archive of raw bytes.
    python_archive: str
    python_folder: str
    python_files: dict[str, tuple[str, ...]]
    python_labels: str
    python_names: tuple[str, str]
    binary_archive: str
    binary_folder: str
    binary_files: dict[str, tuple[str, ...]]
    binary_names: str
    # Bytes before the pixels of an example; the last one is its label (in CIFAR-100, the fine label).
    label_bytes: int


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR10 = _Variant(
    hub_id=DATASETS["cifar10"].hub_id,
    num_labels=10,
    image_column="img",
    label_column="label",
    python_archive="cifar-10-python.tar.gz",
    python_folder="cifar-10-batches-py",
    python_files={"train": _BATCHES, "test": ("test_batch",)},
    python_labels="labels",
    python_names=("batches.meta", "label_names"),
    binary_archive="cifar-10-binary.tar.gz",
    binary_folder="cifar-10-batches-bin",
    binary_files={"train": tuple(f"{name}.bin" for name in _BATCHES), "test": ("test_batch.bin",)},
    binary_names="batches.meta.txt",
    label_bytes=1,
)
CIFAR100 = _Variant(
    hub_id=DATASETS["cifar100"].hub_id,
    num_labels=100,
    image_column="img",
    label_column="fine_label",
    python_archive="cifar-100-python.tar.gz",
    python_folder="cifar-100-python",
    python_files={"train": ("train",), "test": ("test",)},
    python_labels="fine_labels",
    python_names=("meta", "fine_label_names"),
    binary_archive="cifar-100-binary.tar.gz",
    binary_folder="cifar-100-binary",
    binary_files={"train": ("train.bin",), "test": ("test.bin",)},
    binary_names="fine_label_names.txt",
    label_bytes=2,
)
IMAGE_BYTES = 3 * 32 * 32


def load_cifar10(arguments: DataArguments, config: LiereViTConfig | None) -> Splits:
    """CIFAR-10: 60,000 images of 32 x 32 pixels in ten classes."""
    return _load(CIFAR10, arguments)


def load_cifar100(arguments: DataArguments, config: LiereViTConfig | None) -> Splits:
    """CIFAR-100 with its 100 fine labels."""
    return _load(CIFAR100, arguments)


def _load(variant: _Variant, arguments: DataArguments) -> Splits:
    if arguments.data_dir is None:
        hub_id = arguments.hub_id or variant.hub_id
        return _from_tables(variant, from_hub(hub_id), hub_id, arguments)
    directory = existing_directory(arguments.data_dir)
    for folder, archive, read in (
        (variant.python_folder, directory / variant.python_archive, _from_python),
        (variant.binary_folder, directory / variant.binary_archive, _from_binary),
    ):
        for extracted in (directory / folder, directory):
            if extracted.name == folder and extracted.is_dir():
                return read(variant, _folder_reader(extracted))
        if archive.is_file():
            return read(variant, _archive_reader(archive, folder))
    files = {name: sorted(map(str, directory.rglob(f"{name}-*.parquet"))) for name in ("train", "test")}
    if not any(files.values()):
        raise InputError(
            f"data_dir {directory} has neither {variant.python_folder} nor {variant.binary_folder} (folders or "
            "archives) nor train-*.parquet and test-*.parquet"
        )
    files = {name: paths for name, paths in files.items() if paths}
    try:
        splits = datasets.load_dataset("parquet", data_files=files)
    except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise InputError(f"the parquet files in {directory} cannot be read: {error}") from error
    return _from_tables(variant, splits, str(directory), arguments)


def _from_tables(
    variant: _Variant, splits: dict[str, datasets.Dataset], source: str, arguments: DataArguments
) -> Splits:
    tables = {}
    for name in ("train", "test"):
        table = require_split(splits, name, source)
        columns = [variant.image_column, variant.label_column]
        require_columns(table, columns, source)
        table = table.select_columns(columns)
        table = table.rename_columns({variant.image_column: "image", variant.label_column: "label"})
        if not isinstance(table.features["label"], datasets.ClassLabel):
            names = [str(label) for label in range(variant.num_labels)]
            table = table.cast_column("label", datasets.ClassLabel(names=names))
        tables[name] = _uncompressed(table, arguments.num_processes)
    return Splits.of(**tables)


def _uncompressed(table: datasets.Dataset, num_proc: int) -> datasets.Dataset:
    """Images decoded once, not in every epoch; `datasets` caches the result."""
    return table.cast_column("image", encoded_feature("image")).map(
        lambda image: {"image": {"bytes": encode_pnm(decode_image(image).permute(1, 2, 0).numpy()), "path": None}},
        input_columns="image",
        num_proc=min(num_proc, len(table)),
        desc="Decoding images",
    )


# Reads a file by its name, from a folder or an archive.
_Reader = Callable[[str], bytes]


def _folder_reader(folder: Path) -> _Reader:
    def read(name: str) -> bytes:
        path = folder / name
        if not path.is_file():
            raise InputError(f"{folder} lacks {name}")
        return path.read_bytes()

    return read


def _archive_reader(archive: Path, folder: str) -> _Reader:
    """Reads the archive once, from start to end: a compressed one does not allow random access."""
    try:
        with tarfile.open(archive) as file:
            contents = {
                Path(member.name).name: file.extractfile(member).read()
                for member in file
                if member.isfile() and Path(member.name).parent.name == folder
            }
    except (OSError, EOFError, tarfile.TarError) as error:
        raise InputError(f"{archive} cannot be read: {error}") from error

    def read(name: str) -> bytes:
        if name not in contents:
            raise InputError(f"{archive} lacks {folder}/{name}")
        return contents[name]

    return read


def _from_python(variant: _Variant, read: _Reader) -> Splits:
    names_file, names_key = variant.python_names
    names = _unpickle(read(names_file), names_file).get(names_key)
    splits = {}
    for split, files in variant.python_files.items():
        images, labels = [], []
        for name in files:
            batch = _unpickle(read(name), name)
            try:
                images.append(np.asarray(batch["data"], np.uint8).reshape(-1, 3, 32, 32))
                labels += batch[variant.python_labels]
            except (KeyError, ValueError) as error:
                raise InputError(f"{name} is not a batch of CIFAR: {error}") from error
        splits[split] = _from_planes(np.concatenate(images), labels, names, variant)
    return Splits.of(**splits)


def _from_binary(variant: _Variant, read: _Reader) -> Splits:
    names = read(variant.binary_names).decode().split()
    splits = {}
    for split, files in variant.binary_files.items():
        content = np.frombuffer(b"".join(read(name) for name in files), np.uint8)
        record = variant.label_bytes + IMAGE_BYTES
        if len(content) == 0 or len(content) % record:
            raise InputError(f"{', '.join(files)}: {len(content)} bytes, not a multiple of {record}")
        records = content.reshape(-1, record)
        images = records[:, variant.label_bytes :].reshape(-1, 3, 32, 32)
        splits[split] = _from_planes(images, records[:, variant.label_bytes - 1].tolist(), names, variant)
    return Splits.of(**splits)


def _from_planes(images: np.ndarray, labels: list[int], names: list[str], variant: _Variant) -> datasets.Dataset:
    if names is None or len(names) != variant.num_labels:
        raise InputError(f"{len(names or [])} class names found, {variant.hub_id} has {variant.num_labels}")
    if len(labels) != len(images):
        raise InputError(f"{len(images)} images but {len(labels)} labels found")
    if len(labels) and not 0 <= min(labels) <= max(labels) < variant.num_labels:
        raise InputError(f"labels are {min(labels)} to {max(labels)}, allowed are 0 to {variant.num_labels - 1}")
    return table_of_images(images.transpose(0, 2, 3, 1), labels, names)


class _PlainUnpickler(pickle.Unpickler):
    """Reads the lists, strings and NumPy arrays of the archives, and runs no code that a file names."""

    # NumPy 2 renamed numpy.core to numpy._core.
    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in a CIFAR archive")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _unpickle(content: bytes, name: str) -> dict[str, Any]:
    try:
        batch = _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # A broken pickle can raise anything.
        raise InputError(f"{name} cannot be read: {error}") from error
    if not isinstance(batch, dict):
        raise InputError(f"{name} is not a batch of CIFAR")
    return batch
