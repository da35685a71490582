"""Tables for a spreadsheet, whatever learners are called."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from tools.build.stored import replace_text


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file in one step. It begins with the mark by which Excel knows UTF-8, and a text that a spreadsheet
    would run as a formula has an apostrophe before it."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerows([map(_harmless, row) for row in [header, *rows]])
    replace_text(path, "\ufeff" + text.getvalue())


def shown(text: str) -> str:
    """A text that any terminal and file can take: what can't be printed, as a byte that isn't UTF-8, is escaped."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _harmless(value: object) -> object:
    if not isinstance(value, str):
        return "" if value is None else value
    return f"'{shown(value)}" if value.lstrip().startswith(("=", "+", "-", "@")) else shown(value)
