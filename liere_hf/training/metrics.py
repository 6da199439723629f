"""Classification metrics with confidence intervals, as an `evaluate.Metric` that works without the Hub."""

import datasets
import evaluate
import numpy as np
import torch

# Standard normal quantile of a two-sided 95% interval.
Z_95 = 1.959963984540054

_DESCRIPTION = "Top-1 and top-5 accuracy and cross-entropy of a classifier, each with a 95% confidence interval."
_CITATION = ""


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95% confidence interval of a proportion (Wilson, 1927), within [0, 1]."""
    proportion = successes / trials
    center = proportion + Z_95**2 / (2 * trials)
    spread = Z_95 * np.sqrt(proportion * (1 - proportion) / trials + (Z_95 / (2 * trials)) ** 2)
    scale = 1 + Z_95**2 / trials
    return float(max((center - spread) / scale, 0)), float(min((center + spread) / scale, 1))


class ClassificationMetric(evaluate.Metric):
    """Computes `accuracy`, `top5_accuracy` and `loss`, and the ends of their 95% intervals as `*_low` and `*_high`.

    Predictions are logits (examples, classes), references are class indices (examples,). With at most five classes,
    `top5_accuracy` is 1.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        logits, labels = np.asarray(predictions, np.float64), np.asarray(references)
        label_logits = np.take_along_axis(logits, labels[:, None], axis=1)
        # Ties and NaNs count against the label, so that constant or broken logits score nothing.
        rank = (~(logits < label_logits)).sum(axis=1) - 1
        results = {}
        for name, k in (("accuracy", 1), ("top5_accuracy", 5)):
            correct = int((rank < k).sum())
            results[name] = correct / len(labels)
            results[f"{name}_low"], results[f"{name}_high"] = wilson_interval(correct, len(labels))
        losses = torch.logsumexp(torch.from_numpy(logits), dim=1).numpy() - label_logits[:, 0]
        spread = Z_95 * losses.std(ddof=1) / np.sqrt(len(labels)) if len(labels) > 1 else np.inf
        mean = float(losses.mean())
        return results | {"loss": mean, "loss_low": float(mean - spread), "loss_high": float(mean + spread)}
