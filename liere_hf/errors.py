"""Errors for people: one sentence each, which the command line prints without a traceback."""


class InputError(ValueError):
    """Bad input: the sentence is for the person who gave it."""


class RunError(RuntimeError):
    """A run that cannot go on, through no fault of its input: the sentence says what is left and what to do."""


def sentence(error: InputError | RunError) -> str:
    """What an error says; one that comes out of a worker process brings a traceback along, which is left out."""
    return str(error).strip().splitlines()[-1].removeprefix(f"{InputError.__module__}.{InputError.__name__}: ")
