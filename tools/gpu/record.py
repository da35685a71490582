"""A record of measurements: a JSON file that says where, when and with what, and grows row by row.

The file is whole at every moment: each row rewrites it under another name, then renames it. A row has a key; a run that
was cut off goes on with the keys that are missing.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "triton")


def processor() -> str:
    """The processor's name as Linux says it, else what Python knows."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def hardware() -> str:
    """The GPU's name, or the processor's where there is no GPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()


def versions() -> dict[str, str]:
    """The versions of python and of what is installed of PACKAGES, and of CUDA where torch has it."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["torch"] = str(torch.__version__)
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def run_as() -> str:
    """The command that is running: `python -m` and its module, or the script's name."""
    main = sys.modules["__main__"].__spec__
    return f"python -m {main.name.removesuffix('.__main__')}" if main else Path(sys.argv[0]).name


def commit() -> str | None:
    """The commit that measures: COURSE_COMMIT where it is set, else what git says, else None."""
    if os.environ.get("COURSE_COMMIT"):
        return os.environ["COURSE_COMMIT"]
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


class Record:
    """The record at `path`, read back when it is there.

    `what` says what its rows are, `seed` what was seeded, `more` are further fields of the head. Raises ValueError when
    the file is another machine's or of other versions: rows of two machines don't belong together.
    """

    def __init__(self, path: str | Path, what: str, *, seed: int, **more: Any) -> None:
        self.path = Path(path)
        self.head: dict[str, Any] = {
            "what": what,
            "tool": run_as(),
            "hardware": hardware(),
            "versions": versions(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "commit": commit(),
            "seed": seed,
            **more,
        }
        self.rows: list[dict[str, Any]] = []
        if self.path.exists():
            found = json.loads(self.path.read_text(encoding="utf-8"))
            for field in ("hardware", "versions"):
                if found[field] != self.head[field]:
                    raise ValueError(
                        f"{self.path} was measured with {field} {found[field]!r}, and here it is {self.head[field]!r}: "
                        "move the file away or choose another --out"
                    )
            self.rows = found["rows"]

    def __contains__(self, key: str) -> bool:
        return any(row["key"] == key for row in self.rows)

    def add(self, key: str, **values: Any) -> None:
        """Append a row and write the file. Raises ValueError for a key that is there, and for what JSON can't hold."""
        if key in self:
            raise ValueError(f"{self.path} has a row {key!r} already")
        rows = [*self.rows, {"key": key, **values}]
        text = json.dumps(self.head | {"rows": rows}, indent=1, allow_nan=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_name(f".{self.path.name}-{os.getpid()}")
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, self.path)
        self.rows = rows
