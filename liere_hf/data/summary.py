"""What was understood of a data set, in a few lines for the screen."""

import os
from typing import Any

from ..errors import first_names

# More classes than these are not listed one by one.
_FEW_CLASSES = 10


def summary(facts: dict[str, Any]) -> list[str]:
    """Lines about source, classes, examples of each split, and what was left out.

    Args:
        facts: of `Splits.facts`.
    """
    classes = facts["classes"]
    lines = [f"data: {facts['source']}, {len(classes)} classes: {_some(classes)}"]
    lines += [f"{split}: {_counts(counts)}{_origin(split, facts)}" for split, counts in facts["splits"].items()]
    lines += [f"left out, {kind}: {files}" for kind, files in _by_kind(facts["left_out"], facts["source"]).items()]
    return lines + [f"{kind}: {files}" for kind, files in _by_kind(facts["remarks"], facts["source"]).items()]


def _by_kind(noted: list[dict[str, str]], source: str) -> dict[str, str]:
    """The number and the first names of the files by the kind of what is told of them."""
    kinds: dict[str, list[str]] = {}
    for each in noted:
        kinds.setdefault(each["reason"].partition(":")[0], []).append(_relative(each["file"], source))
    return {kind: f"{len(files):,} ({first_names(files)})" for kind, files in kinds.items()}


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= _FEW_CLASSES else first_names(names)


def _counts(counts: int | dict[str, int]) -> str:
    """The number of a split's examples, and of those of each class."""
    if isinstance(counts, int):
        return f"{counts:,} examples"
    total = f"{sum(counts.values()):,} examples"
    if len(counts) <= _FEW_CLASSES:
        return f"{total} ({', '.join(f'{name} {count:,}' for name, count in counts.items())})"
    fewest, most = min(counts.values()), max(counts.values())
    return f"{total} ({fewest:,}{'' if fewest == most else f' to {most:,}'} of each class)"


def _origin(split: str, facts: dict[str, Any]) -> str:
    held_out = facts["held_out"]
    if split != "validation" or held_out is None:
        return ""
    return f", held out from the training examples: {held_out['fraction']:.0%}, seed {held_out['seed']}"


def _relative(file: str, source: str) -> str:
    inside = os.path.isabs(source) and os.path.abspath(file).startswith(source + os.sep)  # noqa: PTH100, PTH117
    return os.path.relpath(file, source) if inside else file
