"""The notebooks in examples/ run from the first cell to the last, with less data than a reader would take."""

from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from preloaded import ONLY_TORCH, preloaded

pytestmark = pytest.mark.xdist_group("preloaded")

EXAMPLES = Path(__file__).parents[1] / "examples"
# What the parameters are here, by notebook, and how many pictures it shows.
BUDGETS = {
    "fine_tune_on_your_pictures": ({"PICTURES_PER_CLASS": 10, "MAX_STEPS": 4}, 2),
    "compare_encodings": ({"TRAIN_EXAMPLES": 256, "EVAL_EXAMPLES": 100}, 2),
    "from_dinov3_to_liere": ({"MAX_STEPS": 4}, 1),
}


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)


def test_every_notebook_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == {*BUDGETS}


@pytest.mark.parametrize("name", BUDGETS)
def test_notebooks_are_committed_without_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", BUDGETS)
def test_a_notebook_runs_and_shows_its_pictures(name, tmp_path):
    parameters, num_pictures = BUDGETS[name]
    (tmp_path / "examples").mkdir()
    (tmp_path / "checkpoints").symlink_to(EXAMPLES.parent / "checkpoints")
    notebook = read(name)
    (place,) = (number for number, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    assert {line.split(" = ")[0] for line in notebook.cells[place].source.splitlines()} >= {*parameters}
    overrides = "\n".join(f"{parameter} = {value!r}" for parameter, value in parameters.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(overrides))
    folder = {"metadata": {"path": str(tmp_path / "examples")}}
    kernel = AsyncKernelManager()
    kernel.kernel_spec.argv[0] = preloaded("python", ONLY_TORCH)
    NotebookClient(notebook, kernel, timeout=300, resources=folder).execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == num_pictures
    # transformers' table of the training.
    assert [output for output in outputs if "Training Loss" in output.get("data", {}).get("text/html", "")]
    texts = "".join(output.get("text", "") for output in outputs)
    assert "{'" not in texts and "step 1 of" not in texts
