import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import log_loss, top_k_accuracy_score

from liere_hf.training.metrics import ClassificationMetric, wilson_interval


@settings(deadline=None, max_examples=20)
@given(examples=st.integers(12, 200), classes=st.integers(6, 12), seed=st.integers(0, 1000))
def test_equals_scikit_learn_and_torch(examples, classes, seed):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(examples, classes)).astype(np.float32)
    labels = np.concatenate((np.arange(classes), random.integers(classes, size=examples)))[:examples]
    result = ClassificationMetric(keep_in_memory=True).compute(predictions=logits, references=labels)
    assert result["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
    names = np.arange(classes)
    assert result["top5_accuracy"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=names))
    probabilities = torch.tensor(logits).double().softmax(-1).numpy()
    assert result["loss"] == pytest.approx(log_loss(labels, probabilities, labels=names), rel=1e-6)
    losses = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels), reduction="none").numpy()
    low, high = stats.norm.interval(0.95, losses.mean(), stats.sem(losses))
    assert (result["loss_low"], result["loss_high"]) == pytest.approx((low, high), rel=1e-4)


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
