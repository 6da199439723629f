"""An experiment, from its runs to its table and figure. Finished runs are not repeated."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from rich.table import Column, Table

from ..configuration.option_help import COMPACT_TABLE
from ..errors import InputError
from ..output_files import write_json
from .analyses import ANALYSES, FIGURE_FILE
from .experiments import EXPERIMENTS, Experiment, Scale, read_scale
from .figures import draw, draw_curves
from .runner import POLLING_SECONDS, ExperimentRunner, Setting
from .summary import Results, Row, summarize
from .tables import write_tables

SCALES = ("paper", "gpu", "cpu")
# Of the result of a run.
RESULT_KEYS = {"labels", "seed", "keys", "metrics", "curve", "num_parameters", "hardware"}


def list_experiments() -> None:
    """Print all experiments, with their place in the paper and their estimated minutes at each scale."""
    scales = [read_scale(name) for name in SCALES]
    table = Table(
        Column("experiment", no_wrap=True),
        "what",
        "where",
        *(Column(scale.name, no_wrap=True, justify="right") for scale in scales),
        **COMPACT_TABLE,
        caption="Where: in the paper. The last three columns: minutes at each scale.",
    )
    for name, experiment in {**EXPERIMENTS, **ANALYSES}.items():
        minutes = [f"{scale.minutes[name]:,}" for scale in scales]
        table.add_row(name, experiment.title, experiment.source, *minutes)
    console = Console()
    console.print(table)
    for scale in scales:
        console.print(f"\n[bold]{scale.name}[/bold] ({scale.hardware}): {scale.changes}")


def reproduce(
    name: str,
    scale_name: str,
    results_dir: Path = Path("results"),
    work_dir: Path = Path("runs/reproduction"),
    data_dirs: dict[str, str] | None = None,
    flags: Sequence[str] = (),
) -> None:
    """Run what is missing of an experiment, and write its results to `results_dir`/NAME/SCALE.

    Several commands at a time, for this or other experiments, share the work. An interrupted one is continued.

    Args:
        name: name of one of `EXPERIMENTS` or `ANALYSES`.
        scale_name: `paper`, `gpu` or `cpu`.
        work_dir: directory of the models, which experiments share.
        data_dirs: directories of local files, by data set. Default: the Hub.
        flags: options `--name value ...` for every run, which override all others.

    Raises:
        InputError: an unknown experiment or scale, or options or data that do not fit.
    """
    known = {**EXPERIMENTS, **ANALYSES}
    if name not in known:
        raise InputError(f"experiment is {name!r}, allowed are list, {', '.join(known)}")
    _require_scale(scale_name)
    scale, directory = read_scale(scale_name), results_dir / name / scale_name
    runner = ExperimentRunner(work_dir, data_dirs or {}, flags)
    console = Console(quiet=not PartialState().is_main_process, soft_wrap=True)
    console.print(f"{known[name].title} ({known[name].source}), scale {scale.name}: {scale.changes}")
    if name in ANALYSES:
        ANALYSES[name].run(directory, scale, runner, console)
        return
    experiment = EXPERIMENTS[name]
    results, num_made = _results(experiment, scale, runner, directory, console)
    if PartialState().is_main_process:
        _report(experiment, scale, results, directory, console, is_new=num_made > 0)


def redraw(name: str, scale_name: str, results_dir: Path = Path("results")) -> None:
    """Draw the figure of an experiment again, from its results, without data or models.

    Raises:
        InputError: an unknown experiment or scale, one without a figure, or a result that is missing.
    """
    drawn = {**EXPERIMENTS, **{each: analysis for each, analysis in ANALYSES.items() if analysis.draw}}
    if name not in drawn:
        raise InputError(f"experiment is {name!r}, allowed with --redraw are {', '.join(drawn)}")
    _require_scale(scale_name)
    directory = results_dir / name / scale_name
    if name in ANALYSES:
        _require_result(directory / FIGURE_FILE, name, scale_name)
        ANALYSES[name].draw(directory)
    else:
        _redraw_experiment(EXPERIMENTS[name], name, scale_name, directory)
    Console(soft_wrap=True).print(f"Written to {directory / 'figure.png'}")


def _redraw_experiment(experiment: Experiment, name: str, scale_name: str, directory: Path) -> None:
    scale = read_scale(scale_name)
    results: Results = {}
    for setting, seed in _runs(experiment, scale):
        path = _result_path(directory, setting, seed)
        _require_result(path, name, scale_name)
        results[setting.name, seed] = _read_result(path, ["training", *setting.evaluations])
    _draw(directory, experiment, summarize(experiment, scale, results), results)


def _require_result(path: Path, name: str, scale_name: str) -> None:
    """
    Raises:
        InputError: there is no such file.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist: liere-hf reproduce {name} --scale {scale_name} makes it")


def _read_result(path: Path, evaluations: Sequence[str]) -> dict[str, Any]:
    """The result of a run.

    Raises:
        InputError: the file does not hold one with the metrics of these evaluations.
    """
    try:
        result = json.loads(path.read_text())
        missing = [*(RESULT_KEYS - result.keys()), *(set(evaluations) - result["metrics"].keys())]
    except (ValueError, AttributeError, KeyError) as error:
        raise InputError(f"{path} is not the result of a run: delete it, and reproduce makes it again") from error
    if missing:
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}: delete it, and reproduce makes it again")
    return result


def _require_scale(name: str) -> None:
    """
    Raises:
        InputError: there is no such scale.
    """
    if name not in SCALES:
        raise InputError(f"scale is {name!r}, allowed are {', '.join(SCALES)}")


def _runs(experiment: Experiment, scale: Scale) -> list[tuple[Setting, int]]:
    """Settings with seeds."""
    return [(setting, seed) for setting in experiment.settings(scale) for seed in scale.seeds_of(setting.task)]


def _result_path(directory: Path, setting: Setting, seed: int) -> Path:
    return directory / "runs" / f"{setting.name}-seed{seed}.json"


def _results(
    experiment: Experiment, scale: Scale, runner: ExperimentRunner, directory: Path, console: Console
) -> tuple[Results, int]:
    """The result of every setting and seed, and the number of new ones."""
    pending = _runs(experiment, scale)
    total, results, num_made = len(pending), {}, 0
    while pending:
        postponed = []
        for setting, seed in pending:
            path = _result_path(directory, setting, seed)
            result = _finished(path, runner.keys(setting, seed))
            if result is None:
                console.print(f"{len(results) + 1} of {total}: {setting.name}, seed {seed}")
                result = runner.make(setting, seed)
                if result is None:
                    postponed.append((setting, seed))
                    continue
                num_made += 1
                if PartialState().is_main_process:
                    write_json(path, result)
            results[setting.name, seed] = result
        if len(postponed) == len(pending):
            console.print(f"Waiting for {len(postponed)} runs of other commands")
            time.sleep(POLLING_SECONDS)
        pending = postponed
    return results, num_made


def _finished(path: Path, keys: dict[str, str]) -> dict[str, Any] | None:
    """The result in a file, if its settings are the current ones."""
    if not path.is_file():
        return None
    result = _read_result(path, [])
    return result if result["keys"] == keys else None


def _report(
    experiment: Experiment, scale: Scale, results: Results, directory: Path, console: Console, is_new: bool
) -> None:
    _remove_others(directory, results)
    if not is_new and (directory / "table.md").is_file():
        console.print(f"All {len(results)} runs are finished, see {directory / 'table.md'}")
        return
    rows = summarize(experiment, scale, results)
    console.print(write_tables(directory, experiment, scale, rows, results), markup=False)
    _draw(directory, experiment, rows, results)
    console.print(f"Written to {directory}")


def _draw(directory: Path, experiment: Experiment, rows: list[Row], results: Results) -> None:
    draw(directory / "figure.png", experiment, rows, results)
    if experiment.curves_by:
        draw_curves(directory / "curves.png", experiment, results)


def _remove_others(directory: Path, results: Results) -> None:
    """Delete results of settings that the experiment no longer has."""
    names = {f"{setting}-seed{seed}.json" for setting, seed in results}
    for path in (directory / "runs").glob("*.json"):
        if path.name not in names:
            path.unlink()
