"""scikit-learn's 1,797 handwritten digits of 8 x 8 pixels."""

import numpy as np
from sklearn import datasets as sklearn_datasets

from ..configuration import DataArguments
from .sources import Data, from_arrays, hold_out


def load_digits(arguments: DataArguments, seed: int) -> Data:
    """The digits, `eval_fraction` of each held out."""
    digits = sklearn_datasets.load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    dataset = from_arrays(images, digits.target, [str(name) for name in digits.target_names])
    return Data.of(*hold_out(dataset, arguments.eval_fraction, seed))
