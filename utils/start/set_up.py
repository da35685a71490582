"""The set-up: .venv brought to what the lock, pyproject.toml and the wanted torch ask for."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from utils.start import torch_build
from utils.start.failures import explain
from utils.start.pip import pip
from utils.start.programs import run_quietly
from utils.start.torch_build import GIGABYTES, TORCH, torch_choice, torch_index
from utils.start.venv import STAMP, UNFINISHED, ask_about, make_environment, python_of, read_stamp, state_of
from utils.start.words import AGAIN, Count, Doing, Trouble, last_line, say, time_taken


def fingerprint(home: Path) -> str:
    """A hash of all that decides what gets installed, torch's build aside."""
    files = [home / "requirements.lock", home / "pyproject.toml"]
    return hashlib.sha256(b"\0".join([TORCH.encode(), *(file.read_bytes() for file in files)])).hexdigest()


def check_machine(home: Path, choice: str) -> None:
    """Raise Trouble when nothing could be installed here: no venv, no build of torch, no room."""
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise Trouble(
            "This Python can't make environments; on Debian and Ubuntu add what is missing with: sudo apt "
            f"install python{sys.version_info[0]}.{sys.version_info[1]}-venv (elsewhere with the Python from "
            f"https://www.python.org/) {AGAIN}"
        )
    torch_build.check_platform()
    need, free = GIGABYTES.get(choice, GIGABYTES["cpu"]), shutil.disk_usage(str(home)).free / 10**9
    if free < need:
        raise Trouble(f"About {need} GB are needed and {free:.1f} GB are free on the disk of {home}; make room {AGAIN}")


class Packages:
    """What pip says while it installs a lock, shown as a count with the name of the package that it is at.

    total: how many the lock holds. folders: where they are unpacked.
    """

    def __init__(self, total: int, folders: list[Path]) -> None:
        self.count, self.folders = Count(total), folders
        self.seen, self.there = 0, 0
        self.order: list[str] = []

    def on_line(self, line: str) -> None:
        """Show what a line of pip's tells."""
        named = re.match(r"(?:Collecting|Processing|Requirement already satisfied:|Ignoring) (\S+).*", line)
        loading = re.match(r"\s+Downloading (\w+)-\S+ ?(\(.*\))?", line)
        if named and ("(from -r" in line or line.startswith("Ignoring")):
            self.seen += 1
            self.count.show(self.seen, re.split(r"[-=<>!~\[]+|:", named[1].rsplit("/", 1)[-1])[0])
        elif loading:
            self.count.show(self.seen, f"{loading[1]} {loading[2] or ''}")
        elif "Retrying (" in line:
            self.count.show(self.seen, "no answer from the package index, trying again")
        elif line.startswith("Installing collected packages: "):
            self.count.end()
            self.there, self.order = self._installed(), line.split(": ", 1)[1].split(", ")
        elif self.order:
            done = self._installed() - self.there
            self.count.show(done, f"unpacking {self.order[min(max(done, 0), len(self.order) - 1)]}")

    def _installed(self) -> int:
        return sum(name.endswith(".dist-info") for folder in self.folders for name in os.listdir(folder))


def install_pins(home: Path, venv: Path) -> None:
    """Install requirements.lock, counting packages. The lock is complete, so nothing is resolved."""
    lock = home / "requirements.lock"
    pins = [line for line in lock.read_text(encoding="utf-8").splitlines() if "==" in line and line[0] != "#"]
    folders = list(venv.glob("Lib/site-packages" if os.name == "nt" else "lib/*/site-packages"))
    lines = Packages(len(pins), folders)
    code, said = pip(venv, "install", "--no-deps", "-r", str(lock), on_line=lines.on_line)
    lines.count.end()
    if code:
        raise Trouble(explain(said, "the course's packages", venv))


def install_torch(venv: Path, index: str | None, replace: bool) -> None:
    """Install torch from `index` (None: pip's own choice); `replace` takes another build out first."""
    doing = Doing()

    def on_line(line: str) -> None:
        loading = re.match(r"\s+Downloading (?:\S+/)?([A-Za-z0-9_]+)-\S+(?<!\.metadata) \((.*)\)", line)
        if loading:
            doing.show(f"downloading {loading[1]} ({loading[2]})")
        elif "Retrying (" in line:
            doing.show("no answer from the package index, trying again")
        elif line.startswith("Installing collected packages: "):
            names = line.split(": ", 1)[1].split(", ")
            doing.show(f"unpacking {names[-1]}" + (f" and {len(names) - 1} more" if len(names) > 1 else ""))
        elif not line:
            doing.show()

    if replace:
        pip(venv, "uninstall", "-y", "torch")
    source = ["--index-url", index] if index else []
    code, said = pip(venv, "install", TORCH, *source, on_line=on_line)
    doing.end()
    if code:
        raise Trouble(explain(said, "torch", venv))


def install_course(home: Path, venv: Path) -> None:
    """Install the repository itself, editable. Its kernel is the environment's own, python3."""
    code, said = pip(venv, "install", "--no-deps", "--no-build-isolation", "-e", str(home))
    if code:
        raise Trouble(explain(said, "the course itself", venv))


def try_torch(venv: Path) -> str:
    """Import torch once and say what it is, for example "2.13.0+cpu without a GPU". Raises Trouble."""
    code = "import torch as t; print(t.__version__, 'with' if t.cuda.is_available() else 'without', 'a GPU')"
    failed, said = run_quietly([str(python_of(venv)), "-W", "ignore", "-c", code])
    if failed:
        mend = "install Microsoft's Visual C++ Redistributable" if os.name == "nt" else "delete the folder .venv"
        raise Trouble(f"torch is installed but can't be imported ({last_line(said)}); {mend} {AGAIN}")
    return last_line(said)


def set_up(home: Path, option: str | None, environment: Mapping[str, str]) -> Path:
    """Bring .venv to what the lock, pyproject.toml and the wanted torch ask for; its Python's path.

    Does nothing when all is there. An environment that a set-up left unfinished, whose Python is gone or that
    was moved with its folder is made anew; one that somebody else made is asked about. Raises Trouble.
    """
    venv = home / ".venv"
    state, stamp = state_of(venv), read_stamp(venv)
    choice = torch_choice(option, environment, stamp.get("torch") if state == "ready" else None)
    index = torch_index(choice, platform.system())
    want = {"home": str(home), "torch": choice, "fingerprint": fingerprint(home)}
    if state == "ready" and stamp == want:
        say(f"The course is set up in {venv}; nothing to install.")
        return python_of(venv)
    if state == "broken":
        say(f"{venv} is unfinished, broken or was moved here: making it anew.")
    elif state == "foreign":
        state = ask_about(venv)
    started = time.time()
    if state in ("none", "broken"):
        check_machine(home, choice)
        say(f"Setting up the course in {venv}. This is done once and takes some minutes.")
        say("[1/4] a Python environment")
        make_environment(venv)
    else:
        say(f"Bringing {venv} up to date.")
        (venv / UNFINISHED).touch()
        (venv / STAMP).unlink(missing_ok=True)
    say("[2/4] the packages in requirements.lock")
    install_pins(home, venv)
    say(f"[3/4] {TORCH}, from {index or 'the index that pip is set to'}")
    install_torch(venv, index, replace=state == "ready" and stamp.get("torch") != choice)
    say("[4/4] the course itself")
    install_course(home, venv)
    found = try_torch(venv)
    temporary = venv / (STAMP + ".new")
    temporary.write_text(json.dumps(want, indent=2) + "\n", encoding="utf-8")
    temporary.replace(venv / STAMP)
    (venv / UNFINISHED).unlink()
    say(f"Set up in {time_taken(time.time() - started)}: torch {found}.")
    if choice == "cuda" and "without" in found:
        say("This CUDA build of torch finds no GPU that it can use; the course runs on the CPU all the same.")
    return python_of(venv)
