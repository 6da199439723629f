"""The release list, its cards and the checkpoints of this repository agree."""

import hashlib
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import metadata_load

from liere_hf.cards.model_card import build_model_card
from liere_hf.errors import InputError
from liere_hf.releases import build, describe, publish_releases, read_releases, update_releases

ROOT = Path(__file__).parents[2]
LIST = ROOT / "model_cards" / "releases.yaml"
SOURCES = ROOT.parent / "shared" / "official_checkpoints"
CONTENT = yaml.safe_load(LIST.read_text())
NAMES = [entry["name"] for entry in CONTENT["releases"]]
TRAINED = [entry["name"] for entry in CONTENT["releases"] if "recipe" in entry]


@pytest.fixture
def copy(tmp_path):
    """A copy of the list with its cards, next to the checkpoints, that tests may modify."""
    shutil.copytree(ROOT / "model_cards", tmp_path / "model_cards")
    shutil.copytree(ROOT / "checkpoints", tmp_path / "checkpoints")
    return tmp_path / "model_cards" / "releases.yaml"


def test_every_release_has_a_card_and_every_card_a_release():
    assert {path.stem for path in LIST.parent.glob("*.md")} == set(NAMES)
    for name in NAMES:
        metadata = metadata_load(LIST.parent / f"{name}.md")
        assert metadata["license"] == "mit"
        assert metadata["library_name"] == "transformers"


def test_every_committed_checkpoint_is_a_release():
    listed = {entry["checkpoint"] for entry in CONTENT["releases"] if "checkpoint" in entry}
    assert listed == {f"checkpoints/{path.name}" for path in (ROOT / "checkpoints").iterdir()}


def test_list_has_the_current_code():
    modeling = {path.name: path for path in (ROOT / "liere_hf" / "modeling").glob("*.py")}
    del modeling["__init__.py"]
    assert CONTENT["code"] == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in modeling.items()}


def test_an_update_adds_new_modules_and_removes_deleted_ones(copy):
    """As if the current code imported some modules for the first time and no longer imported another."""
    directory = copy.parents[1] / "checkpoints" / "liere-fashion-mnist"
    modules = {path.name: path.read_text() for path in directory.glob("*.py")}
    for name in ("positions.py", "exponential.py"):
        (directory / name).unlink()
    (directory / "rotations.py").write_text("# of yesterday")
    (directory / "yesterday.py").touch()
    update_releases(read_releases(copy))
    assert {path.name: path.read_text() for path in directory.glob("*.py")} == modules


@pytest.mark.parametrize("name", TRAINED)
def test_trained_releases_are_up_to_date(name):
    (release,) = [release for release in read_releases(LIST).available if release.entry["name"] == name]
    checkpoint = build(release)
    assert describe(release, checkpoint).items() <= release.entry.items()
    card = str(build_model_card(checkpoint, release.repo_id))
    assert (LIST.parent / f"{name}.md").read_text() == card
    assert (release.directory / "README.md").read_text() == card
    for copy in release.directory.glob("*.py"):
        assert copy.read_text() == (ROOT / "liere_hf" / "modeling" / copy.name).read_text()
    for file, digest in release.entry["files"].items():
        assert hashlib.sha256((release.directory / file).read_bytes()).hexdigest() == digest


@pytest.mark.skipif(not SOURCES.is_dir(), reason="shared/official_checkpoints is not there")
@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("liere-reference-")])
def test_converted_releases_are_up_to_date(name, copy):
    (release,) = [release for release in read_releases(copy, SOURCES).available if release.entry["name"] == name]
    checkpoint = build(release)
    listed, measured = release.entry["metrics"], checkpoint.record["largest_logit_difference"]
    for row in measured:
        assert row["difference"] <= 2e-5 < 1e-3 * row["largest_logit"]
    assert [row["size"] for row in measured] == [row["size"] for row in listed["largest_logit_difference"]]
    # The last digits differ between machines.
    checkpoint.record["largest_logit_difference"] = listed["largest_logit_difference"]
    assert describe(release, checkpoint).items() <= release.entry.items()
    assert (copy.parent / f"{name}.md").read_text() == str(build_model_card(checkpoint, release.repo_id))


def test_update_without_changes_and_with_a_changed_checkpoint(copy):
    """An update without sources leaves the list unchanged; one for a changed checkpoint records the change."""
    before = copy.read_text()
    update_releases(read_releases(copy))
    assert copy.read_text() == before
    recipe = copy.parents[1] / "checkpoints" / "liere-fashion-mnist" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("seed: 0", "seed: 7"))
    update_releases(read_releases(copy))
    entry = yaml.safe_load(copy.read_text())["releases"][0]
    assert entry["seed"] == 7
    assert "seed: 7" in (copy.parent / f"{entry['name']}.md").read_text()
    assert entry["files"]["recipe.yaml"] != CONTENT["releases"][0]["files"]["recipe.yaml"]


def test_a_file_that_differs_from_the_list_is_refused(copy):
    weights = copy.parents[1] / "checkpoints" / "liere-fashion-mnist" / "preprocessor_config.json"
    weights.write_text(weights.read_text() + "\n")
    with pytest.raises(
        InputError, match=r"preprocessor_config.json of .* is not the listed one .* nothing was published"
    ):
        publish_releases(read_releases(copy), dry_run=True)


def test_dry_run_reports_what_would_happen(copy, capsys):
    publish_releases(read_releases(copy), dry_run=True)
    output = capsys.readouterr().out
    assert "would be published" in output
    assert output.count("its source is missing") == len(NAMES) - len(TRAINED)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda content: content.pop("releases"), "must hold an organization and a list of releases"),
        (lambda content: content["releases"][0].pop("name"), "has the entry None: it needs a name"),
        (lambda content: content["releases"][0].pop("recipe"), "it needs a name, and either recipe or from"),
        (lambda content: content.update(organization="not/allowed"), "repository 'not/allowed/.*' is not allowed"),
        (lambda content: content["releases"].insert(0, "liere8"), "has the entry 'liere8': it needs a name"),
        (lambda content: content["releases"].insert(0, None), "has the entry None: it needs a name"),
        (lambda content: content["releases"].insert(0, ["liere8"]), r"has the entry \['liere8'\]: it needs a name"),
        (lambda content: content["releases"][0].update(name=3), "has the entry 3 with name 3, allowed is text"),
        (
            lambda content: content["releases"][0].update(recipe=["a"]),
            r"with recipe \['a'\], allowed is text",
        ),
        (lambda content: content["releases"][0].update(checkpoint=1), "with checkpoint 1, allowed is text"),
        (lambda content: content["releases"][0].update(files=["a"]), r"with files \['a'\], allowed is a mapping"),
        (lambda content: content["releases"][-1].update(options=[1]), r"with options \[1\], allowed is a mapping"),
        (lambda content: content["releases"][-1].update(source=1), "with source 1, allowed is text"),
        (lambda content: content["releases"][-1].pop("source"), "needs a source, and from is one of liere, timm, vit"),
        (lambda content: content["releases"][-1].update({"from": "jax"}), "from is one of liere, timm, vit"),
    ],
)
def test_broken_lists(copy, change, message):
    content = yaml.safe_load(copy.read_text())
    change(content)
    copy.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=message):
        read_releases(copy)


def test_a_missing_list(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_releases(tmp_path / "releases.yaml")
