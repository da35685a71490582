"""The course's environment, .venv: what is there, whose it is, and an empty one.

Attributes:
    STAMP: The file in .venv that says what a finished set-up installed.
    UNFINISHED: The file in .venv that is there while a set-up runs, and after one that was interrupted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from utils.start.failures import explain, not_allowed
from utils.start.programs import run_quietly
from utils.start.words import AGAIN, Trouble, last_line

STAMP = "lora-course.json"
UNFINISHED = "lora-course.unfinished"


def python_of(venv: Path) -> Path:
    """The path of an environment's Python."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def works(venv: Path, need: str = "sys") -> bool:
    """Whether an environment's Python starts, is new enough and can import the module `need`."""
    code = f"import sys, {need}; sys.exit(sys.version_info < (3, 11))"
    try:
        done = subprocess.run([str(python_of(venv)), "-c", code], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def read_stamp(venv: Path) -> dict[str, Any]:
    """What an earlier set-up installed; an empty dict when none finished here."""
    try:
        stamp = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def state_of(venv: Path) -> str:
    """Judge .venv: "none", "ready" (a set-up finished in it), "broken" (ours, and to be made anew) or "foreign".

    Raises Trouble when what is there is no environment, so that nothing of value is deleted.
    """
    if not venv.exists() or (venv.is_dir() and not any(venv.iterdir())):
        return "none"
    if (venv / UNFINISHED).exists():
        return "broken"
    stamp = read_stamp(venv)
    if stamp:  # the kernel and the scripts of a folder that was moved still name its old place
        return "ready" if stamp.get("home") == str(venv.parent) and works(venv) else "broken"
    if (venv / "pyvenv.cfg").exists() or works(venv):
        return "foreign"
    raise Trouble(f"{venv} is in the way and is no Python environment; move it elsewhere {AGAIN}")


def ask_about(venv: Path) -> str:
    """What is to be done with an environment that start.py didn't make: "foreign" (install into it) or "broken" (make
    it anew). Raises Trouble when it is to stay as it is, or when there is nobody to ask."""
    whose = f"{venv} is an environment that start.py did not make"
    if not sys.stdin or not sys.stdin.isatty():
        raise Trouble(f"{whose}, and there is no terminal to ask whether it may be changed; move it elsewhere {AGAIN}")
    usable = works(venv, need="pip")
    install = "[i]nstall the course into it, which replaces other versions of its packages, " if usable else ""
    answer = input(f"{whose}. {install}[d]elete it and make the course's own, or leave it as it is? [leave] ")
    answer = answer.strip().lower()[:1]
    if answer == "d":
        return "broken"
    if answer == "i" and usable:
        return "foreign"
    raise Trouble(f"{venv} is left as it is and nothing was installed; move it elsewhere {AGAIN}")


def make_environment(venv: Path) -> None:
    """Make an empty environment, marked as unfinished, in place of what may be there. Raises Trouble."""
    try:
        if venv.exists():
            shutil.rmtree(venv)
        venv.mkdir()
        (venv / UNFINISHED).touch()
    except PermissionError as error:
        if os.name == "nt" and venv.exists():
            raise Trouble(explain("WinError 5", "the environment", venv)) from None
        raise Trouble(f"{venv} can't be made: {not_allowed(Path(error.filename or venv).parent)}") from None
    except OSError as error:
        raise Trouble(
            f"{venv} can't be written anew ({error.strerror or error}); close JupyterLab and what else uses it {AGAIN}"
        ) from None
    base = getattr(sys, "_base_executable", None) or sys.executable  # not the one in the .venv just removed
    code, said = run_quietly([base, "-m", "venv", str(venv)])
    if code and shutil.disk_usage(str(venv)).free < 10**8:  # venv doesn't say so itself
        raise Trouble(explain("No space left on device", "the environment", venv))
    if code:
        raise Trouble(f"Python could not make {venv} ({last_line(said)}); mend that {AGAIN}")
