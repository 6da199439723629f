"""What `liere-hf compare` writes about models on the same examples, and how cards read it."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from .configuration.metric_names import MEASURES
from .errors import InputError
from .output_files import write_bytes, write_json
from .run_directory import Run, encoding_title, read_json, require_metrics, require_own_metrics

COMPARISON_FILE = "comparison"
# One file for each input size, in the directory of the first model.
COMPARISONS = f"{COMPARISON_FILE}*.json"


@dataclass(frozen=True)
class Difference:
    """A model against the first one, on the same examples.

    Attributes:
        model: its name.
        measure: what is compared, a mean over examples.
        value: the model's minus the first one's.
        low, high: ends of the 95% interval of `value`, by paired bootstrap.
        only_model_right, only_first_right: numbers of examples; None where answers are not right or wrong.
        p_value: two-sided, of McNemar's exact test; None where there are no such numbers.
    """

    model: str
    measure: str
    value: float
    low: float
    high: float
    only_model_right: int | None = None
    only_first_right: int | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Comparison:
    """
    Attributes:
        encodings: titles, by name of the model.
        metrics: of each evaluation, by name of the model.
        differences: of all models but the first to the first, for each measure of single examples.
    """

    encodings: dict[str, str]
    metrics: dict[str, dict[str, Any]]
    differences: tuple[Difference, ...]

    @property
    def first(self) -> str:
        """The model that the others are compared with."""
        return next(iter(self.metrics))

    @property
    def input_size(self) -> list[int]:
        """Of the first model, in pixels per axis."""
        return self.metrics[self.first]["input_size"]

    @property
    def main_measure(self) -> str:
        """The first measure of the differences, which tables and figures show."""
        return self.differences[0].measure


def write_comparison(directory: Path, comparison: Comparison) -> list[Path]:
    """Write `comparison.json`, with all measures, and `comparison.csv`, a row for each model.

    Returns:
        Their paths.
    """
    rows = [_csv_row(comparison, name) for name in comparison.metrics]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[-1]], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    paths = [directory / f"{COMPARISON_FILE}.json", directory / f"{COMPARISON_FILE}.csv"]
    write_json(paths[0], asdict(comparison))
    write_bytes(paths[1], text.getvalue().encode())
    return paths


def read_comparisons(run: Run) -> list[Comparison]:
    """The comparisons of a run with others that lie in its directory, by increasing input size.

    Raises:
        InputError: one cannot be read, or compares others with another model than this one.
    """
    comparisons = [_read_comparison(path, run) for path in sorted(run.directory.glob(COMPARISONS))]
    return sorted(comparisons, key=lambda comparison: comparison.input_size)


def titles(names: Sequence[str]) -> list[str]:
    """The last parts of the names of models, as few as tell them apart."""
    parts = [PurePath(name).parts or (name,) for name in names]
    longest = max(map(len, parts))
    for count in range(1, longest + 1):
        ends = ["/".join(each[-count:]) for each in parts]
        if len({*ends}) == len(ends):
            return ends
    return [*names]


def _read_comparison(path: Path, run: Run) -> Comparison:
    content = read_json(path)
    try:
        differences = tuple(Difference(**each) for each in content["differences"])
        comparison = Comparison(dict(content["encodings"]), dict(content["metrics"]), differences)
        models = {each.model for each in differences}
        numbers = [number for each in differences for number in (each.value, each.low, each.high)]
        for metrics in comparison.metrics.values():
            numbers += [metrics["examples"], *metrics["input_size"]]
    except (KeyError, TypeError, ValueError):
        raise _no_comparison(path) from None
    if not (
        len(comparison.metrics) > 1
        and models <= comparison.metrics.keys() == comparison.encodings.keys()
        and all(isinstance(number, int | float) for number in numbers)
        and all(isinstance(encoding, str) for encoding in comparison.encodings.values())
    ):
        raise _no_comparison(path)
    for metrics in comparison.metrics.values():
        require_metrics(metrics, run.config, path)
    if PurePath(comparison.first).name != run.directory.absolute().name:
        raise InputError(
            f"{path} compares others with {comparison.first}, but is a file of {run.directory}: compare others with "
            "this model, as the first one"
        )
    require_own_metrics(comparison.metrics[comparison.first], run.config, path)
    encodings = comparison.encodings[comparison.first], encoding_title(run.config)
    if encodings[0] != encodings[1]:
        raise InputError(
            f"{path} compares others with a model with {encodings[0]}, but {run.directory} has {encodings[1]}: it is "
            "of another model"
        )
    return comparison


def _no_comparison(path: Path) -> InputError:
    return InputError(f"{path} holds no comparison as liere-hf compare writes it")


def _csv_row(comparison: Comparison, name: str) -> dict[str, Any]:
    metrics = comparison.metrics[name]
    row = {"model": name, "encoding": comparison.encodings[name], "examples": metrics["examples"]}
    for measure in MEASURES:
        row |= {key: metrics[key] for key in (measure, f"{measure}_low", f"{measure}_high") if key in metrics}
    for each in comparison.differences:
        if each.model == name:
            row |= {f"{each.measure}_difference": each.value, f"{each.measure}_difference_low": each.low}
            row |= {f"{each.measure}_difference_high": each.high}
            if each.p_value is not None:
                row |= {"only_model_right": each.only_model_right, "only_first_right": each.only_first_right}
                row |= {"mcnemar_p": each.p_value}
    return row
