"""liere-hf commands in the environment of a Hub client, in processes that start immediately."""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from preloaded import PreloadedPrograms

TOKEN = "hf_" + "annsTokenOfTests" * 2


class Result(NamedTuple):
    code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


class CommandLine:
    """Runs commands in the environment of a client, several at a time if needed."""

    def __init__(self, programs: PreloadedPrograms, environment: dict[str, str]):
        """
        Args:
            programs: started with the same HF_ENDPOINT and HF_HOME, which clients read when they are imported.
        """
        self.directory = Path(tempfile.mkdtemp(prefix="command_line-"))
        self.home = Path(environment["HF_HOME"])
        self.programs = programs
        self._environment = environment
        self._count = 0

    def start(self, *argv: object, token: str | None = None) -> tuple[subprocess.Popen, Path]:
        """Start a command, to be passed to `wait`. Its output goes to files in `directory`."""
        self._count += 1
        files = self.directory / str(self._count)
        environment = self._environment | ({} if token is None else {"HF_TOKEN": token})
        with files.with_suffix(".stdout").open("w") as stdout, files.with_suffix(".stderr").open("w") as stderr:
            command = [self.programs.folder / "liere-hf", *map(str, argv)]
            process = subprocess.Popen(command, env=environment, cwd=self.directory, stdout=stdout, stderr=stderr)
        return process, files

    def wait(self, started: tuple[subprocess.Popen, Path]) -> Result:
        process, files = started
        process.wait(timeout=240)
        stdout, stderr = (files.with_suffix(f".{name}").read_text() for name in ("stdout", "stderr"))
        return Result(process.returncode, stdout, stderr)

    def run(self, *argv: object, token: str | None = None) -> Result:
        return self.wait(self.start(*argv, token=token))

    def close(self) -> None:
        shutil.rmtree(self.directory)
        shutil.rmtree(self.home, ignore_errors=True)
