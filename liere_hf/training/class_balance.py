"""Classes of different sizes: weights of their losses, and a sampler that draws them equally often."""

from collections.abc import Iterator

import datasets
import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from torch.utils.data import Sampler

from ..data import Splits
from ..data.batching import TrainingExamples
from ..errors import InputError


def balanced_class_weights(splits: Splits) -> torch.Tensor:
    """n / (classes * n of the class) for each class, as in scikit-learn: float32 (classes,). 1 for an empty class.

    Raises:
        InputError: the data is a stream, or its examples have no single class.
    """
    labels = _labels(splits.train, "class_weights is 'balanced'")
    present = np.unique(labels)
    weights = torch.ones(len(splits.label_names))
    weights[present] = torch.from_numpy(compute_class_weight("balanced", classes=present, y=labels)).float()
    return weights


class BalancedSampler(Sampler):
    """Draws examples with replacement, every class equally often. The draws depend only on the seed and the epoch.

    Raises:
        InputError: the examples have no single class.
    """

    def __init__(self, examples: TrainingExamples, num_samples: int, seed: int):
        labels = _labels(examples.dataset, "balanced_sampling is True")
        weights = compute_sample_weight("balanced", labels)
        self._examples, self._shares = examples, weights / weights.sum()
        self._num_samples, self._seed = num_samples, seed

    def __len__(self) -> int:
        return self._num_samples

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self._seed, self._examples.transform.epoch))
        yield from generator.choice(len(self._shares), self._num_samples, p=self._shares).tolist()


def _labels(dataset: datasets.Dataset | datasets.IterableDataset, option: str) -> np.ndarray:
    if isinstance(dataset, datasets.IterableDataset):
        raise InputError(f"{option}, which needs all labels at once: a stream does not have them")
    labels = np.array(dataset["label"])
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"{option}, which needs examples of one class each")
    return labels
