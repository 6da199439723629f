"""The paper's experiments as data: settings to train, measures, and how results are shown."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ..configuration import ComparedEncoding, compared_encodings, encoding_options, paper_accuracy, parse_recipe
from ..configuration.arguments import AUTHORS_IMAGE_MEAN, AUTHORS_IMAGE_STD, PRESETS
from ..modeling.position_encodings import POSITION_ENCODINGS
from .curves import examples_to_reach
from .runner import Options, Setting, Task


@dataclass(frozen=True)
class Scale:
    """The scale at which experiments are run, see scales.yaml."""

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
        """The image classification task of most experiments."""
        return self.tasks[self.roles["images"]]

    def seeds_of(self, task: Task) -> list[int]:
        return task.seeds or self.seeds


@dataclass(frozen=True)
class Measure:
    """A column of the table: the value of one run, and whether it is a share of the test examples in per cent.

    The value is None for tasks without it.
    """

    title: str
    of_run: Callable[[dict[str, Any]], float | None]
    is_proportion: bool = True


@dataclass(frozen=True)
class Line:
    """A line plot over the settings' `x`, with one line for each value of the label `series`.

    Where settings have no `x`, it is over the values of the label that `x_label` names, in the order of the settings.
    """

    x_label: str
    series: str | None = None
    log_x: bool = False


@dataclass(frozen=True)
class Experiment:
    """Settings, measures, and a figure (points by default).

    Attributes:
        reference: value of the first label with which p values compare.
        line: draws lines instead of points.
        by_evaluation: if every evaluation of a model has its own row, the labels of the comma-separated parts of the
            evaluations' names.
        panels_by: the label whose values have panels of their own, besides tasks and evaluations.
        curves_against: an encoding. The figure also shows learning curves, and a table how much less training the
            others need for its final accuracy.
        curves_by: a label. A further figure has the learning curves of spatial tasks: a line for each of its values,
            in a panel for each encoding.
        paired_with: an encoding. A further table has the differences of the others to it, in pairs of equal seeds.
    """

    title: str
    source: str
    settings: Callable[[Scale], list[Setting]]
    measures: tuple[Measure, ...]
    reference: str | None = None
    line: Line | None = None
    by_evaluation: tuple[str, ...] = ()
    panels_by: str | None = None
    curves_against: str | None = None
    curves_by: str | None = None
    paired_with: str | None = None


def accuracy_of(evaluation: str) -> Callable[[dict[str, Any]], float | None]:
    """Accuracy in per cent of one of a run's evaluations. `training` is the one at the end of training."""
    return lambda result: 100 * result["metrics"][evaluation]["accuracy"] if evaluation in result["metrics"] else None


ACCURACY = Measure("accuracy, %", accuracy_of("training"))
LOSS = Measure("loss", lambda result: result["metrics"]["training"]["loss"], is_proportion=False)


def read_scale(name: str) -> Scale:
    """Read a scale from scales.yaml.

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
            **{"paper": paper_accuracy(task.paper_results, compared.paper_name), **further},
        )
        for compared in compared_encodings().values()
    ]


def _one_of_each() -> list[ComparedEncoding]:
    """One block size of every encoding, the first one."""
    first: dict[str, ComparedEncoding] = {}
    for compared in compared_encodings().values():
        first.setdefault(compared.name, compared)
    return list(first.values())


PACES: dict[str, Options] = {
    "": {"generator_learning_rate_factor": 1.0},
    ", fast": {"generator_learning_rate_factor": 10.0},
}
# The options of generators to compare, by label. Frequencies are the defaults of LiereViTConfig.
STARTS: dict[str, Options] = {
    f"{start}{pace}": {"generator_init": init} | options
    for start, init in {
        "published": "uniform",
        "planar": "planar",
        "random basis": "random_basis",
        "random bases": "random_bases",
    }.items()
    for pace, options in PACES.items()
}


# Of the starts the best one in `start`, where all encodings are taken together: to compare by other seeds and on other
# tasks.
CHOSEN_START = "planar, fast"
CHOSEN = STARTS[CHOSEN_START]


def _accuracy(scale: Scale) -> list[Setting]:
    return [setting for name in scale["classification"] for setting in _by_encoding(scale.tasks[name])]


def _by_encoding_and_start() -> list[tuple[ComparedEncoding, dict[str, str], Options]]:
    """Labels and options of every encoding as published, then of those with free generators with the chosen start."""
    compared = compared_encodings().values()
    return [
        *((each, {"encoding": each.title}, each.options) for each in compared),
        *(
            (each, {"encoding": each.title, "start": CHOSEN_START}, each.options | CHOSEN)
            for each in compared
            if each.encoding.has_free_generators
        ),
    ]


def _spatial(scale: Scale) -> list[Setting]:
    """Training at each canvas size and testing at all of them."""
    tasks = [scale.tasks[name] for name in scale["spatial"]]
    canvases = [*(task.cells for task in tasks), *scale["larger_cells"]]
    settings = []
    for task in tasks:
        others = {f"{cells} x {cells}": _other_canvas(task, cells) for cells in canvases if cells != task.cells}
        for compared, labels, options in _by_encoding_and_start():
            paper = None if "start" in labels else paper_accuracy(task.paper_results, compared.paper_name)
            settings.append(Setting(task, labels, options, f"{task.cells} x {task.cells}", others, paper=paper))
    return settings


def _other_canvas(task: Task, cells: int) -> Options:
    cell = parse_recipe(task.recipe)[1].arrows_cell_size
    return {"arrows_grid_size": cells, "input_size": [cells * cell]}


def _block_size(scale: Scale) -> list[Setting]:
    """Widths of blocks, as published and with the chosen start. Width 2 is RoPE-Mixed."""
    task, settings = scale.images, []
    for label, start in {"published": {}, CHOSEN_START: CHOSEN}.items():
        for width in (2, 4, 8, 16, 32, 64):
            options, paper_name = encoding_options("liere", width), f"liere{width}"
            if width == 2:
                options, paper_name = encoding_options("rope_mixed"), "rope_mixed"
            paper = None if start else paper_accuracy(task.paper_results, paper_name)
            labels = {"block size": str(width), "start": label}
            settings.append(Setting(task, labels, options | start, paper=paper, x=width))
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
    """The task with at least two heads, as sharing among heads needs."""
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
    # A model without any correct answer cannot lose accuracy.
    return 100 * (before - after) / before if before else 0.0


# Section 5.6 of the paper.
PAPER_POSITION_MODES = ("sequential", "linspace", "rescaled")


def _resolution(scale: Scale) -> list[Setting]:
    """Each encoding tested at several sizes with each position mode, and fine-tuned at one of them."""
    task, (finetuned,) = scale.images, scale["finetuned"]["input_size"]
    (trained_size,) = task.options.get("image_size") or parse_recipe(task.recipe)[0].image_size
    settings = []
    for compared, labels, options in _by_encoding_and_start():
        modes = PAPER_POSITION_MODES if compared.encoding.is_rotary else PAPER_POSITION_MODES[:1]
        evaluations = {
            f"{mode}, {size} px": {"input_size": [size], "position_mode": mode} | scale["tested"]
            for mode in modes
            for size in scale["sizes"]
            if (mode, size) != ("sequential", trained_size)
        }
        trained = Setting(task, labels, options, f"sequential, {trained_size} px")
        settings.append(replace(trained, evaluations=evaluations))
        labels = labels | {"training": f"and fine-tuned at {finetuned} px"}
        settings.append(Setting(task, labels, scale["finetuned"], f"sequential, {finetuned} px", start=trained))
    return settings


def _efficiency(scale: Scale) -> list[Setting]:
    """Shares of the training data. With all of it, the accuracy is evaluated more often."""
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
    """The paper's model sizes. At the CPU scale, models of one, two and four layers instead."""
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
    # The default is not set explicitly, so that other experiments share the run.
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


def _start(scale: Scale) -> list[Setting]:
    """Starts and paces for every encoding with free generators on a spatial task, also tested on larger canvases."""
    # Blocks of width 2 have one plane, whatever their basis.
    planar = {title for title, compared in compared_encodings().items() if compared.encoding.block_size == 2}
    return [
        setting
        for setting in _by_start(scale.tasks[scale["start"]], STARTS)
        if not (setting.labels["encoding"] in planar and setting.options["generator_init"].startswith("random"))
    ]


def _chosen_start(scale: Scale) -> list[Setting]:
    starts = {"published": STARTS["published"], "chosen": CHOSEN}
    return [setting for name in scale["chosen_start"] for setting in _by_start(scale.tasks[name], starts)]


def _by_start(task: Task, starts: dict[str, Options]) -> list[Setting]:
    return [
        Setting(
            task,
            {"start": label, "encoding": compared.title},
            compared.options | options,
            evaluations=_larger_canvases(task) if task.cells else {},
        )
        for compared in compared_encodings().values()
        if compared.encoding.has_free_generators
        for label, options in starts.items()
    ]


# Block width of the encodings in `shape`.
SHAPE_BLOCK_SIZE = 8


def commuting_shapes() -> dict[str, Options]:
    """Titles and options of encodings whose generators commute by their structure, beside RoPE-Mixed."""
    return {
        encoding.title.format(block_size=SHAPE_BLOCK_SIZE): encoding_options(name, SHAPE_BLOCK_SIZE)
        for name, encoding in POSITION_ENCODINGS.items()
        if encoding.parameters and not encoding.has_free_generators
    }


def _shape(scale: Scale) -> list[Setting]:
    """Structures of the generators, from one start and at one pace."""
    compared = compared_encodings()
    paper = {title: compared[title].options for title in ("RoPE-Mixed", f"LieRE{SHAPE_BLOCK_SIZE}")}
    tasks = [scale.tasks[name] for name in scale["shape"]]
    return [
        Setting(task, {"encoding": title}, options | CHOSEN, evaluations=_larger_canvases(task))
        for task in tasks
        for title, options in {**paper, **commuting_shapes()}.items()
    ]


# Cells more on a side than the trained canvas has.
LARGER_CANVASES = {"2 cells larger": 2, "4 cells larger": 4}


def _larger_canvases(task: Task) -> dict[str, Options]:
    return {name: _other_canvas(task, task.cells + more) for name, more in LARGER_CANVASES.items()}


def _examples_until_90(result: dict[str, Any]) -> float | None:
    """Training examples until a spatial task is solved to 90%; all of them if it never is."""
    if not result["metrics"].keys() & LARGER_CANVASES.keys():
        return None
    return examples_to_reach(result["curve"], 0.9) or result["curve"][-1]["examples"]


SPATIAL_MEASURES = (
    ACCURACY,
    *(Measure(f"{name}, %", accuracy_of(name)) for name in LARGER_CANVASES),
    Measure("examples until 90%", _examples_until_90, is_proportion=False),
)


# One change at a time to a training that learns the spatial task early.
ONSET_BASE: Options = STARTS["planar, fast"] | {
    "max_grad_norm": 0.0,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
ONSET_CHANGES: dict[str, Options] = {
    "none": {},
    "gradients clipped to norm 1": {"max_grad_norm": 1.0},
    "inputs normalized as published": {"image_mean": [*AUTHORS_IMAGE_MEAN], "image_std": [*AUTHORS_IMAGE_STD]},
    "initial weights halved": {"initializer_range": 0.045},
    "initial weights doubled": {"initializer_range": 0.18},
    "lower frequencies": {"generator_min_frequency": 0.05, "generator_max_frequency": 0.75},
    "higher frequencies": {"generator_min_frequency": 0.2, "generator_max_frequency": 3.0},
    "generators not faster": PACES[""],
    "generators start as published": {"generator_init": "uniform"},
}


def _onset(scale: Scale) -> list[Setting]:
    task = scale.tasks[scale["onset"]]
    return [
        Setting(
            task,
            {"change": change},
            encoding_options("liere", 8) | ONSET_BASE | options,
            evaluations=_larger_canvases(task),
        )
        for change, options in ONSET_CHANGES.items()
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
        Line("width of a block", "start", log_x=True),
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
        panels_by="start",
    ),
    "efficiency": Experiment(
        "Data and compute",
        "figures 4 and 9",
        _efficiency,
        (ACCURACY,),
        line=Line("share of the training data, %", "encoding"),
        curves_against="absolute",
    ),
    "model_size": Experiment(
        "Size of the model", "table 6, figure 8", _model_size, (ACCURACY,), line=Line("size", "encoding")
    ),
    "initialization": Experiment(
        "Initial values of the generators",
        "table 7",
        _initialization,
        (ACCURACY,),
        line=Line("initial values, uniform from 0 to", "encoding", log_x=True),
    ),
    "start": Experiment(
        "Start and pace of the generators",
        "beyond the paper",
        _start,
        SPATIAL_MEASURES,
        "published",
        curves_by="start",
        paired_with="RoPE-Mixed",
    ),
    "chosen_start": Experiment(
        "The chosen start on other seeds and tasks",
        "beyond the paper",
        _chosen_start,
        SPATIAL_MEASURES,
        "published",
        curves_by="start",
        paired_with="RoPE-Mixed",
    ),
    "onset": Experiment(
        "What decides when a task is learned",
        "beyond the paper",
        _onset,
        SPATIAL_MEASURES,
        "none",
        curves_by="change",
    ),
    "shape": Experiment(
        "Structures of the generators",
        "beyond the paper",
        _shape,
        SPATIAL_MEASURES,
        "RoPE-Mixed",
    ),
    "pooling": Experiment("CLS or mean pooling", "section 5", _pooling, (ACCURACY,)),
}
