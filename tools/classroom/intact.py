"""Whether the course is still what it was while answers are judged: their code runs as the instructor.

Attributes:
    WATCHED: The folders whose files decide about points.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from tools.build.lesson import LEARNER, ROOT

WATCHED = ("utils", "tools", LEARNER)


def fingerprints(root: Path = ROOT) -> dict[str, str]:
    """A hash of each file in the watched folders, by its name; what Python compiled isn't among them."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in WATCHED
        for path in sorted((root / folder).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """The files that were changed, added or removed."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
