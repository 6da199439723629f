"""Predictions of a saved model for files: pictures, clips and volumes, with or without labels."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import yaml
from torch.utils.data import DataLoader, Dataset
from transformers import AutoImageProcessor, AutoVideoProcessor, PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin

from .configuration import ModelArguments
from .configuration.metric_names import problem_type
from .configuration.prediction_options import PredictionOptions
from .data.batching import EvaluationPixels, Positions
from .data.media import MEDIA
from .data.normalization import denormalize
from .data.preparation import evaluation_pixels, positions_in_millimetres
from .data.resizing.processors import build_processor, input_size
from .errors import InputError, sentence
from .hub_access import hub_or_cache
from .model_loading import load_checkpoint
from .modeling.configuration_liere_vit import LiereViTConfig
from .prediction_files import Prediction, Predictions, find_files
from .progress import tracked
from .run_directory import RECIPE_FILE, file_of_model

MAX_WORKERS = 8
# Inputs of the model by name: pixel_values and, if they are not the model's own, positions.
Views = dict[str, torch.Tensor]


class Predictor:
    """A model with the way of its inputs, as in an evaluation: the same views of the same size, averaged.

    Args:
        column: of the inputs, `image`, `video` or `volume`.
        to_pixels: reads them.
        to_positions: their coordinates; None for the model's own.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        column: str,
        to_pixels: EvaluationPixels,
        to_positions: Positions | None = None,
    ):
        self.model, self.column, self.to_pixels, self.to_positions = model.eval(), column, to_pixels, to_positions
        self._names = [model.config.id2label[index] for index in range(model.config.num_labels)]
        self._problem = problem_type(model.config.to_dict())

    def __call__(
        self, files: Sequence[dict[str, Any]], names: Sequence[str], options: PredictionOptions
    ) -> Predictions:
        """Predictions in the order of the files, with a progress bar on a terminal.

        Args:
            files: `bytes`, or None and the `path`.
            names: what each is called.

        Raises:
            InputError: none of the files can be read.
        """
        rows = list(tracked(self._predict(files, names, options), "Predicting", len(files)))
        if all(row.error for row in rows):
            raise InputError(f"none of {len(files)} {self.column}s can be read, for example: {rows[0].error}")
        return Predictions(rows, self.gives_shares)

    def _predict(
        self, files: Sequence[dict[str, Any]], names: Sequence[str], options: PredictionOptions
    ) -> Iterator[Prediction]:
        inputs = _Inputs(files, names, self.to_pixels, self.to_positions)
        loader = DataLoader(
            inputs,
            batch_size=max(options.batch_size // inputs.num_views, 1),
            num_workers=_num_workers(len(files), options),
            collate_fn=_as_it_is,
        )
        for batch_names, errors, views in loader:
            outputs = iter(self._probabilities(views, inputs.num_views))
            for name, error in zip(batch_names, errors, strict=True):
                values = [] if error else self._ranked(next(outputs), options.top_k)
                yield Prediction(name, values, error)

    def read(self, file: dict[str, Any]) -> Views:
        """All views of a file, on the device of the model.

        Args:
            file: `bytes`, or None and the `path`.

        Raises:
            InputError: it cannot be read.
        """
        views = _read_views([file], self.to_pixels, self.to_positions)
        return {name: tensor.to(self.model.device) for name, tensor in views.items()}

    def picture(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the model sees, in the same layout, as pixels from 0 to 1."""
        return denormalize(pixel_values.cpu(), self.to_pixels.image_mean, self.to_pixels.image_std)

    def answer(self, views: Views, top_k: int) -> list[tuple[str, float]]:
        """The `values` of a `Prediction` from all views of a file."""
        return self._ranked(self._probabilities(views, self.to_pixels.num_views)[0], top_k)

    @property
    def gives_shares(self) -> bool:
        """Whether the values of predictions are probabilities."""
        return self._problem != "regression"

    @torch.inference_mode()
    def _probabilities(self, views: Views | None, num_views: int) -> torch.Tensor:
        if views is None:
            return torch.empty(0)
        views = {name: tensor.to(self.model.device) for name, tensor in views.items()}
        logits = self.model(**views).logits.double()
        logits = logits.unflatten(0, (-1, num_views)).mean(1)
        if self._problem == "regression":
            return logits.cpu()
        return (logits.sigmoid() if self._problem == "multi_label_classification" else logits.softmax(-1)).cpu()

    def _ranked(self, values: torch.Tensor, top_k: int) -> list[tuple[str, float]]:
        if not self.gives_shares:
            return list(zip(self._names, values.tolist(), strict=True))
        order = values.argsort(descending=True, stable=True)[:top_k]
        return [(self._names[index], float(values[index])) for index in order.tolist()]


def predict(name: str, paths: Sequence[str], options: PredictionOptions) -> Predictions:
    """Predictions for files and for all files of the model's medium in folders, at any depth.

    Args:
        name: of the model, a directory or Hub id.

    Raises:
        InputError: the model cannot be read, a path does not exist, there are no files, or none of them can be read.
    """
    predictor = load_predictor(name, options)
    files = find_files(paths, predictor.column)
    return predictor([{"bytes": None, "path": path} for path in files], files, options)


def load_predictor(name: str, options: PredictionOptions) -> Predictor:
    """A saved classifier with its processor, on the GPU if there is one.

    Raises:
        InputError: model or processor cannot be read.
    """
    model = load_checkpoint(ModelArguments(model_name_or_path=name))
    if torch.cuda.is_available() and not options.use_cpu:
        model = model.cuda()
    return build_predictor(model, name, options)


def build_predictor(model: PreTrainedModel, name: str, options: PredictionOptions) -> Predictor:
    """A loaded classifier with its processor.

    Args:
        name: where the model is from.

    Raises:
        InputError: the processor cannot be read, or an option does not fit the model.
    """
    config = model.config
    recipe = trained_recipe(name)
    column = _column(name, config, recipe)
    arguments = options.data_arguments(recipe)
    if options.input_size is None:
        processor = _processor(name, column)
    else:
        processor = build_processor(column, config, arguments, name)
    size = input_size(config, arguments)
    to_pixels = evaluation_pixels(column, size, arguments, processor)
    return Predictor(model, column, to_pixels, positions_in_millimetres(column, config, size, arguments))


def _column(name: str, config: LiereViTConfig, recipe: dict[str, Any]) -> str:
    """The medium of a model's inputs. Three axes and channels are a video's, unless the model was trained on volumes.

    Raises:
        InputError: files do not give such inputs.
    """
    found = [column for column, medium in MEDIA.items() if medium.suits(config)]
    if not found:
        raise InputError(
            f"model {name} takes {config.num_axes} axes and {config.num_channels} channel(s), files give 2 axes and 3 "
            "channels (pictures), 3 and 3 (videos) or 3 and any number (volumes)"
        )
    return "volume" if "volume" in found and recipe.get("dataset") == "volumes" else found[0]


def _processor(name: str, column: str) -> ImageProcessingMixin:
    auto = AutoImageProcessor if column == "image" else AutoVideoProcessor
    try:
        with hub_or_cache("model", name):
            return auto.from_pretrained(name)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"model {name} has no readable processor: {' '.join(str(error).split())}") from error


def trained_recipe(name: str) -> dict[str, Any]:
    """The options that a model was trained with, empty if it has no recipe."""
    path = file_of_model(name, RECIPE_FILE)
    return (yaml.safe_load(path.read_text()) or {}) if path is not None else {}


class _Inputs(Dataset):
    """All views of each file, or why it cannot be read."""

    def __init__(
        self,
        files: Sequence[dict[str, Any]],
        names: Sequence[str],
        to_pixels: EvaluationPixels,
        to_positions: Positions | None,
    ):
        self.files, self.names, self.to_pixels, self.to_positions = files, names, to_pixels, to_positions
        self.num_views = to_pixels.num_views

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, indices: list[int]) -> tuple[list[str], list[str | None], Views | None]:
        files = [self.files[index] for index in indices]
        names = [self.names[index] for index in indices]
        try:
            return names, [None] * len(files), self._views(files)
        except InputError:
            # One by one, to find out which.
            read = [self._read(file) for file in files]
        views = [each for each in read if isinstance(each, dict)]
        errors = [None if isinstance(each, dict) else each for each in read]
        joined = {key: torch.cat([each[key] for each in views]) for key in views[0]} if views else None
        return names, errors, joined

    def _views(self, files: list[dict[str, Any]]) -> Views:
        return _read_views(files, self.to_pixels, self.to_positions)

    def _read(self, file: dict[str, Any]) -> Views | str:
        try:
            return self._views([file])
        except InputError as error:
            return sentence(error)


def _read_views(files: Sequence[dict[str, Any]], to_pixels: EvaluationPixels, to_positions: Positions | None) -> Views:
    """All views of some files, those of a file one after another.

    Raises:
        InputError: a file that cannot be read.
    """
    repeated = [file for file in files for _ in range(to_pixels.num_views)]
    views = {"pixel_values": to_pixels(repeated, [*range(to_pixels.num_views)] * len(files))}
    if to_positions is not None:
        views["positions"] = to_positions(repeated)
    return views


def _as_it_is(batch: Any) -> Any:
    return batch


def _num_workers(num_files: int, options: PredictionOptions) -> int:
    if options.num_workers is not None:
        return options.num_workers
    # Starting them takes longer than reading a few files.
    return 0 if num_files < 2 * options.batch_size else min((os.cpu_count() or 1) - 1, MAX_WORKERS)
