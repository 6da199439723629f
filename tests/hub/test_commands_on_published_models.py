"""`liere-hf explain`, `rotations`, `info` and `compare` on models of the Hub, by their ids."""

import json
import shutil
from pathlib import Path

import pytest
from command_line import TOKEN
from PIL import Image
from selection import mostly_extensive

pytestmark = pytest.mark.xdist_group("preloaded")

ONE, OTHER, MISSING = "org/shown", "org/shown-again", "org/missing"
# The words of each command, and the files that it writes.
COMMANDS = {
    "explain": (["{model}", "{picture}", "--use_cpu"], {"explanations.json", "picture_attention.png"}),
    "rotations": (
        ["{model}"],
        {"rotations.json", "rotations_offsets.png", "rotations_spectrum.png", "rotations_commutators.png"},
    ),
    "compare": (
        ["{model}", "{other}", "--recipe", "digits", "--use_cpu", "true", "--eval_examples", "64"],
        {"comparison.json", "comparison.csv", "comparison.png"},
    ),
}


@pytest.fixture(scope="module")
def published(trained, server, command_line) -> None:
    for repo_id in (ONE, OTHER):
        assert command_line.run("publish", trained, repo_id, token=TOKEN).code == 0


@pytest.fixture
def picture(tmp_path) -> Path:
    Image.new("L", (8, 8), 90).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def words_of(command: str, model: str, other: str, picture: Path) -> list[str]:
    words = [word.format(model=model, other=other, picture=picture) for word in COMMANDS[command][0]]
    return [command, *words, "--output_dir", str(picture.parent / "output")]


@pytest.mark.parametrize("command", mostly_extensive(COMMANDS, ["explain"]))
def test_a_model_of_the_hub_is_one_in_a_directory(command, published, trained, command_line, picture):
    """The numbers of a published model are those of the run that it is a copy of."""
    found, copy = [], shutil.copytree(trained, picture.parent / "copy")
    for models in ((ONE, OTHER), (str(trained), str(copy))):
        result = command_line.run(*words_of(command, *models, picture))
        assert (result.code, result.stderr) == (0, "")
        output = picture.parent / "output"
        assert {path.name for path in output.iterdir()} == COMMANDS[command][1]
        (path,) = output.glob("*.json")
        content = path.read_text()
        for name, title in zip(models, ("one", "other"), strict=True):
            content = content.replace(f'"{name}"', f'"{title}"')
        found.append(json.loads(content))
    assert found[0] == found[1]


def test_info_of_a_model_of_the_hub(published, trained, server, command_line, tmp_path):
    assert command_line.run("info", ONE, "--json", tmp_path / "hub.json").code == 0
    assert command_line.run("info", trained, "--json", tmp_path / "directory.json").code == 0
    of_hub, of_directory = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("hub", "directory"))
    files = of_hub.pop("files")
    assert files == {name: len(content) for name, content in server.snapshot(ONE).items()}
    assert of_directory.pop("files")["model.safetensors"] == files["model.safetensors"]
    assert of_hub | {"model": None} == of_directory | {"model": None}


@pytest.mark.parametrize("command", [*COMMANDS, "info"])
def test_a_missing_repository_is_one_sentence(command, published, command_line, picture):
    if command == "info":
        words = ["info", MISSING, "--json", str(picture.parent / "info.json")]
    else:
        words = words_of(command, ONE if command == "compare" else MISSING, MISSING, picture)
    before = sorted(picture.parent.rglob("*"))
    result = command_line.run(*words)
    assert (result.code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"liere-hf {command}: error: model {MISSING} ")
    assert sorted(picture.parent.rglob("*")) == before
