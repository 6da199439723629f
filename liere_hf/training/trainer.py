"""transformers' Trainer with what long runs over many processes need."""

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, get_last_checkpoint, rotate_checkpoints
from transformers.utils import PushInProgress

from ..cards import progress_card
from ..data.batching import EvaluationExamples, StreamedExamples
from ..errors import InputError, RunError
from ..hub.publishing import Publication, Target, full_repo_id, publish
from ..hub.staging import stage_model

# Checkpoints are written in this folder of the output directory, and moved out when they are complete.
UNFINISHED = "unfinished"
logger = logging.getLogger(__name__)


class LiereTrainer(Trainer):
    """Trainer that never leaves half a checkpoint, stops at a loss that is not finite, and knows streams and views.

    - A checkpoint is written beside its place and moved there when it is complete.
    - A loss or weights that are not finite end the run before they reach a checkpoint.
    - Streams are split among processes by the stream itself.
    - Evaluation sees every example once, whatever `dataloader_drop_last` says of training.
    - `data_wait_seconds` counts how long steps waited for their batches.
    - `push_to_hub` publishes what `liere-hf publish` publishes; the repository is looked at before the training.
    """

    def __init__(self, *, args: TrainingArguments, **kwargs: Any):
        # The arguments are saved with checkpoints, which are no place for a secret.
        self._hub_token, args.hub_token = args.hub_token, None
        super().__init__(args=args, **kwargs)
        # The check here does not wait for the device in every step, as the filter would.
        self.args.logging_nan_inf_filter = False
        # Losses are means over a process's examples, whose numbers are equal.
        self.model_accepts_loss_kwargs = False
        self.data_wait_seconds = 0.0
        self._is_saving = False
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=self.args.device)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make sure of name, token and rights before the training, not after it.

        Raises:
            InputError: one of them is not as it must be, or the repository holds another model.
        """
        if not self.is_world_process_zero():
            return
        self.push_in_progress = None
        token = token or self._hub_token
        self.hub_model_id = full_repo_id(self.args.hub_model_id or Path(self.args.output_dir).absolute().name, token)
        config = json.loads(self.model.config.to_json_string()) | {"architectures": [type(self.model).__name__]}
        # One for all uploads, which it makes one after the other.
        self._target = Target(self.hub_model_id, self.args.hub_revision, token)
        with self._target.explaining_errors():
            self._target.prepare(config, private=bool(self.args.hub_private_repo if private is None else private))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Publish a checkpoint's model in the background; a failure is told and the training goes on."""
        is_busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        skips = is_busy and not self.args.hub_always_push
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END or skips:
            return
        # The checkpoint may be moved or removed while it is uploaded.
        folder = Path(tempfile.mkdtemp(prefix="liere_hf-"))
        stage_model(Path(checkpoint_folder), folder)
        config = json.loads((folder / "config.json").read_text())
        card = progress_card(config, self.state.global_step, self.state.max_steps)
        (folder / "README.md").write_text(str(card))
        job = self._target.api.run_as_future(
            _push_aside, self._target, folder, f"Training, step {self.state.global_step}"
        )
        self.push_in_progress = PushInProgress([job])

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Publication | None:
        """Publish the finished run in `output_dir`.

        Raises:
            InputError: it is not finished.
            RunError: the Hub does not take it; the run is whole where it is.
        """
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo()
        self._finish_current_push()
        try:
            return publish(
                Path(self.args.output_dir),
                self.hub_model_id,
                revision=self.args.hub_revision,
                token=self._hub_token,
            )
        except RunError as error:
            raise RunError(
                f"{error}; the run is finished and whole, publish it with `liere-hf publish {self.args.output_dir} "
                f"{self.hub_model_id}`"
            ) from error

    def get_train_dataloader(self) -> DataLoader:
        is_stream = isinstance(self.train_dataset, StreamedExamples)
        dataloader = self._stream_dataloader() if is_stream else super().get_train_dataloader()
        # A generator of its own for what starting workers draws: else a resumed run would have other dropout, as
        # workers that outlive an epoch are not started again.
        inner = getattr(dataloader, "base_dataloader", dataloader)
        inner.generator = torch.Generator().manual_seed(self.args.seed)
        return dataloader

    def _stream_dataloader(self) -> DataLoader:
        return DataLoader(
            self.train_dataset,
            batch_size=self.train_dataset.batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )

    def get_eval_dataloader(self, eval_dataset: EvaluationExamples | None = None) -> DataLoader:
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """Leaves out what is beyond whole steps, not whole batches: epochs are alike for any number of processes."""
        sampler = super()._get_train_sampler(train_dataset)
        if not self.args.dataloader_drop_last or not isinstance(sampler, RandomSampler):
            return sampler
        step = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        return RandomSampler(sampler.data_source, num_samples=len(sampler.data_source) // step * step)

    def num_examples(self, dataloader: DataLoader) -> int:
        count = super().num_examples(dataloader)
        is_stream = isinstance(getattr(dataloader, "dataset", None), StreamedExamples)
        return count * self.args.world_size if is_stream else count

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        start = time.perf_counter()
        samples = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.data_wait_seconds += time.perf_counter() - start
        return samples

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's own loss, or for labels that MixUp and CutMix made shares of, cross-entropy with these."""
        if not inputs["labels"].is_floating_point():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = torch.nn.functional.cross_entropy(
            outputs.logits.float(), labels, label_smoothing=self.args.label_smoothing_factor
        )
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        is_first = (self._first_bad_step < 0) & ~torch.isfinite(loss)
        self._first_bad_step = torch.where(is_first, self.state.global_step + 1, self._first_bad_step)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            self._require_finite_losses()
        super().log(logs, *args, **kwargs)

    def _require_finite_losses(self) -> None:
        """
        Raises:
            RunError: the loss of an earlier step was not finite, in any process.
        """
        steps = self.accelerator.gather(self._first_bad_step.reshape(1))
        bad = steps[steps >= 0]
        if len(bad):
            raise RunError(f"the loss of step {int(bad.min())} is not finite; {self.how_to_go_on()}")

    def how_to_go_on(self) -> str:
        """Half a sentence that names the last checkpoint, if there is one."""
        checkpoint = get_last_checkpoint(self.args.output_dir)
        if checkpoint is None:
            return "no checkpoint was saved before"
        return f"the last checkpoint is {checkpoint}, go on from it with --resume_from_checkpoint true"

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        epoch, num_batches = super()._init_training_state(*args, **kwargs)
        if isinstance(self.train_dataset, StreamedExamples):
            self.train_dataset.resume(epoch, num_batches)
        return epoch, num_batches

    def _get_output_dir(self, trial: Any) -> str:
        output_dir = super()._get_output_dir(trial)
        return str(Path(output_dir) / UNFINISHED) if self._is_saving else output_dir

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write the checkpoint aside, move it into its place when all processes are done, then remove old ones."""
        self._require_finite_losses()
        self._require_finite_weights()
        output_dir = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        self._is_saving = True
        try:
            with self.saving_aside(output_dir) as unfinished:
                super()._save_checkpoint(model, trial)
                if self.args.should_save and self.state.best_global_step:
                    best = output_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
                    if best.exists() or best.name == name:
                        self.state.best_model_checkpoint = str(best)
                        self.state.save_to_json(str(unfinished / name / TRAINER_STATE_NAME))
        finally:
            self._is_saving = False
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(output_dir),
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )

    @contextmanager
    def saving_aside(self, output_dir: Path) -> Iterator[Path]:
        """A directory to write to, whose content is moved to `output_dir` when every process is done.

        Raises:
            RunError: it could not be written, on a full disk for example; `output_dir` is as it was.
        """
        unfinished = output_dir / UNFINISHED
        if self.args.should_save:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            yield unfinished
        except (OSError, RuntimeError, SafetensorError) as error:
            if isinstance(error, RunError):
                raise
            shutil.rmtree(unfinished, ignore_errors=True)
            raise RunError(
                f"step {self.state.global_step} cannot be saved ({' '.join(str(error).split())}); "
                f"{self.how_to_go_on()}"
            ) from error
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            for path in sorted(unfinished.iterdir()):
                target = output_dir / path.name
                if target.is_dir():
                    shutil.rmtree(target)
                path.replace(target)
            unfinished.rmdir()
        self.accelerator.wait_for_everyone()

    def _require_finite_weights(self) -> None:
        finite = torch.stack([torch.isfinite(weight).all() for weight in self.model.parameters()]).all()
        if not self.accelerator.gather(finite.reshape(1).to(self.args.device)).all():
            raise RunError(f"weights are not finite after step {self.state.global_step}; {self.how_to_go_on()}")


def _push_aside(target: Target, folder: Path, message: str) -> None:
    try:
        with target.explaining_errors():
            target.upload(folder, message)
    except (InputError, RunError) as error:
        logger.warning("this checkpoint was not published: %s", error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
