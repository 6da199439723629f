"""What a failure leaves behind, and places that cannot be written to."""

from pathlib import Path

import pytest

from liere_hf.errors import InputError
from liere_hf.output_files import removed_unless_kept, require_writable_directory, require_writable_file


def fail_in(directory: Path, keeps: bool) -> None:
    with pytest.raises(KeyboardInterrupt), removed_unless_kept(directory) as keep:
        (directory / "logs").mkdir(parents=True)
        (directory / "logs" / "events").write_text("")
        (directory / "recipe.yaml").write_text("")
        if keeps:
            keep()
        raise KeyboardInterrupt


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_leaves_what_was_there(tmp_path, exists, keeps):
    """Neither files nor folders above them that were not there before."""
    directory = tmp_path / "runs" / "new"
    if exists:
        directory.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    fail_in(directory, keeps)
    if keeps:
        assert sorted(path.name for path in directory.iterdir()) == ["logs", "recipe.yaml"]
    else:
        assert sorted(tmp_path.rglob("*")) == before


def test_a_failure_removes_nothing_that_was_there(tmp_path):
    (tmp_path / "checkpoint").write_text("")
    fail_in(tmp_path, keeps=False)
    assert (tmp_path / "checkpoint").is_file()


def test_places_that_cannot_be_written_to(tmp_path):
    for check, path in (
        (require_writable_directory, Path("/proc/run")),
        (require_writable_directory, Path("/dev/null/run")),
        (require_writable_file, Path("/proc/results.json")),
        (require_writable_file, tmp_path),
        (require_writable_file, Path("n" * 300)),
    ):
        with pytest.raises(InputError, match=r"^option is "):
            check("option", path)
    require_writable_directory("option", tmp_path / "a" / "b")
    require_writable_file("option", tmp_path / "a" / "b.json")
    require_writable_file("option", None)
    assert not any(tmp_path.iterdir())
