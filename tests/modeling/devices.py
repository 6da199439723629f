"""The devices that tests run on: a CPU always, a CUDA device by `make gpu`."""

import pytest

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
