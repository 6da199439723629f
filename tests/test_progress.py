"""Long work shows one bar at a time on a terminal and plain lines elsewhere, by every command that takes long."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from preloaded import preloaded
from terminal import BAR, run_in_terminal
from tiny_run import ONE_WIDE_HEAD, write_recipe

import liere_hf
from liere_hf.configuration.recipe_parsing import recipe_path

pytestmark = pytest.mark.xdist_group("preloaded")

TINY = ONE_WIDE_HEAD | {
    "max_steps": 8,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "logging_steps": 2,
    "save_strategy": "no",
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 20,
    "use_cpu": True,
    "bf16": False,
    "dataloader_num_workers": 0,
    "dataloader_persistent_workers": False,
}
DIGITS = TINY | {"dataset": "digits", "image_size": 8, "patch_size": 4}
FEW = {"train_examples": 64, "eval_examples": 40, "effective_batch_size": 16}
DEMO = """
import sys, yaml
from pathlib import Path
import liere_hf.benchmark.exponential, liere_hf.demo
from liere_hf.configuration import recipe_parsing
from liere_hf_cli.main import main

liere_hf.demo.RECIPE = sys.argv.pop(1)
liere_hf.benchmark.exponential.NUM_ELEMENTS = 1 << 12
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with a recipe, a model that it trained, and pictures."""
    folder = tmp_path_factory.mktemp("work")
    write_recipe(folder / "digits.yaml", DIGITS)
    arrows = yaml.safe_load(recipe_path("arrows_demo").read_text())
    write_recipe(folder / "arrows.yaml", arrows | TINY | FEW)
    (folder / "pictures").mkdir()
    for number in range(70):
        pixels = np.random.default_rng(number).integers(256, size=(8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number:02}.png")
    command = [preloaded("liere-hf"), "train", "digits.yaml", "--output_dir", "model"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


REPRODUCE = [f"--{name}={value}" for name, value in (TINY | FEW).items()]
# The words of each command, and the description of its bar.
COMMANDS = {
    "train": (["train", "digits.yaml"], "Training"),
    "evaluate": (["evaluate", "model", "digits.yaml"], "Evaluating"),
    "predict": (["predict", "model", "pictures", "--batch_size", "8", "--num_workers", "0"], "Predicting"),
    "reproduce": (["reproduce", "spatial", "--scale", "gpu", *REPRODUCE], "Training"),
    "demo": (["demo"], "Training"),
    "benchmark": (["benchmark", "exponential", "--rounds", "2"], "Exponentials"),
}
every_command = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "train" else pytest.mark.extensive) for name in COMMANDS]
)


def words(name: str, tmp_path: Path) -> list[str]:
    command, _ = COMMANDS[name]
    further = {
        "train": ["--output_dir", tmp_path / "run"],
        "reproduce": ["--results_dir", tmp_path / "results", "--work_dir", tmp_path / "work"],
        "demo": ["--output_dir", tmp_path / "demo"],
    }
    return [preloaded("python"), "-c", DEMO, "arrows.yaml", *command, *map(str, further.get(name, ()))]


@every_command
def test_a_terminal_shows_one_bar_at_a_time_and_nothing_of_it_remains(name, work, tmp_path):
    shown = run_in_terminal(words(name, tmp_path), cwd=work)
    assert shown.code == 0, shown.lines
    assert shown.most_bars == 1
    assert COMMANDS[name][1] in {bar.split()[0] for bar in shown.bars}
    assert not [line for line in shown.lines if BAR.match(line)]
    assert not [line for line in shown.lines if "{'" in line or "it/s" in line]
    steps = [line for line in shown.lines if "step 4 of 8" in line]
    assert all(re.match(r"step 4 of 8: top-1 accuracy, %: \d", line) for line in steps)
    assert len(steps) == {"train": 1, "reproduce": 8, "demo": 3}.get(name, 0)


@every_command
def test_a_pipe_gets_plain_lines(name, work, tmp_path):
    result = subprocess.run(words(name, tmp_path), cwd=work, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    output = result.stdout + result.stderr
    assert not [part for part in ("\r", "\x1b", "{'", "it/s", "%|") if part in output]
    assert not [line for line in output.splitlines() if BAR.match(line)]
    expected = [
        r"step 2 of 8: training loss \d+\.\d{4}, learning rate \S+",
        r"step 4 of 8: training loss \d+\.\d{4}, learning rate \S+",
        r"step 4 of 8: top-1 accuracy, %: \d+\.\d\d \(\d+\.\d\d to \d+\.\d\d\); loss: \d+\.\d{4}",
    ]
    lines = [line for line in result.stdout.splitlines() if line.startswith("step")]
    if name == "train":
        for pattern, line in zip(expected, lines[:3], strict=True):
            assert re.fullmatch(pattern, line), line
    assert len(lines) == 6 * {"train": 1, "reproduce": 8, "demo": 3}.get(name, 0)


@pytest.mark.end_to_end
def test_messages_have_lines_of_their_own():
    """Texts, warnings and logs, of handlers that were there before, while bars replace one another."""
    code = """
import sys, time, warnings
from transformers.utils import logging
from liere_hf.progress import ProgressBar, tracked

logger = logging.get_logger("transformers.trainer")
bar = ProgressBar()
bar.begin("Outer", 3)
for step in range(3):
    time.sleep(0.11)
    bar.move(note=f"note {step}")
    print("text", step)
    logger.warning(f"log {step}")
    bar.begin("Inner", 2)
    for _ in range(2):
        time.sleep(0.11)
        bar.move()
    print("unfinished", end=" ")
    warnings.warn(f"warning {step}")
    print("line")
    bar.end()
bar.close()
logger.warning("log after")
print("text after", file=sys.stderr)
for _ in tracked(range(2), "Last"):
    time.sleep(0.11)
try:
    for _ in tracked(range(2), "Broken"):
        time.sleep(0.11)
        raise ValueError
except ValueError:
    print("end")
"""
    shown = run_in_terminal([preloaded("python"), "-c", code])
    assert shown.code == 0, shown.lines
    assert shown.most_bars == 1
    assert {bar.split()[0] for bar in shown.bars} == {"Outer", "Inner", "Last", "Broken"}
    assert [bar for bar in shown.bars if bar.startswith("Outer") and bar.endswith("note 0")]
    assert not [line for line in shown.lines if BAR.match(line)]
    expected = [text for step in range(3) for text in (f"text {step}", f"log {step}")]
    lines = [line.removeprefix("[transformers] ") for line in shown.lines]
    assert [line for line in lines if re.match(r"(text|log) \d", line)] == expected
    assert len([line for line in lines if re.match(r"<string>:\d+: UserWarning: warning \d", line)]) == 3
    assert lines.count("unfinished line") == 3
    assert lines[-3:] == ["log after", "text after", "end"]


@pytest.mark.end_to_end
def test_disable_tqdm_hides_the_bar(work, tmp_path):
    shown = run_in_terminal([*words("train", tmp_path), "--disable_tqdm", "true"], cwd=work)
    assert (shown.code, shown.most_bars) == (0, 0)
    assert len([line for line in shown.lines if line.startswith("step 4 of 8: ")]) == 2


def test_an_error_stands_on_a_line_of_its_own(work, tmp_path):
    shown = run_in_terminal([*words("train", tmp_path), "--learning_rate", "1e30", "--logging_steps", "1"], cwd=work)
    assert shown.code == 1
    assert shown.most_bars == 1
    assert shown.lines[-1].startswith("liere-hf train: error: ") or shown.lines[-2].startswith("liere-hf train: error")


def test_bars_are_made_in_one_place():
    package = Path(liere_hf.__file__).parent
    modules = [path for path in package.rglob("*.py") if re.search(r"rich\.progress|\btqdm\.", path.read_text())]
    assert modules == [package / "progress.py"]
