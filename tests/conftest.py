import gc

import pytest
import torch
from preloaded import close_all


def pytest_collection_finish(session: pytest.Session) -> None:
    """Freeze the many objects created by imports, since every training run collects garbage."""
    if session.config.getoption("loadgroup", False) and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError("the groups of pytest-xdist have no effect: this pytest is too new for it")
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of a file run in one process by `--dist loadgroup`, too.

    Tests of a CUDA device are skipped where there is none, unless they are all that was asked for.
    """
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    if torch.cuda.is_available():
        return
    if config.option.markexpr == "gpu":
        raise pytest.UsageError("no CUDA device is available, so that none of these tests can run")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device: `make gpu`"))


def pytest_unconfigure() -> None:
    close_all()
