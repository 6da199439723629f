"""The recipe of a run, which stands in its directory from its first step on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..output_files import write_bytes
from ..run_directory import RECIPE_FILE


class RecipeRecord(TrainerCallback):
    """Writes the recipe when the first step of a session has succeeded: a run that ends before leaves nothing.

    Args:
        options: of the run.
        keep: called when the recipe is there.
    """

    def __init__(self, output_dir: Path, options: dict[str, Any], keep: Callable[[], None]):
        self._path, self._options, self._keep = output_dir / RECIPE_FILE, options, keep
        self._is_written = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if not self._is_written:
            if state.is_world_process_zero:
                write_bytes(self._path, yaml.safe_dump(self._options, sort_keys=False).encode())
            self._keep()
            self._is_written = True
