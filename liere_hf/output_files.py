"""Files of results, written whole or not at all, in places that are checked before the work starts."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.utils.sha import sha_fileobj

from .errors import InputError


def require_writable_directory(option: str, directory: Path) -> None:
    """Check that files can be written into a directory, which need not exist yet. Leaves nothing behind.

    Raises:
        InputError: it is a file, or lies in a place that cannot be written to.
    """
    _require_writable(option, directory, [directory, *directory.absolute().parents])


def require_writable_file(option: str, path: Path | None) -> None:
    """Check that a file can be written. Leaves nothing behind.

    Raises:
        InputError: the path is a directory, or lies in a place that cannot be written to.
    """
    if path is not None:
        _require_writable(option, path, path.absolute().parents)


def _require_writable(option: str, path: Path, folders: Sequence[Path]) -> None:
    """Check that `path` can be created in the first of its `folders` that exists, which may be itself."""
    try:
        if path.is_dir() and path not in folders:
            raise InputError(f"{option} is {path}, which is a directory")
        existing = next(folder for folder in folders if folder.exists())
        if not existing.is_dir():
            raise InputError(f"{option} is {path}, but {existing} is not a directory")
        # Permissions do not tell for the superuser, read-only file systems and /proc.
        with tempfile.TemporaryDirectory(dir=existing):
            pass
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{option} is {path}, which cannot be written to ({reason})") from error


@contextmanager
def removed_unless_kept(directory: Path) -> Iterator[Callable[[], None]]:
    """Remove what appears in an absent or empty directory, and it and its parents if they were absent, after an error.

    Yields:
        A function that ends this: from its call on, everything stays.
    """
    missing = [path for path in (directory, *directory.absolute().parents) if not path.exists()]
    is_kept = not missing and any(directory.iterdir())

    def keep() -> None:
        nonlocal is_kept
        is_kept = True

    try:
        yield keep
    except BaseException:
        if not is_kept:
            for path in [missing[-1]] if missing else [*directory.iterdir()]:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        raise


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """A directory to fill, which becomes `directory` once it is complete; after an error nothing is left.

    Args:
        directory: one that does not exist yet.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 digest of a file."""
    with path.open("rb") as file:
        return sha_fileobj(file).hex()
