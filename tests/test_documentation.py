"""Every code block of the README and of docs/ runs, in page order, in an empty directory."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_blocks import code_blocks
from preloaded import preloaded, programs

from liere_hf import LiereViTConfig, LiereViTForImageClassification

pytestmark = pytest.mark.xdist_group("preloaded")

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
# Pages that train or compile models.
LONG = {
    "README.md",
    "backbones.md",
    "conversion.md",
    "data.md",
    "deployment.md",
    "export.md",
    "hub.md",
    "pictures.md",
    "scale.md",
    "training.md",
}
# The page whose models are compiled as C++: with one layer here, as four take a minute.
COMPILED = "export.md"
# Blocks that need one of these run where it is installed, those that call AOTInductor where there is a C++ compiler.
PACKAGES = ("bitsandbytes", "onnxruntime", "onnxscript", "peft", "torchao")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
if not any(map(shutil.which, ("g++", "clang++"))):
    MISSING.append("aoti_compile")


def write_one_layer(directory: Path) -> None:
    """A model like the checkpoint of the same name, with new weights."""
    one_layer = {"num_hidden_layers": 1, "out_features": ["stage1"], "out_indices": [1]}
    config = LiereViTConfig.from_pretrained(ROOT / "checkpoints" / directory.name, **one_layer)
    LiereViTForImageClassification(config).save_pretrained(directory)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.end_to_end if page.name in LONG else (), id=page.name) for page in PAGES],
)
def test_code_blocks_run(page, tmp_path):
    blocks = code_blocks(page)
    assert {language for language, _ in blocks} <= {"python", "bash", "make", "yaml", "text", "bibtex"}
    if page.name == COMPILED:
        write_one_layer(tmp_path / "checkpoints" / "liere-fashion-mnist")
    else:
        (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    path = os.pathsep.join(map(str, (programs().folder, Path(sys.executable).parent, os.environ["PATH"])))
    for language, text in blocks:
        # Blocks with language `make` are the two commands that set up an environment; .ci/run runs both.
        if language == "python" and any(name in text.lower() for name in MISSING):
            continue
        if language == "python":
            command = [preloaded("python"), "-c", text]
        elif language == "bash":
            command = ["bash", "-euo", "pipefail", "-c", text]
        else:
            continue
        environment = os.environ | {"PATH": path}
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{text}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
    if page.name == "README.md":
        # The first training run in the documentation must succeed.
        results = json.loads((tmp_path / "runs" / "digits" / "eval_results.json").read_text())
        assert results["eval_accuracy"] >= 0.95
