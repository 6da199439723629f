"""Trainings and evaluations of experiments. Each runs once, even if several experiments or processes need it."""

import fcntl
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from huggingface_hub.constants import REPOCARD_NAME
from transformers import PreTrainedModel, set_seed
from transformers.trainer_utils import get_last_checkpoint

from ..configuration import parse_recipe
from ..configuration.arguments import ARCHITECTURE_OPTIONS, DataArguments, ModelArguments, RunArguments
from ..data import load_splits
from ..data.decoding.images import decode_image
from ..evaluation import evaluate
from ..model_loading import build_model
from ..output_files import write_json
from ..run_directory import LOCAL_OPTIONS, METRICS_FILE, TRAINING_FILE, learning_curve, recipe_options, train_seconds
from ..training.run import train

Options = dict[str, Any]
# Seconds between checks whether another command has finished a run.
POLLING_SECONDS = 5


@dataclass(frozen=True)
class Task:
    """A data set with its recipe.

    Attributes:
        paper_results: name of the paper's results to compare with.
        preset: of the recipe, see `parse_recipe`.
        cells: cells per side, for a spatial task.
        seeds: instead of those of the scale.
    """

    name: str
    title: str
    recipe: str
    paper_results: str
    options: Options = field(default_factory=dict)
    preset: str | None = None
    cells: int | None = None
    seeds: list[int] | None = None


@dataclass(frozen=True)
class Setting:
    """One setting of an experiment, trained with each seed.

    Attributes:
        labels: its entries in the label columns of the table.
        options: options that override the task's recipe.
        evaluated: name of the evaluation at the end of training, among `evaluations`.
        evaluations: options of further evaluations of the trained model, by name.
        start: the setting whose trained model this one starts from.
        paper: the paper's result in per cent, None if it reports none.
        x: its coordinate on the horizontal axis of a figure.
    """

    task: Task
    labels: dict[str, str]
    options: Options = field(default_factory=dict)
    evaluated: str = "training"
    evaluations: dict[str, Options] = field(default_factory=dict)
    start: "Setting | None" = None
    paper: float | None = None
    x: float | None = None

    @property
    def name(self) -> str:
        """Name for files."""
        parts = [self.task.name, *self.labels.values()]
        return "-".join(part.lower().replace(" ", "_").replace("/", "_") for part in parts if part)


class ExperimentRunner:
    """Trains and evaluates the settings of experiments, each once, and stores the results.

    A run directory is named by a hash of all its options, so that a changed option never finds an old result. Several
    processes, and several commands at a time, can share one directory.

    Args:
        directory: directory of the models.
        data_dirs: directories of local files, by data set.
        flags: options `--name value ...` for every run, which override all others.
    """

    def __init__(self, directory: Path, data_dirs: dict[str, str], flags: Sequence[str]):
        self.directory = directory
        self.data_dirs = data_dirs
        self.flags = list(flags)
        self.state = PartialState()

    def key(self, setting: Setting, seed: int) -> str:
        """Hash of the options that a setting is trained with, sixteen characters.

        Options at their defaults are left out: a new option then leaves finished runs valid.
        """
        options, defaults = (
            recipe_options(*self._parse(setting, seed, "start" if setting.start else None)),
            _defaults(),
        )
        options = {
            name: value for name, value in options.items() if name not in LOCAL_OPTIONS and value != defaults.get(name)
        }
        return _hash([options, self.key(setting.start, seed) if setting.start else None])

    def evaluation_key(self, setting: Setting, seed: int, name: str) -> str:
        return _hash([self.key(setting, seed), setting.evaluations[name], self.flags])

    def keys(self, setting: Setting, seed: int) -> dict[str, str]:
        """The keys of a setting's training and of each of its evaluations."""
        evaluations = {name: self.evaluation_key(setting, seed, name) for name in setting.evaluations}
        return {"training": self.key(setting, seed), **evaluations}

    def make(self, setting: Setting, seed: int) -> dict[str, Any] | None:
        """Train and evaluate a setting if necessary. None if another command is doing it.

        Returns:
            `metrics` by evaluation ("training" is the one at its end), the `curve` of accuracy over examples, sizes,
            seconds and hardware.
        """
        with self._claimed(self.key(setting, seed)) as is_ours:
            if not is_ours:
                return None
            directory = self.train(setting, seed)
            if directory is None:
                return None
            metrics = {"training": _final_metrics(directory)}
            for name in setting.evaluations:
                metrics[name] = self._evaluate(setting, seed, name, directory)
        training = json.loads((directory / TRAINING_FILE).read_text())
        return {
            "setting": setting.name,
            "labels": setting.labels,
            "seed": seed,
            "keys": self.keys(setting, seed),
            "metrics": metrics,
            "curve": learning_curve(directory),
            "num_parameters": training["num_parameters"],
            "train_seconds": round(train_seconds(training), 1),
            "hardware": training["hardware"],
        }

    def train(self, setting: Setting, seed: int) -> Path | None:
        """Directory of the trained model. None if it starts from a model that another command is training."""
        start = None
        if setting.start:
            with self._claimed(self.key(setting.start, seed)) as is_ours:
                start = self.train(setting.start, seed) if is_ours else None
            if start is None:
                return None
        directory = self.directory / self.key(setting, seed)
        if (directory / REPOCARD_NAME).is_file():
            return directory
        resume = directory.is_dir() and get_last_checkpoint(directory) is not None
        self.state.wait_for_everyone()
        if self.state.is_main_process and not resume:
            shutil.rmtree(directory, ignore_errors=True)
        self.state.wait_for_everyone()
        model_arguments, data_arguments, training_arguments = self._parse(setting, seed, start)
        training_arguments.output_dir = str(directory)
        training_arguments.resume_from_checkpoint = str(resume).lower()
        train(model_arguments, data_arguments, training_arguments)
        self.state.wait_for_everyone()
        return directory

    def wait_for(self, setting: Setting, seed: int) -> Path:
        """Directory of the trained model, as soon as no other command is training it."""
        while True:
            with self._claimed(self.key(setting, seed)) as is_ours:
                directory = self.train(setting, seed) if is_ours else None
            if directory is not None:
                return directory
            time.sleep(POLLING_SECONDS)

    def untrained_model(self, setting: Setting, seed: int) -> PreTrainedModel:
        """The model with which training starts, but for its classes."""
        model_arguments, *_ = self._parse(setting, seed, None)
        set_seed(seed)
        return build_model(model_arguments, ["0", "1"])

    def test_pictures(self, task: Task, count: int) -> list[torch.Tensor]:
        """The first test images of an image task, uint8 (3, height, width)."""
        _, data_arguments, training_arguments = self._parse(Setting(task, {}), 0, None)
        rows = load_splits(data_arguments, training_arguments.seed).evaluation.select(range(count))
        return [decode_image(image) for image in rows.cast_column("image", datasets.Image(decode=False))["image"]]

    def _evaluate(self, setting: Setting, seed: int, name: str, directory: Path) -> dict[str, Any]:
        path = directory / f"evaluation_{self.evaluation_key(setting, seed, name)}.json"
        if path.is_file():
            return json.loads(path.read_text())
        # The model brings its architecture, which these options may override.
        flags = self._flags(setting, {"seed": seed, **setting.evaluations[name]}, is_new_model=False)
        flags += ["--model_name_or_path", str(directory), "--output_dir", str(directory / "evaluation")]
        metrics = evaluate(*parse_recipe(setting.task.recipe, flags))
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            write_json(path, metrics)
        self.state.wait_for_everyone()
        return metrics

    def _parse(self, setting: Setting, seed: int, start: Path | str | None) -> tuple[Any, ...]:
        options = {**setting.options, "seed": seed}
        if start is not None:
            options["model_name_or_path"] = str(start)
        flags = self._flags(setting, options, is_new_model=start is None)
        return parse_recipe(setting.task.recipe, flags, preset=setting.task.preset)

    def _flags(self, setting: Setting, options: Options, is_new_model: bool) -> list[str]:
        """Options as flags. For a checkpoint, the task's options of the architecture are left out."""
        given = {**setting.task.options, **options}
        if not is_new_model:
            left_out = ARCHITECTURE_OPTIONS - options.keys()
            given = {name: value for name, value in given.items() if name not in left_out}
        dataset = parse_recipe(setting.task.recipe)[1].dataset
        if dataset in self.data_dirs:
            given["data_dir"] = self.data_dirs[dataset]
        flags = []
        for name, value in given.items():
            values = value if isinstance(value, list) else [value]
            flags += [f"--{name}", *(str(each).lower() if isinstance(each, bool) else str(each) for each in values)]
        return [*flags, *self.flags]

    @contextmanager
    def _claimed(self, key: str) -> Iterator[bool]:
        """Whether this command has locked a training. The lock ends with the process, even if that is killed."""
        if self.state.num_processes > 1:
            # Commands with several processes do not share work with other commands.
            yield True
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / f"{key}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True


@functools.cache
def _defaults() -> dict[str, Any]:
    return recipe_options(ModelArguments(), DataArguments(), RunArguments())


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _final_metrics(directory: Path) -> dict[str, float]:
    metrics = json.loads((directory / METRICS_FILE).read_text())
    return {name.removeprefix("eval_"): value for name, value in metrics.items()}
