"""scikit-learn's 1,797 handwritten digits of 8 x 8 pixels."""

import numpy as np
from sklearn import datasets as sklearn_datasets

from ...configuration import DataArguments
from ...modeling.configuration_liere_vit import LiereViTConfig
from .splits import Splits
from .tables import table_of_images


def load_digits(arguments: DataArguments, config: LiereViTConfig | None) -> Splits:
    """The digits, in one split."""
    digits = sklearn_datasets.load_digits()
    # scikit-learn's intensities are 0 to 16.
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return Splits.of(table_of_images(images, digits.target, [str(name) for name in digits.target_names]))
