"""Writes requirements.lock: the exact version of every package that the course installs, torch aside.

    python -m tools.lock            the newest versions that pyproject.toml admits
    python -m tools.lock --check    changes nothing; fails if the lock no longer answers to pyproject.toml

The resolving is done by uv, in a throw-away environment. torch takes part in it at the version that start.py
pins, so that everything fits it, but neither torch nor the CUDA packages below it are written down: start.py
installs torch itself, as the CPU or the CUDA build, and the same lock serves both. One version is chosen for
every Python and every platform; where a package is needed on some of them only, its line says so.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

from utils.start.torch_build import TORCH

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
UV = "uv==0.13.9"
OLDEST_PYTHON = "3.11"
EVERYWHERE = ("--universal", "--python-version", OLDEST_PYTHON, "--fork-strategy", "fewest")
LOCKED_EXTRAS = ("lab", "dev")

# torch brings these along, and another build of torch brings others.
WITH_TORCH = re.compile(r"^(torch|triton|pytorch-triton|cuda-[a-z-]+|nvidia-[a-z0-9-]+)==")

# uv locks for Python in the browser too, where the course doesn't run.
IN_THE_BROWSER = "sys_platform == 'emscripten'"

HEADER = """\
# Written by tools/lock.py (`make lock`) from pyproject.toml: don't edit.
# torch {torch} and its CUDA packages are left out: start.py installs the build that fits the machine.
"""


def requirements(pyproject: dict, torch: str | None = None) -> list[str]:
    """Lists what is to be resolved: the dependencies, two extras, the build backend, torch's pin if given."""
    project = pyproject["project"]
    extras = [line for name in LOCKED_EXTRAS for line in project["optional-dependencies"][name]]
    pin = [f"torch=={torch}"] if torch else []
    return [*project["dependencies"], *extras, *pyproject["build-system"]["requires"], *pin]


def pins_to_keep(lines: Iterable[str]) -> list[str]:
    """Drops torch, what comes with one build of it, and what only a browser needs; sorts the other pins."""
    pins = (line for line in lines if "==" in line and not line.startswith("#"))
    return sorted(pin for pin in pins if not WITH_TORCH.match(pin) and IN_THE_BROWSER not in pin)


def resolve(wanted: list[str], keep: Path | None = None, how: Sequence[str] = EVERYWHERE) -> list[str]:
    """Asks uv for one pin of each package that `wanted` needs, itself included.

    `keep` is a lock whose versions stay wherever they still fit. `how` are uv's options; left out, they ask for pins
    that serve every Python and every platform. Raises
    :class:`subprocess.CalledProcessError` when nothing fits or no index can be reached; uv has then said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        subprocess.run([sys.executable, "-m", "venv", scratch / "uv"], check=True)
        binaries = scratch / "uv" / ("Scripts" if os.name == "nt" else "bin")
        subprocess.run([binaries / "python", "-m", "pip", "install", "-q", UV], check=True)
        (scratch / "requirements.in").write_text("\n".join(wanted) + "\n")
        if keep is not None:
            (scratch / "requirements.txt").write_bytes(keep.read_bytes())
        # fmt: off
        command = [binaries / "uv", "pip", "compile", "requirements.in", "--output-file", "requirements.txt",
                   *how, "--no-annotate", "--no-header", "--quiet"]
        # fmt: on
        subprocess.run(command, cwd=scratch, check=True)
        return (scratch / "requirements.txt").read_text().splitlines()


def main() -> int:
    """Writes the lock, or with ``--check`` compares; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the lock would change")
    options = parser.parse_args()
    torch = TORCH.partition("==")[2]
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    resolved = resolve(requirements(pyproject, torch), keep=LOCK if options.check else None)
    pins = pins_to_keep(resolved)
    text = HEADER.format(torch=torch) + "\n".join(pins) + "\n"
    if options.check:
        if LOCK.read_text(encoding="utf-8") == text:
            print(f"{LOCK.name} answers to pyproject.toml.")
            return 0
        print(f"{LOCK.name} doesn't answer to pyproject.toml any more; write it again with: make lock")
        return 1
    temporary = LOCK.with_suffix(".lock.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(LOCK)
    print(f"{LOCK.name}: {len(pins)} packages, beside torch {torch}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
