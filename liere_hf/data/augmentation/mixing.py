"""MixUp and CutMix."""

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from ...configuration import DataArguments


class Mixing:
    """MixUp (arXiv 1710.09412) or CutMix (arXiv 1905.04899) of a batch; with both, one of them at random.

    Args:
        mixup_alpha, cutmix_alpha: of the Beta distributions of the shares; 0 for none.
        num_labels: number of classes.
    """

    def __init__(self, mixup_alpha: float, cutmix_alpha: float, num_labels: int):
        self.transforms = []
        if mixup_alpha:
            self.transforms.append(v2.MixUp(alpha=mixup_alpha, num_classes=num_labels))
        if cutmix_alpha:
            self.transforms.append(v2.CutMix(alpha=cutmix_alpha, num_classes=num_labels))

    @classmethod
    def from_arguments(cls, arguments: DataArguments, num_labels: int) -> "Mixing | None":
        """None if the arguments ask for neither."""
        if not (arguments.mixup_alpha or arguments.cutmix_alpha):
            return None
        return cls(arguments.mixup_alpha, arguments.cutmix_alpha, num_labels)

    def __call__(
        self, pixel_values: torch.Tensor, labels: torch.Tensor, draw: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixed pixels, and the shares of the classes as labels, (batch, num_labels).

        Args:
            draw: a random number in [0, 1), which decides everything.
        """
        transform = self.transforms[int(draw * len(self.transforms))]
        kind = tv_tensors.Video if pixel_values.dim() == 5 else tv_tensors.Image
        with torch.random.fork_rng(devices=[]):
            # Faster than torch.manual_seed, which also seeds all other devices and formats a stack trace for that.
            torch.default_generator.manual_seed(int(draw * 2**53))
            mixed, shares = transform(kind(pixel_values), labels)
        return mixed.as_subclass(torch.Tensor), shares
