"""Folders of one's own, from files to training and evaluation: what is trained on, what chooses, what is reported."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from media_files import write_files
from PIL import Image
from tiny_run import TINY_RUN, write_recipe

from liere_hf.cards.model_card import build_model_card
from liere_hf.configuration.metric_names import MEASURES
from liere_hf.metric_display import with_interval
from liere_hf.run_directory import read_checkpoint
from liere_hf_cli.main import main

RECIPE = TINY_RUN | {
    "dataset": "imagefolder",
    "train_examples": None,
    "eval_examples": None,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "data_num_proc": 1,
}


@pytest.fixture
def recipe(tmp_path) -> Path:
    return write_recipe(tmp_path / "tiny.yaml", RECIPE)


def write_pictures(folder: Path, count: int, first: int = 0, swapped: bool = False) -> Path:
    """Dark cats and light dogs, no two alike; or the other way round."""
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            low = 160 if (label == 1) != swapped else 0
            pixels = np.random.default_rng(number).integers(low, low + 96, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def run(*words: object) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in words])
    assert exit_.value.code == 0


def fails(capsys, *words: object) -> str:
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in words])
    error = capsys.readouterr().err.strip().splitlines()
    assert exit_.value.code == 2
    assert not any("Traceback" in line for line in error)
    return error[-1]


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_validation_chooses_and_test_is_reported(recipe, tmp_path, capsys):
    """Labels of the validation pictures are swapped: what validation likes best, test likes least."""
    data = tmp_path / "data"
    write_pictures(data / "train", 12)
    write_pictures(data / "val", 8, first=100, swapped=True)
    write_pictures(data / "test", 6, first=200)
    words = ["--eval_strategy", "epoch", "--save_strategy", "epoch", "--load_best_model_at_end", "true"]
    words += ["--metric_for_best_model", "loss", "--num_train_epochs", 4]
    words += [
        "--dataloader_num_workers",
        1,
        "--dataloader_persistent_workers",
        "true",
        "--dataloader_drop_last",
        "true",
    ]
    run("train", recipe, "--data_dir", data, "--output_dir", tmp_path / "run", *words)
    out = capsys.readouterr().out
    for line in (
        f"data: {data}, 2 classes: cat, dog",
        "train: 24 examples (cat 12, dog 12)",
        "validation: 16 examples (cat 8, dog 8)",
        "test: 12 examples (cat 6, dog 6)",
    ):
        assert line in out.splitlines()
    assert out.index("test: 12 examples") < out.index("top-1 accuracy")

    state = read(tmp_path / "run" / "trainer_state.json")
    losses = {entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}
    validation, test = (read(tmp_path / "run" / f"{name}_results.json") for name in ("eval", "test"))
    # The first checkpoint has learned the least.
    assert min(losses, key=losses.get) == min(losses) and len(set(losses.values())) == 4
    assert validation["eval_loss"] == pytest.approx(min(losses.values()), abs=1e-5)
    assert sum("test_loss" in entry for entry in state["log_history"]) == 0
    run("evaluate", tmp_path / "run", recipe, "--data_dir", data, "--results_file", tmp_path / "evaluation.json")
    evaluated = read(tmp_path / "evaluation.json")
    assert (evaluated["split"], evaluated["examples"]) == ("test", 12)
    assert evaluated["loss"] == pytest.approx(test["test_loss"], abs=1e-5)
    assert test["test_accuracy"] == pytest.approx(1 - validation["eval_accuracy"], abs=0.2)

    card = (tmp_path / "run" / "README.md").read_text()
    assert "Measured on the test split" in card and "On the validation split" in card
    assert f"| top-1 accuracy, % | {100 * test['test_accuracy']:.2f} (" in card
    assert "split: test" in card and "split: validation" not in card


def test_what_was_found_is_recorded(recipe, tmp_path):
    data = write_pictures(tmp_path / "data", 10)
    (data / "cat" / "broken.png").write_bytes(b"")
    (data / "dog" / "notes.txt").write_text("text")
    words = ["--max_steps", 1, "--skip_corrupt_files", "true", "--seed", 3]
    run("train", recipe, "--data_dir", data, "--output_dir", tmp_path / "run", *words)
    facts = read(tmp_path / "run" / "train_results.json")["data"]
    assert facts["source"] == str(data)
    assert facts["splits"] == {"train": {"cat": 8, "dog": 8}, "validation": {"cat": 2, "dog": 2}}
    assert (facts["held_out"]["fraction"], facts["held_out"]["seed"]) == (0.2, 3)
    assert facts["left_out"] == [
        {"file": str(data / "dog" / "notes.txt"), "reason": "no type of image that can be read"},
        {"file": str(data / "cat" / "broken.png"), "reason": "cannot be used: it is empty"},
    ]
    assert read(tmp_path / "run" / "training_data.json") == facts
    card = (tmp_path / "run" / "README.md").read_text()
    assert "Measured on the validation split" in card and "split: validation" in card


def test_evaluation_never_sees_what_was_trained_on(recipe, tmp_path, capsys):
    """The pictures that were held out in training are evaluated, whatever seed the recipe of the evaluation has."""
    data = write_pictures(tmp_path / "data", 10)
    words = ["--seed", 7, "--eval_fraction", 0.3]
    run("train", recipe, "--data_dir", data, "--output_dir", tmp_path / "run", *words)
    trained = read(tmp_path / "run" / "eval_results.json")
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    moved = tmp_path / "moved"
    for model, source in ((tmp_path / "run", data), (checkpoint, data), (tmp_path / "run", moved)):
        if source == moved:
            data.rename(moved)
        run("evaluate", model, recipe, "--data_dir", source, "--results_file", tmp_path / "evaluation.json")
        evaluated = read(tmp_path / "evaluation.json")
        assert (evaluated["split"], evaluated["examples"]) == ("held out", 6)
        assert evaluated["loss"] == pytest.approx(trained["eval_loss"], abs=1e-5)
        assert "6 examples: held out" in capsys.readouterr().out
    moved.rename(data)
    (data / "cat" / "0.png").unlink()
    error = fails(capsys, "evaluate", tmp_path / "run", recipe, "--data_dir", data)
    assert f"{data} has changed since the model was trained on a part of it" in error


def test_a_run_that_does_not_say_what_it_held_out(recipe, tmp_path, capsys):
    data = write_pictures(tmp_path / "data", 10)
    run("train", recipe, "--data_dir", data, "--output_dir", tmp_path / "run", "--max_steps", 1)
    (tmp_path / "run" / "training_data.json").unlink()
    error = fails(capsys, "evaluate", tmp_path / "run", recipe, "--data_dir", data)
    assert "was trained on imagefolder and does not say on which examples: give a validation or test split" in error


def test_evaluation_of_another_folder(recipe, tmp_path, capsys):
    data = write_pictures(tmp_path / "data", 10)
    run("train", recipe, "--data_dir", data, "--output_dir", tmp_path / "run", "--max_steps", 1)

    def evaluate(folder: Path) -> dict:
        words = ["evaluate", tmp_path / "run", recipe, "--data_dir", folder]
        run(*words, "--results_file", tmp_path / "evaluation.json")
        return read(tmp_path / "evaluation.json")

    other = write_pictures(tmp_path / "other", 7, first=50)
    both = evaluate(other)
    assert (both["split"], both["examples"]) == ("all", 14)
    # One class only: the index of dogs in their folder is not that in the model.
    alone = {}
    for kept, removed in (("cat", "dog"), ("dog", "cat")):
        folder = write_pictures(tmp_path / kept, 7, first=50)
        shutil.rmtree(folder / removed)
        alone[kept] = evaluate(folder)
        assert (alone[kept]["split"], alone[kept]["examples"]) == ("all", 7)
    assert (alone["cat"]["loss"] + alone["dog"]["loss"]) / 2 == pytest.approx(both["loss"], abs=1e-6)
    swapped = write_pictures(tmp_path / "swapped", 7, first=50, swapped=True)
    (swapped / "cat").rename(swapped / "dog2")
    (swapped / "dog").rename(swapped / "cat")
    (swapped / "dog2").rename(swapped / "dog")
    assert evaluate(swapped)["loss"] == pytest.approx(both["loss"], abs=1e-5)
    only_test = tmp_path / "only"
    only_test.mkdir()
    other.rename(only_test / "test")
    tested = evaluate(only_test)
    assert (tested["split"], tested["examples"]) == ("test", 14)
    write_files(tmp_path / "dog", "imagefolder", ["emu/0"])
    error = fails(capsys, "evaluate", tmp_path / "run", recipe, "--data_dir", tmp_path / "dog")
    assert "the data set has the classes emu, which the model does not have: its 2 classes are cat, dog" in error


@pytest.mark.parametrize(
    "names, message",
    [
        (["cat/0", "cat/1"], "has the one class 'cat', a classifier needs two or more"),
        (["train/0", "test/0"], "train holds 1 images that are not in class folders"),
        (["val/cat/0", "val/dog/0"], "has validation but no train: there is nothing to train on"),
    ],
)
def test_what_cannot_be_understood_leaves_nothing_behind(recipe, tmp_path, capsys, names, message):
    data = write_files(tmp_path / "data", "imagefolder", names)
    assert message in fails(capsys, "train", recipe, "--data_dir", data, "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_labels_from_a_file_and_groups(recipe, tmp_path):
    """Evaluation keeps whole groups apart as the run did, without being told of them again."""
    write_pictures(tmp_path / "data", 12)
    rows = [(f"data/{name}/{number}.png", name, number // 3) for name in ("cat", "dog") for number in range(12)]
    table = tmp_path / "train.csv"
    table.write_text("path,kind,patient\n" + "".join(f"{path},{name},{who}\n" for path, name, who in rows))
    words = ["--train_file", table, "--label_column_name", "kind"]
    run(
        "train", recipe, *words, "--group_column", "patient", "--eval_fraction", 0.25, "--output_dir", tmp_path / "run"
    )
    facts = read(tmp_path / "run" / "training_data.json")
    assert facts["splits"] == {"train": {"cat": 9, "dog": 9}, "validation": {"cat": 3, "dog": 3}}
    run("evaluate", tmp_path / "run", recipe, *words, "--results_file", tmp_path / "evaluation.json")
    evaluated = read(tmp_path / "evaluation.json")
    assert (evaluated["split"], evaluated["examples"]) == ("held out", 6)
    trained = read(tmp_path / "run" / "eval_results.json")
    assert evaluated["loss"] == pytest.approx(trained["eval_loss"], abs=1e-5)


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    "columns, measure",
    [
        ({"tags": lambda light, red: "|".join(["light"] * light + ["red"] * red)}, "mean_average_precision"),
        ({"light": lambda light, red: int(light), "red": lambda light, red: int(red)}, "mean_average_precision"),
        ({"brightness": lambda light, red: 3.0 * light - red}, "r2"),
        ({"brightness": lambda light, red: 2.0 * light, "redness": lambda light, red: red - 0.5}, "r2"),
    ],
)
def test_several_labels_and_numbers(recipe, tmp_path, columns, measure):
    """Pictures that are light or dark, and red or grey: learned from a file of labels, and evaluated."""
    rows = []
    for number in range(80):
        light, red = bool(number & 1), bool(number & 2)
        pixels = np.random.default_rng(number).integers(0, 60, (8, 8, 3), dtype=np.uint8) + 120 * light
        pixels[..., 0] += 70 * red
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number}.png")
        rows.append([f"{number}.png", *(function(light, red) for function in columns.values())])
    table = tmp_path / "train.csv"
    lines = [["path", *columns], *rows]
    table.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
    kind = "regression" if measure == "r2" else "multi_label_classification"
    words = ["--train_file", table, "--label_column_name", *columns, "--problem_type", kind]
    run("train", recipe, *words, "--num_train_epochs", 12, "--output_dir", tmp_path / "run")
    trained = read(tmp_path / "run" / "eval_results.json")
    assert trained[f"eval_{measure}"] > 0.8
    config = read(tmp_path / "run" / "config.json")
    names = [*columns] if measure == "r2" or len(columns) > 1 else ["light", "red"]
    assert config["problem_type"] == kind and [*config["id2label"].values()] == names
    run("evaluate", tmp_path / "run", recipe, *words, "--results_file", tmp_path / "evaluation.json")
    evaluated = read(tmp_path / "evaluation.json")
    assert evaluated["split"] == "held out" and evaluated["loss"] == pytest.approx(trained["eval_loss"], abs=1e-5)
    # The card names the measure that it shows, also of another model on the same examples.
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    run("evaluate", tmp_path / "run", recipe, *words, "--results_file", tmp_path / "run" / "eval_results_8.json")
    run("compare", tmp_path / "run", tmp_path / "other", "--recipe", recipe, *words, "--output_dir", tmp_path / "run")
    text = build_model_card(read_checkpoint(tmp_path / "run")).text
    about = MEASURES[measure]
    title = f"{about.title}, %" if about.is_share else about.title
    value = with_interval(trained, f"eval_{measure}", about.is_share)
    assert f"| input size | {title} (95% interval) |\n|---|---|\n| 8 x 8 | {value} |" in text
    assert f"| other | LieRE8 | {value} |" in text


VOLUMES = {
    "dataset": "volumes",
    "num_channels": 2,
    "image_size": [4, 8, 8],
    "patch_size": [2, 4, 4],
    "image_mean": [0.5, 0.5],
    "image_std": [0.25, 0.25],
}


def test_volumes_with_channels_and_spacing(recipe, tmp_path, capsys):
    """Positions in millimetres reach the model in training and in evaluation, where the run's spacing is used."""
    write_recipe(recipe, RECIPE | VOLUMES)
    for label, name in enumerate(("low", "high")):
        for number in range(6):
            random = np.random.default_rng([label, number])
            voxels = random.normal(100 * label, 20, (8, 8, 4, 2)).astype(np.float32)
            path = tmp_path / "data" / name / f"{number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1, 1, 2 + number, 1])), path)
    words = ["--data_dir", tmp_path / "data", "--num_train_epochs", 2, "--eval_fraction", 0.4]
    run("train", recipe, *words, "--volume_spacing", 2, 1, 1, "--output_dir", tmp_path / "run")
    trained = read(tmp_path / "run" / "eval_results.json")
    facts = read(tmp_path / "run" / "training_data.json")
    assert facts["volume_spacing"] == [2.0, 1.0, 1.0]

    def loss() -> float:
        run("evaluate", tmp_path / "run", recipe, *words[:2], "--results_file", tmp_path / "evaluation.json")
        return read(tmp_path / "evaluation.json")["loss"]

    assert loss() == pytest.approx(trained["eval_loss"], abs=1e-6)
    (tmp_path / "run" / "training_data.json").write_text(json.dumps(facts | {"volume_spacing": None}))
    assert loss() != pytest.approx(trained["eval_loss"], abs=1e-6)

    np.save(tmp_path / "data" / "low" / "6.npy", np.zeros((4, 8, 8, 2)))
    error = fails(capsys, "train", recipe, *words, "--volume_spacing", 2, 1, 1, "--output_dir", tmp_path / "other")
    assert "low/6.npy (the size of its voxels is not known, which volume_spacing needs" in error
    error = fails(capsys, "train", recipe, *words, "--num_channels", 1, "--output_dir", tmp_path / "other")
    assert (
        "its shape is (8, 8, 4, 2), allowed are three axes" in error or "its shape is (4, 8, 8, 2), allowed" in error
    )
    error = fails(capsys, "train", recipe, *words, "--volume_spacing", 2, 1, "--output_dir", tmp_path / "other")
    assert "volume_spacing is [2.0, 1.0], allowed are three values" in error
