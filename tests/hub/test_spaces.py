"""liere-hf publish --space: the page of `liere-hf app` with a model, in one commit."""

import importlib
import re
from pathlib import Path

import pytest
import yaml
from command_line import TOKEN
from huggingface_hub import HfApi, metadata_load, snapshot_download

from liere_hf.app.models import load_models

pytestmark = pytest.mark.xdist_group("preloaded")

ROOT = Path(__file__).parents[2]


def api(server) -> HfApi:
    return HfApi(endpoint=server.url, token=TOKEN)


def files_of(server, repo_id) -> dict[str, bytes]:
    files = server.snapshot(repo_id, repo_type="space")
    return {name: content for name, content in files.items() if name != ".gitattributes"}


@pytest.mark.parametrize(("kind", "extras"), [("trained", "app"), ("converted", "app,video,volumes")])
def test_one_commit_whose_app_serves_the_model(kind, extras, request, server, command_line, tmp_path, monkeypatch):
    directory, repo_id = request.getfixturevalue(kind), f"org/{kind}-page"
    result = command_line.run("publish", directory, repo_id, "--space", token=TOKEN)
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout == f"published: {server.url}/spaces/{repo_id}/tree/main\n"
    assert len(api(server).list_repo_commits(repo_id, repo_type="space")) == 2  # the first one creates it
    info = api(server).space_info(repo_id)
    assert (info.sdk, info.card_data["app_file"]) == ("gradio", "app.py")
    files = files_of(server, repo_id)
    assert {name for name in files if "/" not in name} == {"README.md", "app.py", "requirements.txt"}
    assert files["requirements.txt"].decode() == f"liere_hf[{extras}]==0.1.0\n"
    offered = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert set(extras.split(",")) <= set(offered)

    space = snapshot_download(repo_id, repo_type="space", endpoint=server.url, token=TOKEN, local_dir=tmp_path / "app")
    assert metadata_load(Path(space, "README.md"))["sdk"] == "gradio"
    # gradio takes seconds to import: only where it is needed.
    page, served = importlib.import_module("liere_hf.app.page"), []
    monkeypatch.setattr(page, "serve", lambda names, **options: served.append((names, options)))
    monkeypatch.chdir(space)
    exec(compile(Path("app.py").read_text(), "app.py", "exec"), {})
    ((names, options),) = served
    assert options == {"host": "0.0.0.0", "port": 7860}
    ((title, model),) = load_models(names, use_cpu=True).items()
    assert (title, model.column) == (f"{kind}-page", "image" if kind == "trained" else "video")

    again = command_line.run("publish", directory, repo_id, "--space", token=TOKEN)
    assert again.stdout == f"already there, identical: {server.url}/spaces/{repo_id}/tree/main\n"


def test_model_and_space_of_one_name_are_apart(trained, server, command_line):
    assert command_line.run("publish", trained, "org/both", token=TOKEN).code == 0
    before = server.snapshot("org/both")
    assert (
        command_line.run("publish", trained, "org/both", "--space", "--private", "--tag", "v1", token=TOKEN).code == 0
    )
    assert server.snapshot("org/both") == before
    assert api(server).space_info("org/both").private
    assert [tag.name for tag in api(server).list_repo_refs("org/both", repo_type="space").tags] == ["v1"]
    recipe = yaml.safe_load(files_of(server, "org/both")["both/recipe.yaml"])
    assert recipe["dataset"] == "digits"


def test_another_space_needs_overwrite(trained, converted, server, command_line):
    api(server).create_repo("org/taken-space", repo_type="space", space_sdk="gradio")
    api(server).upload_file(
        path_or_fileobj=b"print()", path_in_repo="app.py", repo_id="org/taken-space", repo_type="space"
    )
    result = command_line.run("publish", trained, "org/taken-space", "--space", token=TOKEN)
    assert "org/taken-space holds other files (app.py)" in result.stderr
    assert command_line.run("publish", trained, "org/taken-space", "--space", "--overwrite", token=TOKEN).code == 0
    result = command_line.run("publish", converted, "org/taken-space", "--space", token=TOKEN)
    assert "org/taken-space holds another model" in result.stderr
    assert files_of(server, "org/taken-space")["app.py"].startswith(b"from liere_hf.app.page import serve")


def test_a_preview_uploads_nothing(trained, server, command_line):
    before = len(server.requests())
    result = command_line.run("publish", trained, "org/shown", "--space", "--dry-run", token=TOKEN)
    assert result.code == 0
    for name in ("app.py", "requirements.txt", "shown/model.safetensors", "sdk: gradio"):
        assert name in result.stdout
    assert len(server.requests()) == before


def test_tokens_in_the_models_folder_are_found(run_dir, server, command_line):
    config = run_dir / "preprocessor_config.json"
    config.write_text(re.sub(r"\{", '{"note": "hf_' + "a" * 20 + '",', config.read_text(), count=1))
    result = command_line.run("publish", run_dir, "org/leaky", "--space", token=TOKEN)
    assert result.code == 2
    assert "preprocessor_config.json of" in result.stderr
    assert "contains a Hub token" in result.stderr
