"""Commands without the optional dependencies, and the error of those that need one.

A module that is None in sys.modules cannot be imported, as if it were not installed.
"""

import json
import re
import subprocess

import nibabel
import numpy as np
import pytest
from PIL import Image
from preloaded import ONLY_TORCH, preloaded
from tiny_run import QUIET, TINY_MODEL, as_flags

from liere_hf_cli.main import EXTRAS

pytestmark = pytest.mark.xdist_group("preloaded")

AUGMENTATION = ["--rand_augment_num_ops", "2", "--rand_augment_magnitude_std", "0.5", "--random_erasing", "0.5"]
TINY_FLAGS = as_flags(TINY_MODEL | QUIET | {"train_examples": 64, "eval_examples": 32, "max_steps": 2})


def run_without(modules, *commands) -> tuple[list[int], subprocess.CompletedProcess]:
    """Exit codes of commands of liere-hf, in one process in which some modules cannot be imported."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys({list(modules)!r}))
from liere_hf_cli.main import main
codes = []
for command in {[list(map(str, command)) for command in commands]!r}:
    try:
        main(command)
    except SystemExit as end:
        codes.append(end.code or 0)
print(codes)
"""
    result = subprocess.run([preloaded("python", ONLY_TORCH), "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1]), result


@pytest.mark.end_to_end
def test_training_evaluation_and_publication_need_no_extra(tmp_path):
    run_dir = tmp_path / "run"
    codes, result = run_without(
        EXTRAS,
        ["train", "arrows_demo", *TINY_FLAGS, *AUGMENTATION, "--output_dir", run_dir],
        ["train", "clips", *TINY_FLAGS, "--output_dir", tmp_path / "clips"],
        ["evaluate", run_dir, "arrows_demo", "--eval_examples", "32", "--use_cpu", "true"],
        ["publish", run_dir, "org/name", "--dry-run"],
    )
    assert codes == [0] * 4, result.stderr
    assert (run_dir / "README.md").is_file()


def test_a_missing_extra_is_one_sentence(tmp_path, monkeypatch):
    """It names all that the command needs, although only the first missing module is known."""
    monkeypatch.chdir(tmp_path)
    for label in "ab":
        for number in range(5):
            path = tmp_path / "scans" / label / f"{number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4)).to_filename(path)
    commands = [
        ("video", ["train", "ucf101_smoke", "--data_dir", "."]),
        ("volumes", ["train", "volumes_smoke", "--data_dir", "scans"]),
        ("plots", ["benchmark"]),
        ("plots", ["demo"]),
        ("plots", ["explain", "model", "scans"]),
        ("plots", ["rotations", "model"]),
        ("plots", ["compare", "model", "another", "--recipe", "digits"]),
        ("plots", ["reproduce", "rope"]),
        ("video", ["benchmark", "data"]),
        ("app", ["app", "model"]),
    ]
    codes, result = run_without(EXTRAS, *(words for _, words in commands))
    assert codes == [2] * len(commands), result.stderr
    assert "Traceback" not in result.stderr
    messages = [line for line in result.stderr.splitlines() if line.startswith("liere-hf")]
    for (extra, words), message in zip(commands, messages, strict=True):
        expected = rf'liere-hf {words[0]}: error: \w+ is not installed: pip install "liere_hf\[{extra}\]"'
        assert re.fullmatch(expected, message)
    assert [path.name for path in tmp_path.iterdir()] == ["scans"]


@pytest.mark.extensive
def test_pictures_of_the_page_need_neither_pyav_nor_nibabel(tmp_path):
    """As with the extra `app` alone."""
    Image.new("L", (28, 28)).save(tmp_path / "picture.png")
    script = (
        "import sys; sys.modules.update(av=None, nibabel=None); from liere_hf.app import limits; "
        f"limits.require_moderate({{'bytes': None, 'path': {str(tmp_path / 'picture.png')!r}}}, 'image', 1)"
    )
    subprocess.run([preloaded("python", ONLY_TORCH), "-c", script], check=True)
