"""Errors that are the input's fault."""


class InputError(ValueError):
    """Bad input: one sentence for the person who gave it, which the command line prints without a traceback."""
