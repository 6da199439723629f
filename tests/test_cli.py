import json
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from preloaded import preloaded
from safetensors.torch import load_file
from selection import mostly_extensive
from tiny_run import TINY_MODEL, TINY_RUN, write_recipe
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from liere_hf import LiereViTConfig, LiereViTForImageClassification
from liere_hf_cli.main import main

pytestmark = pytest.mark.xdist_group("preloaded")

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "liere-fashion-mnist"
RECIPE = TINY_RUN | {
    "train_examples": None,
    "eval_examples": None,
    "num_hidden_layers": 2,
    "random_crop_padding": 1,
    "max_steps": 30,
    "eval_strategy": "steps",
    "eval_steps": 15,
    "save_steps": 10,
    "logging_steps": 5,
    "learning_rate": 1e-3,
}


def command(*words: object) -> list[str]:
    return [preloaded("liere-hf"), *map(str, words)]


def run(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run(command(*words), capture_output=True, text=True)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml", RECIPE)


@pytest.fixture(scope="module")
def finished_run(recipe, tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("runs") / "finished"
    result = run("train", recipe, "--output_dir", output_dir)
    assert result.returncode == 0, result.stderr
    assert "top-1 accuracy" in result.stdout
    return output_dir


def fails(capsys, *words: object) -> str:
    """The one-sentence error of a command that must fail without a traceback."""
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in words])
    assert exit_.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    # Progress bars and library warnings may come before it.
    assert error[-1].startswith("liere-hf"), error
    assert not any("Traceback" in line for line in error)
    return error[-1]


def test_run_directory(finished_run):
    assert json.loads((finished_run / "eval_results.json").read_text())["eval_accuracy"] > 0
    data = json.loads((finished_run / "train_results.json").read_text())["data"]
    assert data == json.loads((finished_run / "training_data.json").read_text())
    assert (data["source"], data["left_out"]) == ("digits", [])
    assert {name: sum(counts.values()) for name, counts in data["splits"].items()} == {
        "train": 1437,
        "validation": 360,
    }
    assert yaml.safe_load((finished_run / "recipe.yaml").read_text())["learning_rate"] == 1e-3
    model = AutoModelForImageClassification.from_pretrained(finished_run)
    assert model.config.id2label[7] == "7"
    assert list(AutoImageProcessor.from_pretrained(finished_run).image_mean) == [0.4914, 0.4822, 0.4465]


@pytest.mark.end_to_end
def test_same_seed_same_result(recipe, finished_run, tmp_path):
    assert run("train", recipe, "--output_dir", tmp_path / "again").returncode == 0
    assert run("train", recipe, "--output_dir", tmp_path / "other", "--seed", 1).returncode == 0
    weights = (finished_run / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != weights


@pytest.mark.parametrize("signal_number", mostly_extensive([signal.SIGINT, signal.SIGTERM], [signal.SIGTERM]))
def test_interruption_saves_and_resume_ends_as_if_uninterrupted(recipe, finished_run, tmp_path, signal_number):
    output_dir = tmp_path / "run"
    options = ["train", recipe, "--output_dir", output_dir]
    process = subprocess.Popen(command(*options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # The first of the periodic checkpoints shows that training is under way.
    deadline = time.monotonic() + 120
    while not (output_dir / "checkpoint-10").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal_number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "checkpoint saved" in error.strip().splitlines()[-1]
    assert "Traceback" not in error
    assert not (output_dir / "model.safetensors").exists()

    result = run(*options, "--resume_from_checkpoint", "true")
    assert result.returncode == 0, result.stderr
    resumed, uninterrupted = (load_file(path / "model.safetensors") for path in (output_dir, finished_run))
    assert resumed.keys() == uninterrupted.keys()
    for name, tensor in uninterrupted.items():
        assert tensor.equal(resumed[name]), name


def test_evaluate_repeats_the_final_evaluation(recipe, finished_run, tmp_path):
    results_file = tmp_path / "results" / "evaluation.json"
    result = run("evaluate", finished_run, recipe, "--results_file", results_file)
    assert result.returncode == 0, result.stderr
    results = json.loads(results_file.read_text())
    trained = json.loads((finished_run / "eval_results.json").read_text())
    assert results["examples"] == 360
    for name in ("accuracy", "accuracy_low", "accuracy_high", "top5_accuracy", "loss", "loss_low", "loss_high"):
        assert results[name] == pytest.approx(trained[f"eval_{name}"], rel=1e-6)


def test_every_recipe_of_the_package_makes_a_model():
    from liere_hf.configuration import build_model_config, parse_recipe, recipe_names

    for name in recipe_names():
        flags = ["--model_name_or_path", "some/model"] if "finetune" in name else []
        model_arguments, data_arguments, training_arguments = parse_recipe(name, flags)
        assert build_model_config(model_arguments).position_encoding == "liere"
        assert data_arguments.dataset
        if training_arguments.effective_batch_size:
            training_arguments.resolve_batch_size()
            batch = training_arguments.per_device_train_batch_size * training_arguments.gradient_accumulation_steps
            assert batch == training_arguments.effective_batch_size


PAPER_RECIPES = ("cifar100", "imagenet", "ucf101", "arrows_108", "arrows_168", "arrows_276")


def test_recipes_of_the_paper_start_as_published_and_all_do_by_its_preset():
    from liere_hf.configuration import build_model_config, parse_recipe, recipe_names

    def start(recipe, *flags, **options):
        model_arguments, _, run_arguments = parse_recipe(recipe, flags, **options)
        return build_model_config(model_arguments).generator_init, run_arguments.generator_learning_rate_factor

    new_models = [name for name in recipe_names() if "finetune" not in name]
    for name in new_models:
        # A small variant of CIFAR's recipe, with which experiments repeat the paper's.
        is_published = name.removesuffix("_smoke") in (*PAPER_RECIPES, "fashion_mnist_32")
        assert start(name) == (("uniform", 1) if is_published else ("planar", 10)), name
        assert start(name, preset="published") == ("uniform", 1), name
        flags = ["--generator_init", "random_basis", "--generator_learning_rate_factor", "3"]
        assert start(name, *flags, preset="published") == ("random_basis", 3), name
    for name in set(recipe_names()) - {*new_models}:
        for preset in (None, "published"):
            model_arguments, _, run_arguments = parse_recipe(
                name, ["--model_name_or_path", "some/model"], preset=preset
            )
            assert run_arguments.generator_learning_rate_factor in (None, 1), name
            # The checkpoint says how it started.
            assert model_arguments.generator_init is None, name


def test_a_checkpoint_replaces_what_recipes_say_of_new_models(tmp_path):
    """Wherever it is named: in a flag, in a further file, or in a recipe that extends another one."""
    from liere_hf.configuration import parse_recipe, recipe_names
    from liere_hf.configuration.arguments import ARCHITECTURE_OPTIONS

    config = write_recipe(tmp_path / "config.yaml", {"model_name_or_path": "some/model"})
    for name in recipe_names():
        own = write_recipe(tmp_path / f"{name}.yaml", {"extends": name, "model_name_or_path": "some/model"})
        for preset in (None, "published"):
            for arguments in (
                (name, ["--model_name_or_path", "some/model"], None),
                (name, [], str(config)),
                (str(own), [], None),
            ):
                model_arguments, _, run_arguments = parse_recipe(*arguments, preset=preset)
                assert not [each for each in ARCHITECTURE_OPTIONS if getattr(model_arguments, each) is not None]
                assert run_arguments.generator_learning_rate_factor in (None, 1)
    own = {"extends": "digits", "model_name_or_path": "some/model", "pooling": "cls"}
    options = own | {"generator_learning_rate_factor": 5.0}
    model_arguments, _, run_arguments = parse_recipe(str(write_recipe(tmp_path / "own.yaml", options)))
    assert (model_arguments.pooling, run_arguments.generator_learning_rate_factor) == ("cls", 5)


def test_the_preset_overrides_every_option_of_the_start(tmp_path):
    from liere_hf.configuration import parse_recipe

    options = {"extends": "digits", "generator_init_scale": 0.001, "generator_init": "random_basis"}
    recipe = write_recipe(tmp_path / "own.yaml", options)
    assert parse_recipe(str(recipe))[0].generator_init_scale == 0.001
    model_arguments, *_ = parse_recipe(str(recipe), preset="published")
    assert model_arguments.generator_init == "uniform"
    assert model_arguments.generator_init_scale == pytest.approx(6.283185307179586)


def test_the_recipe_of_a_run_names_its_start(finished_run):
    assert yaml.safe_load((finished_run / "recipe.yaml").read_text())["generator_init"] == "planar"


@pytest.mark.parametrize(
    "encoding, message",
    [
        ("rope_mixed", "has liere_vit.rotations.generators of shape (2, 2, 2, 1, 8, 8) where (2, 2, 2, 4, 2, 2) is"),
        ("visionllama", "has liere_vit.rotations.generators, which another position_encoding does not take"),
    ],
)
def test_a_checkpoint_of_another_encoding_is_refused(capsys, recipe, finished_run, tmp_path, encoding, message):
    words = ["--model_name_or_path", finished_run, "--position_encoding", encoding, "--output_dir", tmp_path / "run"]
    assert message in fails(capsys, "train", recipe, *words)
    assert not (tmp_path / "run").exists()


def test_the_preset_of_a_run_is_in_its_recipe(capsys, recipe, tmp_path):
    words = ["train", recipe, "--output_dir", tmp_path / "run", "--max_steps", 1, "--eval_strategy", "no"]
    assert "argument --preset: invalid choice: 'paper'" in fails(capsys, *words, "--preset", "paper")
    assert not (tmp_path / "run").exists()
    assert run(*words, "--preset", "published").returncode == 0
    saved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert (saved["generator_init"], saved["generator_learning_rate_factor"]) == ("uniform", 1)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["generator_init"] == "uniform"
    generators = load_file(tmp_path / "run" / "model.safetensors")["liere_vit.rotations.generators"]
    assert torch.equal(generators.triu(1) != 0, torch.ones_like(generators).triu(1) != 0)


def test_fine_tuning_recipes_need_a_checkpoint(capsys):
    assert "model_name_or_path is not given" in fails(capsys, "train", "imagenet_384_finetune")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--position_encoding", "sinus"], "position_encoding is 'sinus', allowed are absolute, visionllama"),
        (["--generator_block_size", "3"], "generator_block_size is 3, it must be even and divide head_dim (8)"),
        (["--generator_block_size", "16"], "generator_block_size is 16, it must be even and divide head_dim (8)"),
        (["--patch_size", "3"], "image_size is 8, which patch_size 3 does not divide"),
        (["--image_size", "8", "8", "8"], "images need 2 axes and 3 channels"),
        (["--num_channels", "1"], "num_channels 1, images need 2 axes and 3 channels"),
        (["--learning_rat", "1"], "unknown option '--learning_rat', did you mean '--learning_rate'?"),
        (["--learning_rate", "fast"], "invalid float value: 'fast'"),
        (["--dataset", "mnist"], "invalid choice: 'mnist'"),
        (["--eval_fraction", "2"], "eval_fraction is 2.0"),
        (["--image_std", "1", "0", "1"], "image_std is [1.0, 0.0, 1.0], allowed is more than 0"),
        (["--config", "missing.yaml"], "missing.yaml cannot be read"),
        (["--model_name_or_path", "./missing"], "model ./missing is not a directory"),
        (["--resume_from_checkpoint", "true"], "holds no checkpoint to resume from"),
    ],
)
def test_bad_options(capsys, recipe, tmp_path, flags, message):
    output_dir = tmp_path / "run"
    assert message in fails(capsys, "train", recipe, "--output_dir", output_dir, *flags)
    assert not output_dir.exists()


@pytest.mark.parametrize(
    "content, message",
    [
        ("learning_rats: 1", "unknown option 'learning_rats', did you mean 'learning_rate'?"),
        ("- a list", "must hold one mapping"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_bad_recipe(capsys, tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    assert message in fails(capsys, "train", path)


def test_unknown_recipe(capsys):
    assert "recipe 'cifar' is neither a file nor one of: arrows_108, " in fails(capsys, "train", "cifar")


def test_output_dir_of_another_run(capsys, recipe, finished_run):
    before = sorted(finished_run.rglob("*"))
    error = fails(capsys, "train", recipe, "--output_dir", finished_run)
    assert f"output_dir {finished_run} already holds another run" in error
    assert sorted(finished_run.rglob("*")) == before


def test_resume_with_other_options(capsys, recipe, finished_run):
    flags = ["--resume_from_checkpoint", "true", "--learning_rate", "0.5"]
    error = fails(capsys, "train", recipe, "--output_dir", finished_run, *flags)
    assert "learning_rate is 0.5, but the run to resume was started with 0.001" in error


def test_corrupt_image_is_skipped_and_counted(capsys, recipe, tmp_path):
    random = np.random.default_rng(0)
    for label in ("light", "dark"):
        folder = tmp_path / "images" / label
        folder.mkdir(parents=True)
        for number in range(20):
            pixels = random.integers(128, size=(8, 8), dtype=np.uint8) + 127 * (label == "light")
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    (tmp_path / "images" / "dark" / "7.png").write_bytes(b"")
    words = ["train", recipe, "--dataset", "imagefolder", "--data_dir", tmp_path / "images", "--max_steps", 2]
    words += ["--output_dir", tmp_path / "run", "--data_num_proc", 1]
    assert "dark/7.png (it is empty); correct or remove them, or set skip_corrupt_files" in fails(capsys, *words)
    result = run(*words, "--skip_corrupt_files")
    assert result.returncode == 0, result.stderr
    (left_out,) = json.loads((tmp_path / "run" / "train_results.json").read_text())["data"]["left_out"]
    assert left_out["file"] == str(tmp_path / "images" / "dark" / "7.png")


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    labels = {index: str(index) for index in range(10)}
    config = LiereViTConfig(**TINY_MODEL, image_size=8, patch_size=4, id2label=labels)
    LiereViTForImageClassification(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_evaluations_leave_only_what_they_name(recipe, finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("evaluate", finished_run, recipe, "--results_file", "results.json").returncode == 0
    assert [path.name for path in tmp_path.rglob("*")] == ["results.json"]
    words = ["compare", finished_run, CHECKPOINT, "--recipe", recipe, "--output_dir", "compared"]
    assert run(*words).returncode != 0
    assert [path.name for path in tmp_path.rglob("*")] == ["results.json"]


def test_evaluate_truncated_checkpoint(capsys, recipe, checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert f"the weights of {checkpoint} cannot be read" in fails(capsys, "evaluate", checkpoint, recipe)


def test_evaluate_without_weights(capsys, recipe, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    assert f"the weights of {checkpoint} cannot be read" in fails(capsys, "evaluate", checkpoint, recipe)


def test_evaluate_other_architecture(capsys, recipe, tmp_path):
    config = ViTConfig(**TINY_MODEL, image_size=32)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    error = fails(capsys, "evaluate", tmp_path / "vit", recipe)
    assert "has model_type 'vit', expected 'liere_vit'" in error


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "liere-clips", "arrows_9x9"],
        ["evaluate", "liere-spatial-9x9", "clips_video"],
        ["compare", "liere-clips", "liere-spatial-9x9", "--recipe", "arrows_9x9", "--output_dir", "compared"],
        ["compare", "liere-spatial-9x9", "liere-clips", "--recipe", "arrows_9x9", "--output_dir", "compared"],
        ["compare", "liere-spatial-9x9", "liere-clips", "--recipe", "clips_video", "--output_dir", "compared"],
    ],
)
def test_data_for_other_inputs_with_the_classes_of_a_model(capsys, monkeypatch, tmp_path, words):
    """The classes of the arrows are among those of the clips."""
    monkeypatch.chdir(tmp_path)
    words = [str(CHECKPOINT.parent / word) if (CHECKPOINT.parent / word).is_dir() else word for word in words]
    error = fails(capsys, *words, "--eval_examples", 8)
    assert "and num_channels 3, " in error and "s need " in error
    assert not [*tmp_path.iterdir()]


def test_evaluate_checkpoint_of_other_shape(capsys, recipe, checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))
    error = fails(capsys, "evaluate", checkpoint, recipe)
    assert "mlp.fc1.bias of shape (16,) where (32,) is expected" in error


def test_evaluate_checkpoint_that_lacks_weights(capsys, recipe, checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    assert "lacks 13 weights of a LiereViT classifier" in fails(capsys, "evaluate", checkpoint, recipe)


def test_evaluate_other_classes(capsys, recipe, checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    labels = {str(index): f"class {index}" for index in range(10)}
    (checkpoint / "config.json").write_text(json.dumps(config | {"id2label": labels}))
    assert "has no readable processor" in fails(capsys, "evaluate", checkpoint, recipe)
    ViTImageProcessor().save_pretrained(checkpoint)
    error = fails(capsys, "evaluate", checkpoint, recipe)
    assert (
        "has the classes 0, 1, 2 and 7 more, which the model does not have: its 10 classes are class 0, class 1"
        in error
    )


def test_version_and_usage():
    result = run("--version")
    assert (result.returncode, result.stdout.strip()) == (0, "0.1.0")
    result = run("translate")
    assert result.returncode == 2
    assert "invalid choice: 'translate'" in result.stderr


def test_fine_tuning_a_checkpoint_with_other_classes(capsys, recipe, checkpoint, tmp_path):
    config = json.loads((checkpoint / "config.json").read_text())
    labels = {str(index): f"class {index}" for index in range(3)}
    config |= {"id2label": labels, "label2id": {name: int(index) for index, name in labels.items()}}
    LiereViTForImageClassification(LiereViTConfig.from_dict(config)).save_pretrained(checkpoint)
    words = ["train", recipe, "--model_name_or_path", checkpoint, "--max_steps", 2, "--output_dir", tmp_path / "run"]
    assert "classifier.bias of shape (3,) where (10,) is expected" in fails(capsys, *words)
    result = run(*words, "--ignore_mismatched_sizes")
    assert result.returncode == 0, result.stderr
    tuned = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    # The checkpoint brings its own architecture: one layer, where the recipe has two.
    assert tuned.config.num_hidden_layers == 1
    assert tuned.config.num_labels == 10


@pytest.mark.parametrize("change", [("hidden_size", 32), ("num_attention_heads", 4), ("patch_size", 2)])
def test_only_the_classifier_may_differ_from_the_checkpoint(capsys, recipe, checkpoint, tmp_path, change):
    words = ["train", recipe, "--model_name_or_path", checkpoint, "--output_dir", tmp_path / "run"]
    error = fails(capsys, *words, "--ignore_mismatched_sizes", f"--{change[0]}", change[1])
    assert re.search(r" of shape \(.*\) where \(.*\) is expected(, and [1-9]\d* more such weights)?; only", error)
    assert "only the classifier may differ: leave out the options of the architecture" in error
    assert not (tmp_path / "run").exists()


def test_convert_names_a_missing_source(capsys, tmp_path):
    for kind, noun in (("vit", "directory"), ("timm", "file"), ("liere", "file")):
        error = fails(capsys, "convert", tmp_path / "nothing", tmp_path / "model", "--from", kind)
        assert error.endswith(f"{tmp_path / 'nothing'} is not a {noun}")


def test_one_evaluation_example(capsys, recipe, tmp_path):
    """Its loss has no interval; the run is complete, can be evaluated again, and can be published."""
    output_dir, results_file = tmp_path / "run", tmp_path / "results.json"
    flags = ["--eval_examples", 1, "--max_steps", 2]
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in ["train", recipe, "--output_dir", output_dir, *flags]])
    assert exit_.value.code == 0
    results = json.loads((output_dir / "eval_results.json").read_text())
    assert results["eval_accuracy_high"] > results["eval_accuracy_low"]
    assert "eval_loss_low" not in results
    words = ["evaluate", output_dir, recipe, "--eval_examples", 1, "--results_file", results_file]
    for command_line in (words, ["publish", output_dir, "org/name", "--dry-run"]):
        with pytest.raises(SystemExit) as exit_:
            main([str(word) for word in command_line])
        assert exit_.value.code == 0
    assert json.loads(results_file.read_text())["examples"] == 1
    assert f"| loss | {results['eval_loss']:.4f} | |" in (output_dir / "README.md").read_text()


def test_confusion_matrix_of_a_run(finished_run):
    lines = [line.split(",") for line in (finished_run / "confusion_matrix.csv").read_text().splitlines()]
    assert lines[0] == ["true class", *map(str, range(10))]
    counts = np.array([line[1:] for line in lines[1:]], int)
    results = json.loads((finished_run / "eval_results.json").read_text())
    assert counts.sum() == 360
    assert counts.trace() / 360 == results["eval_accuracy"]
    assert counts.sum(axis=1).tolist() == [row["examples"] for row in results["eval_per_class"].values()]
    with Image.open(finished_run / "confusion_matrix.png") as figure:
        assert min(figure.size) > 300


@pytest.mark.parametrize(
    "words", [["recipes"], ["launch-config", "eight_gpus"], ["publish", CHECKPOINT, "a/b", "--dry-run"]]
)
def test_nobody_reads_the_output(words):
    """As behind `| head`: a table, a single line, and more than a pipe takes at once."""
    process = subprocess.Popen(
        [preloaded("liere-hf"), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=120) == 1
