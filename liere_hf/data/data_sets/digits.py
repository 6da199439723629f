"""scikit-learn's 1,797 handwritten digits of 8 x 8 pixels."""

import numpy as np
from sklearn import datasets as sklearn_datasets

from ...configuration import DataArguments
from .splits import Splits, hold_out
from .tables import table_of_images


def load_digits(arguments: DataArguments, seed: int) -> Splits:
    """The digits, with `eval_fraction` of each held out."""
    digits = sklearn_datasets.load_digits()
    # scikit-learn's intensities are 0 to 16.
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    dataset = table_of_images(images, digits.target, [str(name) for name in digits.target_names])
    return Splits.of(*hold_out(dataset, arguments.eval_fraction, seed))
