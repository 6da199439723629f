import gc

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """Freeze the many objects created by imports, since every training run collects garbage."""
    gc.collect()
    gc.freeze()
