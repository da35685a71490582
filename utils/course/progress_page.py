"""What ``python3 start.py progress`` prints: the course, or one chapter, with what the learner has passed.

The exercises and the chapters' titles are read from ``lessons/``, so that a bare Python can print it.

Attributes:
    WIDTH: The page's columns.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from utils.course.progress import (
    STRICT_VARIABLE,
    VARIABLE,
    Entry,
    Unreadable,
    called,
    course_line,
    described,
    forget,
    load,
    place,
    strict,
)

WIDTH = 80
BAR = 10
TITLE = re.compile(r"(?m)^# Chapter \d+: (.+)$")
CELL = re.compile(r"(?ms)^```python[^\n]*\n(.*?)^```[ \t]*$")
CHECK = re.compile(r"""(?<![\w.])check\(\s*["']([a-z][a-z0-9_]*)["']""")


class Refused(ValueError):
    """There is no such page; the text says to the learner what to write instead."""


@dataclass(frozen=True)
class Chapter:
    """A lesson: its number of two digits, its title, and the names of its exercises in their order."""

    number: str
    title: str
    exercises: tuple[str, ...]


def chapters(root: Path) -> list[Chapter]:
    """The chapters of the course in `root`, from its lessons."""
    found = []
    for path in sorted((root / "lessons").glob("[0-9][0-9]_*.md")):
        text = path.read_text(encoding="utf-8")
        title = TITLE.search(text)
        names = dict.fromkeys(CHECK.findall("\n".join(CELL.findall(text))))
        found.append(Chapter(path.name[:2], title[1] if title else path.stem[3:], tuple(names)))
    return found


def answer(root: Path, words: list[str]) -> str:
    """The text for ``start.py progress`` with these `words` after it: none, a chapter's number, or --forget.

    Raises `Refused` for other words and where there is nothing to show, and OSError for a file that can't be opened or
    deleted.
    """
    path = place(root)
    if path is None:
        why = f"{STRICT_VARIABLE} is set" if strict() else f"{VARIABLE} is off"
        raise Refused(f"No progress is kept or shown while {why}; unset it and run the same command again.")
    if words == ["--forget"]:
        gone = ", ".join(called(file, root) for file in forget(path))
        return (
            f"Deleted {gone}: every exercise counts as not tried." if gone else "No progress was kept: nothing to do."
        )
    course = chapters(root)
    wanted = [chapter for chapter in course if [chapter.number] == [word.zfill(2) for word in words]]
    if words and not wanted:
        known = f"{course[0].number} to {course[-1].number}" if course else "none"
        raise Refused(
            f"`start.py progress` takes a chapter's number ({known}) or --forget, and got {' '.join(words)}; for the "
            "whole course leave it out."
        )
    try:
        entries = load(path)
    except Unreadable as problem:
        raise Refused(
            f"{called(path, root)} {problem}; the next check of an exercise sets it aside and begins a new one, "
            "`start.py progress --forget` deletes it."
        ) from None
    if not entries:
        return "No exercise has been checked yet. Open a notebook, solve one and run the cell with its check."
    page = chapter_page(wanted[0], entries) if wanted else course_page(course, entries)
    kept = f"Kept in {called(path, root)}: names of exercises and results, nothing about you or this machine."
    return f"{page}\n\n{_filled(kept)}\nTo delete it: python3 start.py progress --forget"


def course_page(course: list[Chapter], entries: dict[str, Entry]) -> str:
    """A line for each chapter, and below it what is open in one that was begun."""
    lines = [course_line([name for chapter in course for name in chapter.exercises], entries), ""]
    room = WIDTH - len(f"00    [{'#' * BAR}] 00/00 0000 tries")
    for chapter in course:
        names = chapter.exercises
        still = [name for name in names if not described(None, entries.get(name))[1]]
        passed = len(names) - len(still)
        full = BAR * passed // max(len(names), 1)
        title = chapter.title if len(chapter.title) <= room else chapter.title[: room - 3] + "..."
        line = f"{chapter.number}  {title:<{room}}  [{'#' * full:-<{BAR}}] {passed:>2}/{len(names):<2}"
        tries = sum(entries[name].tries for name in names if name in entries)
        lines.append((line + (f" {tries:>4} {'try' if tries == 1 else 'tries'}" if tries else "")).rstrip())
        if still and any(name in entries for name in names):
            lines.append(_filled("open: " + ", ".join(still), indent=4))
    return "\n".join([*lines, "", "One chapter, exercise by exercise: python3 start.py progress 03"])


def chapter_page(chapter: Chapter, entries: dict[str, Entry]) -> str:
    """A line for each exercise of a chapter: its state and its tries."""
    rows = [(name, *described(None, entries.get(name))) for name in chapter.exercises]
    width = max([len("exercise"), *(len(name) for name, _, _ in rows)])
    column = max([len("state"), *(len(state) for _, state, _ in rows)])
    passed = sum(counts for *_, counts in rows)
    head = f"Chapter {int(chapter.number)}: {chapter.title}. {passed} of {len(rows)} exercises passed."
    lines = [_filled(head), "", f"{'exercise':<{width}}  {'state':<{column}}  tries"]
    for name, state, _ in rows:
        lines.append(f"{name:<{width}}  {state:<{column}}  {entries.get(name, Entry()).tries:>5}")
    return "\n".join(lines)


def _filled(text: str, indent: int = 0) -> str:
    """`text` in lines of the page's width; a long path stays whole."""
    first, rest = " " * indent, " " * (indent + 6 if indent else 0)
    return textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
