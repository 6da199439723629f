"""Saving that is atomic: what stands in the output directory of a run is complete."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers import Trainer

from ..errors import RunError
from ..run_directory import UNFINISHED, how_to_resume


@contextmanager
def atomic_save(trainer: Trainer) -> Iterator[Path]:
    """A directory to write to; its content moves to the run's `output_dir` once every process has written its part.

    Every process must enter it.

    Raises:
        RunError: writing failed, because the disk is full for example; `output_dir` is unchanged.
    """
    output_dir, is_main = Path(trainer.args.output_dir), trainer.args.should_save
    unfinished = output_dir / UNFINISHED
    if is_main:
        shutil.rmtree(unfinished, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    try:
        yield unfinished
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RunError):
            raise
        shutil.rmtree(unfinished, ignore_errors=True)
        raise RunError(
            f"step {trainer.state.global_step} cannot be saved ({' '.join(str(error).split())}); "
            f"{how_to_resume(output_dir)}"
        ) from error
    trainer.accelerator.wait_for_everyone()
    if is_main:
        for path in sorted(unfinished.iterdir()):
            target = output_dir / path.name
            if target.is_dir():
                shutil.rmtree(target)
            path.replace(target)
        unfinished.rmdir()
    trainer.accelerator.wait_for_everyone()
