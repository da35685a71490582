"""The ways from one chapter's notebook to the others: the line under its opening, and the cell at its end.

Notebooks name their neighbours by file name alone, so the links hold in notebooks/, in solutions/, and wherever
else the chapters lie side by side; JupyterLab and GitHub follow them. Colab follows them as long as the notebook
comes from GitHub and not when it is a copy in Drive, so the list of chapters at the end has addresses of Colab's too.

A lesson links to another lesson, ``[chapter 4](04_a_lora_layer_from_scratch.md)``, which reads well in lessons/; its
notebook links to that lesson's notebook.

Attributes:
    WAYS: The id of the cell at the end.
    LESSON_FILE: The name of a lesson's file.
    TO_A_LESSON: A link to a lesson, but for its end: the lesson's name comes out of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

WAYS = "course-chapters"

LESSON_FILE = "[0-9][0-9]_*.md"
TO_A_LESSON = re.compile(r"(?<=\]\()(\d\d_\w+)\.md(?=[)#])")


@dataclass(frozen=True)
class Chapter:
    """A chapter as another one names it. stem: its files' name without an ending. title: without its number."""

    stem: str
    title: str

    @property
    def number(self) -> int:
        """As titles have it: 3."""
        return int(self.stem[:2])

    @property
    def notebook(self) -> str:
        """Its notebook's file, the same in each folder."""
        return f"{self.stem}.ipynb"


def chapters(root: Path) -> list[Chapter]:
    """The chapters of the course in `root`, in order: one for each lesson, named by the lesson's first heading."""
    found = []
    for path in sorted((root / "lessons").glob(LESSON_FILE)):
        heading = re.search(r"^# (?:Chapter \d+: )?(.*)$", path.read_text(encoding="utf-8"), re.M)
        found.append(Chapter(path.stem, heading[1].strip() if heading else path.stem))
    return found


def neighbours(stem: str, course: Sequence[Chapter]) -> tuple[Chapter | None, Chapter | None]:
    """The chapter before and the one after; None where there is none."""
    at = [chapter.stem for chapter in course].index(stem)
    return course[at - 1] if at else None, course[at + 1] if at + 1 < len(course) else None


def line(stem: str, course: Sequence[Chapter]) -> str:
    """Links to the previous and to the next chapter; empty for the only one."""
    before, after = neighbours(stem, course)
    links = [f"[← Chapter {before.number}: {before.title}]({before.notebook})"] if before else []
    links += [f"[Chapter {after.number}: {after.title} →]({after.notebook})"] if after else []
    return " · ".join(links)


def end(stem: str, course: Sequence[Chapter], other: tuple[str, str], page: Callable[[str], str]) -> str:
    """What stands at a notebook's end: the same line, the way to the chapter's other copy, and all chapters in a fold.

    Args:
        stem: the chapter.
        course: all of them.
        other: what the other copy is called here, and its folder.
        page: gives the address at which Colab opens the notebook of that name.
    """
    rows = []
    for chapter in course:
        title = f"**{chapter.title}**" if chapter.stem == stem else f"[{chapter.title}]({chapter.notebook})"
        rows.append(f"| {chapter.number} | {title} | [open in Colab]({page(chapter.notebook)}) |")
    called, folder = other
    to_other = f"[{called}](../{folder}/{stem}.ipynb)"
    return "\n".join([
        " · ".join(filter(None, [line(stem, course), to_other])),
        "",
        "<details><summary>All chapters</summary>",
        "",
        "| | chapter | |",
        "|---|---|---|",
        *rows,
        "",
        "</details>",
    ])  # fmt: skip


def to_notebooks(prose: str) -> str:
    """A lesson's prose with its links to other lessons leading to their notebooks."""
    return TO_A_LESSON.sub(r"\1.ipynb", prose)
