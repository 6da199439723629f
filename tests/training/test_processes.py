"""Runs in several real processes, and runs that are killed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from free_port import free_port
from preloaded import preloaded
from safetensors.torch import load_file
from tiny_run import TINY_RUN, write_recipe

from liere_hf.configuration import parse_recipe
from liere_hf.evaluation import evaluate
from liere_hf_cli.main import launch_configs, main

pytestmark = pytest.mark.xdist_group("preloaded")

RECIPE = TINY_RUN | {
    "train_examples": None,
    "num_hidden_layers": 2,
    "initializer_range": 0.1,
    "random_crop_padding": 1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_steps": 50,
    "effective_batch_size": 32,
    "dataloader_drop_last": True,
    "eval_examples": 101,
    "save_steps": 10,
    "logging_steps": 1,
    "learning_rate": 3e-3,
}
TRAIN = ["-m", "liere_hf", "train"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("processes")
    write_recipe(directory / "tiny.yaml", RECIPE)
    # Each process has its own dropout seed, whose state a resumed run must also restore.
    write_recipe(directory / "dropout.yaml", RECIPE | {"hidden_dropout_prob": 0.1})
    return directory


def launched(launcher: str) -> list[str]:
    """The command that starts a run in two processes."""
    if launcher == "torchrun":
        words = [preloaded("torchrun"), "--nproc-per-node", "2"]
        return [*words, "--master-port", str(free_port())]
    words = [preloaded("accelerate"), "launch", "--config_file", str(launch_configs()["two_cpu_processes"])]
    return [*words, "--main_process_port", str(free_port())]


def run(words: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(words, capture_output=True, text=True, timeout=400)


def run_of(directory: Path, name: str, *words: str) -> Path:
    """The output directory of the run that a command starts."""
    result = run([*words, *TRAIN, str(directory / "tiny.yaml"), "--output_dir", str(directory / name)])
    assert result.returncode == 0, result.stderr
    return directory / name


@pytest.fixture(scope="module")
def single(directory) -> Path:
    """The run by one process."""
    return run_of(directory, "single", preloaded("python"))


@pytest.fixture(scope="module", params=[pytest.param("accelerate", marks=pytest.mark.extensive), "torchrun"])
def double(directory, request) -> Path:
    """The same run by two processes, started in several ways."""
    return run_of(directory, request.param, *launched(request.param))


def losses(output_dir: Path) -> list[float]:
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def metrics(output_dir: Path) -> dict[str, float]:
    results = json.loads((output_dir / "eval_results.json").read_text())
    return {name: value for name, value in results.items() if "accuracy" in name or "loss" in name}


@pytest.mark.end_to_end
def test_two_machines_meet(directory, single):
    """Two launchers, as on two machines; the second one is given the address of the first."""
    config = yaml.safe_load(launch_configs()["two_nodes"].read_text())
    file = directory / "two_nodes.yaml"
    file.write_text(yaml.safe_dump(config | {"num_processes": 2, "mixed_precision": "no", "use_cpu": True}))
    words = [preloaded("accelerate"), "launch", "--config_file", str(file)]
    words += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    output_dir = directory / "machines"
    machines = [
        subprocess.Popen(
            [
                *words,
                "--machine_rank",
                str(rank),
                *TRAIN,
                str(directory / "tiny.yaml"),
                "--output_dir",
                str(output_dir),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    errors = [machine.communicate(timeout=300)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], errors
    assert json.loads((output_dir / "train_results.json").read_text())["num_processes"] == 2
    assert_same_weights(single, output_dir, 1e-4)


def assert_same_weights(first: Path, second: Path, tolerance: float = 0.0) -> None:
    first, second = (load_file(path / "model.safetensors") for path in (first, second))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert (tensor - second[name]).abs().max() <= tolerance, name


def test_two_processes_train_as_one(single, double):
    assert json.loads((double / "train_results.json").read_text())["num_processes"] == 2
    assert len(losses(single)) == len(losses(double)) == 50
    assert max(abs(one - two) for one, two in zip(losses(single), losses(double), strict=True)) < 1e-4
    assert losses(single)[-1] < losses(single)[0]
    assert_same_weights(single, double, 1e-4)


def test_an_uneven_split_is_evaluated_exactly_once(single, double):
    # The weights agree to rounding, so the loss does too; 101 images in batches of 8 leave 5 for two processes.
    assert metrics(double) == pytest.approx(metrics(single), abs=1e-5)
    flags = ["--model_name_or_path", str(double), "--output_dir", str(double / "evaluation")]
    again = evaluate(*parse_recipe(str(single.parent / "tiny.yaml"), flags))
    assert again["examples"] == 101
    repeated = {name: again[name.removeprefix("eval_")] for name in metrics(double)}
    assert repeated == pytest.approx(metrics(double), abs=1e-6)


@pytest.mark.end_to_end
def test_the_best_checkpoint_is_loaded_in_every_process(directory):
    """By this metric the first one is best. At the end each process evaluates half of the images with it."""
    output_dir = directory / "best"
    flags = ["--load_best_model_at_end", "true", "--metric_for_best_model", "loss", "--greater_is_better", "true"]
    flags += ["--eval_strategy", "steps", "--eval_steps", "10", "--max_steps", "30", "--output_dir", str(output_dir)]
    result = run([*launched("torchrun"), *TRAIN, str(directory / "tiny.yaml"), *flags])
    assert result.returncode == 0, result.stderr
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    evaluated = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert evaluated[0] > max(evaluated[1:3])
    assert metrics(output_dir)["eval_loss"] == pytest.approx(evaluated[0], abs=1e-6)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def process_of_rank(rank: int, output_dir: Path) -> psutil.Process:
    """The training process of that rank."""
    running = [one for one in psutil.process_iter(["cmdline"]) if str(output_dir) in (one.info["cmdline"] or ())]
    (process,) = [process for process in running if process.environ().get("RANK") == str(rank)]
    return process


@pytest.fixture(scope="module")
def uninterrupted(directory) -> Path:
    words = launched("torchrun")
    result = run([*words, *TRAIN, str(directory / "dropout.yaml"), "--output_dir", str(directory / "whole")])
    assert result.returncode == 0, result.stderr
    return directory / "whole"


@pytest.mark.end_to_end
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_one_process_ends_and_the_run_goes_on(directory, uninterrupted, signal_number):
    output_dir = directory / signal_number.name
    words = [*TRAIN, str(directory / "dropout.yaml"), "--output_dir", str(output_dir)]
    start = [*launched("torchrun"), *words]
    process = subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(output_dir / "checkpoint-10", process)
    process_of_rank(1, output_dir).send_signal(signal_number)
    _, error = process.communicate(timeout=200)
    assert process.returncode != 0
    if signal_number == signal.SIGKILL:
        assert f"another process of this run has ended; the last checkpoint is {output_dir}/checkpoint-" in error
        assert "continue from it with --resume_from_checkpoint true" in error
    else:
        assert "checkpoint saved in" in error
    assert not (output_dir / "model.safetensors").exists()

    result = run([*launched("torchrun"), *words, "--resume_from_checkpoint", "true"])
    assert result.returncode == 0, result.stderr
    assert_same_weights(output_dir, uninterrupted)


# Audit events of the interpreter, with path suffixes, in the order in which a checkpoint is written and moved into
# place and an older one is removed.
MOMENTS_OF_SAVING = [
    ("os.mkdir", "/unfinished"),
    ("open", "/unfinished/checkpoint-./modeling_liere_vit.py"),
    ("open", "/unfinished/checkpoint-./config.json"),
    ("open", "/unfinished/checkpoint-./trainer_state.json"),
    ("os.rename", "/unfinished/checkpoint-."),
    ("os.rmdir", "/unfinished"),
    ("shutil.rmtree", "/checkpoint-."),
    ("os.remove", "optimizer.pt"),
    ("os.rmdir", "/checkpoint-."),
    # The finished model moves to its place.
    ("os.rename", "/unfinished/model.safetensors"),
]
# Each child resumes from the last checkpoint, and is killed at the next of these events.
KILL_WHILE_SAVING = """
import json, os, re, shutil, signal, sys
from pathlib import Path
from transformers import AutoModelForImageClassification, TrainerState
from transformers.trainer_utils import get_last_checkpoint
from liere_hf.configuration import parse_recipe
from liere_hf.training.run import train

recipe, output_dir, moments, *flags = sys.argv[1:]


def train_on(moment):
    def hook(event, arguments):
        if moment and event == moment[0] and re.search(moment[1] + "$", str(arguments[0])):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    resume = Path(output_dir).exists() and get_last_checkpoint(output_dir) is not None
    train(*parse_recipe(recipe, [*flags, "--output_dir", output_dir, "--resume_from_checkpoint", str(resume).lower()]))


def load(checkpoint):
    AutoModelForImageClassification.from_pretrained(checkpoint)
    assert checkpoint.endswith(f"-{TrainerState.load_from_json(f'{checkpoint}/trainer_state.json').global_step}")


def in_a_child(work, argument):
    # No model runs in this process: one with threads must not fork.
    child = os.fork()
    if child == 0:
        work(argument)
        os._exit(0)
    return os.waitpid(child, 0)[1]


for moment in json.loads(moments):
    assert in_a_child(train_on, moment) == signal.SIGKILL, moment
    last = get_last_checkpoint(output_dir)
    if last is None:
        # Killed before its first checkpoint, a run starts anew.
        shutil.rmtree(output_dir)
    else:
        assert in_a_child(load, last) == 0, moment
assert in_a_child(train_on, None) == 0
"""


@pytest.mark.end_to_end
def test_killed_while_saving(directory, tmp_path):
    recipe = str(directory / "dropout.yaml")
    flags = ["--max_steps", "9", "--save_steps", "1", "--save_total_limit", "2"]
    arguments = [recipe, str(tmp_path / "killed"), json.dumps(MOMENTS_OF_SAVING), *flags]
    result = run([preloaded("python"), "-c", KILL_WHILE_SAVING, *arguments])
    assert result.returncode == 0, result.stderr
    words = [preloaded("python"), *TRAIN, recipe, "--output_dir", str(tmp_path / "whole"), *flags]
    assert run(words).returncode == 0
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")
    assert {path.name for path in (tmp_path / "killed").iterdir() if path.is_dir()} == {"checkpoint-8", "checkpoint-9"}


def may_mount() -> bool:
    script = "mount -t tmpfs -o size=1m tmpfs /mnt"
    return subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True).returncode == 0


@pytest.mark.end_to_end
def test_disk_full(directory, tmp_path):
    """A separate file system has room for some checkpoints, but not for all."""
    if not may_mount():
        pytest.skip("mounting a small file system is not allowed here")
    mount = tmp_path / "disk"
    mount.mkdir()
    script = (
        f"mount -t tmpfs -o size=700k tmpfs {mount} && "
        f"{sys.executable} -m liere_hf train {directory / 'tiny.yaml'} --output_dir {mount}/run; "
        f"code=$?; ls {mount}/run >&2; cp -r {mount}/run {tmp_path / 'kept'}; exit $code"
    )
    result = run(["unshare", "--mount", "sh", "-c", script])
    assert result.returncode == 1, result.stderr
    (message,) = (line for line in result.stderr.splitlines() if line.startswith("liere-hf"))
    assert "cannot be saved" in message
    assert f"the last checkpoint is {mount}/run/checkpoint-" in message
    assert "Traceback" not in result.stderr
    last = Path(message.partition("checkpoint is ")[2].partition(",")[0]).name
    assert sorted(path.name for path in (tmp_path / "kept").iterdir() if path.is_dir())[-1] == last
    words = [preloaded("python"), *TRAIN, str(directory / "tiny.yaml"), "--output_dir", str(tmp_path / "kept")]
    result = run([*words, "--resume_from_checkpoint", "true"])
    assert result.returncode == 0, result.stderr


def fails(capsys, code: int, *words: object) -> str:
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in words])
    assert exit_.value.code == code
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_loss_that_is_not_finite(capsys, directory, tmp_path):
    words = ["train", directory / "tiny.yaml", "--output_dir", tmp_path / "run", "--save_steps", 5]
    words += ["--learning_rate", "1e19", "--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", "100000000"]
    words += ["--logging_steps", 1, "--weight_decay", 0.0, "--max_steps", 2000]
    error = fails(capsys, 1, *words)
    step = int(error.partition("step ")[2].split()[0])
    assert f"the loss of step {step} is not finite" in error or f"weights are not finite after step {step}" in error
    if step > 5:
        last = error.partition("checkpoint is ")[2].partition(",")[0]
        assert 0 < int(last.rpartition("-")[2]) < step
        for tensor in load_file(Path(last) / "model.safetensors").values():
            assert tensor.isfinite().all()


def test_batches_that_do_not_divide_evenly(capsys, directory, tmp_path):
    words = ["train", directory / "tiny.yaml", "--output_dir", tmp_path / "run"]
    assert "effective_batch_size is 0, allowed are multiples of the number of devices, 1" in fails(
        capsys, 2, *words, "--effective_batch_size", 0
    )
    error = fails(capsys, 2, *words, "--effective_batch_size", 4096)
    assert "a step takes 4096 examples, the training split has 1437" in error
    three = [preloaded("torchrun"), "--nproc-per-node", "3", "--master-port", str(free_port())]
    result = run([*three, *TRAIN, str(directory / "tiny.yaml"), "--output_dir", str(tmp_path / "run")])
    assert result.returncode != 0
    assert "effective_batch_size is 32, allowed are multiples of the number of devices, 3" in result.stderr
    assert not (tmp_path / "run").exists()


def test_tensorboard(directory, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(SystemExit) as exit_:
        words = ["train", directory / "tiny.yaml", "--output_dir", tmp_path / "run", "--max_steps", 5]
        main([str(word) for word in [*words, "--report_to", "tensorboard"]])
    assert exit_.value.code == 0
    events = next(tmp_path.rglob("events.out.tfevents.*"))
    accumulator = EventAccumulator(str(events.parent))
    accumulator.Reload()
    logged = [event.value for event in accumulator.Scalars("train/loss")]
    assert logged == pytest.approx(losses(tmp_path / "run"), rel=1e-4)


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_missing_tracker(capsys, directory, tmp_path, tracker):
    error = fails(
        capsys, 2, "train", directory / "tiny.yaml", "--output_dir", tmp_path / "run", "--report_to", tracker
    )
    assert f"report_to is ['{tracker}']" in error
    assert f'{tracker} is not installed: pip install "liere_hf[tracking]"' in error
