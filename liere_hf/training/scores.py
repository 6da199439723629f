"""Scores of predictions, added batch by batch: a few numbers are kept for each example, not its logits.

One class for each `problem_type` of transformers. Metrics are computed by scikit-learn.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, r2_score
from torch.nn import functional

from ..configuration.metric_names import ENDS, NUM_TOP_CLASSES
from .intervals import bootstrap_intervals, mean_with_interval, wilson_interval

# Bins of the calibration error (Guo et al., 2017).
NUM_BINS = 15
_MACRO = ("macro_precision", "macro_recall", "macro_f1")
# A variance that is this small beside the others is rounding: the targets of a sample are equal.
_ROUNDING = 1e-12


class SingleLabelScores:
    """Scores of a classifier with one class for each example.

    Ties and logits that are not finite count against the label, so that a constant or broken output scores nothing.
    """

    def __init__(self, num_labels: int):
        self.num_labels = num_labels
        self._labels, self._predicted, self._ranks, self._losses, self._confidences = [], [], [], [], []

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """
        Args:
            logits: (examples, classes).
            labels: class indices, (examples,).
        """
        logits, labels = logits.double(), labels.long()
        chosen = logits.gather(1, labels[:, None])
        self._labels.append(labels.int().numpy())
        self._predicted.append(logits.nan_to_num(-torch.inf).argmax(1).int().numpy())
        self._ranks.append((~(logits < chosen)).sum(1).sub(1).int().numpy())
        self._losses.append((logits.logsumexp(1) - chosen[:, 0]).float().numpy())
        self._confidences.append(logits.softmax(1).amax(1).float().numpy())

    def metrics(self) -> dict[str, float]:
        """The measures of `single_label_classification`, with the ends of intervals as `NAME_low` and `NAME_high`."""
        ranks, losses = np.concatenate(self._ranks), np.concatenate(self._losses).astype(np.float64)
        results = {}
        for name, count in (("accuracy", 1), ("top5_accuracy", NUM_TOP_CLASSES)):
            # Among as few classes, it is 1.
            if count == 1 or self.num_labels > count:
                results |= _share(name, int((ranks < count).sum()), len(ranks))
        results |= self._macro_averages()
        # Without an interval: resampled examples are calibrated worse, so that a bootstrap would be biased.
        results["calibration_error"] = self._calibration_error(ranks < 1)
        return results | mean_with_interval("loss", losses)

    def per_class(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Precision, recall and F1 of each class, the number of its examples, and Wilson's intervals of the shares."""
        confusion = self.confusion_matrix()
        return _per_class(confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1), names)

    def per_example(self) -> dict[str, np.ndarray]:
        """Whether the answer is right (`accuracy`), and the `loss`, of each example."""
        right = np.concatenate(self._ranks) < 1
        return {"accuracy": right.astype(np.float64), "loss": np.concatenate(self._losses).astype(np.float64)}

    def confusion_matrix(self) -> np.ndarray:
        """Numbers of examples: true classes are rows, predicted ones are columns."""
        cells, counts = self._cells()
        matrix = np.zeros((self.num_labels, self.num_labels), np.int64)
        matrix[cells] = counts
        return matrix

    def _cells(self) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        """The pairs of a true and a predicted class that occur, and how often."""
        labels, predicted = np.concatenate(self._labels), np.concatenate(self._predicted)
        pairs, counts = np.unique(labels.astype(np.int64) * self.num_labels + predicted, return_counts=True)
        return np.divmod(pairs, self.num_labels), counts

    def _macro_averages(self) -> dict[str, float]:
        """Means over the classes that have examples, with bootstrapped intervals."""
        (labels, predicted), counts = self._cells()
        present = np.unique(labels)

        def averages(samples: np.ndarray) -> np.ndarray:
            hits, guesses, support = (np.zeros((len(samples), self.num_labels)) for _ in range(3))
            for column, (label, guess) in enumerate(zip(labels, predicted, strict=True)):
                support[:, label] += samples[:, column]
                guesses[:, guess] += samples[:, column]
                if label == guess:
                    hits[:, label] += samples[:, column]
            shares = _shares(hits[:, present], guesses[:, present], support[:, present])
            return np.stack([_mean_of_present(share, support[:, present]) for share in shares], axis=1)

        (values,) = averages(counts[None])
        return _with_ends(_MACRO, values, *bootstrap_intervals(averages, counts))

    def _calibration_error(self, correct: np.ndarray) -> float:
        """Expected calibration error: mean distance of confidence and accuracy over bins, weighted by examples."""
        confidences = np.concatenate(self._confidences).astype(np.float64)
        bins = np.clip(np.ceil(np.nan_to_num(confidences) * NUM_BINS) - 1, 0, NUM_BINS - 1).astype(int)
        gaps = np.bincount(bins, weights=correct - np.nan_to_num(confidences), minlength=NUM_BINS)
        return float(np.abs(gaps).sum() / len(correct))


class MultiLabelScores:
    """Scores of a classifier with any number of classes for each example; probability 1/2 decides."""

    def __init__(self, num_labels: int):
        self.num_labels = num_labels
        self._logits, self._labels, self._losses = [], [], []

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """
        Args:
            logits: (examples, classes).
            labels: 0 or 1, (examples, classes).
        """
        losses = functional.binary_cross_entropy_with_logits(logits.double(), labels.double(), reduction="none")
        self._losses.append(losses.mean(1).numpy())
        # The order of examples by their scores is needed: average precision cannot do with less.
        self._logits.append(logits.float().numpy())
        self._labels.append(labels.bool().numpy())

    def metrics(self) -> dict[str, float]:
        """The measures of `multi_label_classification` with the ends of intervals, over classes that have examples."""
        logits, labels = np.concatenate(self._logits), np.concatenate(self._labels)
        logits, labels = (values[:, labels.any(axis=0)] for values in (logits, labels))
        precisions = average_precision_score(labels, logits, average=None)
        macro = precision_recall_fscore_support(labels, logits > 0, average=None, zero_division=0)[:3]
        predicted, ranking = logits > 0, [_Ranking(*columns) for columns in zip(logits.T, labels.T, strict=True)]

        def averages(samples: np.ndarray) -> np.ndarray:
            support = samples @ labels
            precisions = np.stack([classes.average_precision(samples) for classes in ranking], axis=1)
            shares = _shares(samples @ (predicted & labels).astype(float), samples @ predicted, support)
            return np.stack([_mean_of_present(values, support) for values in (precisions, *shares)], axis=1)

        values = [float(np.mean(values)) for values in (precisions, *macro)]
        ends = bootstrap_intervals(averages, np.ones(len(labels), np.int64))
        loss = mean_with_interval("loss", np.concatenate(self._losses))
        return _with_ends(("mean_average_precision", *_MACRO), values, *ends) | loss

    def per_class(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """As for one class, with average precision where a class has examples."""
        logits, labels = np.concatenate(self._logits), np.concatenate(self._labels)
        predicted = logits > 0
        rows = _per_class((predicted & labels).sum(0), predicted.sum(0), labels.sum(0), names)
        for index, row in enumerate(rows.values()):
            if labels[:, index].any():
                row["average_precision"] = float(average_precision_score(labels[:, index], logits[:, index]))
        return rows

    def per_example(self) -> dict[str, np.ndarray]:
        """The `loss` of each example, over its classes."""
        return {"loss": np.concatenate(self._losses)}


class RegressionScores:
    """Scores of predicted numbers, one or several for each example."""

    def __init__(self, num_labels: int):
        self.num_labels = num_labels
        self._predictions, self._targets = [], []

    def add(self, predictions: torch.Tensor, targets: torch.Tensor) -> None:
        """
        Args:
            predictions: (examples, numbers).
            targets: the same, or (examples,) for one number.
        """
        self._predictions.append(predictions.double().reshape(len(targets), -1).numpy())
        self._targets.append(targets.double().reshape(len(targets), -1).numpy())

    def metrics(self) -> dict[str, float]:
        """The measures of `regression` with the ends of intervals; R2 needs two examples."""
        results = self._r2() if sum(map(len, self._targets)) > 1 else {}
        for name, values in self.per_example().items():
            results |= mean_with_interval(name, values)
        return results

    def _r2(self) -> dict[str, float]:
        predictions, targets = np.concatenate(self._predictions), np.concatenate(self._targets)
        squares, centered = (predictions - targets) ** 2, targets - targets.mean(0)

        def scores(samples: np.ndarray) -> np.ndarray:
            variation = samples @ centered**2 - (samples @ centered) ** 2 / len(targets)
            unexplained = np.divide(
                samples @ squares,
                variation,
                out=np.ones_like(variation),
                where=variation > _ROUNDING * variation.max(),
            )
            return (1 - unexplained).mean(1, keepdims=True)

        ends = bootstrap_intervals(scores, np.ones(len(targets), np.int64))
        return _with_ends(("r2",), [float(r2_score(targets, predictions))], *ends)

    def per_example(self) -> dict[str, np.ndarray]:
        """The absolute (`mean_absolute_error`) and the squared error (`loss`) of each example, over its numbers."""
        errors = np.concatenate(self._predictions) - np.concatenate(self._targets)
        return {"mean_absolute_error": np.abs(errors).mean(1), "loss": (errors**2).mean(1)}

    def per_class(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The mean absolute error of each number, where there are several."""
        errors = np.abs(np.concatenate(self._predictions) - np.concatenate(self._targets))
        rows = zip(names, errors.T, strict=True) if errors.shape[1] > 1 else ()
        return {name: mean_with_interval("mean_absolute_error", values) for name, values in rows}


SCORES = {
    "single_label_classification": SingleLabelScores,
    "multi_label_classification": MultiLabelScores,
    "regression": RegressionScores,
}


class _Ranking:
    """The examples of one class in the order of their logits, for average precision with weights."""

    def __init__(self, logits: np.ndarray, labels: np.ndarray):
        self.order = np.argsort(-logits, kind="stable")
        self.labels = labels[self.order]
        # Equal logits are one threshold: only its last example counts.
        self.thresholds = np.flatnonzero(np.diff(logits[self.order], append=np.nan) != 0)

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """As scikit-learn's, for each row of weights (samples, examples); 0 without an example of the class."""
        weights = weights[:, self.order].astype(np.float64)
        found = (weights * self.labels).cumsum(1)[:, self.thresholds]
        taken = weights.cumsum(1)[:, self.thresholds]
        precision = np.divide(found, taken, out=np.zeros_like(found), where=taken > 0)
        return (precision * np.diff(found, prepend=0)).sum(1) / np.maximum(found[:, -1], 1)


def _mean_of_present(values: np.ndarray, support: np.ndarray) -> np.ndarray:
    """The mean over classes (samples, classes) without those that a sample lacks."""
    present = support > 0
    return (values * present).sum(1) / np.maximum(present.sum(1), 1)


def _with_ends(
    names: Sequence[str], values: Sequence[float], low: Sequence[float], high: Sequence[float]
) -> dict[str, float]:
    return {
        f"{name}{end}": float(value)
        for name, *numbers in zip(names, values, low, high, strict=True)
        for end, value in zip(("", *ENDS), numbers, strict=True)
    }


def _share(name: str, successes: int, trials: int) -> dict[str, float]:
    low, high = wilson_interval(successes, trials)
    return {name: successes / trials, f"{name}_low": low, f"{name}_high": high}


def _shares(hits: np.ndarray, guesses: np.ndarray, support: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1; 0 where nothing was guessed or there is nothing to find, as in scikit-learn."""
    return tuple(
        np.divide(part, whole, out=np.zeros(hits.shape), where=whole > 0)
        for part, whole in ((hits, guesses), (hits, support), (2 * hits, guesses + support))
    )


def _per_class(
    hits: np.ndarray, guesses: np.ndarray, support: np.ndarray, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    rows = {}
    for index, (name, f1) in enumerate(zip(names, _shares(hits, guesses, support)[2], strict=True)):
        row = {"examples": int(support[index])}
        for share, whole in (("precision", guesses[index]), ("recall", support[index])):
            row |= _share(share, int(hits[index]), int(whole)) if whole else {share: 0.0}
        rows[name] = row | {"f1": float(f1)}
    return rows
