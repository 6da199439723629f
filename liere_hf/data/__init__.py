"""From a recipe's data to batches, step by step:

1. `data_sets`: where examples come from and how they are split. A split is a table of encoded inputs and labels.
2. `decoding`: encoded files to pixels.
3. `resizing`: pixels to the size that the model takes.
4. `augmentation`: random changes of training batches.
5. `batching`: rows of a split to the examples that a `DataLoader` reads, by steps 2 to 4.

`load_splits` is the first step in training, `load_evaluation` that of a saved model. `prepare` puts the others
together for a model. They are called once for each run.

Packages that only some data needs (PyAV, nibabel, scikit-learn) are imported when such data is named.
"""

from .data_sets import load_evaluation, load_splits
from .data_sets.splits import HeldOut, Splits
from .preparation import PreparedData, prepare

__all__ = ["HeldOut", "PreparedData", "Splits", "load_evaluation", "load_splits", "prepare"]
