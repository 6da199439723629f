"""What a run was started with: its recipe, and its data in a few numbers, from its first step on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import InputError
from ..output_files import write_bytes, write_json
from ..run_directory import DATA_FILE, RECIPE_FILE


class RecipeRecord(TrainerCallback):
    """Writes recipe and data when the first step of a session has succeeded: a run that ends before leaves nothing.

    Args:
        options: of the run.
        data: as from `Splits.facts`.
        keep: called when the files are there.
    """

    def __init__(self, output_dir: Path, options: dict[str, Any], data: dict[str, Any], keep: Callable[[], None]):
        self._output_dir, self._options, self._data, self._keep = output_dir, options, data, keep
        self._is_written = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if not self._is_written:
            if state.is_world_process_zero:
                write_json(self._output_dir / DATA_FILE, self._data)
                write_bytes(self._output_dir / RECIPE_FILE, yaml.safe_dump(self._options, sort_keys=False).encode())
            self._keep()
            self._is_written = True


def require_same_data(directory: Path, facts: dict[str, Any]) -> None:
    """
    Args:
        facts: of the data that is there now, as from `Splits.facts`.

    Raises:
        InputError: the training data is not that of the run in this directory.
    """
    if not (directory / DATA_FILE).is_file():
        return
    before = json.loads((directory / DATA_FILE).read_text())
    for name, title in (("train_examples", "examples"), ("classes", "classes"), ("digest", "files or labels")):
        if before.get(name) != facts.get(name):
            numbers = "" if name == "digest" else f" ({facts.get(name)}, before {before.get(name)})"
            raise InputError(f"data_dir holds other {title} than the run to resume was started with{numbers}")
