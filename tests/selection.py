"""Which cases of a parametrized test `make test` runs; `make test-slow` runs the others."""

import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest


def mostly_extensive(cases: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """All cases; those that are not in `fast` are marked as extensive."""
    return [case if case in fast else _extensive(case) for case in cases]


def pairs_first(names: str, *values: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrize with all combinations of values; all but some that hold every pair of two values are extensive."""
    cases = [*itertools.product(*(range(len(each)) for each in values))]
    missing = {pair for case in cases for pair in _pairs(case)}
    fast = set()
    while missing:
        best = max(cases, key=lambda case: len(missing.intersection(_pairs(case))))
        fast.add(best)
        missing.difference_update(_pairs(best))
    chosen = []
    for case in cases:
        combination = tuple(each[index] for each, index in zip(values, case, strict=True))
        chosen.append(combination if case in fast else _extensive(combination))
    return pytest.mark.parametrize(names, chosen)


def _pairs(case: tuple[int, ...]) -> list[tuple[tuple[int, int], ...]]:
    return [*itertools.combinations(enumerate(case), 2)]


def _extensive(case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.extensive)
