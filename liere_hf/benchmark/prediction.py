"""Speed of `liere-hf predict` against a plain loop with transformers' pipeline, on pictures in files."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from transformers import pipeline

from ..configuration.allowed_values import require_allowed
from ..configuration.prediction_options import PredictionOptions
from ..hardware import hardware
from ..prediction import load_predictor
from .timing import median_ratio, ratio_with_interval

NUM_FILES = 256


def benchmark_prediction(model: str, rounds: int = 9) -> dict[str, Any]:
    """Time both for the same JPEG files of 500 x 375 pixels, one after the other in each round.

    Loading of the model is not timed. The pipeline takes one picture after the other, as its documentation does.

    Args:
        model: directory or Hub id of an image classifier.

    Returns:
        Files per second, the ratio with the 95% interval of its median, and the hardware.

    Raises:
        InputError: the model cannot be read, or rounds is below 1.
        RuntimeError: the two disagree about a picture.
    """
    require_allowed({"rounds": rounds})
    options = PredictionOptions(top_k=1)
    predictor, classify = load_predictor(model, options), pipeline("image-classification", model=model)
    with tempfile.TemporaryDirectory() as folder:
        names = _pictures(Path(folder))
        files = [{"bytes": None, "path": name} for name in names]
        ours, theirs = [], []
        for round_number in range(rounds + 1):
            start = time.perf_counter()
            predicted = [row.values[0] for row in predictor(files, names, options).rows]
            middle = time.perf_counter()
            expected = [classify(name, top_k=1)[0] for name in names]
            end = time.perf_counter()
            if round_number:
                ours.append(middle - start)
                theirs.append(end - middle)
    difference = max(abs(value - row["score"]) for (_, value), row in zip(predicted, expected, strict=True))
    if difference > 1e-3:
        raise RuntimeError(f"probabilities differ by {difference}")
    ratio = median_ratio("speedup", theirs, ours)
    Console().print(
        f"{NUM_FILES} pictures: {ratio_with_interval(ratio, 'speedup', digits=2)} times as fast as the pipeline"
    )
    return {
        "files": NUM_FILES,
        "predict_files_per_second": round(NUM_FILES / float(np.median(ours)), 1),
        "pipeline_files_per_second": round(NUM_FILES / float(np.median(theirs)), 1),
        **ratio,
        "largest_difference": difference,
        "rounds": rounds,
        "model": Path(model).name,
        "hardware": hardware(),
    }


def _pictures(folder: Path) -> list[str]:
    random, names = np.random.default_rng(0), []
    for number in range(NUM_FILES):
        coarse = Image.fromarray(random.integers(256, size=(12, 16, 3), dtype=np.uint8)).resize((500, 375))
        names.append(str(folder / f"{number}.jpg"))
        coarse.save(names[-1], quality=90)
    return names
