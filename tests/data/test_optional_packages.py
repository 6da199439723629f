"""Training without the packages that only some data needs."""

import subprocess
import sys

# Packages that are not there, for anybody who imports them or asks whether they are installed.
HIDDEN = ("av", "nibabel", "scipy", "sklearn")
SCRIPT = f"""
import sys
from importlib.machinery import PathFinder

class HidingFinder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {HIDDEN} else super().find_spec(name, path, target)

sys.meta_path = [HidingFinder if finder is PathFinder else finder for finder in sys.meta_path]

from liere_hf_cli.main import main

model = "--hidden_size 16 --num_hidden_layers 1 --num_attention_heads 1 --intermediate_size 16".split()
run = "--max_steps 2 --train_examples 40 --eval_examples 20 --data_num_proc 1 --use_cpu true".split()
for number, (recipe, *flags) in enumerate((
    ["arrows_demo", "--rand_augment_num_ops", "2", "--rand_augment_magnitude_std", "0.5", "--random_erasing", "0.5"],
    ["clips"],
    ["digits"],
    ["ucf101", "--data_dir", sys.argv[1]],
)):
    try:
        main(["train", recipe, "--output_dir", f"{{sys.argv[1]}}/{{number}}", *model, *run, *flags])
    except SystemExit as exit_:
        print("exit code", exit_.code)
"""


def test_training_on_images_and_generated_clips_needs_none_of_them(tmp_path):
    """Data that does need one of them is told so in one sentence."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    codes = [line for line in done.stdout.splitlines() if line.startswith("exit code")]
    assert codes == ["exit code 0", "exit code 0", "exit code 2", "exit code 2"], done.stderr
    assert 'sklearn is not installed: pip install "liere_hf[experiments]"' in done.stderr
    assert 'av is not installed: pip install "liere_hf[video]"' in done.stderr
    for number in (0, 1):
        assert (tmp_path / str(number) / "eval_results.json").is_file()
