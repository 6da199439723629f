import gc

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """Every training collects garbage; there is none in what the imports have made, which is much."""
    gc.collect()
    gc.freeze()
