from transformers_source import FOLDER, VERSION


def test_the_common_tests_of_transformers_exist():
    """Without them test_transformers_suite.py is not collected (see conftest.py)."""
    assert FOLDER.is_dir(), f"the tests of transformers {VERSION} are not in {FOLDER}; run: make transformers-tests"
