"""Metrics against scikit-learn, SciPy and torch, added batch by batch."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn
from transformers import EvalPrediction

from liere_hf import LiereViTConfig
from liere_hf.configuration.metric_names import MEASURES, MEASURES_OF
from liere_hf.training.intervals import wilson_interval
from liere_hf.training.metrics import ClassificationMetric, EvaluationMetrics, MultiLabelMetric, RegressionMetric
from liere_hf.training.scores import SCORES


def config(num_labels: int, problem_type: str = "single_label_classification") -> LiereViTConfig:
    return LiereViTConfig(num_labels=num_labels, problem_type=problem_type, image_size=8, patch_size=4)


def classified(examples: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.concatenate((np.arange(classes), random.integers(classes, size=examples)))[:examples]
    logits = random.normal(size=(examples, classes)) + 2 * np.eye(classes)[labels]
    return logits.astype(np.float32), labels


@settings(deadline=None, max_examples=20)
@given(examples=st.integers(12, 200), classes=st.integers(6, 12), seed=st.integers(0, 1000))
def test_equals_scikit_learn_and_torch(examples, classes, seed):
    logits, labels = classified(examples, classes, seed)
    result = ClassificationMetric(keep_in_memory=True).compute(predictions=logits, references=labels)
    predicted = logits.argmax(1)
    assert result["accuracy"] == pytest.approx((predicted == labels).mean())
    names = np.arange(classes)
    assert result["top5_accuracy"] == pytest.approx(sklearn.top_k_accuracy_score(labels, logits, k=5, labels=names))
    probabilities = torch.tensor(logits).double().softmax(-1).numpy()
    assert result["loss"] == pytest.approx(sklearn.log_loss(labels, probabilities, labels=names), rel=1e-6)
    losses = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels), reduction="none").numpy()
    low, high = stats.norm.interval(0.95, losses.mean(), stats.sem(losses))
    assert (result["loss_low"], result["loss_high"]) == pytest.approx((low, high), rel=1e-4)
    expected = sklearn.precision_recall_fscore_support(
        labels, predicted, labels=np.unique(labels), average="macro", zero_division=0
    )
    for name, value in zip(("macro_precision", "macro_recall", "macro_f1"), expected, strict=False):
        assert result[name] == pytest.approx(value)
        assert result[f"{name}_low"] <= result[f"{name}_high"]


def test_classes_and_confusion_equal_scikit_learn():
    logits, labels = classified(300, 7, 0)
    scores = SCORES["single_label_classification"](7)
    scores.add(torch.tensor(logits), torch.tensor(labels))
    predicted = logits.argmax(1)
    np.testing.assert_array_equal(scores.confusion_matrix(), sklearn.confusion_matrix(labels, predicted))
    report = sklearn.classification_report(labels, predicted, output_dict=True)
    for name, row in scores.per_class("0123456").items():
        assert row["examples"] == report[name]["support"]
        assert row["precision"] == pytest.approx(report[name]["precision"])
        assert row["recall"] == pytest.approx(report[name]["recall"])
        assert row["f1"] == pytest.approx(report[name]["f1-score"])
        ends = stats.binomtest(round(row["recall"] * row["examples"]), row["examples"]).proportion_ci(method="wilson")
        assert (row["recall_low"], row["recall_high"]) == pytest.approx((ends.low, ends.high))


def test_the_bootstrap_resamples_examples():
    """The standard deviation of macro F1 over resampled examples, drawn one by one."""
    logits, labels = classified(200, 6, 1)
    result = ClassificationMetric(keep_in_memory=True).compute(predictions=logits, references=labels)
    random, predicted = np.random.default_rng(0), logits.argmax(1)
    samples = []
    for _ in range(300):
        chosen = random.integers(200, size=200)
        samples.append(sklearn.f1_score(labels[chosen], predicted[chosen], average="macro"))
    low, high = np.percentile(samples, (2.5, 97.5))
    assert (result["macro_f1_low"], result["macro_f1_high"]) == pytest.approx((low, high), abs=0.015)


def test_calibration_error():
    """Of 100 examples with confidence 0.9, 70 are right: the error is 0.2. Bins do not mix 0.9 and 0.55."""
    logits = np.log([[0.9, 0.1]] * 100 + [[0.55, 0.45]] * 100)
    labels = np.array([0] * 70 + [1] * 30 + [0] * 55 + [1] * 45)
    result = ClassificationMetric(keep_in_memory=True).compute(predictions=logits, references=labels)
    assert result["calibration_error"] == pytest.approx(0.1, abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(trials=st.integers(1, 10_000), share=st.floats(0, 1))
def test_wilson_interval_equals_scipy(trials, share):
    successes = round(trials * share)
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_constant_or_nonfinite_logits_have_zero_accuracy(value):
    metric = ClassificationMetric(keep_in_memory=True)
    result = metric.compute(predictions=np.full((10, 6), value), references=np.zeros(10, dtype=int))
    assert result["accuracy"] == 0


@pytest.mark.parametrize(("classes", "has_top5"), [(2, False), (5, False), (6, True)])
def test_top5_only_among_more_classes(classes, has_top5):
    logits, labels = classified(40, classes, 0)
    result = ClassificationMetric(keep_in_memory=True).compute(predictions=logits, references=labels)
    assert ("top5_accuracy" in result) == has_top5


@pytest.mark.parametrize("problem", SCORES)
@pytest.mark.parametrize("examples", [1, 2, 30])
def test_all_measures_are_finite_and_named(problem, examples):
    """One example has no interval of a mean."""
    random = np.random.default_rng(0)
    outputs = torch.tensor(random.normal(size=(examples, 3)))
    labels = {
        "single_label_classification": torch.arange(examples) % 3,
        "multi_label_classification": torch.tensor(random.integers(2, size=(examples, 3))),
        "regression": outputs + torch.tensor(random.normal(size=(examples, 3))),
    }[problem]
    if problem == "multi_label_classification":
        labels[0] = 1
    scores = SCORES[problem](3)
    scores.add(outputs, labels)
    result = scores.metrics()
    assert all(map(np.isfinite, result.values())), result
    names = {name.removesuffix("_low").removesuffix("_high") for name in result}
    assert names <= set(MEASURES_OF[problem]) <= set(MEASURES)
    assert ("loss_low" in result) == (examples > 1)
    assert scores.per_class("abc").keys() == set("abc")


def test_multi_label_equals_scikit_learn():
    random = np.random.default_rng(0)
    labels = random.integers(2, size=(80, 4))
    logits = (random.normal(size=(80, 4)) + labels).astype(np.float32)
    result = MultiLabelMetric(keep_in_memory=True).compute(predictions=logits, references=labels)
    expected = sklearn.average_precision_score(labels, logits, average="macro")
    assert result["mean_average_precision"] == pytest.approx(expected)
    assert result["macro_f1"] == pytest.approx(sklearn.f1_score(labels, logits > 0, average="macro"))
    losses = torch.nn.functional.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(labels).float())
    assert result["loss"] == pytest.approx(losses.item(), rel=1e-5)


def test_regression_equals_scikit_learn():
    random = np.random.default_rng(0)
    targets = random.normal(size=(80, 2)).astype(np.float32)
    predictions = (targets + random.normal(size=(80, 2)) / 3).astype(np.float32)
    result = RegressionMetric(keep_in_memory=True).compute(predictions=predictions, references=targets)
    assert result["r2"] == pytest.approx(sklearn.r2_score(targets, predictions), abs=1e-6)
    assert result["mean_absolute_error"] == pytest.approx(sklearn.mean_absolute_error(targets, predictions), rel=1e-5)
    assert result["loss"] == pytest.approx(sklearn.mean_squared_error(targets, predictions), rel=1e-5)


@pytest.mark.parametrize(("views", "batch_size"), [(1, 7), (3, 7), (15, 4), (4, 64)])
def test_batches_end_anywhere(views, batch_size):
    """Views of an example lie in two batches or more; the metrics are those of the mean logits of all views."""
    logits, labels = classified(20 * views, 6, 0)
    labels = labels.reshape(20, views)[:, 0]
    evaluation = EvaluationMetrics(config(6), views)
    repeated = np.repeat(labels, views)
    for _ in range(2):
        for start in range(0, len(logits), batch_size):
            part = slice(start, start + batch_size)
            prediction = EvalPrediction(predictions=torch.tensor(logits[part]), label_ids=torch.tensor(repeated[part]))
            result = evaluation(prediction, compute_result=start + batch_size >= len(logits))
        means = logits.reshape(20, views, 6).mean(axis=1)
        expected = ClassificationMetric(keep_in_memory=True).compute(predictions=means, references=labels)
        assert result == pytest.approx(expected, rel=1e-5)
    assert sum(row["examples"] for row in evaluation.per_class().values()) == 20
    names, matrix = evaluation.confusion_matrix()
    assert matrix.sum() == 20
    assert len(names) == 6


def test_memory_does_not_grow_with_examples_times_classes():
    """Ten times the examples of a thousand classes, whose logits take 80 MB."""

    def kept(examples: int) -> int:
        evaluation, random = EvaluationMetrics(config(1000)), np.random.default_rng(0)
        tracemalloc.start()
        for _ in range(examples // 500):
            logits = torch.tensor(random.normal(size=(500, 1000)).astype(np.float32))
            labels = torch.tensor(random.integers(1000, size=500))
            evaluation(EvalPrediction(predictions=logits, label_ids=labels), compute_result=False)
        del logits
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return size

    few, many = kept(2_000), kept(20_000)
    assert many - few < 1_000_000


def resampled(statistic, examples: int, resamples: int = 40) -> np.ndarray:
    """The ends of the percentile bootstrap, from a function of the examples' weights."""
    weights = np.random.default_rng(0).multinomial(examples, np.full(examples, 1 / examples), size=resamples)
    return np.percentile([statistic(row) for row in weights], (2.5, 97.5))


def test_intervals_are_those_of_resampled_examples(monkeypatch):
    """scikit-learn's measures with weights; equal logits are one threshold."""
    monkeypatch.setattr("liere_hf.training.intervals.NUM_RESAMPLES", 40)
    random = np.random.default_rng(1)
    labels = random.integers(2, size=(60, 3))
    logits = np.round(random.normal(size=(60, 3)) + labels, 1).astype(np.float32)
    result = MultiLabelMetric(keep_in_memory=True).compute(predictions=logits, references=labels)
    for name, function, found in (
        ("mean_average_precision", sklearn.average_precision_score, logits),
        ("macro_f1", sklearn.f1_score, logits > 0),
        ("macro_recall", sklearn.recall_score, logits > 0),
    ):
        expected = resampled(lambda w, f=function, x=found: f(labels, x, average="macro", sample_weight=w), 60)
        assert [result[f"{name}_low"], result[f"{name}_high"]] == pytest.approx(expected), name

    targets = 100 + random.normal(size=(60, 2))
    predictions = targets + random.normal(size=(60, 2)) / 3
    result = RegressionMetric(keep_in_memory=True).compute(predictions=predictions, references=targets)
    expected = resampled(lambda w: sklearn.r2_score(targets, predictions, sample_weight=w), 60)
    assert [result["r2_low"], result["r2_high"]] == pytest.approx(expected, abs=1e-4)
