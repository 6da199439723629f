"""Metrics with confidence intervals: for Trainer batch by batch, and as `evaluate.Metric`, without the Hub."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from transformers import EvalPrediction, PreTrainedConfig

from ..configuration.metric_names import problem_type
from .scores import SCORES


class EvaluationMetrics:
    """Trainer's `compute_metrics` with `batch_eval_metrics`: it keeps a few numbers for each example, not its logits.

    Args:
        config: of the model: its kind of problem, and its classes.
        num_views: views of each example, which follow one another; their logits are averaged.
    """

    def __init__(self, config: PreTrainedConfig, num_views: int = 1):
        self._problem, self._num_views = problem_type(config.to_dict()), num_views
        self._names = [config.id2label[index] for index in range(config.num_labels)]
        self._scores = SCORES[self._problem](len(self._names))
        self._waiting: tuple[torch.Tensor, torch.Tensor] | None = None
        self.last = self._scores

    def __call__(self, prediction: EvalPrediction, compute_result: bool) -> dict[str, float]:
        """Add a batch; the metrics of all batches if it is the last one."""
        logits, labels = (torch.as_tensor(each).cpu() for each in (prediction.predictions, prediction.label_ids))
        if self._waiting is not None:
            logits, labels = (torch.cat(parts) for parts in zip(self._waiting, (logits, labels), strict=True))
        # A batch may end between the views of an example.
        complete = len(logits) // self._num_views * self._num_views
        self._waiting = (logits[complete:], labels[complete:])
        if complete:
            views = logits[:complete].double().unflatten(0, (-1, self._num_views))
            self._scores.add(views.mean(1), labels[: complete : self._num_views])
        if not compute_result:
            return {}
        # Trainer evaluates more than once.
        self.last, self._scores, self._waiting = self._scores, SCORES[self._problem](len(self._names)), None
        return self.last.metrics()

    def per_class(self) -> dict[str, dict[str, Any]]:
        """What the last evaluation measured for each class."""
        return self.last.per_class(self._names)

    def per_example(self) -> dict[str, np.ndarray]:
        """What the last evaluation measured for each example, in their order: measures whose means are metrics."""
        return self.last.per_example()

    def confusion_matrix(self) -> tuple[Sequence[str], np.ndarray] | None:
        """Classes and counts of the last evaluation; None where examples have several classes or none."""
        has_one = self._problem == "single_label_classification"
        return (self._names, self.last.confusion_matrix()) if has_one else None


class _Metric(evaluate.Metric):
    problem: str
    references: Any

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": self.references}
            ),
        )

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        predictions, references = torch.from_numpy(np.array(predictions)), torch.from_numpy(np.array(references))
        scores = SCORES[self.problem](predictions.shape[1])
        scores.add(predictions, references)
        return scores.metrics()


class ClassificationMetric(_Metric):
    """Accuracy, top-5 accuracy where there are more classes, macro averages of precision, recall and F1, calibration
    error and cross-entropy, with the ends of 95% intervals as `*_low` and `*_high`.

    Predictions are logits (examples, classes), references are class indices (examples,).
    """

    problem = "single_label_classification"
    references = datasets.Value("int64")


class MultiLabelMetric(_Metric):
    """Mean average precision, macro averages of precision, recall and F1, and binary cross-entropy.

    Predictions are logits (examples, classes), references are 0 or 1, (examples, classes).
    """

    problem = "multi_label_classification"
    references = datasets.Sequence(datasets.Value("int64"))


class RegressionMetric(_Metric):
    """R2, mean absolute error and mean squared error (`loss`). Predictions and references are (examples, numbers)."""

    problem = "regression"
    references = datasets.Sequence(datasets.Value("float32"))
