"""Step 1: where examples come from, one module for each kind of data set, and how they are split."""

import importlib

from ...configuration import DataArguments
from ...errors import InputError
from .splits import Splits, select_subsets

# The module with `load_<data set>`. It is imported when its data set is named: training on images then needs neither
# PyAV nor scikit-learn.
LOADER_MODULES = {
    "arrows": "arrows",
    "cifar10": "cifar",
    "cifar100": "cifar",
    "clips": "moving_squares",
    "digits": "digits",
    "fashion_mnist": "fashion_mnist",
    "imagefolder": "image_folders",
    "imagenet": "imagenet",
    "ucf101": "ucf101",
    "volumes": "volume_folders",
}


def load_splits(arguments: DataArguments, seed: int) -> Splits:
    """Load the data set that the arguments name.

    Args:
        seed: of the held-out split and of subsets.

    Raises:
        InputError: no data set named, or files that are missing or cannot be read.
    """
    name = arguments.dataset
    if name is None:
        raise InputError(f"dataset is not given, allowed are {', '.join(LOADER_MODULES)}")
    module = importlib.import_module(f"{__name__}.{LOADER_MODULES[name]}")
    splits = getattr(module, f"load_{name}")(arguments, seed)
    return select_subsets(splits, arguments, seed)
