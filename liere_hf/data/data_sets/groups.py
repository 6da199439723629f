"""Groups of examples, such as all those of a patient, which never lie in two splits."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from ...errors import InputError, first_names

# The column of a table that holds them.
GROUP = "group"


def groups_by_pattern(names: Sequence[str], pattern: str) -> list[str]:
    """The part of each name that a regular expression captures, or all that it matches.

    Raises:
        InputError: not a regular expression, or a name that it does not match.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(f"group_pattern is {pattern!r}, allowed is a regular expression: {error}") from error
    matches = [expression.search(name) for name in names]
    unmatched = [name for name, match in zip(names, matches, strict=True) if match is None]
    if unmatched:
        raise InputError(f"group_pattern {pattern!r} does not match {first_names(unmatched)}")
    return [match.group(1 if expression.groups else 0) or "" for match in matches]


def require_separate_groups(splits: Mapping[str, Sequence[str]]) -> None:
    """
    Raises:
        InputError: a group that is in two splits.
    """
    names = [*splits]
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            common = sorted({*splits[first]} & {*splits[second]})
            if common:
                raise InputError(
                    f"the group {common[0]!r} is in {first} and in {second}, and so are {len(common) - 1} others: "
                    "allowed is one split for each group"
                )


def choose_groups(
    labels: np.ndarray, classes: Sequence[str], groups: Sequence[str], fraction: float, seed: int
) -> np.ndarray:
    """Which examples are held out: whole groups, so that of each class they are about `fraction`.

    Groups are taken in a random order, each if that brings the numbers of examples of the classes nearer to their
    shares.

    Args:
        labels: class indices (examples,); all 0 where there are no classes.
        classes: their names.

    Returns:
        bool (examples,).

    Raises:
        InputError: a class has examples of one group only, or groups of several classes cannot be divided.
    """
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.zeros((len(names), len(classes)), int)
    np.add.at(counts, (members, labels), 1)
    shares = fraction * counts.sum(0)
    held = np.zeros(len(names), bool)
    for group in np.random.default_rng(seed).permutation(len(names)):
        total = counts[held].sum(0)
        held[group] = np.abs(total + counts[group] - shares).sum() < np.abs(total - shares).sum()
    present = np.flatnonzero(counts.sum(0))
    for label in present:
        having = np.flatnonzero(counts[:, label])
        if len(having) == 1:
            raise InputError(
                f"all examples of {classes[label]!r} are of the group {str(names[having[0]])!r}, at least 2 groups "
                "are needed to hold one out: add examples, or give a validation split"
            )
        if held[having].all() or not held[having].any():
            smallest = having[np.argmin(counts[having].sum(1))]
            held[smallest] = ~held[smallest]
    one_sided = [classes[label] for label in present if not (counts[held, label].sum() and counts[~held, label].sum())]
    if one_sided:
        raise InputError(
            f"groups cannot be divided so that {first_names(one_sided)} are in training and in validation: add "
            "examples, or give a validation split"
        )
    return held[members]
