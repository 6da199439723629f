"""Errors whose message is one sentence for the user; the command line prints them without a traceback."""

from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: the message names it, and what is allowed."""


class RunError(RuntimeError):
    """A run that cannot continue although its input is valid: the message says what it leaves and what to do."""


class TrainingInterruptedError(Exception):
    """A run that a signal has stopped early.

    Attributes:
        can_resume: whether the run can continue from a checkpoint of its last step.
    """

    def __init__(self, message: str, can_resume: bool):
        super().__init__(message)
        self.can_resume = can_resume


def sentence(error: InputError | RunError) -> str:
    """The message of an error, without the traceback that one from a worker process carries."""
    return str(error).strip().splitlines()[-1].removeprefix(f"{InputError.__module__}.{InputError.__name__}: ")


def first_names(names: Iterable[str]) -> str:
    """Three names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
