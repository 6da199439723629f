"""Every code block of the README and of docs/ runs, in the order of the page, in an empty directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from preloaded import preloaded, programs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def code_blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks of a page."""
    tokens = MarkdownIt().parse(page.read_text())
    return [(token.info.strip(), token.content) for token in tokens if token.type == "fence"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks_run(page, tmp_path):
    blocks = code_blocks(page)
    assert {language for language, _ in blocks} <= {"python", "bash", "make", "yaml", "text", "bibtex"}
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    path = os.pathsep.join(map(str, (programs().folder, Path(sys.executable).parent, os.environ["PATH"])))
    for language, text in blocks:
        # Blocks of language `make` are the two commands that set up an environment; .ci/run runs both.
        if language == "python":
            command = [preloaded("python"), "-c", text]
        elif language == "bash":
            command = ["bash", "-euo", "pipefail", "-c", text]
        else:
            continue
        environment = os.environ | {"PATH": path}
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{text}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
