"""Comparisons in pairs against closed forms, and of real evaluations."""

import csv
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import TINY_MODEL
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTImageProcessor

from liere_hf import LiereViTConfig, LiereViTForImageClassification
from liere_hf.comparison import compare, differences, mcnemar_test, paired_difference, print_comparison
from liere_hf.configuration import parse_recipe
from liere_hf.data import load_evaluation, load_splits
from liere_hf.errors import InputError
from liere_hf.plots.comparison_figure import plot_comparison
from liere_hf_cli.main import main

FLAGS = ["--eval_examples", "200", "--use_cpu", "true", "--disable_tqdm", "true"]


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_twice_a_tail_of_coin_tosses(only_one, only_other):
    total = only_one + only_other
    tail = sum(math.comb(total, count) for count in range(min(only_one, only_other) + 1)) / 2**total
    assert mcnemar_test(only_one, only_other) == pytest.approx(min(1, 2 * tail))


def test_intervals_of_differences_are_those_of_pairs():
    """As wide as the normal approximation for the differences says, and narrower than for two groups."""
    random = np.random.default_rng(0)
    difficulty = random.normal(size=2000)
    first, second = difficulty + random.normal(size=(2, 2000)) / 3
    value, low, high = paired_difference(second + 0.1, first)
    each = second + 0.1 - first
    assert value == pytest.approx(each.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * each.std() / 2000**0.5, rel=0.1)
    assert high - low < 0.5 * 2 * 1.96 * (first.var() / 2000 + second.var() / 2000) ** 0.5
    assert paired_difference(first, first) == (0, 0, 0)


def test_differences_are_to_the_first_model():
    right = {"a": [1, 1, 0, 0, 1], "b": [1, 0, 1, 1, 1], "c": [0, 0, 0, 0, 1]}
    examples = {name: {"accuracy": np.array(values, float)} for name, values in right.items()}
    second, third = differences(examples)
    assert (second.model, second.only_model_right, second.only_first_right) == ("b", 2, 1)
    assert (third.model, third.only_model_right, third.only_first_right) == ("c", 0, 2)
    assert (second.value, third.value) == (pytest.approx(0.2), pytest.approx(-0.4))
    assert third.p_value == pytest.approx(0.5)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    """Three untrained classifiers of digits, of two encodings."""
    directories = []
    for seed, encoding in enumerate(("absolute", "liere", "liere")):
        directory = tmp_path_factory.mktemp("models") / f"{encoding}_{seed}"
        torch.manual_seed(seed)
        config = LiereViTConfig(
            **TINY_MODEL,
            image_size=8,
            patch_size=4,
            position_encoding=encoding,
            id2label={index: str(index) for index in range(10)},
            initializer_range=0.5,
        )
        LiereViTForImageClassification(config).save_pretrained(directory)
        ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(directory)
        directories.append(directory)
    return directories


def answers(directory: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted and true classes of the same examples, by the model and its processor alone."""
    model = AutoModelForImageClassification.from_pretrained(directory).eval()
    _, data, training = parse_recipe("digits", FLAGS)
    table = load_evaluation(data, training.seed, model.config).table
    pictures = [row["image"].convert("RGB") for row in table]
    inputs = AutoImageProcessor.from_pretrained(directory)(pictures, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits.argmax(1), torch.tensor(table["label"][:])


def test_command(models, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["compare", *map(str, models), "--recipe", "digits", *FLAGS, "--output_dir", str(tmp_path)])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "comparison.png")
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert list(content["encodings"].values()) == ["absolute", "LieRE8", "LieRE8"]
    (first, labels), *others = map(answers, models)
    right = first == labels
    rows = [row for row in content["differences"] if row["measure"] == "accuracy"]
    for name, row, (predicted, _) in zip(models[1:], rows, others, strict=True):
        mine = predicted == labels
        assert row["model"] == str(name)
        assert row["only_model_right"] == int((mine & ~right).sum())
        assert row["only_first_right"] == int((right & ~mine).sum())
        assert row["value"] == pytest.approx((mine.float() - right.float()).mean().item())
        assert row["low"] <= row["value"] <= row["high"]
    table = list(csv.DictReader((tmp_path / "comparison.csv").open()))
    assert [row["model"] for row in table] == list(map(str, models))
    assert float(table[0]["accuracy"]) == pytest.approx(right.float().mean().item())
    assert table[0]["mcnemar_p"] == ""
    assert float(table[2]["mcnemar_p"]) == rows[1]["p_value"]
    assert (tmp_path / "comparison.png").stat().st_size > 10_000


def test_models_that_held_out_other_examples_are_not_compared(models):
    """Validation examples of one model may be training examples of the other."""
    configs = [LiereViTForImageClassification.from_pretrained(name).config for name in models[:2]]
    for seed, (directory, config) in enumerate(zip(models[:2], configs, strict=True)):
        _, data, _ = parse_recipe("digits", FLAGS)
        facts = load_splits(data, seed, config).facts()
        (directory / "training_data.json").write_text(json.dumps(facts))
    try:
        with pytest.raises(InputError, match="not trained on the same part of the data set: give a test split"):
            compare([*map(str, models[:2])], "digits", FLAGS)
    finally:
        for directory in models[:2]:
            (directory / "training_data.json").unlink()


@pytest.mark.parametrize("count", [1, 2])
def test_models_must_differ(models, count):
    with pytest.raises(InputError, match="give two or more different ones"):
        compare([str(models[0])] * count, "digits", FLAGS)


def test_figure_and_table_of_numbers_without_test(capsys):
    """Where answers are numbers, there is a difference but no test."""
    from liere_hf.comparison import Comparison

    random = np.random.default_rng(0)
    values = {name: random.exponential(size=50) for name in ("one", "two")}
    metrics = {
        name: {"mean_absolute_error": errors.mean(), "mean_absolute_error_low": 0.8, "mean_absolute_error_high": 1.2}
        for name, errors in values.items()
    }
    found = differences({name: {"mean_absolute_error": errors} for name, errors in values.items()})
    comparison = Comparison({"one": "absolute", "two": "LieRE8"}, metrics, tuple(found))
    plot = plot_comparison(comparison)
    left, right = plot.figure.axes
    assert "McNemar" not in plot.caption
    assert left.lines[0].get_xdata()[0] == values["one"].mean()
    assert right.lines[0].get_xdata()[0] == pytest.approx(values["two"].mean() - values["one"].mean())
    print_comparison(comparison)
    assert f"{found[0].value:.4f}" in capsys.readouterr().out
    assert asdict(found[0])["p_value"] is None
