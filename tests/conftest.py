import gc

import pytest
from preloaded import close_all


def pytest_collection_finish(session: pytest.Session) -> None:
    """Freeze the many objects created by imports, since every training run collects garbage."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    close_all()
