"""Converted DINOv3 models beside transformers' own: seconds and memory of the conversion and of one picture.

The weights are random: neither depends on their values.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from ..configuration.allowed_values import require_allowed
from ..conversion import ConversionOptions, convert, widen_generators
from ..hardware import hardware
from ..modeling.modeling_liere_vit import LiereViTModel
from ..progress import tracked
from .timing import peak_resident_mib

# arXiv 2508.10104, table 2.
SIZES = {
    "ViT-S": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "ViT-B": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "ViT-L": {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096, "num_hidden_layers": 24},
}
PICTURE_SIZES = (224, 512, 1024)
# How each form of a model is loaded from the directory with `source` and `converted`.
FORMS: dict[str, Callable[[Path], torch.nn.Module]] = {
    "transformers": lambda directory: DINOv3ViTModel.from_pretrained(directory / "source"),
    "converted": lambda directory: LiereViTModel.from_pretrained(directory / "converted"),
    "LieRE8": lambda directory: widen_generators(LiereViTModel.from_pretrained(directory / "converted"), 8),
}


def benchmark_backbones(rounds: int = 3) -> dict[str, Any]:
    """Convert models of each size, and give one picture to transformers' model, to the conversion, and to its LieRE8.

    Each measurement has a process of its own. The first forward pass, which computes the rotations that inference
    keeps, is not timed.

    Returns:
        Seconds and peak memory of conversions and pictures, the largest difference between the features of a model
        and those of transformers' own, and the hardware.

    Raises:
        InputError: rounds is below 1.
    """
    require_allowed({"rounds": rounds})
    conversions, pictures, difference = [], [], 0.0
    for name in tracked(SIZES, "Models"):
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            _save_source(directory, SIZES[name])
            conversions.append({"model": name, **_in_a_process(_convert, directory)})
            for size in PICTURE_SIZES:
                features = {}
                for form in FORMS:
                    row, features[form] = _in_a_process(_extract_features, directory, form, size, rounds)
                    pictures.append({"model": name, "size": size, "form": form, **row})
                expected = features.pop("transformers")
                difference = max(difference, *(float(np.abs(found - expected).max()) for found in features.values()))
    _print(conversions, pictures)
    return {
        "conversions": conversions,
        "pictures": pictures,
        "largest_difference": difference,
        "rounds": rounds,
        "hardware": hardware(),
    }


def _in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _save_source(directory: Path, dimensions: dict[str, int]) -> None:
    torch.manual_seed(0)
    DINOv3ViTModel(DINOv3ViTConfig(**dimensions)).save_pretrained(directory / "source")


def _convert(directory: Path) -> dict[str, float]:
    start = time.perf_counter()
    convert(str(directory / "source"), directory / "converted", "dinov3", ConversionOptions())
    return {"seconds": round(time.perf_counter() - start, 2), "peak_memory_mib": round(peak_resident_mib())}


@torch.no_grad()
def _extract_features(directory: Path, form: str, size: int, rounds: int) -> tuple[dict[str, float], np.ndarray]:
    model, times = FORMS[form](directory).eval(), []
    picture = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    for _ in range(rounds + 1):
        start = time.perf_counter()
        features = model(picture).pooler_output
        times.append(time.perf_counter() - start)
    row = {"seconds": round(float(np.median(times[1:])), 4), "first_seconds": round(times[0], 4)}
    return row | {"peak_memory_mib": round(peak_resident_mib())}, features.numpy()


def _print(conversions: list[dict[str, Any]], pictures: list[dict[str, Any]]) -> None:
    for title, rows in (("Conversion", conversions), ("One picture", pictures)):
        table = Table(*(name.replace("_", " ") for name in rows[0]), title=title)
        for row in rows:
            table.add_row(*map(str, row.values()))
        Console().print(table)
