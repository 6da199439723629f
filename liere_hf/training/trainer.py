"""transformers' Trainer with what long runs in many processes need."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from ..configuration.metric_names import problem_type
from ..data.batching import EvaluationExamples, StreamedExamples
from .dataloader import StreamResumption, build_train_dataloader
from .divergence import DivergenceCheck
from .optimizer import learning_rate_factors, rotation_parameter_names, scale_learning_rates
from .resumption import Resumption
from .saving import atomic_save
from .sharding import keep_inputs, shard_rotations_in_float32


class LiereTrainer(Trainer):
    """Trainer whose checkpoints are always complete, that stops when training diverges, and that trains on streams.

    - With `dataloader_drop_last`, epochs have the same length for any number of processes.
    - A stream, which splits itself among processes, resumes without decoding again what was seen.
    - Evaluation sees every example once, whatever `dataloader_drop_last` says for training.
    - `data_wait_seconds` is the time that steps waited for their batches.
    - A loss or weights that are not finite end the run before they reach a checkpoint.
    - A checkpoint is written to a directory beside its own and moved when it is complete.

    - Losses can be weighted by class (`class_weights`, (classes,)).

    It does not push to the Hub itself: see [`PublishingCallback`].
    """

    def __init__(self, *, args: TrainingArguments, class_weights: torch.Tensor | None = None, **kwargs: Any):
        # The arguments are saved with every checkpoint: no place for a secret.
        args.push_to_hub, args.hub_token = False, None
        super().__init__(args=args, **kwargs)
        if self.is_fsdp_enabled and self.accelerator.is_fsdp2:
            # Before accelerate shards the rest of the model.
            mesh = self.accelerator.torch_device_mesh
            if mesh is not None:
                mesh = mesh[tuple(self.accelerator.parallelism_config.fsdp_dim_names)]
            shard_rotations_in_float32(self.model, mesh)
            keep_inputs(self.accelerator.state.fsdp_plugin)
        # The filter hides losses that are not finite, and waits for the device in every step. See DivergenceCheck.
        self.args.logging_nan_inf_filter = False
        # Losses are means over the examples of a process; every process has the same number.
        self.model_accepts_loss_kwargs = False
        self.data_wait_seconds = 0.0
        self._divergence = DivergenceCheck(self.args.device)
        self._class_weights = None if class_weights is None else class_weights.to(self.args.device)
        self.add_callback(Resumption())
        if isinstance(self.train_dataset, StreamedExamples):
            self.add_callback(StreamResumption(self.train_dataset))

    # ---- Optimizer ----

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """All but the parameters of rotations, whose size is a frequency: decay would turn rotations off."""
        rotations = rotation_parameter_names(model)
        return [name for name in super().get_decay_parameter_names(model) if name not in rotations]

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Layers, classifier and rotations get their own learning rates, where the arguments say so."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            model = self.model if model is None else model
            factors = learning_rate_factors(model, self.args)
            if set(factors.values()) != {1.0}:
                scale_learning_rates(optimizer, model, factors)
        return optimizer

    # ---- Data ----

    def get_train_dataloader(self) -> DataLoader:
        # auto_find_batch_size changes this attribute, not the arguments.
        batch_size = self._train_batch_size
        return build_train_dataloader(self.train_dataset, batch_size, self.data_collator, self.args, self.accelerator)

    def get_eval_dataloader(self, eval_dataset: EvaluationExamples | None = None) -> DataLoader:
        with self._dropping_no_examples():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: EvaluationExamples) -> DataLoader:
        with self._dropping_no_examples():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _dropping_no_examples(self) -> Iterator[None]:
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drop_last

    def num_examples(self, dataloader: DataLoader) -> int:
        count = super().num_examples(dataloader)
        is_stream = isinstance(getattr(dataloader, "dataset", None), StreamedExamples)
        return count * self.args.world_size if is_stream else count

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        if self.control.should_training_stop:
            # Resumed from a checkpoint of the last step.
            return [], None
        start = time.perf_counter()
        samples = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.data_wait_seconds += time.perf_counter() - start
        return samples

    # ---- Losses ----

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's own loss; cross-entropy for the soft labels of MixUp and CutMix, and with weights of classes."""
        is_single = problem_type(self.model.config.to_dict()) == "single_label_classification"
        is_mixed = inputs["labels"].is_floating_point() and is_single
        if not is_mixed and not (self._class_weights is not None and model.training):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = torch.nn.functional.cross_entropy(
            outputs.logits.float(),
            labels,
            weight=self._class_weights,
            label_smoothing=self.args.label_smoothing_factor,
        )
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._divergence.observe(loss, self.state.global_step + 1)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            self._divergence.require_finite_losses(self)
        super().log(logs, *args, **kwargs)

    def require_finite(self) -> None:
        """
        Raises:
            RunError: a loss of the training, or a weight, is not finite, in any process.
        """
        self._divergence.require_finite_losses(self)
        self._divergence.require_finite_weights(self, self.model)

    # ---- Private methods of Trainer ----
    # These are all that this package overrides. tests/training/test_trainer.py fails where a version of transformers
    # no longer calls one of them, or calls it for something else.

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Makes `save_strategy` atomic: a directory named checkpoint-N is complete, and its values are finite.

        There is no public method around the saving of a checkpoint: callbacks hear of it when it is done.
        """
        self.require_finite()
        output_dir, checkpoint = self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with atomic_save(self) as unfinished:
            self.args.output_dir = str(unfinished)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.output_dir = output_dir
            best = Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            if best.name == checkpoint or best.exists():
                self.state.best_model_checkpoint = str(best)
            if self.args.should_save:
                # Written again, as they name the output directory and the best checkpoint.
                torch.save(self.args, unfinished / checkpoint / TRAINING_ARGS_NAME)
                self.state.save_to_json(str(unfinished / checkpoint / TRAINER_STATE_NAME))
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=output_dir,
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )
