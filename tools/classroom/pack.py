"""The course in one folder with every wheel that it installs, for a room without a network.

What is packed is for machines like this one: the same system, processor and Python 3.x. Packed again on another kind of
machine into the same folder, the other wheels join the first ones. ``start.py`` finds the folder of wheels beside it
and asks no package index.

Attributes:
    GIGABYTES: So much room has to be free: the wheels take less than one.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tools.build.lesson import ROOT
from tools.classroom.release import Refused
from utils.start.torch_build import TORCH, torch_index
from utils.start.wheels import WHEELS

GIGABYTES = 2


def pack(folder: Path, say: Callable[[str], None] = print) -> None:
    """Copy the course into `folder` and download its wheels beside it.

    Raises `Refused` when the folder holds something else, when there is no room, and when pip can't get a wheel: then
    the same command goes on where it stopped.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "start.py").exists():
        raise Refused(f"{folder} holds something else: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < GIGABYTES * 10**9:
        raise Refused(f"about {GIGABYTES} GB are needed on the disk of {folder}: make room, or name another folder")
    for name in course_files():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    wheels = folder / WHEELS
    index = torch_index(os.environ.get("COURSE_TORCH_INDEX", "cpu"), platform.system())
    _wheels(wheels, "-r", str(ROOT / "requirements.lock"))
    _wheels(wheels, TORCH, *(["--index-url", index] if index else []))
    found = list(wheels.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in found) / 1e6
    say(f"{folder} holds the course and {len(found)} wheels, {size:,.0f} MB, for {kind_of_machine()}.")
    say("Copy it to each machine, with its folder wheels, and run in the copy: python3 start.py")


def course_files() -> list[str]:
    """The files of the course, from its folder: what git knows."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    names = [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]
    if done.returncode or not names:
        raise Refused(f"{ROOT} is no clone of the course that git can list: clone it, and pack the clone")
    return names


def kind_of_machine() -> str:
    """What the wheels fit: system, processor and Python."""
    return f"{platform.system()} {platform.machine()} with Python {sys.version_info[0]}.{sys.version_info[1]}"


def _wheels(folder: Path, *what: str) -> None:
    """Get wheels of exactly these packages; what comes as source only is built."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), *what]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
        raise Refused(f"pip could not get a wheel ({errors[-1]}); mend that and run the same command again")
