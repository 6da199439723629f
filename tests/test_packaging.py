import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """An sdist, and a wheel built from it."""
    directory = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", directory, ROOT]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return directory


def test_wheel_has_code_data_and_license(distributions):
    (wheel,) = distributions.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {
        str(path.relative_to(ROOT))
        for pattern in ("*.py", "*.yaml", "*.sh", "templates/*.md", "py.typed")
        for folder in ("liere_hf", "liere_hf_cli")
        for path in (ROOT / folder).rglob(pattern)
    }
    assert package <= names
    others = {name for name in names if not name.startswith(("liere_hf/", "liere_hf_cli/"))}
    assert {Path(name).parts[0] for name in others} == {"liere_hf-0.1.0.dist-info"}
    assert "liere_hf-0.1.0.dist-info/licenses/LICENSE" in others
    entry_points = zipfile.ZipFile(wheel).read("liere_hf-0.1.0.dist-info/entry_points.txt").decode()
    assert "liere-hf = liere_hf_cli.main:main" in entry_points


def test_sdist_has_the_sources_of_the_wheel(distributions):
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {Path(name).relative_to("liere_hf-0.1.0").as_posix() for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "liere_hf/configuration/presets.yaml"} <= names


def test_the_oldest_tested_versions_are_the_lower_bounds_of_the_dependencies():
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)\.\*$", (ROOT / ".ci" / "oldest.txt").read_text(), flags=re.MULTILINE))
    lower_bounds = dict(
        re.findall(r'^    "([\w-]+)>=([\d.]+)', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    )
    assert set(pins) == {"torch", "torchvision", "transformers"}
    assert pins.items() <= lower_bounds.items()


def test_the_workflow_tests_the_oldest_python_and_both_ends_of_the_versions():
    matrix = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["tests"]["strategy"][
        "matrix"
    ]
    assert f'requires-python = ">={matrix["python"][0]}"' in (ROOT / "pyproject.toml").read_text()
    assert matrix["versions"] == ["oldest", "newest"]
    assert all((ROOT / ".ci" / f"{versions}.txt").is_file() for versions in matrix["versions"])
