"""Help: every option in a group, with its value in the recipe; every recipe with what it is."""

import dataclasses
import os
import re

import pytest

from liere_hf.configuration import DataArguments, ModelArguments, RunArguments, recipe_names
from liere_hf.configuration.prediction_options import PredictionOptions
from liere_hf.conversion import ConversionOptions
from liere_hf_cli.main import main


def names(*kinds: type) -> list[str]:
    return [field.name for kind in kinds for field in dataclasses.fields(kind) if field.init]


@pytest.fixture
def output(capsys, monkeypatch):
    """What a command prints, on a wide terminal."""
    # rich reads the variables of when it was imported, which may be those of another test.
    monkeypatch.setattr("rich.console.Console._environ", os.environ)
    monkeypatch.setenv("COLUMNS", "400")

    def run(*words: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as exit_:
            main(list(words))
        assert exit_.value.code == code
        printed = capsys.readouterr()
        return printed.out if code == 0 else printed.err

    return run


def rows(text: str) -> dict[str, list[str]]:
    """The cells of every row of the tables, by the option in the first one."""
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in text.splitlines()]
    found = [row for row in cells if row and row[0].startswith("--")]
    assert len(found) == len({row[0] for row in found})
    return {row[0].removeprefix("--"): row[1:] for row in found}


@pytest.mark.parametrize(
    "command",
    [["train", "digits"], ["evaluate", "model", "digits"], ["compare", "a", "b", "--recipe", "digits"]],
)
def test_every_option_once_with_its_value_in_the_recipe(output, command):
    table = rows(output(*command, "--help"))
    assert sorted(table) == sorted(names(ModelArguments, DataArguments, RunArguments))
    expected = {"learning_rate": "0.002", "hidden_size": "64", "dataset": "digits", "max_steps": "-1", "fit": "resize"}
    expected |= {"lr_scheduler_type": "cosine", "layer_norm_eps": "1e-05", "lora_rank": "", "eval_fraction": "0.2"}
    assert {name: table[name][0] for name in expected} == expected
    assert "multiple of learning_rate" in table["head_learning_rate_factor"][1]
    # Every option says what it means.
    assert [name for name, (_, meaning) in table.items() if not meaning] == []


def test_a_preset_and_a_further_file_count(output, tmp_path):
    config = tmp_path / "further.yaml"
    config.write_text("learning_rate: 0.25\n")
    found = rows(output("train", "digits", "--preset", "published", "--config", str(config), "--help"))
    shown = {name: found[name][0] for name in ("generator_init", "generator_learning_rate_factor", "learning_rate")}
    assert shown == {"generator_init": "uniform", "generator_learning_rate_factor": "1.0", "learning_rate": "0.25"}


def test_options_are_in_groups(output):
    text = output("train", "imagefolder_finetune", "--help")
    titles = ["Model", "Architecture", "Data set", "Augmentation", "Learning rate", "Evaluation and predictions"]
    places = [text.index(f"\n{title}  ") for title in titles]
    assert places == sorted(places)
    assert text.index("--layer_learning_rate_decay") > places[4] > text.index("--random_crop_padding")
    assert rows(text)["min_steps"][0] == "500"


@pytest.mark.parametrize(
    ("command", "kind"),
    [("convert", ConversionOptions), ("predict", PredictionOptions), ("explain", PredictionOptions)],
)
def test_options_of_other_commands(output, command, kind):
    table = rows(output(command, "--help"))
    assert sorted(table) == sorted(names(kind))
    assert all(meaning for _, meaning in table.values())


def test_recipes_are_listed(output):
    _, _, *lines, _ = output("recipes").splitlines()
    table = {name: cells for name, *cells in (re.split(r"  +", line.strip()) for line in lines)}
    assert list(table) == recipe_names()
    assert table["fashion_mnist"] == ["Fashion-MNIST", "4 layers of 128", "24 epochs", "55"]
    assert table["cifar100"] == ["CIFAR-100", "base", "200 epochs"]
    assert table["imagefolder_finetune"][1] == "yours"
    assert table["ucf101_smoke"][2:] == ["90 steps", "2"]


def test_recipes_fit_a_narrow_terminal(output, monkeypatch):
    wide = output("recipes").split()
    monkeypatch.setenv("COLUMNS", "80")
    lines = output("recipes").splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 3 + 2 * len(recipe_names())
    assert sorted(re.sub(r"─+", "", " ".join(lines)).split()) == sorted(re.sub(r"─+", "", " ".join(wide)).split())


def test_help_for_a_recipe_that_does_not_exist(output):
    assert "recipe 'digit' is neither a file nor one of" in output("train", "digit", "--help", code=2)
