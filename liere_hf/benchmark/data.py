"""Speed of data loading (drawing, decoding, augmentation), and how long a training step waits for it."""

import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import datasets
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import v2

from ..configuration import build_model_config, parse_recipe
from ..configuration.arguments import AUTHORS_IMAGE_MEAN, AUTHORS_IMAGE_STD
from ..data import Splits, prepare
from ..data.batching import TrainingExamples
from ..data.data_sets.arrows import ArrowsTask
from ..data.data_sets.tables import table_of_images, table_of_paths
from ..data.decoding.images import decode_image
from ..hardware import hardware
from ..metric_display import interval_text
from ..model_loading import classifier_class
from ..progress import tracked

REPEATS = 5
NUM_ARROWS, NUM_IMAGES, NUM_PHOTOGRAPHS, NUM_CLIPS, NUM_STEPS = 100_000, 50_000, 2048, 480, 20
# Size of most videos of UCF101, which are .avi files with MPEG-4.
CLIP_FRAMES, CLIP_HEIGHT, CLIP_WIDTH = 180, 240, 320


def benchmark_data() -> dict[str, Any]:
    """Examples per second of several data sets with one process per core, and how long a step waits for data.

    Returns:
        The rates of all repeats and their medians, the waiting times, and the hardware.
    """
    with tempfile.TemporaryDirectory() as directory:
        cifar, photos, clips = _cifar_like(), _photographs(), _clips(Path(directory))
        cases: dict[str, tuple[int, Callable[[], None]]] = {
            "arrows, 9 x 9 cells of 12 px: drawn": (NUM_ARROWS, _draw_arrows),
            "CIFAR, recipe cifar100: decoded and augmented": (NUM_IMAGES, _epoch_of("cifar100", cifar, 512)),
            "the same, torchvision image by image": (NUM_IMAGES // 10, _image_by_image(cifar)),
            "JPEG of 500 x 375, recipe imagenet: decoded and augmented": (
                NUM_PHOTOGRAPHS,
                _epoch_of("imagenet", photos, 64),
            ),
            "clips of 8 frames, 320 x 240: decoded and cropped": (
                NUM_CLIPS,
                _epoch_of("ucf101", clips, 8, "--rand_augment_num_ops", "0", "--random_erasing", "0"),
            ),
            "the same with the recipe ucf101's RandAugment and erasing": (NUM_CLIPS, _epoch_of("ucf101", clips, 8)),
        }
        rates = {name: [] for name in cases}
        for _ in tracked(range(REPEATS), "Reading data"):
            for name, (count, run) in cases.items():
                start = time.perf_counter()
                run()
                rates[name].append(count / (time.perf_counter() - start))
        waiting = _waiting(cifar)
    _print(rates, waiting)
    return {
        "examples_per_second": {
            name: {"median": round(float(np.median(values)), 1), "all": [round(value, 1) for value in values]}
            for name, values in rates.items()
        },
        "processes": _num_processes(),
        "step": waiting,
        "hardware": hardware(),
    }


def _num_processes() -> int:
    return os.cpu_count() or 1


def _draw_arrows() -> None:
    ArrowsTask().dataset(0, NUM_ARROWS, num_proc=_num_processes())


def _cifar_like() -> Splits:
    """As many images as CIFAR has, of its size."""
    random = np.random.default_rng(0)
    images = random.integers(256, size=(NUM_IMAGES, 32, 32, 3), dtype=np.uint8)
    labels = random.integers(100, size=NUM_IMAGES)
    dataset = table_of_images(images, labels, [str(label) for label in range(100)])
    return Splits.of(dataset, dataset)


def _photographs() -> Splits:
    """JPEGs of the size, in pixels and in bytes, that those of ImageNet have on average."""
    random = np.random.default_rng(0)
    images = []
    for _ in range(16):
        coarse = Image.fromarray(random.integers(256, size=(12, 16, 3), dtype=np.uint8)).resize((500, 375))
        pixels = np.asarray(coarse).astype(int) + random.integers(-32, 33, size=(375, 500, 3))
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        images.append({"bytes": buffer.getvalue(), "path": None})
    dataset = datasets.Dataset.from_dict(
        {"image": [images[index % 16] for index in range(NUM_PHOTOGRAPHS)], "label": [0] * NUM_PHOTOGRAPHS},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["photograph"])}),
    )
    return Splits.of(dataset, dataset)


def _clips(directory: Path) -> Splits:
    """Videos of UCF101's size, codec and length, with moving content."""
    random = np.random.default_rng(0)
    coarse = random.integers(256, size=(30, 80, 3), dtype=np.uint8)
    picture = torch.from_numpy(coarse).permute(2, 0, 1)
    picture = v2.functional.resize(picture, [CLIP_HEIGHT, 2 * CLIP_WIDTH]).permute(1, 2, 0).numpy()
    paths = []
    for number in range(4):
        path = directory / f"{number}.avi"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt, stream.gop_size = CLIP_WIDTH, CLIP_HEIGHT, "yuv420p", 12
            for shift in range(CLIP_FRAMES):
                pixels = np.ascontiguousarray(picture[:, shift : shift + CLIP_WIDTH])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        paths.append(str(path))
    dataset = table_of_paths("video", [paths[index % 4] for index in range(NUM_CLIPS)], [0] * NUM_CLIPS, ["action"])
    return Splits.of(dataset, dataset)


def _training_examples(recipe: str, splits: Splits, *flags: str) -> TrainingExamples:
    model_arguments, data_arguments, training_arguments = parse_recipe(recipe, flags)
    return prepare(splits, build_model_config(model_arguments), data_arguments, training_arguments).train


def _loader(examples: torch.utils.data.Dataset, batch_size: int, num_workers: int) -> DataLoader:
    return DataLoader(
        examples, batch_size, shuffle=True, num_workers=num_workers, collate_fn=default_collate, drop_last=True
    )


def _epoch_of(recipe: str, splits: Splits, batch_size: int, *flags: str) -> Callable[[], None]:
    return _reading(_loader(_training_examples(recipe, splits, *flags), batch_size, _num_processes()))


def _reading(loader: DataLoader) -> Callable[[], None]:
    def run() -> None:
        for _ in loader:
            pass

    return run


class _ImageByImage(torch.utils.data.Dataset):
    """The recipe cifar100 with torchvision's transforms, image by image."""

    def __init__(self, splits: Splits):
        self.dataset = _training_examples("cifar100", splits).dataset.select(range(NUM_IMAGES // 10))
        self.transform = v2.Compose(
            [
                v2.RandomCrop(32, padding=4),
                v2.RandomHorizontalFlip(),
                v2.RandAugment(2, 14),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(AUTHORS_IMAGE_MEAN, AUTHORS_IMAGE_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.dataset[index]
        return {"pixel_values": self.transform(decode_image(row["image"])), "labels": row["label"]}


def _image_by_image(splits: Splits) -> Callable[[], None]:
    return _reading(_loader(_ImageByImage(splits), 512, _num_processes()))


def _waiting(splits: Splits) -> dict[str, float]:
    """Seconds of a training step at tiny/CIFAR size, batch 64, and of these waiting for its batch from one worker."""
    model_arguments, _, _ = parse_recipe("cifar100", ["--model_preset", "tiny"])
    config = build_model_config(model_arguments, id2label=dict(enumerate(splits.label_names)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = classifier_class(config)(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batches = iter(_loader(_training_examples("cifar100", splits), 64, 1))
    waits, start = [], 0.0
    # The first step starts the worker.
    for step in tracked(range(NUM_STEPS + 1), "Training"):
        if step == 1:
            start = time.perf_counter()
        asked = time.perf_counter()
        batch = {name: value.to(device) for name, value in next(batches).items()}
        waits.append(time.perf_counter() - asked)
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / NUM_STEPS
    waited = sum(waits[1:]) / NUM_STEPS
    return {"seconds": round(seconds, 4), "waiting_seconds": round(waited, 4), "share": round(waited / seconds, 4)}


def _print(rates: dict[str, list[float]], waiting: dict[str, float]) -> None:
    table = Table("data", "examples per second (median, range)", title=f"{_num_processes()} processes")
    for name, values in rates.items():
        table.add_row(name, interval_text(np.median(values), min(values), max(values), digits=0))
    console = Console()
    console.print(table)
    console.print(
        f"A training step (LieRE8, tiny, CIFAR, batch 64) takes {1000 * waiting['seconds']:,.0f} ms, including "
        f"{1000 * waiting['waiting_seconds']:,.1f} ms of waiting for data ({waiting['share']:.1%})."
    )
