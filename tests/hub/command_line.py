"""Commands of liere-hf in processes that start at once: forked off one that has imported everything.

What the libraries read when they are imported is the same for all: the address of the Hub, the home of the caches.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple


class Result(NamedTuple):
    code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


class CommandLine:
    """Runs commands, several at once if wanted, in the environment of a client."""

    def __init__(self, environment: dict[str, str]):
        self.directory = Path(tempfile.mkdtemp(prefix="command_line-"))
        self._count, self.home = 0, Path(environment["HF_HOME"])
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, text=True, cwd=self.directory
        )

    def start(self, *argv: object, token: str | None = None) -> int:
        """Start a command; the number is for `wait`."""
        self._count += 1
        order = {"argv": [*map(str, argv)], "token": token, "files": str(self.directory / str(self._count))}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._count

    def wait(self, number: int, seconds: float = 240) -> Result:
        files = self.directory / str(number)
        end = time.monotonic() + seconds
        while not files.with_suffix(".code").exists():
            assert time.monotonic() < end, f"no end after {seconds} s: {files.with_suffix('.stderr').read_text()}"
            time.sleep(0.02)
        return Result(*(json.loads(files.with_suffix(".code").read_text()), *self._printed(files)))

    def _printed(self, files: Path) -> tuple[str, str]:
        return files.with_suffix(".stdout").read_text(), files.with_suffix(".stderr").read_text()

    def run(self, *argv: object, token: str | None = None) -> Result:
        return self.wait(self.start(*argv, token=token))

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def serve() -> None:
    """Fork a process for each order on standard input."""
    for module in ("evaluation", "releases", "training.run"):
        importlib.import_module(f"liere_hf.{module}")
    from liere_hf_cli.main import main

    # Nobody waits for the forked ones.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        order = json.loads(line)
        if os.fork() == 0:
            _run(main, order)


def _run(main, order: dict) -> None:
    files, code = Path(order["files"]), -1
    for stream, suffix in ((1, ".stdout"), (2, ".stderr")):
        os.dup2(os.open(files.with_suffix(suffix), os.O_WRONLY | os.O_CREAT), stream)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if order["token"] is not None:
        os.environ["HF_TOKEN"] = order["token"]
    try:
        main(order["argv"])
    except SystemExit as exit_:
        code = exit_.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        done = files.with_suffix(".tmp")
        done.write_text(json.dumps(code))
        done.replace(files.with_suffix(".code"))
        os._exit(0)


if __name__ == "__main__":
    serve()
