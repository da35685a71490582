"""What each command of start.py does, and how trouble is told."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from utils.course.progress_page import Refused, answer
from utils.start import notebooks
from utils.start.command_line import parse
from utils.start.failures import not_allowed
from utils.start.lab import open_lab
from utils.start.set_up import set_up
from utils.start.testing import run_tests
from utils.start.venv import UNFINISHED
from utils.start.words import AGAIN, Trouble, say


def main(arguments: Sequence[str], home: Path, usage: str) -> int:
    """Do what the command line says; the exit code. Trouble is told in one sentence."""
    try:
        return _run(arguments, home, usage)
    except Trouble as trouble:
        say(f"\n{trouble}")
    except PermissionError as error:
        at = Path(error.filename or home)
        why = not_allowed(at if at.exists() else at.parent)
        say(f"\n{why[0].upper()}{why[1:]}")
    except OSError as error:
        at = f" at {error.filename}" if error.filename else ""
        say(f"\nThe operating system refused{at} ({error.strerror or error}); mend that {AGAIN}")
    except KeyboardInterrupt:
        unfinished = (home / ".venv" / UNFINISHED).exists()
        say("\nStopped." + " The set-up isn't finished: the same command begins it again." * unfinished)
        return 130
    return 1


def _run(arguments: Sequence[str], home: Path, usage: str) -> int:
    line = parse(arguments)
    if line.command == "help":
        say(usage)
        return 0
    if line.command == "progress":
        try:
            say(answer(home, list(line.rest)))
        except Refused as refused:
            raise Trouble(str(refused)) from None
        return 0
    if line.command == "update":
        return notebooks.update(home, line.rest[0] if line.rest else None)
    if line.command == "reset":
        return notebooks.reset(home, line.rest[0])
    started = time.time()
    python = set_up(home, line.torch, os.environ)
    if line.command == "test":
        return run_tests(home, python, time.time() - started)
    notebooks.prepare(home)
    return 0 if line.command == "setup" else open_lab(home, python, line.rest)
