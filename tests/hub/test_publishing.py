"""liere-hf publish and release, and Trainer's push_to_hub, against a Hub on a loopback socket."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from command_line import TOKEN
from huggingface_hub import HfApi, ModelCard, metadata_load
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_run import TWO_STEPS, as_flags

from liere_hf.errors import InputError
from liere_hf.hub import preview, publish
from liere_hf.hub.staging import stage
from liere_hf.run_directory import read_checkpoint

pytestmark = pytest.mark.xdist_group("preloaded")


def staged(directory, repo_id, tmp_path):
    """The expected files of a publication, by name."""
    folder = tmp_path / "staged"
    folder.mkdir()
    stage(read_checkpoint(directory), folder, repo_id)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def files_of(server, repo_id, revision="main"):
    return {
        name: content
        for name, content in server.snapshot(repo_id, revision=revision).items()
        if name != ".gitattributes"
    }


def requests_since(server, before):
    """Requests that carry a token or use a signed URL: all except the card check."""
    return [request for request in server.requests()[before:] if request["token"] or "validate" not in request["path"]]


def index_of(part, requests):
    (index,) = [index for index, request in enumerate(requests) if part in request["path"]]
    return index


def api(server):
    return HfApi(endpoint=server.url, token=TOKEN)


def assert_one_sentence(result, *words):
    """An error from the command line (bad input or a failed run): one line, without secrets."""
    assert result.code in (1, 2), result
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.output
    assert "hf_" not in result.output
    for word in words:
        assert word in result.stderr


@given(st.text(alphabet="ab.-/@{~^:?*[\\ \t\x7flockü1", max_size=8))
@example("a.lock/b")
@example("x.lock")
@example("main")
@example("refs/pr/1")
@settings(deadline=None, max_examples=100)
def test_branches_and_tags_are_those_that_git_allows(name):
    """Before anything is read or uploaded."""
    is_allowed = subprocess.run(["git", "check-ref-format", "--branch", name], capture_output=True).returncode == 0
    for options in ({"tag": name}, {"revision": name}):
        for call in (publish, preview):
            with pytest.raises(InputError) as caught:
                call(Path("missing"), "org/name", **options)
            refused = f"{next(iter(options))} is {name!r}, allowed are names that git takes"
            assert str(caught.value).startswith("missing is not a directory" if is_allowed else refused)


@pytest.mark.parametrize("kind", ["trained", "converted"])
def test_one_commit_with_all_files(kind, request, server, command_line, tmp_path):
    directory, repo_id = request.getfixturevalue(kind), f"org/{kind}"
    result = command_line.run("publish", directory, repo_id, "--tag", "v1", token=TOKEN)
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout == f"published: {server.url}/{repo_id}/tree/v1\n"
    assert files_of(server, repo_id) == staged(directory, repo_id, tmp_path)
    assert len(api(server).list_repo_commits(repo_id)) == 2  # the first one creates the repository
    (tag,) = api(server).list_repo_refs(repo_id).tags
    assert (tag.name, tag.target_commit) == ("v1", server.head(repo_id))
    info = api(server).model_info(repo_id)
    assert info.library_name == "transformers"
    assert info.pipeline_tag == ("image-classification" if kind == "trained" else "video-classification")
    assert not [name for name in files_of(server, repo_id) if name.endswith((".bin", ".pt", ".pth", ".pkl"))]

    again = command_line.run("publish", directory, repo_id, "--tag", "v1", token=TOKEN)
    assert again.stdout == f"already there, identical: {server.url}/{repo_id}/tree/v1\n"
    assert server.head(repo_id) == tag.target_commit


def test_a_new_run_replaces_the_old_one_completely(run_dir, server, command_line, tmp_path):
    """One commit updates changed files and deletes files that are no longer part of the model."""
    weights = load_file(run_dir / "model.safetensors")
    shutil.copyfile(run_dir / "eval_results.json", run_dir / "eval_results_32.json")
    evaluation = json.loads((run_dir / "eval_results.json").read_text())
    evaluation = {name.removeprefix("eval_"): value for name, value in evaluation.items()} | {"input_size": [32, 32]}
    (run_dir / "eval_results_32.json").write_text(json.dumps(evaluation))
    assert command_line.run("publish", run_dir, "org/replaced", token=TOKEN).code == 0
    assert "eval_results_32.json" in files_of(server, "org/replaced")
    first = server.head("org/replaced")

    (run_dir / "eval_results_32.json").unlink()
    save_file({name: tensor + 1 for name, tensor in weights.items()}, run_dir / "model.safetensors", {"format": "pt"})
    assert command_line.run("publish", run_dir, "org/replaced", token=TOKEN).code == 0
    assert files_of(server, "org/replaced") == staged(run_dir, "org/replaced", tmp_path)
    commits = [commit.commit_id for commit in api(server).list_repo_commits("org/replaced")]
    assert commits[1] == first
    assert len(commits) == 3


@pytest.mark.extensive
def test_private_repository_branch_and_tags(trained, run_dir, server, command_line):
    result = command_line.run("publish", trained, "org/private", "--private", "--revision", "next", token=TOKEN)
    assert result.code == 0, result
    assert api(server).model_info("org/private").private
    assert "model.safetensors" in files_of(server, "org/private", "next")
    assert "model.safetensors" not in files_of(server, "org/private", "main")

    assert command_line.run("publish", trained, "org/private", "--tag", "v1", token=TOKEN).code == 0
    recipe = (run_dir / "recipe.yaml").read_text()
    (run_dir / "recipe.yaml").write_text(recipe.replace("weight_decay: 0.05", "weight_decay: 0.06"))
    assert (run_dir / "recipe.yaml").read_text() != recipe
    head = server.head("org/private")
    result = command_line.run("publish", run_dir, "org/private", "--tag", "v1", token=TOKEN)
    assert_one_sentence(result, "org/private already has the tag v1, on other files")
    assert server.head("org/private") == head

    assert command_line.run("publish", trained, "org/public", token=TOKEN).code == 0
    result = command_line.run("publish", trained, "org/public", "--private", token=TOKEN)
    assert_one_sentence(result, "org/public exists and is public")


@pytest.mark.extensive
def test_another_models_repository_needs_overwrite(trained, converted, server, command_line):
    assert command_line.run("publish", trained, "org/taken", token=TOKEN).code == 0
    before = files_of(server, "org/taken")
    result = command_line.run("publish", converted, "org/taken", token=TOKEN)
    assert_one_sentence(result, "org/taken holds another model (architectures is", "--overwrite")
    assert files_of(server, "org/taken") == before

    api(server).create_repo("org/strange")
    api(server).upload_file(path_or_fileobj=b"x", path_in_repo="weights.csv", repo_id="org/strange")
    result = command_line.run("publish", trained, "org/strange", token=TOKEN)
    assert_one_sentence(result, "org/strange holds other files (weights.csv)", "--overwrite")

    assert command_line.run("publish", converted, "org/taken", "--overwrite", token=TOKEN).code == 0
    assert "recipe.yaml" not in files_of(server, "org/taken")


def test_dry_run_sends_no_request(trained, server, command_line):
    before = len(server.requests())
    result = command_line.run("publish", trained, "org/dry", "--dry-run")
    assert result.code == 0
    assert "model.safetensors" in result.stdout
    assert f"{(trained / 'model.safetensors').stat().st_size:,}" in result.stdout
    assert "# ViT with LieRE8 position encoding on scikit-learn digits" in result.stdout
    assert 'repo_id = "org/dry"' in result.stdout
    assert len(server.requests()) == before


def unfinished(directory):
    (directory / "train_results.json").unlink()


def not_finite(directory):
    weights = load_file(directory / "model.safetensors")
    weights["classifier.bias"][0] = torch.nan
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def without_metric(directory):
    evaluation = json.loads((directory / "eval_results.json").read_text())
    del evaluation["eval_loss"]
    (directory / "eval_results.json").write_text(json.dumps(evaluation))


def with_token(directory):
    (directory / "recipe.yaml").write_text((directory / "recipe.yaml").read_text() + f"hub_id: {TOKEN}\n")


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (unfinished, "is not a finished run, it has no train_results.json"),
        (not_finite, "has values in classifier.bias that are not finite"),
        (without_metric, "has loss None, a card needs a finite number there"),
        (with_token, "contains a Hub token"),
        (shutil.rmtree, "is not a directory"),
    ],
)
def test_models_that_must_not_be_published(damage, sentence, run_dir, server, command_line):
    damage(run_dir)
    before = len(server.requests())
    assert_one_sentence(command_line.run("publish", run_dir, "org/damaged", token=TOKEN), sentence)
    assert len(server.requests()) == before


@pytest.mark.parametrize(
    "name", ["no-organization", "org/two/slashes", "org/-dash", "org/a b", "org/name.git", "org/a--b"]
)
def test_invalid_names(name, trained, server, command_line):
    before = len(server.requests())
    assert_one_sentence(command_line.run("publish", trained, name, token=TOKEN), "is not allowed", name)
    assert len(server.requests()) == before


def test_tokens_and_permissions(trained, server, command_line):
    server.add_user("bob", "hf_" + "bobsTokenOfTests" * 2, role="read", orgs=[("org", "write")])
    server.add_user("eve", "hf_" + "evesTokenOfTests" * 2)
    cases = {
        None: "no Hub token was found",
        "hf_" + "aTokenThatNobodyHas" * 2: "the Hub does not accept the token (HTTP 401)",
        "hf_" + "bobsTokenOfTests" * 2: "the token has no write access (HTTP 403)",
        "hf_" + "evesTokenOfTests" * 2: "the token has no write access (HTTP 403)",
    }
    for token, sentence in cases.items():
        result = command_line.run("publish", trained, "org/forbidden", token=token)
        assert_one_sentence(result, sentence, "nothing was uploaded")
        assert not token or token not in result.output
    assert not api(server).repo_exists("org/forbidden")

    command_line.run("publish", trained, "org/hidden", "--private", token=TOKEN)
    head = server.head("org/hidden")
    result = command_line.run("publish", trained, "org/hidden", token="hf_" + "evesTokenOfTests" * 2)
    assert_one_sentence(result)
    assert server.head("org/hidden") == head


def test_an_unreachable_hub(trained, tmp_path, command_line, server):
    server.fail(TOKEN, 0, "drop", times=None)
    result = command_line.run("publish", trained, "org/unreachable", token=TOKEN)
    server.clear_faults()
    assert_one_sentence(result, "the Hub cannot be reached", "nothing was uploaded", "run the command again")


def test_a_card_refused_by_the_hub(trained, server, command_line):
    """The Hub checks the metadata before the repository is created; this needs no token."""
    server.fail(None, 0, 400)
    result = command_line.run("publish", trained, "org/refused", token=TOKEN)
    server.clear_faults()
    assert_one_sentence(result, "nothing was uploaded")
    assert "model.safetensors" not in files_of(server, "org/refused")


def test_the_hub_accepts_the_cards(trained, converted, server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    for directory in (trained, converted):
        card = ModelCard.load(directory / "README.md")
        card.validate()
        card.data.license = "no license at all"
        with pytest.raises(ValueError):
            card.validate()


@pytest.mark.extensive
def test_an_interrupted_upload_is_resumed(trained, server, command_line):
    """Large files that have been uploaded are not sent again."""
    token = "hf_" + "slowTokenOfTests" * 2
    server.add_user("slow", token)
    before = len(server.requests())
    assert command_line.run("publish", trained, "slow/first", token=token).code == 0
    server.fail(token, index_of("/commit/", requests_since(server, before)), 403)
    assert_one_sentence(command_line.run("publish", trained, "slow/model", token=token), "slow/model is unchanged")
    refused = [request for request in server.requests() if request["path"].startswith("/api/models/slow/model/commit")]
    assert [request["status"] for request in refused] == [403]
    server.clear_faults()
    uploads = sum(request["method"] == "PUT" for request in server.requests())
    assert command_line.run("publish", trained, "slow/model", token=token).code == 0
    assert sum(request["method"] == "PUT" for request in server.requests()) == uploads


@pytest.mark.end_to_end
def test_publishing_the_release_list(server, command_line, tmp_path):
    from test_releases import LIST, NAMES, SOURCES

    shutil.copytree(LIST.parent, tmp_path / "model_cards")
    shutil.copytree(LIST.parents[1] / "checkpoints", tmp_path / "checkpoints")
    command = ["release", "--releases", tmp_path / "model_cards" / "releases.yaml", "--organization", "org"]
    result = command_line.run(*command, "--sources", SOURCES, token=TOKEN)
    assert result.code == 0, result
    available = len(NAMES) if SOURCES.is_dir() else len(list((LIST.parents[1] / "checkpoints").iterdir()))
    assert result.stdout.count("published: ") == available
    metadata = tmp_path / "README.md"
    metadata.write_bytes(server.snapshot("org/liere-fashion-mnist")["README.md"])
    assert metadata_load(metadata)["model-index"][0]["name"] == "ViT with LieRE8 position encoding on Fashion-MNIST"

    head = server.head("org/liere-fashion-mnist")
    result = command_line.run(*command, "--sources", SOURCES, token=TOKEN)
    assert result.stdout.count("unchanged: ") == available
    assert server.head("org/liere-fashion-mnist") == head


def test_push_to_hub_while_training(server, command_line, tmp_path):
    """As Trainer does: one complete commit per checkpoint, and at the end what `publish` would publish."""
    flags = [*as_flags(TWO_STEPS), "--save_strategy", "steps", "--save_steps", "1", "--hub_always_push", "true"]
    hub = ["--push_to_hub", "true", "--hub_model_id", "org/pushed", "--hub_private_repo", "true"]
    result = command_line.run("train", "digits", "--output_dir", tmp_path / "run", *flags, *hub, token=TOKEN)
    assert result.code == 0, result.stderr
    assert api(server).model_info("org/pushed").private
    assert files_of(server, "org/pushed") == staged(tmp_path / "run", "org/pushed", tmp_path)
    assert "already there" in command_line.run("publish", tmp_path / "run", "org/pushed", token=TOKEN).stdout

    messages = [commit.title for commit in api(server).list_repo_commits("org/pushed")]
    assert messages[0] == "ViT with LieRE8 position encoding on scikit-learn digits"
    assert set(messages[1:-1]) == {"Training, step 1", "Training, step 2"}
    for commit in api(server).list_repo_commits("org/pushed")[1:-1]:
        in_training = files_of(server, "org/pushed", commit.commit_id)
        assert {"config.json", "model.safetensors", "modeling_liere_vit.py", "README.md"} <= in_training.keys()
        assert b"in training" in in_training["README.md"]
        assert not {name for name in in_training if name.endswith((".bin", ".pt", ".pth"))}
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert not [name for name in recipe if "hub" in name]


@pytest.mark.extensive
def test_a_checkpoint_that_cannot_be_published_does_not_end_the_training(server, command_line, tmp_path):
    token = "hf_" + "unluckyTokenTest" * 2
    server.add_user("unlucky", token)
    flags = [*as_flags(TWO_STEPS), "--save_strategy", "steps", "--save_steps", "1", "--hub_always_push", "true"]
    hub = ["--push_to_hub", "true", "--hub_model_id", "unlucky/model"]
    # Three requests prepare the repository; the next one is the first of the first checkpoint.
    server.fail(token, 3, 403)
    result = command_line.run("train", "digits", "--output_dir", tmp_path / "run", *flags, *hub, token=token)
    server.clear_faults()
    assert result.code == 0, result.stderr
    assert "the checkpoint of step 1 was not published, training continues" in result.stderr
    assert "the token has no write access" in result.stderr
    assert "Traceback" not in result.output
    assert files_of(server, "unlucky/model") == staged(tmp_path / "run", "unlucky/model", tmp_path)
    messages = [commit.title for commit in api(server).list_repo_commits("unlucky/model")]
    assert messages[:-1] == ["ViT with LieRE8 position encoding on scikit-learn digits", "Training, step 2"]


def test_an_evaluation_publishes_nothing(server, command_line, trained):
    before = len(server.requests())
    flags = ["--eval_examples", "64", "--train_examples", "64", "--use_cpu", "true", "--disable_tqdm", "true"]
    hub = ["--push_to_hub", "true", "--hub_model_id", "org/evaluated"]
    result = command_line.run("evaluate", trained, "digits", *flags, *hub, token=TOKEN)
    assert result.code == 0, result.stderr
    assert len(server.requests()) == before


def test_push_to_hub_checks_access_before_training(converted, server, command_line, tmp_path):
    command_line.run("publish", converted, "org/a-video-model", token=TOKEN)
    command = ["train", "digits", "--output_dir", tmp_path / "run", *as_flags(TWO_STEPS), "--push_to_hub", "true"]
    cases = [
        (["--hub_model_id", "org/x"], None, "no Hub token was found"),
        (["--hub_model_id", "eve/x"], TOKEN, "the token has no write access"),
        (["--hub_model_id", "org/-x"], TOKEN, "is not allowed"),
        (["--hub_model_id", "org/a-video-model"], TOKEN, "holds another model"),
        (["--hub_model_id", "org/x", "--hub_strategy", "checkpoint"], TOKEN, "optimizer states are not published"),
    ]
    for flags, token, sentence in cases:
        assert_one_sentence(command_line.run(*command, *flags, token=token), sentence)
        assert not (tmp_path / "run").exists()


@pytest.mark.extensive
def test_push_to_hub_to_the_users_namespace(server, command_line, tmp_path):
    flags = [*as_flags(TWO_STEPS), "--push_to_hub", "true", "--hub_strategy", "end"]
    result = command_line.run("train", "digits", "--output_dir", tmp_path / "my-run", *flags, token=TOKEN)
    assert result.code == 0, result.stderr
    assert "model.safetensors" in files_of(server, "ann/my-run")


@pytest.mark.extensive
def test_a_token_given_as_an_option_is_not_saved(server, command_line, tmp_path):
    flags = [
        *as_flags(TWO_STEPS),
        "--save_strategy",
        "steps",
        "--save_steps",
        "1",
        "--push_to_hub",
        "true",
        "--hub_token",
        TOKEN,
    ]
    flags += ["--hub_model_id", "org/by-option", "--logging_steps", "1"]
    result = command_line.run("train", "digits", "--output_dir", tmp_path / "run", *flags)
    assert result.code == 0, result.stderr
    assert TOKEN not in result.output
    assert "model.safetensors" in files_of(server, "org/by-option")
    saved = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in saved)
    assert not [path for path in saved if TOKEN.encode() in path.read_bytes()]


def test_failed_push_to_hub_keeps_the_run(server, command_line, tmp_path):
    token = "hf_" + "latersTokenTests" * 2
    server.add_user("later", token)
    flags = [*as_flags(TWO_STEPS), "--push_to_hub", "true", "--hub_strategy", "end", "--hub_model_id", "later/model"]
    server.fail(token, 3, 403, times=None)
    result = command_line.run("train", "digits", "--output_dir", tmp_path / "run", *flags, token=token)
    server.clear_faults()
    assert result.code in (1, 2)
    assert "Traceback" not in result.output
    assert token not in result.output
    assert "the token has no write access" in result.stderr
    assert command_line.run("publish", tmp_path / "run", "later/model", token=token).code == 0


def test_no_token_in_any_file(server, command_line, trained, tmp_path):
    """Neither the client's files nor the Hub's repositories contain the token."""
    assert command_line.run("publish", trained, "org/searched", token=TOKEN).code == 0
    found = [
        path
        for folder in (server.directory / "repositories", command_line.home, command_line.directory)
        for path in folder.rglob("*")
        if path.is_file() and TOKEN.encode() in path.read_bytes()
    ]
    assert not found
    assert [*(server.directory / "repositories").rglob("*")]
    assert [*command_line.directory.iterdir()]
