"""Tables with a column of encoded inputs and a column of labels, from paths and from arrays."""

from collections.abc import Sequence

import datasets
import numpy as np

from ..decoding.pnm import encode_pnm
from ..media import encoded_feature


def table_of_paths(column: str, paths: Sequence[str], labels: Sequence[int], names: Sequence[str]) -> datasets.Dataset:
    """Paths of files, which are not read yet, with class indices and the classes' names."""
    return datasets.Dataset.from_dict(
        {column: [{"bytes": None, "path": path} for path in paths], "label": labels},
        features=datasets.Features({column: encoded_feature(column), "label": datasets.ClassLabel(names=list(names))}),
    )


def table_of_images(images: np.ndarray, labels: Sequence[int], names: Sequence[str]) -> datasets.Dataset:
    """uint8 images (examples, height, width[, 3]), stored uncompressed, with class indices and the classes' names."""
    return datasets.Dataset.from_dict(
        {"image": [{"bytes": encode_pnm(image), "path": None} for image in images], "label": labels},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}),
    )
