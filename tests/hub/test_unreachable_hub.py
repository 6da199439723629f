"""Commands do not wait for a Hub that is out of reach."""

import pytest

pytestmark = pytest.mark.xdist_group("preloaded")


@pytest.mark.parametrize(
    "words",
    [
        ["train", "digits_finetune", "--model_name_or_path", "org/name"],
        ["evaluate", "org/name", "digits"],
        ["convert", "org/name", "model", "--from", "vit"],
        ["convert", "vit_base_rope_mixed", "model", "--from", "timm"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_commands_do_not_retry(words, command_line):
    """No test of this file starts a server."""
    before = [*command_line.directory.iterdir()]
    result = command_line.run(*words)
    assert result.code == 2
    assert "cannot be reached" in result.stderr.splitlines()[-1]
    assert "Retrying" not in result.stderr
    created = {*command_line.directory.iterdir()} - {*before}
    assert {path.suffix for path in created} == {".stdout", ".stderr"}
