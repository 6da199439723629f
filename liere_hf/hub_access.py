"""Models by directory or Hub id: what a name can be, and no waiting for a Hub that cannot be reached."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, is_offline_mode
from huggingface_hub.errors import GatedRepoError, HFValidationError
from huggingface_hub.utils import get_session, validate_repo_id

from .errors import InputError

# Seconds until the Hub counts as out of reach.
TIMEOUT = 10


def is_path(name: str) -> bool:
    """Whether a name is a path of this machine, existing or not, rather than the id of a repository."""
    return Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/")


def require_directory_or_hub_id(kind: str, name: str) -> None:
    """
    Args:
        kind: of what the name is, for the sentence.

    Raises:
        InputError: the name is a path without a directory, or cannot be the id of a repository.
    """
    if Path(name).is_dir():
        return
    if is_path(name):
        raise InputError(f"{kind} {name} is not a directory")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"{kind} {name!r} is neither a directory nor the id of a repository on the Hub") from error


@contextmanager
def hub_or_cache(kind: str, name: str) -> Iterator[None]:
    """Loading of a directory or Hub id. Without a connection, the Hub's cache is read at once, after one attempt.

    The libraries repeat each of several requests five times, half a minute each.

    Raises:
        InputError: the name is neither, it needs access that the user does not have, or what it names is not in the
            cache and the Hub is out of reach.
    """
    require_directory_or_hub_id(kind, name)
    if Path(name).is_dir():
        yield
        return
    was_offline = is_offline_mode()
    constants.HF_HUB_OFFLINE = was_offline or not _is_reachable(constants.ENDPOINT)
    try:
        yield
    except OSError as error:
        if _is_gated(error):
            raise InputError(
                f"{kind} {name} is gated: accept its terms at {constants.ENDPOINT}/{name}, then log in with hf auth "
                "login or set HF_TOKEN"
            ) from error
        if not is_offline_mode():
            raise
        reason = "HF_HUB_OFFLINE is set" if was_offline else f"{constants.ENDPOINT} cannot be reached"
        raise InputError(f"{kind} {name} is not a directory, is not in the Hub's cache, and {reason}") from error
    finally:
        constants.HF_HUB_OFFLINE = was_offline


def _is_gated(error: BaseException | None) -> bool:
    """transformers raises its own errors from those of the Hub."""
    return error is not None and (isinstance(error, GatedRepoError) or _is_gated(error.__cause__))


@functools.cache
def _is_reachable(endpoint: str) -> bool:
    try:
        get_session().head(endpoint, timeout=TIMEOUT)
    # The library of the session, and with it the errors, changes between versions.
    except Exception:
        return False
    return True
