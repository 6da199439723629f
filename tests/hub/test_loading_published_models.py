"""Published models give bit-identical logits in other processes, with and without this package."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from command_line import TOKEN
from huggingface_hub import HfApi
from PIL import Image
from preloaded import ONLY_TORCH, PreloadedPrograms, preloaded
from test_publishing import files_of
from transformers import AutoModelForImageClassification, AutoModelForVideoClassification

pytestmark = pytest.mark.xdist_group("preloaded")

REPOS = {"trained": "org/trained", "converted": "org/converted"}
INPUTS = {"trained": (2, 3, 28, 28), "converted": (2, 4, 3, 16, 16)}
AUTO_CLASSES = {"trained": AutoModelForImageClassification, "converted": AutoModelForVideoClassification}

# Tests change this line to see which code runs.
LAST_LINE = "logits = self.classifier(outputs.pooler_output)"

LOGITS = """
import json
import sys
import torch
import transformers
{package}

jobs, output = sys.argv[1:]
results = []
for auto_class, repo_id, revision, inputs in json.loads(jobs):
    model = getattr(transformers, auto_class).from_pretrained(repo_id, revision=revision{trust})
    with torch.no_grad():
        results.append(model(torch.load(inputs)).logits)
torch.save((results, "liere_hf" in sys.modules), output)
"""
CODE = {
    "with": LOGITS.format(package="import liere_hf", trust=""),
    "without": LOGITS.format(package="", trust=", trust_remote_code=True"),
}


def environment_of_a_user() -> dict[str, str]:
    """This environment without PYTHONPATH, which may contain this package."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def pythons(tmp_path_factory):
    """This interpreter, and one from an environment with the same packages except liere_hf."""
    directory = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    (packages,) = directory.glob("lib/python*/site-packages")
    # Editable installs use .pth files, which only work in the environment's own site-packages.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = directory / "bin" / "python"
    command = [python, "-c", "import liere_hf"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=directory, env=environment_of_a_user())
    assert "No module named 'liere_hf'" in result.stderr
    without = PreloadedPrograms(environment_of_a_user(), ONLY_TORCH, python)
    yield {"with": preloaded("python", ONLY_TORCH), "without": without.folder / "python"}
    without.close()


@pytest.fixture(scope="module")
def published(server, command_line, trained, converted):
    for name, directory in (("trained", trained), ("converted", converted)):
        assert command_line.run("publish", directory, REPOS[name], "--tag", "v1", token=TOKEN).code == 0
    return {"trained": trained, "converted": converted}


@pytest.fixture
def client(server, pythons, tmp_path):
    """Runs Python as a Hub user, in an empty directory and with an empty cache."""

    def run(package, code, *arguments, token=None, **variables):
        environment = server.environment(token, tmp_path / "home") | {"OMP_NUM_THREADS": "1"} | variables
        command = [pythons[package], "-c", code, *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


def logits(client, package, tmp_path, *jobs, **variables):
    """The logits of a new process for jobs (kind, repository, revision), one after the other."""
    orders = []
    for kind, repo_id, revision in jobs:
        pixel_values = torch.randn(INPUTS[kind], generator=torch.Generator().manual_seed(0))
        torch.save(pixel_values, tmp_path / f"{kind}.pt")
        orders.append((AUTO_CLASSES[kind].__name__, repo_id, revision, str(tmp_path / f"{kind}.pt")))
    result = client(package, CODE[package], json.dumps(orders), tmp_path / "logits.pt", **variables)
    assert result.returncode == 0, result.stderr
    results, has_package = torch.load(tmp_path / "logits.pt")
    assert has_package == (package == "with")
    return results


@torch.no_grad()
def expected_logits(directory, kind, tmp_path):
    return AUTO_CLASSES[kind].from_pretrained(directory)(torch.load(tmp_path / f"{kind}.pt")).logits


@pytest.mark.end_to_end
@pytest.mark.parametrize("package", ["with", "without"])
def test_round_trip_online_and_offline(package, published, client, server, tmp_path):
    jobs = [(kind, repo_id, None) for kind, repo_id in REPOS.items()]
    online = logits(client, package, tmp_path, *jobs)
    before = len(server.requests())
    offline = logits(client, package, tmp_path, *jobs, HF_HUB_OFFLINE="1")
    assert len(server.requests()) == before
    for kind, one, other in zip(REPOS, online, offline, strict=True):
        expected = expected_logits(published[kind], kind, tmp_path)
        assert expected.abs().max() > 0
        assert torch.equal(one, expected)
        assert torch.equal(other, expected)


@pytest.mark.extensive
@pytest.mark.parametrize("package", ["with", "without"])
def test_two_revisions_in_one_process(package, published, server, client, trained, tmp_path):
    """A branch whose code doubles the logits, together with main and a tag."""
    api = HfApi(endpoint=server.url, token=TOKEN)
    branch = f"doubled-{package}"
    code = files_of(server, REPOS["trained"])["modeling_liere_vit.py"].decode()
    assert code.count(LAST_LINE) == 1
    api.create_branch(REPOS["trained"], branch=branch)
    api.upload_file(
        repo_id=REPOS["trained"],
        revision=branch,
        path_in_repo="modeling_liere_vit.py",
        path_or_fileobj=code.replace(LAST_LINE, LAST_LINE.replace("= ", "= 2 * ")).encode(),
    )
    jobs = [("trained", REPOS["trained"], revision) for revision in ("main", branch, "v1")]
    main, doubled, tagged = logits(client, package, tmp_path, *jobs)
    expected = expected_logits(trained, "trained", tmp_path)
    assert torch.equal(main, expected)
    assert torch.equal(tagged, expected)
    # With the package installed, its own code runs.
    assert torch.equal(doubled, expected if package == "with" else 2 * expected)


@pytest.mark.extensive
def test_newer_code_when_older_code_is_cached(published, server, client, run_dir, command_line, tmp_path):
    assert command_line.run("publish", run_dir, "org/changing", token=TOKEN).code == 0
    (first,) = logits(client, "without", tmp_path, ("trained", "org/changing", None))
    code = run_dir / "modeling_liere_vit.py"
    code.write_text(code.read_text().replace(LAST_LINE, LAST_LINE.replace("= ", "= 3 * ")))
    old = server.head("org/changing")
    assert command_line.run("publish", run_dir, "org/changing", token=TOKEN).code == 0
    jobs = [("trained", "org/changing", revision) for revision in ("main", old)]
    after, before = logits(client, "without", tmp_path, *jobs)
    assert torch.equal(after, 3 * first)
    assert torch.equal(before, first)


DOWNLOAD = """
import sys
from huggingface_hub import snapshot_download
print(snapshot_download(sys.argv[1]))
"""


@pytest.mark.extensive
def test_hf_download_and_snapshot_download(published, server, client, pythons, trained, tmp_path):
    files = server.snapshot(REPOS["trained"])
    result = client("without", DOWNLOAD, REPOS["trained"])
    snapshot = Path(result.stdout.strip().splitlines()[-1])
    environment = server.environment(home=tmp_path / "other-home")
    command = [Path(sys.executable).parent / "hf", "download", REPOS["trained"], "--local-dir", tmp_path / "model"]
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    for directory in (snapshot, tmp_path / "model"):
        assert {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()} == files
    (downloaded,) = logits(client, "without", tmp_path, ("trained", str(tmp_path / "model"), None))
    assert torch.equal(downloaded, expected_logits(trained, "trained", tmp_path))


def test_evaluate_reproduces_the_published_metrics(published, command_line, trained, tmp_path):
    flags = ["--eval_examples", 64, "--train_examples", 64, "--disable_tqdm", "true", "--use_cpu", "true"]
    results_file = tmp_path / "results.json"
    result = command_line.run("evaluate", REPOS["trained"], "digits", *flags, "--results_file", results_file)
    assert result.code == 0, result.stderr
    measured, stated = json.loads(results_file.read_text()), json.loads((trained / "eval_results.json").read_text())
    for name in ("accuracy", "top5_accuracy", "loss"):
        assert measured[name] == pytest.approx(stated[f"eval_{name}"], abs=1e-6)


@pytest.mark.end_to_end
def test_private_models_need_a_token(published, command_line, trained, client):
    assert command_line.run("publish", trained, "org/private", "--private", token=TOKEN).code == 0
    assert client("without", DOWNLOAD, "org/private").returncode != 0
    assert client("without", DOWNLOAD, "org/private", token=TOKEN).returncode == 0


@pytest.fixture(scope="module")
def gated(server, command_line, trained):
    assert command_line.run("publish", trained, "org/gated", token=TOKEN).code == 0
    server.gate("org/gated")
    return "org/gated"


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "GATED", "PICTURE"),
        ("convert", "GATED", "OUTPUT", "--from", "dinov3"),
        *(
            pytest.param(words, marks=pytest.mark.extensive)
            for words in (
                ("evaluate", "GATED", "digits"),
                ("train", "digits_finetune", "--model_name_or_path", "GATED", "--output_dir", "OUTPUT"),
                ("export", "GATED", "OUTPUT", "--to", "liere"),
                ("convert", "GATED", "OUTPUT", "--from", "vit"),
                ("convert", "GATED", "OUTPUT", "--from", "timm"),
            )
        ),
    ],
    ids=lambda words: f"{words[0]}-{words[-1]}",
)
def test_gated_models_need_a_token(words, gated, server, command_line, tmp_path):
    Image.new("RGB", (28, 28)).save(tmp_path / "picture.png")
    paths = {"GATED": gated, "OUTPUT": tmp_path / "output", "PICTURE": tmp_path / "picture.png"}
    result = command_line.run(*(paths.get(word, word) for word in words))
    assert result.code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("liere-hf")]
    assert f"{gated} is gated: accept its terms at {server.url}/{gated}, then log in with hf auth login" in line
    assert not (tmp_path / "output").exists()


EXECUTE = """
import sys
for snippet in sys.argv[1:]:
    exec(snippet, {"__name__": "__main__"})
"""


@pytest.mark.extensive
def test_the_cards_snippets_run(published, server, client):
    cards = [files_of(server, repo_id)["README.md"].decode() for repo_id in REPOS.values()]
    snippets = [[block.split("```")[0] for block in card.split("```python\n")[1:]] for card in cards]
    outputs = {}
    for index, package in enumerate(("with", "without")):
        chosen = [snippet[index] for snippet in snippets]
        assert all(("import liere_hf" in snippet) == (package == "with") for snippet in chosen)
        outputs[package] = client(package, EXECUTE, *chosen)
        assert outputs[package].returncode == 0, outputs[package].stderr
    assert outputs["with"].stdout == outputs["without"].stdout != ""


@pytest.mark.end_to_end
def test_the_cards_command_trains_the_same_model(published, server, trained, tmp_path):
    """The command from the card fetches the recipe and gives the same weights."""
    (command,) = [
        block.split("```")[0]
        for block in files_of(server, REPOS["trained"])["README.md"].decode().split("```bash\n")[1:]
    ]
    environment = server.environment(home=tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(preloaded('liere-hf', ONLY_TORCH)).parent}{os.pathsep}{os.environ['PATH']}"
    shell = ["bash", "-euo", "pipefail", "-c", command]
    result = subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    weights = tmp_path / "runs" / "trained" / "model.safetensors"
    assert weights.read_bytes() == (trained / "model.safetensors").read_bytes()
