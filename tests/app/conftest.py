from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw


@pytest.fixture(scope="session")
def trousers(tmp_path_factory) -> Path:
    """A picture that the committed Fashion-MNIST checkpoint knows."""
    picture = Image.new("L", (28, 28))
    ImageDraw.Draw(picture).polygon([(9, 2), (19, 2), (21, 26), (16, 26), (14, 9), (12, 26), (7, 26)], fill=200)
    path = tmp_path_factory.mktemp("pictures") / "trousers.png"
    picture.save(path)
    return path


@pytest.fixture
def noise(tmp_path) -> Path:
    pixels = np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"
