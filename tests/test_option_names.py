"""Help and unknown options are answered immediately, since nothing heavy is imported for them."""

import subprocess
import sys

import pytest
from transformers import HfArgumentParser

from liere_hf.configuration import DataArguments, ModelArguments, RunArguments
from liere_hf.configuration.prediction_options import PredictionOptions
from liere_hf.conversion import ConversionOptions
from liere_hf_cli.option_names import conversion_option_names, prediction_option_names, recipe_option_names

HEAVY = {"liere_hf", "torch", "transformers", "datasets", "numpy", "rich"}


@pytest.mark.parametrize(
    ("names", "dataclasses"),
    [
        (recipe_option_names, (ModelArguments, DataArguments, RunArguments)),
        (conversion_option_names, (ConversionOptions,)),
        (prediction_option_names, (PredictionOptions,)),
    ],
)
def test_names_in_the_source_equal_those_of_the_parser(names, dataclasses):
    parser = HfArgumentParser(dataclasses)
    known = {option.lstrip("-").replace("-", "_") for option in parser._option_string_actions} - {"h", "help"}
    assert known <= names()
    assert names() <= known | {f"no_{name}" for name in known}


@pytest.mark.parametrize(
    ("words", "code", "answer"),
    [
        (["--help"], 0, "LieRE vision transformers"),
        (["--version"], 0, "0.1.0"),
        (["train", "--help"], 0, "name of a built-in recipe"),
        (["--nope"], 2, "required: command"),
        (["nope"], 2, "invalid choice: 'nope'"),
        (
            ["train", "digits", "--learning_rat", "1"],
            2,
            "unknown option '--learning_rat', did you mean '--learning_rate'?",
        ),
        (
            ["train", "digits", "--learning-rat=1"],
            2,
            "unknown option '--learning-rat', did you mean '--learning_rate'?",
        ),
        (["evaluate", "model", "digits", "--nope"], 2, "unknown option '--nope'"),
        (
            ["convert", "a", "b", "--from", "vit", "--patch", "8"],
            2,
            "unknown option '--patch', did you mean '--patch_size'?",
        ),
        (["reproduce", "rope", "--sead", "1"], 2, "unknown option '--sead', did you mean '--seed'?"),
        (["train", "digits", "-x"], 2, "unknown option '-x'"),
        (["train", "digits", "learning_rate", "--seed", "1"], 2, "unexpected argument 'learning_rate'"),
        (["train", "digits", "--seed", "-1", "--no_foo"], 2, "unknown option '--no_foo'"),
        (["publish", "run", "org/name", "--nope"], 2, "unknown option '--nope'"),
        (["demo", "extra"], 2, "unexpected argument 'extra'"),
        (["explain", "model", "a.png", "--use_cpo"], 2, "unknown option '--use_cpo', did you mean '--use_cpu'?"),
        (["rotations", "model", "--layers", "first"], 2, "invalid int value: 'first'"),
        (["compare", "a", "b", "--recipe", "digits", "--sead", "1"], 2, "did you mean '--seed'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_nothing_heavy_is_imported_for_it(words, code, answer):
    script = f"""
import sys
from liere_hf_cli.main import main
try:
    main({words!r})
finally:
    print(sorted({HEAVY!r} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == code, result.stderr
    assert answer in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
