"""Classes of different sizes, against scikit-learn and torch."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from tiny_run import QUIET, TINY_MODEL, as_flags

from liere_hf import LiereViTConfig
from liere_hf.configuration import DataArguments, RunArguments, parse_recipe
from liere_hf.data import Splits, prepare
from liere_hf.data.data_sets.tables import table_of_images
from liere_hf.errors import InputError
from liere_hf.model_loading import build_model
from liere_hf.training.class_balance import BalancedSampler, balanced_class_weights
from liere_hf.training.run import build_trainer, train

LABELS = np.array([0] * 40 + [1] * 8 + [2] * 2)


@pytest.fixture(scope="module")
def splits() -> Splits:
    images = np.random.default_rng(0).integers(256, size=(len(LABELS), 8, 8), dtype=np.uint8)
    table = table_of_images(images, LABELS, ["a", "b", "c", "none"])
    return Splits.of(table, table)


@pytest.fixture
def arguments(tmp_path) -> RunArguments:
    return RunArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, seed=3)


def test_weights_equal_scikit_learn(splits):
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    torch.testing.assert_close(balanced_class_weights(splits), torch.tensor([*expected, 1.0]).float())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_are_in_the_training_loss_only(splits, arguments, smoothing):
    arguments.label_smoothing_factor = smoothing
    config = LiereViTConfig(image_size=8, patch_size=4, **TINY_MODEL)
    data = prepare(splits, config, DataArguments(), arguments)
    flags = as_flags(TINY_MODEL | QUIET | {"hidden_dropout_prob": 0})
    model = build_model(parse_recipe("digits", flags)[0], splits.label_names)
    weights = balanced_class_weights(splits)
    trainer = build_trainer(model, data, arguments, weights)
    inputs = {"pixel_values": torch.randn(6, 3, 8, 8), "labels": torch.tensor([0, 0, 0, 1, 2, 2])}
    logits = model.eval()(inputs["pixel_values"]).logits
    cross_entropy = torch.nn.CrossEntropyLoss
    for is_training, criterion in (
        (True, cross_entropy(weights, label_smoothing=smoothing)),
        (False, cross_entropy(label_smoothing=smoothing)),
    ):
        loss = trainer.compute_loss(model.train(is_training), dict(inputs))
        torch.testing.assert_close(loss, criterion(logits, inputs["labels"]))


def test_the_sampler_draws_classes_equally_often(splits, arguments):
    config = LiereViTConfig(image_size=8, patch_size=4)
    examples = prepare(splits, config, DataArguments(), arguments).train
    sampler = BalancedSampler(examples, 30_000, seed=0)
    draws = {}
    for epoch in (0, 1):
        examples.transform.epoch = epoch
        draws[epoch] = list(sampler)
        assert len(draws[epoch]) == len(sampler) == 30_000
        # Three standard deviations of a share of 1/3 are 0.008.
        assert np.bincount(LABELS[draws[epoch]], minlength=3) / 30_000 == pytest.approx([1 / 3] * 3, abs=0.01)
        assert draws[epoch] == list(BalancedSampler(examples, 30_000, seed=0))
    assert draws[0] != draws[1]
    assert draws[1] != list(BalancedSampler(examples, 30_000, seed=1))


def test_both_train(tmp_path):
    flags = as_flags(TINY_MODEL | QUIET | {"max_steps": 3, "class_weights": "balanced", "balanced_sampling": True})
    metrics = train(*parse_recipe("digits", [*flags, "--output_dir", str(tmp_path / "run")]))
    assert 0 < metrics["eval_accuracy"] < 1


@pytest.mark.parametrize("labels", [[[0, 1]] * 4, [0.5] * 4])
def test_examples_without_a_single_class(labels):
    table = type("Table", (dict,), {"features": {}})(label=labels)
    with pytest.raises(InputError, match="class_weights is 'balanced', which needs examples of one class each"):
        balanced_class_weights(Splits(table, table, [], 4))
