"""The examples of a data set that a saved model is evaluated on: never those that it was trained on."""

from typing import NamedTuple

import datasets

from ...configuration.metric_names import MULTI_LABEL, REGRESSION
from ...errors import InputError, first_names
from .labels import label_names, problem_type
from .splits import HeldOut, Splits, digest, hold_out


class EvaluationRows(NamedTuple):
    """A table of examples, and which ones of its data set they are: `test`, `validation`, `held out` or `all`."""

    table: datasets.Dataset
    part: str


def rows_for_evaluation(splits: Splits, held_out: HeldOut | None) -> EvaluationRows:
    """The test split, else the validation split, else what was held out from training, else everything.

    Args:
        held_out: how the model's validation examples were chosen; None if it was not trained on a part of a data set.

    Raises:
        InputError: the data are those that the model was trained on, but they have changed since.
    """
    for part in ("test", "validation"):
        if part in splits.tables:
            return EvaluationRows(splits.tables[part], part)
    if held_out is None:
        return EvaluationRows(splits.train, "all")
    if held_out.digest == digest(splits.train):
        return EvaluationRows(hold_out(splits, held_out.fraction, held_out.seed).validation, "held out")
    if held_out.source == splits.source:
        raise InputError(
            f"{splits.source} has changed since the model was trained on a part of it, or other files of it are left "
            "out: which examples were held out is not known, give a test split"
        )
    return EvaluationRows(splits.train, "all")


def with_classes(table: datasets.Dataset, names: list[str]) -> datasets.Dataset:
    """The table with labels that are indices of these classes, by the classes' names.

    Raises:
        InputError: an example of another class, or numbers of other names.
    """
    feature = table.features["label"]
    own_names = label_names(feature)
    if own_names == names:
        return table
    if problem_type(feature) == REGRESSION:
        raise InputError(f"the data set has the numbers {first_names(own_names)}, the model {first_names(names)}")
    labels, is_multi_label = table["label"][:], problem_type(feature) == MULTI_LABEL
    used = {label for row in labels for label in row} if is_multi_label else {*labels}
    unknown = [own_names[label] for label in sorted(used) if own_names[label] not in names]
    if unknown:
        raise InputError(
            f"the data set has the classes {first_names(unknown)}, which the model does not have: its {len(names)} "
            f"classes are {first_names(names)}"
        )
    numbers = {label: names.index(own_names[label]) for label in used}
    feature = datasets.ClassLabel(names=names)
    if is_multi_label:
        feature, labels = datasets.List(feature), [[numbers[label] for label in row] for row in labels]
    else:
        labels = [numbers[label] for label in labels]
    return table.remove_columns("label").add_column("label", labels, feature=feature)
