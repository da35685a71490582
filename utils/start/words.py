"""What start.py says: lines as they come, a line that counts, and trouble in one sentence.

Attributes:
    AGAIN: How a sentence ends that says what to mend.
"""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

AGAIN = "and run the same command again."


class Trouble(Exception):
    """Something for the person at the keyboard to mend; its text says in one sentence what and how."""


def say(text: str = "") -> None:
    """Print at once, so that lines stand in order with those of the programs that are started."""
    print(text, flush=True)


def last_line(text: str) -> str:
    """The last line that a program printed, where most of them say what went wrong."""
    return (text.strip() or "it did not say why").splitlines()[-1].strip()


def time_taken(seconds: float) -> str:
    """A time as one says it: "48 s", "3 min 12 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Line:
    """A line that is rewritten in place on a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()

    def rewrite(self, text: str) -> None:
        """Put `text` in the place of what the line holds."""
        width = shutil.get_terminal_size().columns - 1
        self.stream.write("\r" + text[:width].ljust(width))
        self.stream.flush()

    def end(self) -> None:
        """Wipe the line, so that the next one can stand in its place."""
        if self.live:
            self.rewrite("")
            self.stream.write("\r")
            self.stream.flush()


class Count(Line):
    """A line that counts. Where there is no terminal, it is printed at every tenth of the way."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self.total, self.tenth = max(total, 1), -1

    def show(self, done: int, what: str) -> None:
        """Show that `done` of the total are done and what is being worked on."""
        done = min(done, self.total)
        text = f"      {done:4d} of {self.total}  {what}"
        if self.live:
            self.rewrite(text)
        elif done * 10 // self.total > self.tenth:
            self.tenth = done * 10 // self.total
            self.stream.write(text.rstrip() + "\n")
            self.stream.flush()

    def end(self) -> None:
        """Wipe the line, and begin to count anew."""
        self.tenth = -1
        super().end()


class Doing(Line):
    """A line that says what is being done and for how many seconds. Where there is no terminal, it is printed once."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self.what, self.began = "", time.monotonic()

    def show(self, what: str = "") -> None:
        """Show what is being done; without `what`, that it still is."""
        if what and what != self.what:
            self.what, self.began = what, time.monotonic()
            if not self.live:
                self.stream.write(f"      {what}\n")
                self.stream.flush()
        if self.live and self.what:
            self.rewrite(f"      {self.what}, {time.monotonic() - self.began:.0f} s")
