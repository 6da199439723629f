"""Real processes that start immediately: forks of a process that has imported what they need.

Importing torch, transformers and datasets takes seconds, and many tests need processes of their own: for signals, exit
codes, several ranks. A folder of programs with the same names comes first on PATH. Each program passes its arguments,
directory, environment and streams to the process that has imported the libraries, which forks. It forwards signals
and exits as the fork does.

Settings that libraries read on import are the same for all forks: the Hub's URL, the cache directories.
"""

import array
import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import random
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

EVERYTHING = (
    "accelerate.commands.launch",
    "liere_hf.conversion",
    "liere_hf.evaluation",
    "liere_hf.releases",
    "liere_hf.reproduction.reproduce",
    "liere_hf.training.run",
    "sklearn.datasets",
    "torch.distributed.run",
)
# For processes that must import transformers and liere_hf themselves.
ONLY_TORCH = ("torch", "torchvision")
NAMES = ("python", "liere-hf", "hf", "accelerate", "torchrun")
# Signals that the programs forward. SIGKILL cannot be forwarded, but a fork ends with its program.
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

PROGRAM = """#!{python} -SE
import array, json, os, signal, socket, sys

order = {{"name": "{name}", "argv": sys.argv[1:], "directory": os.getcwd(), "environment": dict(os.environ)}}
order = json.dumps(order).encode()
server = socket.socket(socket.AF_UNIX)
server.connect("{address}")
# Signals wait until it is known where they go.
signal.pthread_sigmask(signal.SIG_BLOCK, {signals})
streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
server.sendmsg([len(order).to_bytes(4, "big")], streams)
server.sendall(order)
pid = int.from_bytes(server.recv(4), "big")
for number in {signals}:
    signal.signal(number, lambda number, frame: os.kill(pid, number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signals})
code = os.waitstatus_to_exitcode(int.from_bytes(server.recv(4), "big"))
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


class PreloadedPrograms:
    """Programs whose processes are forks of a `python` that has imported `modules` in an environment."""

    def __init__(
        self,
        environment: Mapping[str, str],
        modules: Sequence[str] = EVERYTHING,
        python: str | Path = sys.executable,
    ):
        self.folder = Path(tempfile.mkdtemp(prefix="preloaded-"))
        address, signals = self.folder / "socket", tuple(map(int, SIGNALS))
        for name in NAMES:
            program = self.folder / name
            program.write_text(PROGRAM.format(python=sys.executable, name=name, address=address, signals=signals))
            program.chmod(0o700)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(address))
            # Clients that connect before all imports are done wait.
            listener.listen(256)
            self._process = subprocess.Popen(
                [python, __file__, str(listener.fileno()), str(self.folder), *modules],
                env=dict(environment),
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
            )

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        shutil.rmtree(self.folder)


_started: dict[Sequence[str], PreloadedPrograms] = {}


def programs(modules: Sequence[str] = EVERYTHING) -> PreloadedPrograms:
    """Those of the tests' own environment; the process starts when the first test needs it."""
    if modules not in _started:
        _started[modules] = PreloadedPrograms(os.environ, modules)
    return _started[modules]


def close_all() -> None:
    """End the processes of `programs`."""
    for programs in _started.values():
        programs.close()


def preloaded(name: str, modules: Sequence[str] = EVERYTHING) -> str:
    """Path of a program from NAMES."""
    return str(programs(modules).folder / name)


def serve(listener: socket.socket, folder: Path, modules: Sequence[str]) -> Callable[[], None]:
    """Fork for each request until standard input ends. Returns only in the forks, with their request."""
    for module in modules:
        importlib.import_module(module)
    gc.freeze()
    wake, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    clients: dict[socket.socket, int] = {}
    while True:
        readable, _, _ = select.select([listener, sys.stdin, wake, *clients], [], [])
        if listener in readable:
            client, _ = listener.accept()
            order, streams = _receive(client)
            clients[client] = os.fork()
            if clients[client] == 0:
                signal.set_wakeup_fd(-1)
                for descriptor in (wake, wakeup, listener.detach(), *(each.detach() for each in clients)):
                    os.close(descriptor)
                return _work(order, streams, folder)
            for stream in streams:
                os.close(stream)
            client.sendall(clients[client].to_bytes(4, "big"))
        for client in clients.keys() & readable:
            # Clients send nothing after their request, so this one has ended.
            os.kill(clients[client], signal.SIGKILL)
            os.waitpid(clients.pop(client), 0)
        if wake in readable:
            os.read(wake, 4096)
            for client, pid in [*clients.items()]:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    with contextlib.suppress(OSError), client:
                        client.sendall(status.to_bytes(4, "big"))
                    del clients[client]
        if sys.stdin in readable:
            os._exit(0)


def _receive(client: socket.socket) -> tuple[dict, list[int]]:
    """The client's request and the file descriptors of its streams."""
    streams = array.array("i")
    message, ancillary, _, _ = client.recvmsg(4, socket.CMSG_LEN(3 * streams.itemsize))
    for _, _, data in ancillary:
        streams.frombytes(data)
    order = client.makefile("rb").read(int.from_bytes(message, "big"))
    return json.loads(order), streams.tolist()


def _work(order: dict, streams: list[int], folder: Path) -> Callable[[], None]:
    """Become the requested process."""
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(order["directory"])
    os.environ.clear()
    os.environ.update(order["environment"])
    # Its subprocesses also start immediately, and no two processes share random state.
    sys.executable = str(folder / "python")
    random.seed()
    sys.modules["numpy"].random.seed()
    if order["name"] != "python":
        program = str(Path(sys.orig_argv[0]).parent / order["name"])
        sys.argv = [program, *order["argv"]]
        return functools.partial(runpy.run_path, program, run_name="__main__")
    return _python(order["argv"])


def _python(argv: list[str]) -> Callable[[], None]:
    """What `python ARGV` does."""
    while argv and argv[0] in ("-u", "-E", "-s"):
        argv = argv[1:]
    sys.path[0] = ""
    if argv and argv[0] == "-m":
        sys.argv = argv[1:]
        return functools.partial(runpy.run_module, argv[1], run_name="__main__", alter_sys=True)
    if argv and argv[0] not in ("-", "-c"):
        sys.argv, sys.path[0] = argv, str(Path(argv[0]).parent)
        return functools.partial(runpy.run_path, argv[0], run_name="__main__")
    text, sys.argv = (argv[1], ["-c", *argv[2:]]) if argv and argv[0] == "-c" else (sys.stdin.read(), ["-"])
    sys.modules["__main__"] = module = ModuleType("__main__")
    return functools.partial(exec, compile(text, "<string>", "exec"), vars(module))


if __name__ == "__main__":
    ended = {"code": 0}

    @atexit.register
    def end() -> None:
        """Exit after all other exit handlers, without tearing down the modules one by one, which takes longer."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended["code"])

    work = serve(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]), sys.argv[3:])
    try:
        work()
    except SystemExit as exit_:
        ended["code"] = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        raise
    except BaseException:
        ended["code"] = 1
        raise
