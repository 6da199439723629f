"""What a saved classifier answers for files, and where it looks: pictures and numbers for each of them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .configuration.prediction_options import PredictionOptions
from .output_files import write_bytes, write_json
from .plots import AttentionMaps, animate_attention, attention_maps, plot_attention
from .plots.plot import as_lists
from .plots.rotations import counted
from .prediction import Predictor, load_predictor
from .prediction_files import Prediction, Predictions, find_files

EXPLANATIONS_FILE = "explanations.json"
# Answers in the title of a figure.
MAX_ANSWERS = 3


class Explanation(NamedTuple):
    """What a model says about a file, and where it looks.

    Attributes:
        prediction: over all views of the file, as `liere-hf predict` gives it.
        view: of a clip, which one the maps are of, counted from 1: the middle one.
        layers: after which ones the figure shows maps, counted from 1.
        maps: of that view.
        figure: a PNG file.
        animation: of a clip, an animated GIF.
    """

    prediction: Prediction
    view: int
    layers: tuple[int, ...]
    maps: AttentionMaps
    figure: bytes
    animation: bytes | None


class Explanations(NamedTuple):
    """By file; `are_shares` says whether the values of predictions are probabilities."""

    rows: list[Explanation]
    are_shares: bool

    @property
    def predictions(self) -> Predictions:
        return Predictions([row.prediction for row in self.rows], self.are_shares)


def explain(
    name: str, paths: Sequence[str], options: PredictionOptions, layers: Sequence[int] | None = None
) -> Explanations:
    """Explanations for files and for all files of the model's medium in folders, at any depth.

    Args:
        name: of the model, a directory or Hub id.
        layers: after which ones, counted from 1; the last one by default, which is the whole model.

    Raises:
        InputError: the model cannot be read or has no such layer, a path does not exist, or a file cannot be read.
    """
    predictor = load_predictor(name, options)
    depth = predictor.model.config.num_hidden_layers
    layers = (depth,) if layers is None else counted("layer", layers, depth)
    files = find_files(paths, predictor.column)
    rows = [explain_file(predictor, {"bytes": None, "path": file}, file, options.top_k, layers) for file in files]
    return Explanations(rows, predictor.gives_shares)


def explain_file(
    predictor: Predictor, file: dict[str, Any], name: str, top_k: int, layers: Sequence[int]
) -> Explanation:
    """The explanation of one file.

    Args:
        file: `bytes`, or None and the `path`.
        name: what it is called.

    Raises:
        InputError: it cannot be read.
    """
    views = predictor.read(file)
    values = predictor.answer(views, top_k)
    middle = len(views["pixel_values"]) // 2
    view = {key: tensor[middle : middle + 1] for key, tensor in views.items()}
    # Of a regression, the largest number.
    names = [*predictor.model.config.id2label.values()]
    labels = [names.index(values[0][0])] if predictor.gives_shares else None
    maps = attention_maps(predictor.model, **view, labels=labels)
    picture = predictor.picture(view["pixel_values"][0])
    plot = plot_attention(maps, picture, layers, predictor.column, _title(values, predictor.gives_shares))
    animation = animate_attention(maps, picture) if predictor.column == "video" else None
    return Explanation(Prediction(name, values), middle + 1, tuple(layers), maps, plot.png(), animation)


def write_explanations(directory: Path, model: str, explanations: Explanations) -> list[Path]:
    """Write figures, animations and `explanations.json`.

    Returns:
        Their paths.
    """
    paths, records, seen = [], [], Counter()
    for row in explanations.rows:
        stem = Path(row.prediction.file).name.partition(".")[0]
        seen[stem] += 1
        stem += f"_{seen[stem]}" if seen[stem] > 1 else ""
        files = {f"{stem}_attention.png": row.figure, f"{stem}_attention.gif": row.animation}
        for name, content in files.items():
            if content is not None:
                write_bytes(directory / name, content)
                paths.append(directory / name)
        records.append(_record(row, explanations.are_shares))
    write_json(directory / EXPLANATIONS_FILE, {"model": model, "files": records})
    return [*paths, directory / EXPLANATIONS_FILE]


def _record(row: Explanation, are_shares: bool) -> dict[str, Any]:
    kind = "probability" if are_shares else "value"
    return {
        "file": row.prediction.file,
        "predictions": [{"label": label, kind: value} for label, value in row.prediction.values],
        "explained": row.maps.names[0],
        "view": row.view,
        "layers": [
            {
                "layer": layer,
                "rollout": as_lists(row.maps.rollout[layer - 1, 0]),
                "relevance": as_lists(row.maps.relevance[layer - 1, 0]),
            }
            for layer in row.layers
        ],
    }


def _title(values: Sequence[tuple[str, float]], are_shares: bool) -> str:
    answers = (f"{label} {100 * value:.1f}%" if are_shares else f"{label} {value:.4g}" for label, value in values)
    return ", ".join(list(answers)[:MAX_ANSWERS])
