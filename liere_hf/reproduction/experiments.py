"""The paper's experiments as data: what is trained, what is measured on it, how it is shown."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ..configuration import ComparedEncoding, compared_encodings, encoding_options, paper_accuracy, parse_recipe
from ..configuration.arguments import PRESETS
from ..modeling.positions import POSITION_MODES
from .runner import Options, Setting, Task


@dataclass(frozen=True)
class Scale:
    """How large an experiment is run; see scales.yaml."""

    name: str
    hardware: str
    changes: str
    seeds: list[int]
    tasks: dict[str, Task]
    roles: dict[str, Any]
    minutes: dict[str, int]

    def __getitem__(self, role: str) -> Any:
        return self.roles[role]

    @property
    def images(self) -> Task:
        """The image task of the experiments that have one."""
        return self.tasks[self.roles["images"]]

    def seeds_of(self, task: Task) -> list[int]:
        return task.seeds or self.seeds


@dataclass(frozen=True)
class Measure:
    """A column of the table: what one run gives, and whether that is a share of test examples, in per cent."""

    title: str
    of_run: Callable[[dict[str, Any]], float]
    is_proportion: bool = True


@dataclass(frozen=True)
class Line:
    """A figure of lines over settings' `x`, one for each value of the label `series`."""

    x_label: str
    series: str | None = None
    log_x: bool = False


@dataclass(frozen=True)
class Experiment:
    """Arms, what is measured on each, and the figure (points unless a line).

    Attributes:
        reference: the value of the first label that the p values compare with.
        by_evaluation: where every evaluation of a trained model has a row of its own, what the parts of their names
            say (parted by commas).
        curves_against: the figure also shows accuracy over training examples, and a table how much of the training is
            saved at this encoding's final accuracy.
    """

    title: str
    source: str
    settings: Callable[[Scale], list[Setting]]
    measures: tuple[Measure, ...]
    reference: str | None = None
    line: Line | None = None
    by_evaluation: tuple[str, ...] = ()
    curves_against: str | None = None


def accuracy_of(evaluation: str) -> Callable[[dict[str, Any]], float]:
    """Accuracy in per cent of one of a run's evaluations; `training` is the one at its end."""
    return lambda result: 100 * result["metrics"][evaluation]["accuracy"]


ACCURACY = Measure("accuracy, %", accuracy_of("training"))
LOSS = Measure("loss", lambda result: result["metrics"]["training"]["loss"], is_proportion=False)


def read_scale(name: str) -> Scale:
    """
    Raises:
        KeyError: there is no such scale.
    """
    content = yaml.safe_load((Path(__file__).parent / "scales.yaml").read_text())[name]
    tasks = {key: Task(name=key, **fields) for key, fields in content.pop("tasks").items()}
    common = {key: content.pop(key) for key in ("hardware", "changes", "seeds", "minutes")}
    return Scale(name=name, tasks=tasks, roles=content, **common)


def _by_encoding(task: Task, **further: Any) -> list[Setting]:
    return [
        Setting(
            task,
            {"encoding": compared.title},
            compared.options,
            **{"paper": paper_accuracy(task.compare, compared.paper_name), **further},
        )
        for compared in compared_encodings().values()
    ]


def _one_of_each() -> list[ComparedEncoding]:
    """One block size of every encoding, the first one."""
    first: dict[str, ComparedEncoding] = {}
    for compared in compared_encodings().values():
        first.setdefault(compared.name, compared)
    return list(first.values())


def _accuracy(scale: Scale) -> list[Setting]:
    return [setting for name in scale["classification"] for setting in _by_encoding(scale.tasks[name])]


def _spatial(scale: Scale) -> list[Setting]:
    """Trained at each size, and trained at the smallest, then tested on the larger canvases."""
    tasks = [scale.tasks[name] for name in scale["spatial"]]
    others = [*(task.cells for task in tasks[1:]), *scale["larger_cells"]]
    larger = {f"{cells} x {cells}": _larger_canvas(tasks[0], cells) for cells in others}
    return [
        setting
        for task in tasks
        for setting in _by_encoding(
            task, evaluated=f"{task.cells} x {task.cells}", evaluations=larger if task is tasks[0] else {}
        )
    ]


def _larger_canvas(task: Task, cells: int) -> Options:
    cell = parse_recipe(task.recipe)[1].arrows_cell_size
    return {"arrows_grid_size": cells, "input_size": [cells * cell]}


def _block_size(scale: Scale) -> list[Setting]:
    settings = []
    for width in (2, 4, 8, 16, 32, 64):
        options = encoding_options("liere", width)
        paper = paper_accuracy(scale.images.compare, f"liere{width}")
        if width == 2:
            options, paper = encoding_options("rope_mixed"), paper_accuracy(scale.images.compare, "rope_mixed")
        settings.append(Setting(scale.images, {"block size": str(width)}, options, paper=paper, x=width))
    return settings


def _sharing(scale: Scale) -> list[Setting]:
    settings = []
    for layers, heads in ((False, False), (False, True), (True, False), (True, True)):
        labels = {"layers": "shared" if layers else "own", "heads": "shared" if heads else "own"}
        if layers and not heads:
            labels["layers"] = "shared (the authors' code)"
        options = {"share_generators_across_layers": layers, "share_generators_across_heads": heads}
        settings.append(Setting(_with_two_heads(scale.images), labels, encoding_options("liere", 8) | options))
    return settings


def _with_two_heads(task: Task) -> Task:
    """Sharing among heads means nothing where there is one."""
    return (
        task
        if "model_preset" in task.options or task.recipe == "cifar100"
        else replace(task, options=task.options | {"num_attention_heads": 2, "head_dim": 32})
    )


def _shuffling(scale: Scale) -> list[Setting]:
    names = dict.fromkeys([scale["images"], *scale["clips"]])
    shuffled = {"shuffled": {"shuffle_patches": True}}
    return [setting for name in names for setting in _by_encoding(scale.tasks[name], evaluations=shuffled, paper=None)]


def _drop(result: dict[str, Any]) -> float:
    before, after = (result["metrics"][name]["accuracy"] for name in ("training", "shuffled"))
    # What was never right has nothing to lose.
    return 100 * (before - after) / before if before else 0.0


def _resolution(scale: Scale) -> list[Setting]:
    """Each encoding tested at several sizes, by each way to count positions, and fine-tuned at one of them."""
    task, (finetuned,) = scale.images, scale["finetuned"]["input_size"]
    (trained_size,) = task.options.get("image_size") or parse_recipe(task.recipe)[0].image_size
    settings = []
    for compared in compared_encodings().values():
        modes = POSITION_MODES if compared.encoding.is_rotary else POSITION_MODES[:1]
        evaluations = {
            f"{mode}, {size} px": {"input_size": [size], "position_mode": mode} | scale["tested"]
            for mode in modes
            for size in scale["sizes"]
            if (mode, size) != ("sequential", trained_size)
        }
        trained = Setting(task, {"encoding": compared.title}, compared.options, f"sequential, {trained_size} px")
        settings.append(replace(trained, evaluations=evaluations))
        labels = {"encoding": compared.title, "training": f"and fine-tuned at {finetuned} px"}
        settings.append(Setting(task, labels, scale["finetuned"], f"sequential, {finetuned} px", start=trained))
    return settings


def _efficiency(scale: Scale) -> list[Setting]:
    """Shares of the data; with all of it the accuracy is followed closely."""
    return [
        Setting(
            scale.images,
            {"encoding": compared.title, "share of the data": f"{share}%"},
            compared.options | ({"train_fraction": share / 100} if share < 100 else scale["followed"]),
            x=share,
        )
        for compared in _one_of_each()
        for share in scale["shares"]
    ]


def _model_size(scale: Scale) -> list[Setting]:
    """The paper's sizes, at the scale of a CPU stand-ins of one, two and four layers."""
    if scale.name == "cpu":
        sizes = {"1 layer": {"num_hidden_layers": 1}, "2 layers": {"num_hidden_layers": 2}, "4 layers": {}}
    else:
        names = ("tiny", "base") if scale.name == "gpu" else ("tiny", "base", "large")
        sizes = {name: PRESETS[name] for name in names}
    return [
        Setting(scale.images, {"encoding": compared.title, "size": size}, compared.options | options)
        for compared in _one_of_each()
        if compared.encoding.learns
        for size, options in sizes.items()
    ]


def _initialization(scale: Scale) -> list[Setting]:
    # What is the default is not said, so that the run is that of other experiments.
    scales = {"2 pi": {}} | {label: {"generator_init_scale": float(label)} for label in ("1", "0.001")}
    return [
        Setting(
            scale.images,
            {"encoding": compared.title, "initial values up to": label},
            compared.options | options,
            x=options.get("generator_init_scale", 2 * math.pi),
        )
        for compared in _one_of_each()
        if compared.encoding.parameters
        for label, options in scales.items()
    ]


def _pooling(scale: Scale) -> list[Setting]:
    return [
        Setting(scale.images, {"encoding": compared.title, "pooling": pooling}, compared.options | options)
        for compared in _one_of_each()
        if compared.encoding.learns
        for pooling, options in (("cls", {}), ("mean", {"pooling": "mean"}))
    ]


EXPERIMENTS = {
    "accuracy": Experiment(
        "Accuracy by encoding", "tables 1 and 2, appendix E", _accuracy, (ACCURACY, LOSS), "LieRE8"
    ),
    "spatial": Experiment(
        "Spatial reasoning", "table 3", _spatial, (ACCURACY,), "LieRE8", by_evaluation=("tested at",)
    ),
    "block_size": Experiment(
        "Width of the generators' blocks",
        "figure 6, appendix F",
        _block_size,
        (ACCURACY,),
        "8",
        Line("width of a block", log_x=True),
    ),
    "sharing": Experiment("Generators shared by heads and layers", "table 4", _sharing, (ACCURACY,), "own"),
    "shuffling": Experiment(
        "Shuffled patches",
        "table 5",
        _shuffling,
        (
            ACCURACY,
            Measure("shuffled, %", accuracy_of("shuffled")),
            Measure("drop, % of the accuracy", _drop, is_proportion=False),
        ),
        "LieRE8",
    ),
    "resolution": Experiment(
        "Other resolutions",
        "section 5.6, figure 7",
        _resolution,
        (ACCURACY,),
        by_evaluation=("positions", "tested at"),
    ),
    "efficiency": Experiment(
        "Data and compute",
        "figures 4 and 9",
        _efficiency,
        (ACCURACY,),
        line=Line("share of the training data, %", "encoding"),
        curves_against="absolute",
    ),
    "model_size": Experiment("Size of the model", "table 6, figure 8", _model_size, (ACCURACY,)),
    "initialization": Experiment(
        "Initial values of the generators",
        "table 7",
        _initialization,
        (ACCURACY,),
        line=Line("initial values, uniform from 0 to", "encoding", log_x=True),
    ),
    "pooling": Experiment("CLS or mean pooling", "section 5", _pooling, (ACCURACY,)),
}
