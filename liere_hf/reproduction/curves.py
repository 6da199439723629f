"""Learning curves."""

# Points with `examples` and `accuracy`, in the order of training.
Curve = list[dict[str, float]]


def examples_to_reach(curve: Curve, accuracy: float) -> float | None:
    """Training examples needed for an accuracy, by linear interpolation between evaluations. None if not reached."""
    for before, after in zip([None, *curve], curve, strict=False):
        if after["accuracy"] < accuracy:
            continue
        if before is None:
            return after["examples"]
        share = (accuracy - before["accuracy"]) / (after["accuracy"] - before["accuracy"])
        return before["examples"] + share * (after["examples"] - before["examples"])
    return None
