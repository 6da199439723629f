"""Training that has diverged: losses and weights that are not finite."""

from pathlib import Path

import torch
from torch import nn
from transformers import Trainer

from ..errors import RunError
from ..run_directory import how_to_resume


class DivergenceCheck:
    """Records the step of the first loss that is not finite, on the device, so that no step waits for the device."""

    def __init__(self, device: torch.device):
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def observe(self, loss: torch.Tensor, step: int) -> None:
        """
        Args:
            loss: scalar, of this process's batch.
            step: the optimizer step that the batch belongs to, counted from 1.
        """
        is_first = (self._first_bad_step < 0) & ~torch.isfinite(loss)
        self._first_bad_step = torch.where(is_first, step, self._first_bad_step)

    def require_finite_losses(self, trainer: Trainer) -> None:
        """
        Raises:
            RunError: an observed loss was not finite, in any process.
        """
        steps = trainer.accelerator.gather(self._first_bad_step.reshape(1))
        bad = steps[steps >= 0]
        if len(bad):
            raise RunError(
                f"the loss of step {int(bad.min())} is not finite; {how_to_resume(Path(trainer.args.output_dir))}"
            )

    def require_finite_weights(self, trainer: Trainer, model: nn.Module) -> None:
        """
        Raises:
            RunError: a weight is not finite, in any process.
        """
        finite = torch.stack([torch.isfinite(weight).all() for weight in model.parameters()]).all()
        if not trainer.accelerator.gather(finite.reshape(1).to(trainer.args.device)).all():
            raise RunError(
                f"weights are not finite after step {trainer.state.global_step}; "
                f"{how_to_resume(Path(trainer.args.output_dir))}"
            )
