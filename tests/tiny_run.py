"""The smallest model and training run, for tests of what is around them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

TINY_MODEL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
# With one head of 64 dimensions, which every position encoding can have.
ONE_WIDE_HEAD = TINY_MODEL | {"hidden_size": 64, "num_attention_heads": 1}
QUIET = {"disable_tqdm": True, "use_cpu": True}
TINY_RUN = {
    "dataset": "digits",
    "train_examples": 64,
    "eval_examples": 32,
    "image_size": 8,
    "patch_size": 4,
    "per_device_train_batch_size": 16,
    **TINY_MODEL,
    **QUIET,
}
# For the recipe digits: no more than a run needs to be published.
TWO_STEPS = (
    TINY_MODEL
    | QUIET
    | {
        "max_steps": 2,
        "train_examples": 64,
        "eval_examples": 64,
        "eval_strategy": "no",
        "save_strategy": "no",
    }
)


def as_flags(options: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line."""
    words = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in options.items()}
    return [text for name, word in words.items() for text in (f"--{name}", word)]


def write_recipe(path: Path, options: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump({**options}))
    return path
