"""The command line of start.py: which command, which build of torch, and what goes on to JupyterLab.

Attributes:
    COMMANDS: The words that start.py knows; without one it opens JupyterLab.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.start.venv import python_of
from utils.start.words import Trouble

COMMANDS = ("update", "reset", "progress", "setup", "test")

# What people write for what we call otherwise; an empty text is no word at all.
_MEANT = {
    "help": "--help",
    "lab": "",
    "open": "",
    "notebook": "",
    "install": "setup",
    "upgrade": "update",
    "pull": "update",
}
_MEANT |= {"status": "progress", "check": "test"}


@dataclass(frozen=True)
class Line:
    """What a command line says.

    command: one of COMMANDS, "lab" or "help". torch: "cpu", "cuda" or None. rest: the words that JupyterLab gets, or
    those that belong to the command.
    """

    command: str
    torch: str | None = None
    rest: tuple[str, ...] = ()


def parse(arguments: Sequence[str]) -> Line:
    """Read a command line.

    Options that start.py doesn't know are JupyterLab's, with the words that follow the first of them, and so is all
    that follows ``--``. Raises Trouble for an unknown word, for both builds of torch at once, and for words that a
    command doesn't take.
    """
    words, labs = list(arguments), []
    if "--" in words:
        at = words.index("--")
        words, labs = words[:at], words[at + 1 :]
    if "-h" in words or "--help" in words:
        return Line("help")
    builds = [name for name in ("cpu", "cuda") if f"--{name}" in words]
    if len(builds) == 2:
        raise Trouble("--cpu and --cuda exclude each other; leave one of them out.")
    words = [word for word in words if word not in ("--cpu", "--cuda")]
    command = "lab"
    if words and not words[0].startswith("-"):
        command = words.pop(0)
        if command not in COMMANDS:
            raise Trouble(_unknown(command))
    torch = builds[0] if builds else None
    if command == "lab":
        return Line("lab", torch, (*words, *labs))
    words += labs
    if torch and command not in ("setup", "test"):
        raise Trouble(f"`start.py {command}` installs nothing, so it takes no --{torch}.")
    if words and command in ("setup", "test"):
        pytest = f"{python_of(Path('.venv'))} -m pytest tests/FILE"
        raise Trouble(
            f"`start.py {command}` takes no option but --cpu or --cuda, and got {words[0]}"
            + (f"; for single tests run: {pytest}" if command == "test" else ".")
        )
    if command == "update" and (len(words) > 1 or words and words[0].startswith("-")):
        raise Trouble(f"`start.py update` takes a folder or a zip file of the course, or nothing, and got {words[-1]}.")
    if command == "reset" and len(words) != 1:
        raise Trouble("`start.py reset` takes the chapter's number, as in: python3 start.py reset 03")
    return Line(command, torch, tuple(words))


def _unknown(word: str) -> str:
    close = difflib.get_close_matches(word.lower(), [*COMMANDS, *_MEANT], n=1)
    if not close:
        return f"There is no command {word!r}; `python3 start.py --help` lists what there is."
    meant = _MEANT.get(close[0], close[0])
    alone = ", without a word after it, which opens JupyterLab" if not meant else ""
    mean = f"did you mean {meant or 'python3 start.py'}{alone}?"
    return f"There is no command {word!r}; {mean} `--help` lists what there is."
