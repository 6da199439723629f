"""Cards against the results files that they quote, and as huggingface_hub parses them."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from safetensors.torch import load_file, save_file

from liere_hf import LiereViTConfig
from liere_hf.cards.model_card import build_model_card
from liere_hf.comparison_files import titles
from liere_hf.configuration import parse_recipe
from liere_hf.configuration.metric_names import MEASURES, MEASURES_OF
from liere_hf.errors import InputError
from liere_hf.hub.staging import stage
from liere_hf.run_directory import pixels_per_axis, read_checkpoint
from liere_hf_cli.main import main


def test_metadata_holds_the_measured_metrics(trained):
    metadata = metadata_load(trained / "README.md")
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "image-classification"
    assert metadata["license"] == "mit"
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == "ViT with LieRE8 position encoding on scikit-learn digits"
    evaluation = json.loads((trained / "eval_results.json").read_text())
    measured = {result.metric_type: result for result in results}
    for key in MEASURES_OF["single_label_classification"]:
        result = measured.pop(MEASURES[key].hub_type)
        assert result.metric_value == pytest.approx(evaluation[f"eval_{key}"], abs=1e-6)
        assert result.task_type == "image-classification"
        if key != "calibration_error":
            interval = [evaluation[f"eval_{key}_{end}"] for end in ("low", "high")]
            assert result.metric_args["confidence_interval_95"] == pytest.approx(interval, abs=1e-6)
    assert not measured


@pytest.mark.parametrize(
    ("image_size", "patch_size"),
    [
        *[(8, 4), (8, [4]), ([8], 4), ([8], [4]), (8, [4, 2]), ([8, 12], 4), ([8, 12], [4, 2])],
        *[(8, [2, 4, 4]), ([8, 12, 16], 4), ([8, 12, 16], [2, 4, 4])],
    ],
)
def test_sizes_have_the_axes_of_the_model(image_size, patch_size, tmp_path):
    """Also where one of them is a single number, which stands for every axis."""
    config = LiereViTConfig(image_size=image_size, patch_size=patch_size)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert pixels_per_axis(saved, "image_size") == [*config.spatial_image_size]
    assert pixels_per_axis(saved, "patch_size") == [*config.spatial_patch_size]


def test_classes_are_in_the_card(trained):
    evaluation = json.loads((trained / "eval_results.json").read_text())
    card = (trained / "README.md").read_text()
    for name, row in evaluation["eval_per_class"].items():
        assert f"| {name} | {row['examples']} | {100 * row['precision']:.2f}" in card


def test_a_class_with_a_bar_in_its_name(run_dir):
    checkpoint = read_checkpoint(run_dir)
    checkpoint.metrics["per_class"]["a|b"] = checkpoint.metrics["per_class"].pop("0")
    assert "| a\\|b | " in str(build_model_card(checkpoint))


def test_few_classes_have_no_top5(run_dir):
    """Results of older versions hold one."""
    checkpoint = read_checkpoint(run_dir)
    assert "| top-5 accuracy, %" in str(build_model_card(checkpoint))
    checkpoint.config["id2label"] = {str(index): str(index) for index in range(5)}
    assert "top-5" not in str(build_model_card(checkpoint)).lower()


def test_one_example_has_no_interval_of_its_loss(run_dir):
    evaluation = json.loads((run_dir / "eval_results.json").read_text())
    for end in ("low", "high"):
        del evaluation[f"eval_loss_{end}"]
    (run_dir / "eval_results.json").write_text(json.dumps(evaluation))
    card = build_model_card(read_checkpoint(run_dir))
    assert f"| loss | {evaluation['eval_loss']:.4f} | |" in card.text


def test_card_round_trips_through_huggingface_hub(trained):
    card = ModelCard.load(trained / "README.md")
    assert card.data.to_dict() == ModelCard(str(card)).data.to_dict()
    assert card.text.count("```") % 2 == 0


def test_card_holds_every_option_of_the_recipe(trained, tmp_path):
    """The recipe in the card is valid: parsed, it has the options of the run."""
    text = ModelCard.load(trained / "README.md").text
    (tmp_path / "recipe.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    recipe = yaml.safe_load((trained / "recipe.yaml").read_text())
    in_card = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert recipe.keys() - in_card.keys() == {"output_dir", "disable_tqdm", "local_rank"} & recipe.keys()
    assert in_card.items() <= recipe.items()
    model_arguments, data_arguments, run_arguments = parse_recipe(str(tmp_path / "recipe.yaml"))
    assert (model_arguments.hidden_size, data_arguments.train_examples, run_arguments.max_steps) == (16, 64, 2)


def copy_of(run_dir: Path, directory: Path, bias: float) -> str:
    """The model with another bias of its class 3."""
    shutil.copytree(run_dir, directory)
    weights = load_file(directory / "model.safetensors")
    weights["classifier.bias"][3] += bias
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return str(directory)


def compare_models(models: list[str], directory: Path, *further: str) -> dict:
    flags = ["--recipe", "digits", "--use_cpu", "true", *further]
    with pytest.raises(SystemExit) as exit_:
        main(["compare", *models, *flags, "--output_dir", str(directory)])
    assert exit_.value.code == 0
    return json.loads((directory / "comparison.json").read_text())


@pytest.fixture
def others(run_dir, tmp_path) -> list[str]:
    """Two models that answer 3 always and never, in directories with the same last name, which has a bar."""
    return [copy_of(run_dir, tmp_path / name / "b|c", bias) for name, bias in (("always", 1e6), ("never", -1e6))]


def test_compared_models_are_in_the_card(run_dir, others, tmp_path):
    found = {}
    for size in ("8", "32"):
        options = ["--eval_examples", "64", "--input_size", size]
        found[size] = compare_models([str(run_dir), *others], tmp_path / size, *options)
        shutil.copyfile(tmp_path / size / "comparison.json", run_dir / f"comparison_{size}.json")
    text = build_model_card(read_checkpoint(run_dir)).text
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines()]
    rows = [row for row in rows if len(row) == 6 and row[0] in ("8 x 8", "32 x 32")]
    assert len(rows) == 4
    for size, content in found.items():
        own, *rest = content["metrics"].values()
        for name, metrics in zip(("always", "never"), rest, strict=True):
            row = next(row for row in rows if row[0] == f"{size} x {size}" and row[2] == rf"{name}/b\|c")
            assert (row[1], row[3]) == ("64", "LieRE8")
            assert row[4].startswith(f"{100 * metrics['accuracy']:.2f} (")
            expected = 100 * (metrics["accuracy"] - own["accuracy"])
            assert float(row[5].split()[0]) == pytest.approx(expected, abs=0.01)
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["runs/a", "runs/b"], ["a", "b"]),
        (["/x/one/run", "/y/two/run", "run"], ["one/run", "two/run", "run"]),
        (["org/model", "org2/model/"], ["org/model", "org2/model"]),
        (["./a", "a"], ["./a", "a"]),
        ([".", ".."], [".", ".."]),
    ],
)
def test_titles_of_models_tell_them_apart(names, expected):
    assert titles(names) == expected


def test_comparisons_are_not_published(run_dir, others, tmp_path):
    """The card has their numbers. They hold paths of this machine."""
    compare_models([str(run_dir), *others], run_dir, "--eval_examples", "20")
    target = tmp_path / "staged"
    target.mkdir()
    stage(read_checkpoint(run_dir), target, "org/compared")
    assert not [*target.glob("comparison*")]
    assert "always/b" in (target / "README.md").read_text()


def test_a_comparison_of_another_model_is_refused(run_dir, others):
    compare_models([others[0], str(run_dir)], run_dir, "--eval_examples", "20")
    with pytest.raises(InputError, match=r"comparison\.json compares others with .*b\|c, but is a file of .*run: "):
        build_model_card(read_checkpoint(run_dir))


def test_a_comparison_of_a_model_with_another_encoding_is_refused(run_dir, others):
    """One that lies in a directory of the same name."""
    compare_models([str(run_dir), others[0]], run_dir, "--eval_examples", "20")
    config = json.loads((run_dir / "config.json").read_text()) | {"position_encoding": "rope_mixed"}
    (run_dir / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        InputError, match=r"comparison\.json compares others with a model with LieRE8, but .* RoPE-Mixed"
    ):
        build_model_card(read_checkpoint(run_dir))


@pytest.mark.parametrize("file", ["eval_results.json", "test_results.json", "eval_results_32.json"])
@pytest.mark.parametrize(
    "key, value, message",
    [
        ("per_class", {"Ankle boot": {"examples": 3}}, "has the class 'Ankle boot', which the model does not have"),
        ("input_size", [8, 32, 32], "has input_size \\[8, 32, 32\\], the model has 2 axes"),
    ],
)
def test_measurements_of_another_model_are_refused(run_dir, file, key, value, message):
    prefix = {"eval_results.json": "eval_", "test_results.json": "test_"}.get(file, "")
    metrics = json.loads((run_dir / "eval_results.json").read_text())
    metrics = {prefix + name.removeprefix("eval_"): each for name, each in metrics.items()}
    (run_dir / file).write_text(json.dumps(metrics | {f"{prefix}input_size": [32, 32]}))
    read_checkpoint(run_dir)
    (run_dir / file).write_text(json.dumps(metrics | {f"{prefix}input_size": [32, 32], prefix + key: value}))
    with pytest.raises(InputError, match=f"{file} {message}: it is of another model"):
        read_checkpoint(run_dir)


def test_damaged_comparisons_are_refused(run_dir, others):
    """Every part of the file is taken away, or replaced by something else, in turn."""
    whole = compare_models([str(run_dir), others[0]], run_dir, "--eval_examples", "20")
    build_model_card(read_checkpoint(run_dir))
    second = others[0]
    damaged = [{}, [], 3, None, *({**whole, key: value} for key in whole for value in (None, 3, [3], "x", {}, [{}]))]
    damaged += [{**whole, "metrics": {**whole["metrics"], second: value}} for value in (None, 3, {}, [])]
    for key in ("accuracy", "loss", "examples", "input_size"):
        for value in (None, "x", {}):
            metrics = {**whole["metrics"][second], key: value}
            damaged.append({**whole, "metrics": {**whole["metrics"], second: metrics}})
    for key in ("model", "measure", "value", "low"):
        for value in (None, "x", {}):
            damaged.append({**whole, "differences": [{**whole["differences"][0], key: value}]})
    damaged = [each for each in damaged if each != whole]
    refused = 0
    for content in damaged:
        (run_dir / "comparison.json").write_text(json.dumps(content))
        try:
            build_model_card(read_checkpoint(run_dir))
        except InputError as error:
            assert "comparison.json" in str(error)
            refused += 1
    # A difference of an unknown measure is left out, and so is one where there is none.
    assert len(damaged) - refused <= 5


def test_a_fine_tuned_run_is_compared_at_its_own_size(run_dir, tmp_path):
    """Its saved processor resizes to 16 pixels, its configuration says 8."""
    flags = ["--model_name_or_path", str(run_dir), "--input_size", "16", "--max_steps", "1", "--train_examples", "64"]
    with pytest.raises(SystemExit) as exit_:
        main(["train", "digits", *flags, "--use_cpu", "true", "--output_dir", str(tmp_path / "tuned")])
    assert exit_.value.code == 0
    content = compare_models([str(tmp_path / "tuned"), str(run_dir)], tmp_path / "tuned")
    assert [each["input_size"] for each in content["metrics"].values()] == [[16, 16], [8, 8]]
    text = build_model_card(read_checkpoint(tmp_path / "tuned")).text
    assert "split at 16 x 16 pixels" in text
    assert "| 8 x 8 | 360 | run |" in text


def test_other_measured_sizes_are_in_the_card(run_dir):
    flags = ["--input_size", "32", "--eval_examples", "64", "--disable_tqdm", "true", "--use_cpu", "true"]
    results_file = run_dir / "eval_results_32.json"
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", str(run_dir), "digits", "--results_file", str(results_file), *flags])
    assert exit_.value.code == 0
    measured = json.loads(results_file.read_text())
    assert measured["input_size"] == [32, 32]
    card = build_model_card(read_checkpoint(run_dir))
    assert f"| 32 x 32 | {100 * measured['accuracy']:.2f} (" in card.text
    results = [result for result in card.data.eval_results if result.dataset_config == "32 x 32 pixels"]
    assert results[0].metric_value == pytest.approx(measured["accuracy"], abs=1e-6)
    assert "At other sizes, without training there:" in card.text
    checkpoint = read_checkpoint(run_dir)
    checkpoint.recipe["train_input_sizes"] = [16, 8, 16]
    assert "At other sizes, of a training at 8, 16 pixels:" in build_model_card(checkpoint).text


@pytest.mark.parametrize(
    "recipe, config, expected",
    [
        ({"dataset": "cifar100"}, {}, "| 70.3 |"),
        ({"dataset": "cifar100"}, {"generator_block_size": 16}, "| 69.85 |"),
        ({"dataset": "imagenet"}, {"position_encoding": "absolute"}, "| 66.1 |"),
        ({"dataset": "arrows", "arrows_grid_size": 14, "arrows_cell_size": 12}, {}, "| 99.7 |"),
        ({"dataset": "arrows", "arrows_grid_size": 5, "arrows_cell_size": 12}, {}, "no figure for this setting"),
        ({"dataset": "ucf101"}, {"position_encoding": "none"}, "no figure for this setting"),
    ],
)
def test_the_papers_figure_is_next_to_ours(run_dir, recipe, config, expected):
    checkpoint = read_checkpoint(run_dir)
    checkpoint.recipe.update(recipe)
    checkpoint.config.update(config)
    (row,) = [line for line in build_model_card(checkpoint).text.splitlines() if line.startswith("| top-1 accuracy")]
    assert expected in row


def test_fine_tuned_models_name_their_base(run_dir):
    checkpoint = read_checkpoint(run_dir)
    checkpoint.recipe["model_name_or_path"] = "org/base-model"
    card = build_model_card(checkpoint, "org/tuned")
    assert card.data.base_model == "org/base-model"
    assert "fine-tuned from org/base-model" in card.text
    assert "MODEL_DIR" not in card.text
    checkpoint.recipe["model_name_or_path"] = str(run_dir.parent / "secret" / "base")
    card = build_model_card(checkpoint, "org/tuned")
    assert card.data.base_model is None
    assert "fine-tuned from base on" in card.text
    assert "liere-hf train tuned/recipe.yaml --output_dir runs/tuned --model_name_or_path MODEL_DIR\n" in card.text
    assert "secret" not in str(card)


def test_converted_models_name_their_source(converted):
    card = build_model_card(read_checkpoint(converted), "org/video")
    assert card.data.pipeline_tag == "video-classification"
    assert "`authors.ckpt`" in card.text
    assert "liere-hf convert authors.ckpt OUTPUT_DIR --from liere --image_size 4 16 16 --patch_size 2 8 8" in card.text
    assert str(converted.parent) not in str(card)


@pytest.mark.parametrize(("dataset", "is_video"), [("clips", True), ("volumes", False)])
def test_videos_go_through_their_processor_and_volumes_do_not(dataset, is_video, tmp_path):
    checkpoint = Path(__file__).parents[2] / "checkpoints" / "liere-clips"
    recipe = shutil.copytree(checkpoint, tmp_path / "liere-clips") / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("dataset: clips", f"dataset: {dataset}"))
    text = build_model_card(read_checkpoint(recipe.parent), "org/model").text
    assert text.count("processor = AutoVideoProcessor.from_pretrained") == 2 * is_video
    assert text.count("pixel_values = torch.zeros(1, 8, 3, 32, 32)") == 2 * (not is_video)


@pytest.mark.parametrize("name", ["train_results.json", "eval_results.json", "recipe.yaml"])
def test_an_unfinished_run_has_no_card(run_dir, name):
    (run_dir / name).unlink()
    with pytest.raises(InputError, match=f"is not a finished run, it has no {name}"):
        read_checkpoint(run_dir)


@pytest.mark.parametrize("value", [None, float("nan"), "high"])
def test_a_missing_metric_is_named(run_dir, value):
    evaluation = json.loads((run_dir / "eval_results.json").read_text())
    evaluation["eval_accuracy_low"] = value
    (run_dir / "eval_results.json").write_text(json.dumps(evaluation))
    with pytest.raises(InputError, match=r"eval_results.json has accuracy_low .*, a card needs a finite number there"):
        read_checkpoint(run_dir)


def test_other_directories_are_refused(run_dir, tmp_path):
    with pytest.raises(InputError, match="is not a directory"):
        read_checkpoint(tmp_path / "nowhere")
    shutil.rmtree(run_dir)
    run_dir.mkdir()
    with pytest.raises(InputError, match=r"holds no config.json"):
        read_checkpoint(run_dir)
    (run_dir / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(InputError, match="has model_type 'vit', allowed is 'liere_vit'"):
        read_checkpoint(run_dir)


def test_the_citation_is_that_of_the_readme(trained):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    citation = readme[readme.index("@inproceedings") :].partition("```")[0]
    assert citation in (trained / "README.md").read_text()
