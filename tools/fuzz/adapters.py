"""Fuzz target: adapter folders, and the readers that load, merge, combine and serve them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from tools.fuzz.frame import Trial


def trial(draw: random.Random, folder: Path) -> Iterator[Trial]:
    """Damage one adapter and show it to every reader."""
    yield from ()
