"""What the build needs and the course doesn't: Sphinx in .venv-site, MathJax in site/node_modules.

Both are made once, and anew when their lock changes.

Attributes:
    PYTHON_LOCK, NODE_LOCK: The exact versions of both. `python -m tools.site lock` writes the first, npm the second.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tools.lock import resolve

PYTHON_LOCK, NODE_LOCK = "site/requirements.lock", "site/package-lock.json"
HEADER = "# Written by `python -m tools.site lock` from the extra `site` of pyproject.toml: don't edit.\n"


class SetUpError(Exception):
    """What the build needs can't be had; the text says what."""


def python_of(root: Path) -> Path:
    """The Python that has Sphinx."""
    return root / ".venv-site" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _mark(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()


def _has(folder: Path, lock: Path) -> bool:
    mark = folder / ".installed-from"
    return mark.exists() and mark.read_text() == _mark(lock)


def missing(root: Path) -> list[str]:
    """Which of the two aren't there, or aren't what the locks say."""
    there = {PYTHON_LOCK: root / ".venv-site", NODE_LOCK: root / "site" / "node_modules"}
    return [lock for lock, folder in there.items() if not _has(folder, root / lock)]


def _run(command: list[str], folder: Path, what: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise SetUpError(f"{what} failed: {last}")


def set_up(root: Path) -> None:
    """Make what is missing of the two. Raises SetUpError where pip or npm can't."""
    wanted = missing(root)
    if PYTHON_LOCK in wanted:
        home = root / ".venv-site"
        shutil.rmtree(home, ignore_errors=True)
        print(f"{home.name}: Sphinx, as {PYTHON_LOCK} has it", flush=True)
        _run([sys.executable, "-m", "venv", str(home)], root, "making .venv-site")
        install = [str(python_of(root)), "-m", "pip", "install", "--quiet", "--no-deps", "-r", PYTHON_LOCK]
        _run(install, root, "pip install")
        (home / ".installed-from").write_text(_mark(root / PYTHON_LOCK))
    if NODE_LOCK in wanted:
        npm = shutil.which("npm")
        if npm is None:
            raise SetUpError("there is no npm: install Node.js 20 or newer")
        print("site/node_modules: MathJax and axe-core, as site/package-lock.json has them", flush=True)
        _run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], root / "site", "npm ci")
        (root / "site" / "node_modules" / ".installed-from").write_text(_mark(root / NODE_LOCK))


def lock(root: Path) -> int:
    """Write the exact versions of what the extra `site` needs; gives their number."""
    pyproject = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    resolved = resolve(pyproject["project"]["optional-dependencies"]["site"])
    pins = sorted(line for line in resolved if "==" in line and "emscripten" not in line)
    (root / PYTHON_LOCK).write_text(HEADER + "\n".join(pins) + "\n", encoding="utf-8")
    return len(pins)
