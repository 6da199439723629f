"""The effect of each of LiereTrainer's overrides of transformers' Trainer, in real training.

Overrides that larger tests cover are not tested again here:

- `_save_checkpoint`: runs that are killed while they save, and a full disk, in test_processes.
- `get_train_dataloader`: two processes take the same steps as one in test_processes; a resumed run ends like an
  uninterrupted one in test_recipes and test_cli.
- `get_eval_dataloader`: two processes evaluate each example once in test_processes.
- `push_to_hub` by PublishingCallback: tests/hub/test_publishing.
"""

import json
import os
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from preloaded import preloaded
from safetensors.torch import load_file
from tiny_run import TINY_MODEL, TINY_RUN, write_recipe
from torch.utils.data import Dataset, default_collate
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from liere_hf import LiereViTConfig, LiereViTForImageClassification
from liere_hf.cards import build_model_card
from liere_hf.configuration import DataArguments, RunArguments, parse_recipe
from liere_hf.data import Splits, prepare
from liere_hf.data.batching import StreamedExamples
from liere_hf.errors import InputError, RunError, TrainingInterruptedError
from liere_hf.run_directory import learning_curve, read_checkpoint
from liere_hf.training.epochs import EpochCallback
from liere_hf.training.interruption import InterruptionCallback
from liere_hf.training.run import train
from liere_hf.training.trainer import LiereTrainer
from liere_hf_cli.main import main

pytestmark = pytest.mark.xdist_group("preloaded")

COMPLETE = {
    "model.safetensors",
    "config.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "training_args.bin",
}


class Images(Dataset):
    """Random images of two classes; `seen` records their indices in the order of use."""

    def __init__(self, count: int = 16, seconds: float = 0.0):
        self.pixel_values = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        self.seconds, self.seen = seconds, []

    def __len__(self) -> int:
        return len(self.pixel_values)

    def __getitem__(self, index: int) -> dict:
        time.sleep(self.seconds)
        self.seen.append(index)
        return {"pixel_values": self.pixel_values[index], "labels": index % 2}


def build_trainer(directory: Path, dataset: Dataset, callbacks: tuple = (), **options) -> LiereTrainer:
    torch.manual_seed(0)
    config = LiereViTConfig(
        **TINY_MODEL,
        image_size=8,
        patch_size=4,
        num_labels=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    compute_metrics = options.pop("compute_metrics", None)
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "save_steps": 1,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return LiereTrainer(
        model=LiereViTForImageClassification(config),
        args=TrainingArguments(str(directory), **defaults | options),
        train_dataset=dataset,
        eval_dataset=Images(4),
        data_collator=default_collate,
        compute_metrics=compute_metrics,
        callbacks=list(callbacks),
    )


def checkpoints(directory: Path) -> set[str]:
    return {path.name for path in directory.glob("checkpoint-*")}


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if path.suffix != ".py"}


class DuringSaving(TrainerCallback, ExportableState):
    """Trainer reads the state of callbacks during saving, between the weights and trainer_state.json."""

    def __init__(self, directory: Path, full_at: str | None = None):
        self.directory, self.full_at = directory, full_at
        self.visible, self.unfinished = [], []

    def state(self) -> dict:
        if self.full_at is not None and any(self.directory.rglob(f"{self.full_at}/model.safetensors")):
            raise OSError("No space left on device")
        self.visible += [files(path) for path in self.directory.glob("checkpoint-*")]
        self.unfinished += [files(path) for path in self.directory.glob("unfinished/checkpoint-*")]
        return {"args": {}, "attributes": {}}


def test_a_checkpoint_appears_only_when_complete(tmp_path):
    during = DuringSaving(tmp_path)
    trainer = build_trainer(tmp_path, Images(), (during,))
    trainer.train()
    assert during.unfinished == [COMPLETE - {"trainer_state.json"}] * 3
    # One older checkpoint during the second save, two during the third.
    assert during.visible == [COMPLETE] * 3
    assert checkpoints(tmp_path) == {"checkpoint-1", "checkpoint-2", "checkpoint-3"}
    for name in checkpoints(tmp_path):
        assert files(tmp_path / name) == COMPLETE
        arguments = torch.load(tmp_path / name / "training_args.bin", weights_only=False)
        assert arguments.output_dir == str(tmp_path)
    assert not (tmp_path / "unfinished").exists()
    assert trainer.args.output_dir == str(tmp_path)


def test_failed_saving_keeps_earlier_checkpoints(tmp_path):
    trainer = build_trainer(tmp_path, Images(), (DuringSaving(tmp_path, full_at="checkpoint-2"),))
    with pytest.raises(
        RunError, match=r"step 2 cannot be saved .*No space left.*the last checkpoint is .*checkpoint-1,"
    ):
        trainer.train()
    assert checkpoints(tmp_path) == {"checkpoint-1"}
    assert not (tmp_path / "unfinished").exists()
    build_trainer(tmp_path, Images()).train(resume_from_checkpoint=True)
    assert checkpoints(tmp_path) == {"checkpoint-1", "checkpoint-2", "checkpoint-3"}


def test_the_best_checkpoint_is_kept_and_loaded(tmp_path):
    accuracies = iter((0.1, 0.9, 0.2, 0.3))
    trainer = build_trainer(
        tmp_path,
        Images(),
        max_steps=4,
        eval_strategy="steps",
        eval_steps=1,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        learning_rate=0.1,
        compute_metrics=lambda prediction: {"accuracy": next(accuracies)},
    )
    trainer.train()
    best = tmp_path / "checkpoint-2"
    assert checkpoints(tmp_path) == {"checkpoint-2", "checkpoint-4"}
    assert trainer.state.best_model_checkpoint == str(best)
    for name in checkpoints(tmp_path):
        state = TrainerState.load_from_json(str(tmp_path / name / "trainer_state.json"))
        assert state.best_model_checkpoint == str(best)
    saved, last = (load_file(path / "model.safetensors") for path in (best, tmp_path / "checkpoint-4"))
    weights = trainer.model.state_dict()
    assert all(tensor.equal(weights[name]) for name, tensor in saved.items())
    assert not all(tensor.equal(weights[name]) for name, tensor in last.items())


class Spoil(TrainerCallback):
    """Makes a weight NaN before or after the forward pass of a step."""

    def __init__(self, step: int, event: str):
        self.step = step
        setattr(self, event, self.spoil)

    def spoil(self, args, state, control, model, **kwargs):
        if state.global_step == self.step - 1:
            model.classifier.bias.data[0] = torch.nan


@pytest.mark.parametrize(
    "event, message",
    [
        ("on_step_begin", "the loss of step 2 is not finite; the last checkpoint is .*checkpoint-1,"),
        ("on_optimizer_step", "weights are not finite after step 2; the last checkpoint is .*checkpoint-1,"),
    ],
)
def test_diverged_training_saves_no_checkpoint(tmp_path, event, message):
    # No loss is logged before the checkpoint.
    trainer = build_trainer(tmp_path, Images(), (Spoil(2, event),), logging_steps=100)
    with pytest.raises(RunError, match=message):
        trainer.train()
    assert checkpoints(tmp_path) == {"checkpoint-1"}


def test_logging_a_nonfinite_loss_ends_the_run(tmp_path):
    trainer = build_trainer(tmp_path, Images(), (Spoil(2, "on_step_begin"),), save_strategy="no", max_steps=9)
    with pytest.raises(RunError, match="the loss of step 2 is not finite; no checkpoint was saved before"):
        trainer.train()
    assert trainer.state.global_step == 2


def test_epochs_have_a_whole_number_of_steps(tmp_path):
    """With 12 images per step, 7 of 103 are dropped, different ones in each epoch."""
    images = Images(103)
    options = {"gradient_accumulation_steps": 3, "num_train_epochs": 2, "max_steps": -1, "save_strategy": "no"}
    trainer = build_trainer(tmp_path, images, dataloader_drop_last=True, **options)
    trainer.train()
    assert trainer.state.global_step == 2 * 8
    first, second = images.seen[:96], images.seen[96:]
    assert len(set(first)) == len(set(second)) == 96
    assert set(first) != set(second)

    images.seen.clear()
    build_trainer(tmp_path, images, dataloader_drop_last=False, **options).train()
    assert sorted(images.seen) == sorted([*range(103)] * 2)
    assert images.seen[:103] != images.seen[103:]


class Recorder:
    """A transform of a stream's rows that records the examples it receives in each epoch."""

    column, seed, epoch = "image", 0, 0

    def __init__(self):
        self.seen = []

    def __call__(self, rows: dict[str, list], indices: range) -> list[dict]:
        self.seen.append((self.epoch, indices))
        return [{"pixel_values": torch.zeros(3, 8, 8), "labels": label} for label in rows["label"]]


def test_a_resumed_stream_decodes_nothing_twice(tmp_path):
    """12 batches of 4 images per epoch, two per step: step 8 ends with the fourth batch of the second epoch."""
    images = [Image.fromarray(np.zeros((8, 8, 3), np.uint8))] * 48
    rows = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 24})
    rows = rows.cast_column("image", datasets.Image()).to_iterable_dataset(num_shards=2)

    def seen(max_steps: int, resume: bool) -> list:
        transform = Recorder()
        stream = StreamedExamples(rows, transform, num_examples=48, batch_size=4)
        options = {"gradient_accumulation_steps": 2, "max_steps": max_steps, "save_steps": 8}
        trainer = build_trainer(tmp_path, stream, (EpochCallback(transform),), **options)
        trainer.train(resume_from_checkpoint=resume or None)
        return transform.seen

    assert len(seen(8, resume=False)) == 16
    assert seen(9, resume=True) == [(1, range(16, 20)), (1, range(20, 24))]


def test_soft_labels(tmp_path):
    """The loss for class probabilities is the cross-entropy, averaged over the batch."""

    class Mixed(Images):
        def __getitem__(self, index: int) -> dict:
            return super().__getitem__(index) | {"labels": torch.tensor([0.25, 0.75])}

    images = Mixed(4)
    trainer = build_trainer(tmp_path, images, max_steps=1, save_strategy="no")
    with torch.no_grad():
        log_probabilities = trainer.model(images.pixel_values).logits.double().log_softmax(-1)
    trainer.train()
    expected = -(log_probabilities * torch.tensor([0.25, 0.75], dtype=torch.float64)).sum(-1).mean()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_waiting_for_data_is_measured(tmp_path):
    trainer = build_trainer(tmp_path, Images(12, seconds=0.02), save_strategy="no")
    start = time.perf_counter()
    trainer.train()
    assert 12 * 0.02 <= trainer.data_wait_seconds < time.perf_counter() - start


def test_trainer_itself_never_pushes(tmp_path):
    """Its own push would request the repository from the Hub, even in an evaluation, and save the token."""
    token = "hf_" + "tokenOfThisTest" * 2
    options = {"push_to_hub": True, "hub_token": token, "hub_model_id": "nobody/nothing"}
    trainer = build_trainer(tmp_path, Images(), max_steps=1, **options)
    trainer.train()
    saved = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert "training_args.bin" in {path.name for path in saved}
    assert not [path for path in saved if token.encode() in path.read_bytes()]


class Terminate(TrainerCallback):
    """Sends this process SIGTERM during a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("accuracies", [(0.9, 0.2), (0.1, 0.9)])
def test_an_interrupted_run_has_a_checkpoint_of_its_last_step(tmp_path, accuracies):
    """Whether or not it is the best one, and once."""
    evaluations, saved = iter(accuracies), []

    class Saved(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            saved.append(state.global_step)

    interruption = InterruptionCallback()
    trainer = build_trainer(
        tmp_path,
        Images(),
        (interruption, Terminate(2), Saved()),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="best",
        metric_for_best_model="accuracy",
        compute_metrics=lambda prediction: {"accuracy": next(evaluations)},
    )
    with interruption.handling_signals():
        trainer.train()
    assert trainer.state.global_step == 2
    assert checkpoints(tmp_path) == {"checkpoint-1", "checkpoint-2"}
    assert saved == [1, 2]


def test_signal_handlers_are_restored_after_an_error(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    interruption = InterruptionCallback()
    trainer = build_trainer(tmp_path, Images(), (interruption, Spoil(1, "on_step_begin")))
    with pytest.raises(RunError), interruption.handling_signals():
        assert signal.getsignal(signal.SIGTERM) != before[1]
        trainer.train()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_training_in_a_thread(tmp_path):
    interruption = InterruptionCallback()
    trainer = build_trainer(tmp_path, Images(), (interruption,))

    def train():
        with interruption.handling_signals():
            trainer.train()

    with ThreadPoolExecutor() as threads:
        threads.submit(train).result()
    assert checkpoints(tmp_path) == {"checkpoint-1", "checkpoint-2", "checkpoint-3"}


@pytest.fixture
def digits(tmp_path) -> Path:
    """A recipe of a tiny run."""
    return write_recipe(tmp_path / "digits.yaml", TINY_RUN | {"max_steps": 4, "save_steps": 2})


def test_a_run_that_diverges_unseen_saves_no_model(digits, tmp_path):
    flags = ["--learning_rate", "1e38", "--logging_strategy", "no", "--save_strategy", "no"]
    flags += ["--lr_scheduler_type", "constant", "--output_dir", str(tmp_path / "run")]
    with pytest.raises(RunError, match=r"not finite.*; no checkpoint was saved before"):
        train(*parse_recipe(str(digits), flags))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def interrupt_first_step(monkeypatch, seconds: float = 0.0) -> None:
    """Runs stop after their first step, which takes at least some seconds."""
    begin = InterruptionCallback.on_train_begin

    def interrupted(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(InterruptionCallback, "on_train_begin", interrupted)


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        ("train", "; continue with --resume_from_checkpoint true"),
        pytest.param("reproduce", "; the same command continues from it", marks=pytest.mark.extensive),
        pytest.param("demo", "", marks=pytest.mark.extensive),
    ],
)
def test_an_interrupted_command_says_how_to_continue(command, advice, digits, tmp_path, monkeypatch, capsys):
    """Only a command that has this flag names it."""
    interrupt_first_step(monkeypatch)
    words = {
        "train": [digits, "--output_dir", tmp_path / "run"],
        "reproduce": ["spatial", "--results_dir", tmp_path / "results", "--work_dir", tmp_path / "run"],
        "demo": ["--output_dir", tmp_path / "run"],
    }[command]
    if command == "reproduce":
        words += ["--train_examples", 64, "--eval_examples", 32, "--max_steps", 4]
    with pytest.raises(SystemExit) as exit_:
        main([command, *map(str, words)])
    assert exit_.value.code == 130
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.fullmatch(
        rf"liere-hf {command}: interrupted after step 1 of \d+, checkpoint saved in \S+/checkpoint-1{advice}", message
    )


def test_the_numbers_of_a_resumed_run_are_of_all_its_sessions(digits, tmp_path, monkeypatch):
    """Of 56 examples, an epoch takes three steps of 16 and one of 8; the run has two epochs."""
    run = tmp_path / "run"
    flags = ["--train_examples", "56", "--max_steps", "8", "--eval_strategy", "steps", "--eval_steps", "4"]
    flags += ["--output_dir", str(run), "--resume_from_checkpoint"]
    with monkeypatch.context() as patch, pytest.raises(TrainingInterruptedError):
        interrupt_first_step(patch, seconds=1.0)
        train(*parse_recipe(str(digits), [*flags, "false"]))
    train(*parse_recipe(str(digits), [*flags, "true"]))
    training = json.loads((run / "train_results.json").read_text())
    assert training["train_examples_seen"] == 2 * 56
    assert training["train_runtime"] + 0.5 < training["train_seconds"] < training["train_runtime"] + 10
    assert [point["examples"] for point in learning_curve(run)] == [56, 112]
    card = (run / "README.md").read_text()
    assert "112 examples were seen" in card
    assert "on the last weights" in card
    # A finished run may be evaluated with other weights than the last ones.
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("load_best_model_at_end: false", "load_best_model_at_end: true"))
    assert "once, on the weights of the best checkpoint." in str(build_model_card(read_checkpoint(run)))


def test_only_a_checkpoint_with_optimizer_state_is_resumed(digits, tmp_path):
    run = tmp_path / "run"
    flags = ["--save_only_model", "true", "--output_dir", str(run), "--resume_from_checkpoint"]
    train(*parse_recipe(str(digits), [*flags, "false"]))
    for resume in ("true", str(run / "checkpoint-2")):
        with pytest.raises(InputError, match=r"checkpoint-\d cannot be resumed: it has no state of the optimizer"):
            train(*parse_recipe(str(digits), [*flags, resume]))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prediction_loss_only", "true"], "prediction_loss_only is True, allowed is False"),
        (["--batch_eval_metrics", "false"], "batch_eval_metrics is False, allowed is True"),
        (["--label_names", "foo"], r"label_names is \['foo'\], allowed is 'labels'"),
        (
            ["--auto_find_batch_size", "true", "--effective_batch_size", "32"],
            "auto_find_batch_size is True, allowed is False with effective_batch_size 32",
        ),
    ],
)
def test_options_that_training_cannot_use_are_refused_before_it(digits, flags, message):
    with pytest.raises(InputError, match=message):
        parse_recipe(str(digits), flags)


def test_a_stream_has_a_fixed_batch_size(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = datasets.Dataset.from_dict({"image": [None], "label": [0]}, features=features)
    splits = Splits(rows.to_iterable_dataset(), None, rows, num_train=64)
    config = LiereViTConfig(image_size=8, patch_size=4)
    arguments = RunArguments(str(tmp_path), auto_find_batch_size=True, use_cpu=True)
    with pytest.raises(InputError, match="auto_find_batch_size is True, allowed is False for a stream"):
        prepare(splits, config, DataArguments(), arguments)


# A process of a group that another one has left; its launcher ends it while it says so.
LOST = """
import os, signal, sys
from pathlib import Path
from torch import distributed
from liere_hf.training.interruption import InterruptionCallback
from liere_hf.training.run import _other_processes_expected

distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
try:
    with _other_processes_expected(Path(sys.argv[1])), InterruptionCallback().handling_signals():
        raise RuntimeError("Connection closed by peer")
except RuntimeError as error:
    os.kill(os.getpid(), signal.SIGTERM)
    print(error)
"""


@pytest.mark.end_to_end
def test_a_launcher_does_not_cut_off_the_error(tmp_path):
    words = [preloaded("python"), "-c", LOST, str(tmp_path)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "another process of this run has ended; no checkpoint was saved before" in result.stdout
