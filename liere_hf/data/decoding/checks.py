"""What is found out about a file before training."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ...errors import InputError


class Check(NamedTuple):
    """What makes a file unusable, and what is worth telling of one that is used; None for nothing.

    Remarks of one kind are equal up to their first colon.
    """

    fault: str | None = None
    remark: str | None = None


def check_by(read: Callable[[dict[str, Any]], Any], file: dict[str, Any]) -> Check:
    """A file is usable if a decoder raises no InputError."""
    try:
        read(file)
    except InputError as error:
        return Check(fault=reason(error))
    return Check()


def reason(error: InputError) -> str:
    """Why a file cannot be read, from an error of a decoder, which names the file first."""
    return str(error).partition(" cannot be read: ")[2] or str(error)
