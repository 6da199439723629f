"""What an evaluation measures, for each kind of problem."""

from typing import Any, NamedTuple


class Measure(NamedTuple):
    """A metric of an evaluation.

    Attributes:
        title: its name in tables.
        hub_type: its name in the Hub's `model-index`.
        is_share: whether it is a share, which tables show in per cent.
        greater_is_better: whether larger values are better.
    """

    title: str
    hub_type: str
    is_share: bool = True
    greater_is_better: bool = True


MEASURES = {
    "accuracy": Measure("top-1 accuracy", "accuracy"),
    "top5_accuracy": Measure("top-5 accuracy", "top_5_accuracy"),
    "macro_precision": Measure("precision, mean of classes", "precision"),
    "macro_recall": Measure("recall, mean of classes", "recall"),
    "macro_f1": Measure("F1, mean of classes", "f1"),
    "mean_average_precision": Measure("average precision, mean of classes", "mAP"),
    "calibration_error": Measure("calibration error", "expected_calibration_error", greater_is_better=False),
    "r2": Measure("R2", "r_squared", is_share=False),
    "mean_absolute_error": Measure("mean absolute error", "mae", is_share=False, greater_is_better=False),
    "loss": Measure("loss", "loss", is_share=False, greater_is_better=False),
}
# transformers' names for the kinds of problems, the `problem_type` of a model's configuration.
SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
# By kind of problem, the main measure first.
MEASURES_OF = {
    SINGLE_LABEL: (
        "accuracy",
        "top5_accuracy",
        "macro_precision",
        "macro_recall",
        "macro_f1",
        "calibration_error",
        "loss",
    ),
    MULTI_LABEL: ("mean_average_precision", "macro_precision", "macro_recall", "macro_f1", "loss"),
    REGRESSION: ("r2", "mean_absolute_error", "loss"),
}
# `top5_accuracy` is left out where there are no more classes than these.
NUM_TOP_CLASSES = 5
ENDS = ("_low", "_high")


def problem_type(config: dict[str, Any]) -> str:
    """The kind of problem that a model with this config.json solves; one class for each example by default."""
    return config.get("problem_type") or SINGLE_LABEL


def measured(metrics: dict[str, Any]) -> dict[str, float]:
    """The measures in some metrics, in the order of tables, each followed by the ends of its interval."""
    return {key: metrics[key] for name in MEASURES for key in (name, *(name + end for end in ENDS)) if key in metrics}
