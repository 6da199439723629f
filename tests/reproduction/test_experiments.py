"""Every experiment has valid settings at every scale, and runs from its command to its table."""

import csv
import json
import math
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from free_port import free_port
from idx_files import write_fashion_mnist
from PIL import Image
from preloaded import preloaded
from selection import mostly_extensive
from tiny_run import ONE_WIDE_HEAD, as_flags

import liere_hf
from liere_hf.configuration import parse_recipe, recipe_names
from liere_hf.configuration.arguments import build_model_config
from liere_hf.modeling.positions import grid_positions
from liere_hf.reproduction.analyses import ANALYSES, applying_flops, count_flops, rope_deviation
from liere_hf.reproduction.experiments import EXPERIMENTS, read_scale
from liere_hf.reproduction.figures import draw, draw_curves
from liere_hf.reproduction.runner import ExperimentRunner
from liere_hf.reproduction.summary import summarize
from liere_hf.reproduction.tables import write_tables
from liere_hf_cli.main import main

pytestmark = pytest.mark.xdist_group("preloaded")

RESULTS = Path(__file__).parents[2] / "results"
PAPER = yaml.safe_load((Path(liere_hf.__file__).parent / "configuration" / "paper.yaml").read_text())["accuracy"]
# The experiment `spatial` at the GPU scale, cut down to seconds: five encodings as published, and
# three that start otherwise.
NUM_RUNS = 8
BUDGET = ONE_WIDE_HEAD | {
    "train_examples": 32,
    "eval_examples": 16,
    "max_steps": 2,
    "effective_batch_size": 16,
    "per_device_train_batch_size": 16,
    # Several processes pad their last batch.
    "per_device_eval_batch_size": 8,
    "dataloader_num_workers": 0,
    "dataloader_persistent_workers": False,
    "bf16": False,
    "use_cpu": True,
}


def command(tmp_path, *further, **budget):
    directories = ["--results_dir", str(tmp_path / "results"), "--work_dir", str(tmp_path / "work")]
    return ["reproduce", "spatial", "--scale", "gpu", *directories, *further, *as_flags(BUDGET | budget)]


def run(*argv):
    with pytest.raises(SystemExit) as exit_:
        main([*map(str, argv)])
    return exit_.value.code


SCALES = [*(pytest.param(name, marks=pytest.mark.extensive) for name in ("paper", "gpu")), "cpu"]


@pytest.mark.parametrize("scale_name", SCALES)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_run_has_valid_options_and_a_unique_key(name, scale_name, tmp_path):
    experiment, scale = EXPERIMENTS[name], read_scale(scale_name)
    runner, keys = ExperimentRunner(tmp_path, {}, ["--bf16", "false"]), set()
    settings = experiment.settings(scale)
    assert len({setting.name for setting in settings}) == len(settings) > 1
    for setting in settings:
        # A model takes minutes to an hour on canvases of more than 9 x 9 cells.
        on_cpu = 1 if (setting.task.cells or 0) > 9 else 3
        assert len(scale.seeds_of(setting.task)) >= (on_cpu if scale_name == "cpu" else 1)
        keys.add(runner.key(setting, 0))
        for options in setting.evaluations.values():
            flags = runner._flags(setting, options, is_new_model=False)
            parse_recipe(setting.task.recipe, [*flags, "--model_name_or_path", "x"])
    assert len(keys) == len(settings)
    assert runner.key(settings[0], 0) != runner.key(settings[0], 1)
    if experiment.reference is not None:
        assert experiment.reference in {next(iter(setting.labels.values())) for setting in settings}


@pytest.mark.parametrize("scale_name", SCALES)
@pytest.mark.parametrize("name", mostly_extensive(EXPERIMENTS, ["accuracy", "spatial", "shuffling", "efficiency"]))
def test_the_table_has_every_result_and_the_figure_is_drawn(name, scale_name, tmp_path):
    experiment, scale = EXPERIMENTS[name], read_scale(scale_name)
    rng, results, accuracies = np.random.default_rng(0), {}, set()

    def metrics():
        accuracy = rng.integers(4000, 10_000) / 10_000
        accuracies.add(f"{100 * accuracy:.4f}")
        ends = {"accuracy_low": accuracy - 0.01, "accuracy_high": accuracy}
        return {"accuracy": accuracy, **ends, "loss": 1.0, "examples": 10_000}

    for setting in experiment.settings(scale):
        for seed in scale.seeds_of(setting.task):
            results[setting.name, seed] = {
                "labels": setting.labels,
                "seed": seed,
                "metrics": {evaluation: metrics() for evaluation in ("training", *setting.evaluations)},
                "curve": [{"examples": 100, "accuracy": 0.3}, {"examples": 200, "accuracy": 0.6}],
                "num_parameters": 1000,
                "hardware": {"device": "a machine"},
            }
    table = write_tables(tmp_path, experiment, scale, summarize(experiment, scale, results), results)
    lines = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")]
    has_pairs = experiment.paired_with is not None and scale_name == "cpu"
    num_tables = 1 + (experiment.curves_against is not None) + has_pairs
    assert len({len(line) for line in lines}) == num_tables
    if name != "shuffling":
        with (tmp_path / "results.csv").open() as file:
            records = [*csv.DictReader(file)]
        titles = {measure.title for measure in experiment.measures if measure.is_proportion}
        assert {record.get(title, "") for record in records for title in titles} - {""} == accuracies
    if scale_name == "cpu":
        draw(tmp_path / "figure.png", experiment, summarize(experiment, scale, results), results)
        assert Image.open(tmp_path / "figure.png").width > 500
        if experiment.curves_by:
            draw_curves(tmp_path / "curves.png", experiment, results)
            assert Image.open(tmp_path / "curves.png").width > 500


def test_experiments_share_their_runs(tmp_path):
    """For example, the models of block sizes 2, 8 and 64 are those of the comparison of encodings."""
    scale, runner = read_scale("cpu"), ExperimentRunner(tmp_path, {}, [])
    keys = {
        name: {runner.key(setting, 0) for setting in experiment.settings(scale) if setting.task is scale.images}
        for name, experiment in EXPERIMENTS.items()
    }
    assert len(keys["block_size"] & keys["accuracy"]) == 3
    assert keys["accuracy"] <= keys["resolution"]
    assert len(keys["initialization"] & keys["accuracy"]) == 2
    assert len(keys["pooling"] & keys["accuracy"]) == 3


@pytest.mark.parametrize("recipe", [name for name in recipe_names() if name.startswith("arrows")])
def test_larger_canvases_show_more_cells(recipe, tmp_path):
    """Cells keep their distances, in units of the training grid, where a canvas has more of them."""
    arguments, *_ = parse_recipe(recipe, ["--bf16", "false", "--output_dir", str(tmp_path)])
    config = build_model_config(arguments)
    distances = [
        grid_positions((cells, cells), config.grid_size, config.position_mode)[1, 1]
        for cells in (config.grid_size[0], 2 * config.grid_size[0])
    ]
    assert distances[0] == distances[1] > 0


def test_an_option_at_its_default_does_not_change_a_run(tmp_path):
    """So that runs stay valid when an option is added."""
    setting = EXPERIMENTS["spatial"].settings(read_scale("cpu"))[0]
    plain = ExperimentRunner(tmp_path, {}, []).key(setting, 0)
    assert ExperimentRunner(tmp_path, {}, ["--random_erasing", "0.0", "--adam_beta1", "0.9"]).key(setting, 0) == plain
    assert ExperimentRunner(tmp_path, {}, ["--random_erasing", "0.1"]).key(setting, 0) != plain
    assert ExperimentRunner(tmp_path, {}, ["--adam_beta1", "0.8"]).key(setting, 0) != plain


def test_from_command_to_table_without_repeated_runs(tmp_path, capsys):
    assert run(*command(tmp_path)) == 0
    directory = tmp_path / "results" / "spatial" / "gpu"
    assert len(list((directory / "runs").iterdir())) == NUM_RUNS
    table = (directory / "table.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| Arrows")]
    at_training_size = [row for row in rows if "| 9 x 9 |" in row]
    assert (len(at_training_size), len(rows)) == (NUM_RUNS, 3 * NUM_RUNS)
    # Then the ones that start otherwise, which the paper does not have.
    for row, paper in zip(at_training_size[:5], PAPER["arrows_108"].values(), strict=True):
        assert f"| {paper:g} |" in row
    assert all("| planar, fast |" in row and "|  |" in row for row in at_training_size[5:])
    with (directory / "results.csv").open() as file:
        records = [*csv.DictReader(file)]
    assert len(records) == 3 * NUM_RUNS
    results = json.loads((directory / "results.json").read_text())
    for record, row in zip(records, results["rows"], strict=True):
        assert float(record["accuracy, %"]) == pytest.approx(row["values"]["accuracy, %"][0], abs=1e-3)
        assert row["counts"][1] == 16
        assert row["estimates"]["accuracy, %"]["mean"] == pytest.approx(100 * row["counts"][0] / 16)
    assert Image.open(directory / "figure.png").width > 500

    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(*command(tmp_path)) == 0
    assert f"All {NUM_RUNS} runs are finished" in capsys.readouterr().out
    changed = {path for path, when in written.items() if path.stat().st_mtime_ns != when}
    assert not changed

    figure = (directory / "figure.png").read_bytes()
    (directory / "figure.png").unlink()
    assert run(*command(tmp_path)[: -2 * len(BUDGET)], "--redraw") == 0
    assert (directory / "figure.png").read_bytes() == figure
    written.pop(directory / "figure.png")
    assert not {path for path, when in written.items() if path.stat().st_mtime_ns != when}


@pytest.mark.end_to_end
def test_only_a_lost_run_is_repeated_and_a_changed_setting_removes_all(tmp_path, capsys):
    assert run(*command(tmp_path)) == 0
    capsys.readouterr()
    directory = tmp_path / "results" / "spatial" / "gpu"
    table = (directory / "table.md").read_text()
    (lost,) = (directory / "runs").glob("*-liere64-seed*.json")
    key = json.loads(lost.read_text())["keys"]["training"]
    lost.unlink()
    (tmp_path / "work" / key / "README.md").unlink()
    assert run(*command(tmp_path)) == 0
    assert re.findall(rf"^\d of {NUM_RUNS}: (.*), seed", capsys.readouterr().out, re.MULTILINE) == ["arrows-liere64"]
    assert (directory / "table.md").read_text() == table
    assert run(*command(tmp_path, max_steps=3)) == 0
    assert len(re.findall(rf"^\d of {NUM_RUNS}: ", capsys.readouterr().out, re.MULTILINE)) == NUM_RUNS
    assert len(list((directory / "runs").iterdir())) == NUM_RUNS


@pytest.mark.end_to_end
def test_two_processes_of_one_command(tmp_path):
    """They work on each run together, and only one reports. Every evaluation example is counted once."""
    config = Path(liere_hf.__file__).parent / "configuration" / "launch" / "two_cpu_processes.yaml"
    launch = [preloaded("accelerate"), "launch", "--config_file", config, "--main_process_port", free_port()]
    words = [*launch, "-m", "liere_hf", *command(tmp_path, per_device_train_batch_size=8)]
    for expected in ("Written to", "runs are finished"):
        result = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count(expected) == 1
    directory = tmp_path / "results" / "spatial" / "gpu"
    assert len(list((directory / "runs").iterdir())) == NUM_RUNS
    rows = json.loads((directory / "results.json").read_text())["rows"]
    assert [row["counts"][1] for row in rows] == [16] * 3 * NUM_RUNS


@pytest.mark.end_to_end
def test_two_commands_share_the_work_and_an_interrupted_one_resumes(tmp_path):
    code = (
        "from liere_hf.reproduction import reproduce, runner; from liere_hf_cli.main import main; "
        f"reproduce.PATIENCE = runner.PATIENCE = 0.2; main({command(tmp_path)!r})"
    )
    arguments = [preloaded("python"), "-c", code]
    first, second = (subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2))
    runs = tmp_path / "results" / "spatial" / "gpu" / "runs"
    end = time.monotonic() + 120
    while not list(runs.glob("*.json")):
        assert time.monotonic() < end
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    output = second.communicate(timeout=240)[0]
    assert second.returncode == 0, output
    assert len(list(runs.iterdir())) == NUM_RUNS
    assert "| Arrows" in output


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["reproduce", "nothing"], "experiment is 'nothing', allowed are list, accuracy, spatial"),
        (["reproduce", "rope", "--scale", "huge"], "scale is 'huge', allowed are paper, gpu, cpu"),
        (["reproduce", "rope", "--redraw"], "experiment is 'rope', allowed with --redraw are accuracy, spatial"),
        (
            ["reproduce", "attention", "--redraw"],
            "figure.json does not exist: liere-hf reproduce attention",
        ),
        (["reproduce", "spatial", "--redraw"], "does not exist: liere-hf reproduce spatial --scale cpu makes it"),
        (
            ["reproduce", "accuracy", "--redraw", "--learning_rate", "0.1"],
            "--learning_rate is given with --redraw, which draws results as they are",
        ),
        (["reproduce", "rope", "--data_dir", "cifar100"], "data_dir is 'cifar100', allowed is DATASET=DIRECTORY"),
        (["reproduce", "spatial", "--max_stepz", "3"], "unknown option '--max_stepz', did you mean '--max_steps'?"),
    ],
)
def test_bad_input_is_one_sentence(argv, sentence, tmp_path, capsys):
    assert run(*argv, "--results_dir", tmp_path, "--work_dir", tmp_path) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"metrics": {}}', "null"])
@pytest.mark.parametrize("redraw", [True, False])
def test_a_damaged_result_is_one_sentence(content, redraw, tmp_path, capsys):
    shutil.copytree(RESULTS / "spatial", tmp_path / "results" / "spatial")
    damaged = next((tmp_path / "results").rglob("*absolute-seed0.json"))
    damaged.write_text(content)
    directories = ["--results_dir", tmp_path / "results", "--work_dir", tmp_path / "work"]
    assert run("reproduce", "spatial", *["--redraw"] * redraw, *directories) == 2
    error = capsys.readouterr().err
    assert str(damaged) in error and "delete it, and reproduce makes it again" in error
    assert damaged.read_text() == content


def test_list_has_all_experiments_on_a_narrow_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run("reproduce", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    table = lines[: next(number for number, line in enumerate(lines) if line.startswith("Where:"))]
    names = [line.split()[0] for line in table[2:] if not line.startswith(" ")]
    assert names == [*EXPERIMENTS, *ANALYSES]
    assert len(table) <= 2 + 2 * len(names)
    assert not [line for line in lines if "\N{HORIZONTAL ELLIPSIS}" in line]


def test_attention_is_drawn_again_from_its_numbers(tmp_path):
    """Another map gives another picture, the same map the same one."""
    directory = tmp_path / "attention" / "cpu"
    directory.mkdir(parents=True)
    pixels, drawn = np.random.default_rng(0), []
    picture = pixels.integers(256, size=(6, 9, 3)).tolist()
    maps = [pixels.random((2, 2, 3)).tolist() for _ in range(2)]
    for shown in (maps[0], maps[1], maps[0]):
        (directory / "figure.json").write_text(json.dumps({"picture": picture, "attention": {"LieRE8": shown}}))
        assert run("reproduce", "attention", "--redraw", "--results_dir", tmp_path) == 0
        drawn.append((directory / "figure.png").read_bytes())
    assert drawn[0] == drawn[2] != drawn[1]


@pytest.mark.end_to_end
def test_attention_of_trained_models(tmp_path, capsys):
    """A map of 49 patches has at most the entropy of the uniform distribution. Models are trained only once."""
    data = write_fashion_mnist(tmp_path, num_train=64, num_test=20)
    directories = ["--results_dir", tmp_path / "results", "--work_dir", tmp_path / "work"]
    flags = ["--max_steps", 2, "--num_hidden_layers", 2]
    for _ in range(2):
        assert run("reproduce", "attention", "--data_dir", f"fashion_mnist={data}", *directories, *flags) == 0
    assert len([*(tmp_path / "work").glob("*/model.safetensors")]) == 5
    directory = tmp_path / "results" / "attention" / "cpu"
    rows = json.loads((directory / "results.json").read_text())["rows"]
    assert len(rows) == 5 * 2
    assert all(0 < row["entropy_bits"] <= math.log2(49) for row in rows)
    assert Image.open(directory / "figure.png").width > 300


@pytest.mark.parametrize("width", [2, 4, 8, 16, 32, 64])
def test_in_one_dimension_liere_is_rope(width):
    assert rope_deviation(width) < 1e-9


def test_flops_of_applying_rotations_agree_with_the_paper():
    """Table 8: +0.04%, +0.18% and +1.4% of the base model. The absolute model is counted by torch."""
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "head_dim": 64}
    base["intermediate_size"] = 3072
    absolute = count_flops(base | {"position_encoding": "absolute"})["training"]
    for options, paper in (
        ({"position_encoding": "rope_mixed"}, 0.04),
        ({"position_encoding": "liere", "generator_block_size": 8}, 0.18),
        ({"position_encoding": "liere", "generator_block_size": 64}, 1.4),
    ):
        assert 100 * applying_flops(base | options) / absolute == pytest.approx(paper, rel=0.1)
