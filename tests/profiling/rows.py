"""What a recorded row says of its step."""

from __future__ import annotations

from typing import Any

from utils.profiling.memory import Setup


def setup_of(row: dict[str, Any]) -> Setup:
    """The Setup that a row of a record was measured with."""
    fields = dict(row["setup"])
    if isinstance(fields["target_modules"], list):
        fields["target_modules"] = tuple(fields["target_modules"])
    return Setup(**fields)
