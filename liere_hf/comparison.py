"""Several models on the same examples: differences in pairs, with intervals and an exact test."""

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy import stats

from .comparison_files import Comparison, Difference
from .configuration import parse_recipe
from .configuration.metric_names import MEASURES, problem_type
from .errors import InputError
from .evaluation import Evaluation, evaluate_examples
from .metric_display import interval_text, with_interval
from .model_loading import load_config
from .run_directory import encoding_title

# Of the paired bootstrap, and how many are drawn at a time, which limits memory.
NUM_RESAMPLES, BATCH = 2000, 50


def compare(models: Sequence[str], recipe: str, flags: Sequence[str] = (), config: str | None = None) -> Comparison:
    """Evaluate models as `evaluate` does, and compare all others with the first.

    Args:
        models: two or more, directories or Hub ids.
        recipe: of the data, as in `parse_recipe`.
        flags: as in `parse_recipe`.
        config: as in `parse_recipe`.

    Raises:
        InputError: fewer than two models, one that is named twice, models for different kinds of problems, an
            evaluation that is not possible, or one on other examples than that of the first.
    """
    if len(set(models)) < len(models) or len(models) < 2:
        raise InputError(f"models are {', '.join(models)}: give two or more different ones")
    configs = {name: load_config(name).to_dict() for name in models}
    problems = {name: problem_type(each) for name, each in configs.items()}
    for name, problem in problems.items():
        if problem != problems[models[0]]:
            raise InputError(f"model {name} is for {problem}, {models[0]} for {problems[models[0]]}")
    evaluations = {}
    for name in models:
        arguments = parse_recipe(recipe, [*flags, "--model_name_or_path", name], config)
        evaluations[name] = evaluate_examples(*arguments)
        _require_same_rows(models[0], evaluations[models[0]], name, evaluations[name])
    return Comparison(
        {name: encoding_title(each) for name, each in configs.items()},
        {name: evaluation.metrics for name, evaluation in evaluations.items()},
        tuple(differences({name: evaluation.examples for name, evaluation in evaluations.items()})),
    )


def differences(examples: dict[str, dict[str, np.ndarray]]) -> list[Difference]:
    """Differences of all models to the first, in pairs of the same examples, measure by measure.

    Args:
        examples: by name of the model and by measure, (examples,).
    """
    first, *others = examples
    found = []
    for measure, reference in examples[first].items():
        for name in others:
            values = examples[name][measure]
            difference = Difference(name, measure, *paired_difference(values, reference))
            if measure == "accuracy":
                counts = int((values > reference).sum()), int((values < reference).sum())
                difference = Difference(
                    name, measure, difference.value, difference.low, difference.high, *counts, mcnemar_test(*counts)
                )
            found.append(difference)
    return found


def paired_difference(values: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    """Mean of the differences of pairs, and its 95% interval by a bootstrap of the pairs (percentiles)."""
    each = values - reference
    mean = float(each.mean())
    if len(each) < 2 or (each == each[0]).all():
        return mean, mean, mean
    found = stats.bootstrap(
        (each,), np.mean, n_resamples=NUM_RESAMPLES, batch=BATCH, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return mean, float(found.low), float(found.high)


def mcnemar_test(only_one: int, only_other: int) -> float:
    """Two-sided p value of the exact test (McNemar, 1947) that two classifiers are right equally often.

    Args:
        only_one, only_other: numbers of examples that only the one or only the other classifies correctly. If both are
            equally good, each such example is as likely to be of the one as of the other kind.
    """
    discordant = only_one + only_other
    return float(stats.binomtest(only_one, discordant, 0.5).pvalue) if discordant else 1.0


def print_comparison(comparison: Comparison) -> None:
    """A row for each model: its measure, the difference to the first, and the test."""
    measure = comparison.main_measure
    about = MEASURES[measure]
    scale, unit = (100, ", %") if about.is_share else (1, "")
    table = Table()
    # Paths have no spaces at which they could be broken.
    table.add_column("model", overflow="fold")
    for title in ("encoding", f"{about.title}{unit}", "difference to the first", "McNemar"):
        table.add_column(title)
    for name, metrics in comparison.metrics.items():
        cells = [escape(name), comparison.encodings[name], with_interval(metrics, measure, about.is_share)]
        for difference in _of(comparison, name):
            numbers = (scale * number for number in (difference.value, difference.low, difference.high))
            cells += [interval_text(*numbers, digits=2 if about.is_share else 4), _test_text(difference)]
        table.add_row(*cells)
    Console().print(table)


def _test_text(difference: Difference) -> str:
    if difference.p_value is None:
        return ""
    p_text = "p < 0.0001" if difference.p_value < 1e-4 else f"p = {difference.p_value:.4f}"
    return f"{difference.only_model_right:,} : {difference.only_first_right:,}, {p_text}"


def _of(comparison: Comparison, name: str) -> list[Difference]:
    """The difference of a model by the main measure, none for the first model."""
    measure = comparison.main_measure
    return [each for each in comparison.differences if (each.model, each.measure) == (name, measure)]


def _require_same_rows(first: str, reference: Evaluation, name: str, evaluation: Evaluation) -> None:
    if evaluation.rows != reference.rows or evaluation.metrics["examples"] != reference.metrics["examples"]:
        raise InputError(
            f"model {name} is evaluated on other examples than {first}, since they were not trained on the same part "
            "of the data set: give a test split"
        )
