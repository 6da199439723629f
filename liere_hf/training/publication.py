"""`push_to_hub` of a training run: its checkpoints while it trains, and the finished run."""

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.constants import REPOCARD_NAME
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils import CONFIG_NAME

from ..cards import progress_card
from ..errors import InputError, RunError
from ..hub.publishing import Target, full_repo_id, publish
from ..hub.staging import stage_model

logger = logging.getLogger(__name__)


class PublishingCallback(TrainerCallback):
    """Publishes checkpoints in the background, as `hub_strategy` says, and the finished run when asked.

    It takes the place of Trainer's own push, which uploads other files than `liere-hf publish`. It does nothing
    without `push_to_hub`, and in other processes than the main one.

    Args:
        args: of the run. Create this before `LiereTrainer`, which removes `push_to_hub` and the token from them.
    """

    def __init__(self, args: TrainingArguments):
        self._args, self._token = args, args.hub_token
        self._is_publisher = args.push_to_hub and args.process_index == 0
        self._target: Target | None = None
        self._upload: Future | None = None

    def prepare(self, model: PreTrainedModel) -> None:
        """Check name, token and repository before the training rather than after it; create the repository.

        Raises:
            InputError: one of them is not allowed, or the repository holds another model.
            RunError: the Hub cannot be reached.
        """
        if not self._is_publisher:
            return
        name = self._args.hub_model_id or Path(self._args.output_dir).absolute().name
        config = json.loads(model.config.to_json_string()) | {"architectures": [type(model).__name__]}
        # One for all uploads: it runs them one after the other.
        self._target = Target(full_repo_id(name, self._token), self._args.hub_revision, self._token)
        with self._target.explaining_errors():
            self._target.prepare(config, private=bool(self._args.hub_private_repo))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        is_busy = self._upload is not None and not self._upload.done()
        skips = args.hub_strategy == HubStrategy.END or (is_busy and not args.hub_always_push)
        if not self._is_publisher or skips:
            return
        # A copy, or links: the checkpoint may be removed while it is uploaded.
        folder = Path(tempfile.mkdtemp(prefix="liere_hf-"))
        try:
            stage_model(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}", folder)
            config = json.loads((folder / CONFIG_NAME).read_text())
            (folder / REPOCARD_NAME).write_text(str(progress_card(config, state.global_step, state.max_steps)))
        except (InputError, OSError) as error:
            _warn(state.global_step, error)
            shutil.rmtree(folder, ignore_errors=True)
            return
        self._upload = self._target.api.run_as_future(_publish_step, self._target, folder, state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self._upload is not None:
            wait([self._upload])

    def publish(self) -> None:
        """Publish the finished run in `output_dir`.

        Raises:
            InputError: it is not finished, or the Hub refuses it.
            RunError: the Hub cannot be reached; the run is finished and can be published later.
        """
        if not self._is_publisher:
            return
        directory, repo_id = self._args.output_dir, self._target.repo_id
        try:
            publish(Path(directory), repo_id, revision=self._target.revision, token=self._token)
        except RunError as error:
            raise RunError(
                f"{error}; the run itself is finished: publish it with `liere-hf publish {directory} {repo_id}`"
            ) from error


def _publish_step(target: Target, folder: Path, step: int) -> None:
    try:
        with _no_progress_bars(), target.explaining_errors():
            target.upload(folder, f"Training, step {step}")
    # Whatever goes wrong here must not end the training.
    except Exception as error:
        _warn(step, error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Those of an upload would run into that of the training."""
    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()


def _warn(step: int, error: Exception) -> None:
    is_explained = isinstance(error, InputError | RunError)
    message = "the checkpoint of step %d was not published, training continues: %s"
    logger.warning(message, step, error, exc_info=None if is_explained else error)
