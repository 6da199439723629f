import pytest

from liere_hf.demo import run_demo
from liere_hf.errors import InputError


def test_refuses_a_directory_with_files(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="already holds files"):
        run_demo(tmp_path)
