"""The model benchmark: models of equal size, output files, and errors."""

import csv
import json
import multiprocessing
from pathlib import Path

import pytest
import torch
from PIL import Image
from preloaded import preloaded
from selection import mostly_extensive

from liere_hf.benchmark import compilation, models, rotations
from liere_hf.benchmark.models import PRESETS, PUBLISHED_WAYS, REFERENCE, Preset, build_contestant, contestant_names
from liere_hf.benchmark.timing import median_ratio
from liere_hf_cli.main import main

ROOT = Path(__file__).parents[2]
SMALL = {
    "image": Preset("tiny", (16, 16), (8, 8), num_labels=3, batch_size=2),
    "video": Preset("tiny", (4, 16, 16), (2, 8, 8), num_labels=3, batch_size=2),
}


@pytest.mark.parametrize("kind", mostly_extensive(SMALL, ["image"]))
@pytest.mark.extensive
def test_contestants_have_the_sizes_of_the_reference(kind):
    """Linear layers and normalizations have the same number of parameters, regardless of their names."""

    def inner_parameters(name):
        skipped = ("generators", "position_embeddings", "patch_embeddings")
        model = build_contestant(name, SMALL[kind])
        return sum(p.numel() for key, p in model.named_parameters() if not any(part in key for part in skipped))

    assert len({inner_parameters(name) for name in contestant_names()}) == 1


@pytest.mark.parametrize("name", PUBLISHED_WAYS)
def test_published_implementations_are_equivalent(name):
    torch.manual_seed(0)
    published = build_contestant(name, SMALL["image"]).eval()
    ours = build_contestant("liere64", SMALL["image"]).eval()
    ours.load_state_dict(published.state_dict())
    pixel_values = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = ours(pixel_values).logits
        with models._application(name):
            torch.testing.assert_close(published(pixel_values).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.end_to_end
def test_one_command_writes_table_chart_and_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "tiny-cifar", SMALL["image"])
    flags = ["--rounds", "2", "--device", "cpu", "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit) as exit_info:
        main(["benchmark", *flags, "--contestants", "liere64", *PUBLISHED_WAYS])
    assert exit_info.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert all(f"times faster than {name}." in printed for name in PUBLISHED_WAYS)
    results = json.loads((tmp_path / "benchmark.json").read_text())
    rows = {row["name"]: row for row in results["models"]}
    assert list(rows) == [REFERENCE, "absolute", "liere64", *PUBLISHED_WAYS]
    assert rows[REFERENCE]["training_ratio"] == rows[REFERENCE]["evaluation_ratio"] == 1
    assert all(row["peak_memory_mib"] > 1 and row["training_seconds"] > 0 for row in rows.values())
    # Products of queries and keys with one 64 x 64 matrix per token (CLS included), head and layer.
    extra = 1e9 * (rows["liere64"]["gflops_per_sample"] - rows["absolute"]["gflops_per_sample"])
    assert extra == pytest.approx(2 * 12 * 5 * 6 * 2 * 64 * 64)
    with (tmp_path / "benchmark.csv").open() as file:
        assert [row["model"] for row in csv.DictReader(file)] == list(rows)
    assert Image.open(tmp_path / "benchmark.png").size[0] > 500


@pytest.mark.end_to_end
def test_steps_as_on_a_gpu(monkeypatch):
    """Compiled, in bfloat16: here on a CPU. The model's own encodings are compiled in test_devices.py."""
    torch.compiler.reset()
    monkeypatch.setitem(models.MODEL_PRESETS, "tiny", models.MODEL_PRESETS["tiny"] | {"num_hidden_layers": 1})
    steps = models.Steps(models.PUBLISHED, SMALL["image"], torch.device("cpu"), compiled=True)
    before = [parameter.clone() for parameter in steps.model.parameters()]
    assert steps.seconds("training") > 0
    assert steps.seconds("evaluation") > 0
    assert any(not torch.equal(*pair) for pair in zip(before, steps.model.parameters(), strict=True))
    torch.compiler.reset()


@pytest.mark.end_to_end
def test_contestants_are_optional(tmp_path, monkeypatch):
    """Table and chart do not need the published implementations."""
    monkeypatch.setitem(PRESETS, "base-video", SMALL["video"])
    flags = ["--preset", "base-video", "--rounds", "1", "--device", "cpu", "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit) as exit_info:
        main(["benchmark", *flags, "--contestants", "liere8"])
    assert exit_info.value.code == 0
    results = json.loads((tmp_path / "benchmark.json").read_text())
    assert [row["name"] for row in results["models"]] == [REFERENCE, "absolute", "liere8"]
    assert results["liere64_speedup"] == {}
    assert Image.open(tmp_path / "benchmark.png").size[0] > 500


@pytest.mark.end_to_end
def test_a_terminated_process_is_reported_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "tiny-cifar", Preset("tiny", (16, 16), (8, 8), num_labels=3, batch_size=1 << 40))
    with pytest.raises(SystemExit) as exit_info:
        main(["benchmark", "--rounds", "1", "--device", "cpu"])
    assert exit_info.value.code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("liere-hf benchmark: error: the process of ViT (transformers) ended with exit code 1; if")


def test_the_other_processes_then_end_without_a_word():
    connection, of_process = multiprocessing.Pipe()
    connection.close()
    models._serve_steps(of_process, REFERENCE, SMALL["image"], 1)


def test_out_of_memory_is_reported_in_one_sentence(monkeypatch, capsys):
    """The test raises the error itself, since the device may not exist here. Its handling is real."""

    def run_out(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(models, "_measure_steps", run_out)
    with pytest.raises(SystemExit) as exit_info:
        main(["benchmark", "--rounds", "1", "--device", "cpu"])
    assert exit_info.value.code == 1
    expected = "liere-hf benchmark: error: the memory of cpu ran out; take a smaller batch_size or fewer contestants\n"
    assert capsys.readouterr().err == expected


def test_parts_of_rotations_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("liere_hf.benchmark.rotations.BATCH_SIZE", 8)
    with pytest.raises(SystemExit) as exit_info:
        main(["benchmark", "rotations", "--rounds", "2", "--results_file", str(tmp_path / "results.json")])
    assert exit_info.value.code == 0
    rows = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert [(row["part"], row["width"]) for row in rows] == list(rotations.PARTS)
    assert all(row["speedup_low"] <= row["speedup"] <= row["speedup_high"] for row in rows)


def test_the_exponential_is_measured_separately(tmp_path, monkeypatch):
    monkeypatch.setattr("liere_hf.benchmark.exponential.NUM_ELEMENTS", 1 << 13)
    with pytest.raises(SystemExit) as exit_info:
        main(["benchmark", "exponential", "--rounds", "2", "--results_file", str(tmp_path / "results.json")])
    assert exit_info.value.code == 0
    rows = json.loads((tmp_path / "results.json").read_text())["widths"]
    assert [row["width"] for row in rows] == [2, 4, 8, 16, 32, 64]
    assert all(row["seconds"] > 0 and row["speedup"] > 0 for row in rows)


def test_errors_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("liere_hf.benchmark.exponential.ERROR_WIDTHS", (8, 16))
    with pytest.raises(SystemExit) as exit_info:
        main(["benchmark", "errors", "--results_file", str(tmp_path / "results.json")])
    assert exit_info.value.code == 0
    rows = json.loads((tmp_path / "results.json").read_text())["errors"]
    assert [row.pop("width") for row in rows] == [8, 16]
    assert all(0 < error < 1e-4 for row in rows for error in row.values())


@pytest.mark.end_to_end
def test_converted_backbones_are_measured(tmp_path, monkeypatch):
    small = {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 64}
    monkeypatch.setattr("liere_hf.benchmark.backbones.SIZES", {"small": small})
    monkeypatch.setattr("liere_hf.benchmark.backbones.PICTURE_SIZES", (64,))
    # The memory need not be each one's own here.
    monkeypatch.setattr("liere_hf.benchmark.backbones._in_a_process", lambda function, *given: function(*given))
    with pytest.raises(SystemExit) as exit_info:
        main(["benchmark", "backbones", "--rounds", "1", "--results_file", str(tmp_path / "results.json")])
    assert exit_info.value.code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["form"] for row in results["pictures"]] == ["transformers", "converted", "LieRE8"]
    (conversion,) = results["conversions"]
    assert all(row["seconds"] > 0 and row["peak_memory_mib"] > 100 for row in (conversion, *results["pictures"]))
    assert 0 < results["largest_difference"] < 1e-4


@pytest.mark.end_to_end
def test_compiled_models_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("liere_hf.benchmark.compilation.BLOCK_SIZES", (8,))
    monkeypatch.setattr("liere_hf.benchmark.compilation.BATCH_SIZES", (2,))
    inference = {way: how for way, how in compilation.INFERENCE.items() if way != "compiled"}
    monkeypatch.setattr("liere_hf.benchmark.compilation.INFERENCE", inference)
    small = {
        "hidden_size": 64,
        "num_attention_heads": 1,
        "num_hidden_layers": 1,
        "intermediate_size": 64,
        "image_size": 32,
    }
    monkeypatch.setattr("liere_hf.benchmark.compilation.DIMENSIONS", compilation.DIMENSIONS | small)
    with pytest.raises(SystemExit) as exit_info:
        main(["benchmark", "compilation", "--rounds", "2", "--results_file", str(tmp_path / "results.json")])
    assert exit_info.value.code == 0
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    ways = [*inference, *compilation.TRAINING, compilation.EAGER, "in turn"]
    assert [row["way"] for row in rows] == ways
    assert all(row["seconds"] > 0 and (row["ratio"] == 1 or row["way"] != "eager") for row in rows)


def test_median_ratio_pairs_rounds():
    """The second round is slow for both; a ratio of median times would not cancel this."""
    ratio = median_ratio("speed", [2.0, 20.0, 2.2], [1.0, 10.0, 1.1])
    assert ratio["speed"] == pytest.approx(2)
    assert ratio["speed_low"] <= 2 <= ratio["speed_high"]


@pytest.mark.end_to_end
def test_startup_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("liere_hf.benchmark.startup.LIERE_HF", preloaded("liere-hf"))
    model, results = str(ROOT / "checkpoints" / "liere-fashion-mnist"), tmp_path / "results.json"
    with pytest.raises(SystemExit) as exit_info:
        main(["benchmark", "startup", "--model", model, "--rounds", "1", "--results_file", str(results)])
    assert exit_info.value.code == 0
    rows = json.loads(results.read_text())["rows"]
    assert [row["command"].split()[1] for row in rows] == ["argparse,", "--help", "train,", "explain", "app"]
    assert all(0 < row["least"] <= row["seconds"] <= row["greatest"] for row in rows)


@pytest.mark.extensive
def test_a_command_that_fails_is_not_measured(monkeypatch, capsys):
    monkeypatch.setattr("liere_hf.benchmark.startup.LIERE_HF", preloaded("liere-hf"))
    with pytest.raises(SystemExit) as exit_info:
        main(["benchmark", "startup", "--model", "no_such_model", "--rounds", "1"])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        "liere-hf benchmark: error: explain no_such_model ended with exit code 2: liere-hf explain: "
    )
    assert "model no_such_model is not a directory" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--preset", "huge"], "preset is 'huge', allowed are tiny-cifar, base-imagenet, base-video"),
        (["--rounds", "0"], "rounds is 0, allowed is 1 or more"),
        (
            ["--contestants", "liere8", "liere9"],
            f"contestants has 'liere9', allowed are {'; '.join(contestant_names())}",
        ),
        (["--batch_size", "-1"], "batch_size is -1, allowed is 1 or more"),
        (["exponential", "--rounds", "0"], "rounds is 0, allowed is 1 or more"),
        (["startup"], "model is not given, benchmark startup needs an image classifier"),
        (["--device", "tpu"], "device is 'tpu', allowed are cpu and cuda"),
    ],
)
def test_bad_input_is_one_sentence(flags, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["benchmark", *flags])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == f"liere-hf benchmark: error: {message}\n"
