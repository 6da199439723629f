"""Errors whose message is one sentence for the user; the command line prints them without a traceback."""


class InputError(ValueError):
    """Bad input: the message names it, and what is allowed."""


class RunError(RuntimeError):
    """A run that cannot continue although its input is valid: the message says what it leaves and what to do."""


def sentence(error: InputError | RunError) -> str:
    """The message of an error, without the traceback that one from a worker process carries."""
    return str(error).strip().splitlines()[-1].removeprefix(f"{InputError.__module__}.{InputError.__name__}: ")
