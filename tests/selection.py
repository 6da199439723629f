"""Selections of the cases of parametrized tests."""

import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest


def mostly_extensive(cases: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """All cases, marked as extensive if they are not in `fast`."""
    return [case if case in fast else _extensive(case) for case in cases]


def _extensive(case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.extensive)


def all_pairs(names: str, *values: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrize with combinations of values among which every pair of values of two parameters occurs.

    Faults rarely need certain values of three parameters at once; the full product has several times as many cases.
    """
    cases = [*itertools.product(*(range(len(each)) for each in values))]
    missing = {pair for case in cases for pair in _pairs(case)}
    chosen = set()
    while missing:
        best = max(cases, key=lambda case: len(missing.intersection(_pairs(case))))
        chosen.add(best)
        missing.difference_update(_pairs(best))
    return pytest.mark.parametrize(
        names, [tuple(each[index] for each, index in zip(values, case, strict=True)) for case in sorted(chosen)]
    )


def _pairs(case: tuple[int, ...]) -> list[tuple[tuple[int, int], ...]]:
    return [*itertools.combinations(enumerate(case), 2)]
