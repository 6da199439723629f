import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from transformers_source import FOLDER

# Its classes inherit from transformers' tests; test_transformers_source.py fails where those are not there.
collect_ignore = [] if FOLDER.is_dir() else ["test_transformers_suite.py"]

# Set by transformers' own tests, which run here in test_transformers_suite.py.
TRANSFORMERS_MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "slow",
    "torch_compile_test",
)


def pytest_configure(config: pytest.Config) -> None:
    for marker in TRANSFORMERS_MARKERS:
        config.addinivalue_line("markers", f"{marker}: set by transformers' own tests")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models run faster on a single thread."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def interpreter():
    """A separate process: Triton reads TRITON_INTERPRET when it is imported, which other tests have done already."""
    from triton_interpreter import start_interpreter

    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), start_interpreter) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(int).result()
        yield pool
