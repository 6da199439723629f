"""Progress of long work on a terminal: one bar at a time, below whatever is printed meanwhile."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

import datasets
import transformers
from huggingface_hub.utils import disable_progress_bars
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")
# Seconds between two drawings of a bar.
INTERVAL = 0.1


class ProgressBar:
    """A bar on standard error where that is a terminal, and nothing elsewhere.

    Work within work, such as an evaluation within a training, has its bar instead of the outer one, not below it.
    Texts and log messages appear above the bar on lines of their own. Nothing remains of it after `close`.

    It is drawn by the calls of its methods and not by a thread, so that processes can be forked meanwhile.

    Args:
        hidden: whether it is not shown on a terminal either.
    """

    def __init__(self, hidden: bool = False):
        console = Console(stderr=True)
        self.is_shown = console.is_terminal and not hidden
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            auto_refresh=False,
            transient=True,
            # A pipe gets what is printed at once, and without the bar.
            redirect_stdout=sys.stdout.isatty(),
            disable=not self.is_shown,
        )
        self._tasks: list[TaskID] = []
        self._followers: list[tuple[logging.StreamHandler, TextIO]] = []
        self._drawn_at = 0.0

    def begin(self, description: str, total: int | None, completed: int = 0) -> None:
        """Show a bar, in place of the one that is shown now."""
        if self._tasks:
            self._progress.update(self._tasks[-1], visible=False)
        else:
            self._start()
        self._tasks.append(self._progress.add_task(description, total=total, completed=completed, note=""))
        self._progress.refresh()

    def move(self, steps: int = 1, note: str | None = None) -> None:
        """Advance the bar that is shown. A note stands right of it until the next one."""
        self._progress.update(self._tasks[-1], advance=steps, **({} if note is None else {"note": note}))
        if time.monotonic() - self._drawn_at >= INTERVAL:
            self._progress.refresh()
            self._drawn_at = time.monotonic()

    def end(self) -> None:
        """Remove the bar that is shown. The one that it replaced returns."""
        self._progress.remove_task(self._tasks.pop())
        if self._tasks:
            self._progress.update(self._tasks[-1], visible=True, refresh=True)
        else:
            self._stop()

    def close(self) -> None:
        """Remove all bars."""
        while self._tasks:
            self.end()

    def _start(self) -> None:
        stderr, stdout = sys.stderr, sys.stdout
        self._progress.start()
        # What is written to the new streams appears above the bar. Handlers of logs hold the former ones.
        for before, now in ((stderr, sys.stderr), (stdout, sys.stdout)):
            for handler in _stream_handlers():
                if now is not before and handler.stream is before:
                    handler.setStream(now)
                    self._followers.append((handler, before))

    def _stop(self) -> None:
        for handler, stream in self._followers:
            handler.setStream(stream)
        self._followers.clear()
        self._progress.stop()


def tracked(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """The items, with a bar of how many have been used.

    Args:
        total: their number, if they have no length.
    """
    bar = ProgressBar()
    bar.begin(description, len(items) if total is None else total)
    try:
        for item in items:
            yield item
            bar.move()
    finally:
        bar.close()


def hide_library_bars() -> None:
    """Turn off the bars of the libraries: that of loading weights always, all of them where there is no terminal."""
    transformers.utils.logging.disable_progress_bar()
    if not Console(stderr=True).is_terminal:
        datasets.disable_progress_bars()
        disable_progress_bars()


def _stream_handlers() -> Iterator[logging.StreamHandler]:
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler):
                yield handler
