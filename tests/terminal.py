"""Commands in a terminal: what stands on its screen while they run, and at the end."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Sequence
from typing import NamedTuple

import pyte

COLUMNS, LINES = 80, 400
# A description and the bar itself; the lines of tables do not begin with words.
BAR = re.compile("[A-Z][a-z ]+ [\N{BOX DRAWINGS HEAVY HORIZONTAL}\N{BOX DRAWINGS HEAVY LEFT}]")

ERASED = re.compile(rb"(?=\r?\x1b\[2K)")


class Shown(NamedTuple):
    """What a command showed.

    Attributes:
        lines: on the screen at the end, without those that are empty.
        bars: the lines with bars that were seen at any time.
        most_bars: the largest number of bars at once.
    """

    code: int
    lines: list[str]
    bars: set[str]
    most_bars: int


def run_in_terminal(command: Sequence[str], **options) -> Shown:
    """Run a command whose streams are a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        environment.pop(name, None)
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, **options)
    os.close(theirs)
    screen = pyte.Screen(COLUMNS, LINES)
    stream, on_screen, bars, most_bars = pyte.ByteStream(screen), {}, set(), 0
    while content := _read(ours):
        # A slow reader gets several drawings at once; each begins by erasing the line of the former.
        for drawing in ERASED.split(content):
            stream.feed(drawing)
            # `screen.display` renders all lines anew.
            for number in screen.dirty:
                line = "".join(screen.buffer[number][column].data for column in range(COLUMNS)).rstrip()
                on_screen[number] = line if BAR.match(line) else None
            screen.dirty.clear()
            found = {number: line for number, line in on_screen.items() if line}
            bars |= {*found.values()}
            most_bars = max(most_bars, len(found))
    os.close(ours)
    return Shown(process.wait(), [line.rstrip() for line in screen.display if line.strip()], bars, most_bars)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:
        # Linux ends the terminal of a process that has ended with an error.
        return b""
