"""What a run was started with: its recipe, and its data in a few numbers, from its first step on."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import yaml
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data import Splits
from ..errors import InputError
from ..output_files import write_bytes, write_json
from ..run_directory import RECIPE_FILE

DATA_FILE = "training_data.json"


class RecipeRecord(TrainerCallback):
    """Writes recipe and data when the first step of a session has succeeded: a run that ends before leaves nothing.

    Args:
        options: of the run.
        data: as from `data_facts`.
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


def data_facts(splits: Splits) -> dict[str, Any]:
    """Classes and number of the training examples, and a digest of their labels and names of files.

    Folders of the files are left out, as data may be moved. A stream has no digest.
    """
    facts = {"train_examples": splits.num_train, "classes": splits.label_names}
    if isinstance(splits.train, datasets.IterableDataset):
        return facts
    digest = hashlib.sha256(np.array(splits.train["label"]).tobytes())
    # As arrow, whose columns are not decoded. Most inputs of a table in memory have no path.
    for rows in splits.train.select_columns(splits.column).with_format("arrow").iter(10_000):
        for path in rows[splits.column].combine_chunks().field("path").to_pylist():
            digest.update(Path(path or "").name.encode() + b"\0")
    return facts | {"digest": digest.hexdigest()}


def require_same_data(directory: Path, splits: Splits) -> None:
    """
    Raises:
        InputError: the training data is not that of the run in this directory.
    """
    if not (directory / DATA_FILE).is_file():
        return
    before, now = json.loads((directory / DATA_FILE).read_text()), data_facts(splits)
    for name, title in (("train_examples", "examples"), ("classes", "classes"), ("digest", "files or labels")):
        if before.get(name) != now.get(name):
            numbers = "" if name == "digest" else f" ({now.get(name)}, before {before.get(name)})"
            raise InputError(f"data_dir holds other {title} than the run to resume was started with{numbers}")
