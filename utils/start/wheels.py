"""The course with its wheels beside it: for a room without a network.

Attributes:
    WHEELS: A folder beside start.py with every package: ``python -m tools.classroom pack`` makes it.
"""

from __future__ import annotations

from pathlib import Path

WHEELS = "wheels"


def where_from(home: Path) -> dict[str, str]:
    """pip's settings where the course comes with its wheels: it takes them and asks no package index."""
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": WHEELS} if (home / WHEELS).is_dir() else {}  # pip runs in `home`
