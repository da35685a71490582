"""Grade what a class handed in, without nbgrader: the same judge, the same submissions, one table.

submitted/STUDENT/ch00/00_start_here.ipynb  ->  graded/STUDENT/ch00/00_start_here.ipynb, points.csv

nbgrader writes autograded/ and grades.csv; nothing of it is touched.

Attributes:
    LONGEST_NOTE: So many characters of an unforeseen error are shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from tools.build.stored import replace_text
from tools.classroom.intact import changed, fingerprints
from tools.classroom.judge import Limits, NotACourseNotebook, judge_notebook, official, read, write_verdicts
from tools.classroom.release import Refused, chapters
from tools.classroom.slices import code_cells
from tools.classroom.submissions import Submission, submissions
from tools.classroom.tables import shown, write_table
from utils.course.progress import PASSED

SUBMITTED, GRADED, POINTS = "submitted", "graded", "points.csv"
LONGEST_NOTE = 300


@dataclass(frozen=True)
class Grade:
    """One notebook's points. out_of: None when its chapter isn't known. note: why there are none, or what else lies
    beside it."""

    student: str
    assignment: str
    points: int
    out_of: int | None
    note: str = ""


def grade(folder: Path, limits: Limits | None = None, say: Callable[[str], None] = print) -> list[Grade]:
    """Judge every notebook in submitted/ and write it to graded/ with its verdicts, and all points to points.csv.

    What can't be graded gets a note and no points, and the rest goes on; the table is written after each notebook. What
    an earlier run graded is removed first. Raises `Refused` when nothing was submitted, and when the course's own files
    were changed by what was judged: whoever it was, and all after them, have no points then.
    """
    found = submissions(folder / SUBMITTED, chapters([]))
    if not found:
        raise Refused(f"nothing to grade: put the notebooks into {folder / SUBMITTED}/STUDENT/ch00/")
    for old in (folder / GRADED).glob("*/*/*.ipynb"):
        old.unlink()
    worth = {one.chapter: sum(_points(official(one.chapter)).values()) for one in found if one.chapter}
    before, damage = fingerprints(), []
    grades: list[Grade] = []
    for one in found:
        out_of = worth.get(one.chapter)
        if damage:
            note = "not graded: files of the course had been changed before."
            grades.append(Grade(one.student, one.assignment, 0, out_of, note))
        else:
            grades.append(_grade(one, out_of, folder / GRADED, limits))
            damage = changed(before, fingerprints())
            if damage:
                (folder / GRADED / one.student / one.assignment / one.chapter).unlink(missing_ok=True)
                note = f"files of the course were changed while this was judged: {', '.join(damage)}"
                grades[-1] = Grade(one.student, one.assignment, 0, out_of, note)
        write_grades(folder / POINTS, grades)
        say(line(grades[-1]))
    if damage:
        names = ", ".join(damage)
        raise Refused(f"files of the course were changed while grading: {names}; restore them and grade again")
    return grades


def _grade(one: Submission, out_of: int | None, graded: Path, limits: Limits | None) -> Grade:
    """Judge one submission; whatever it raises is a note on its row."""
    if one.path is None:
        return Grade(one.student, one.assignment, 0, out_of, one.note)
    try:
        notebook, course = read(one.path), official(one.chapter)
        verdicts = judge_notebook(notebook, course, one.path.parent.resolve(), limits)
        write_verdicts(notebook, course, verdicts)
        text = json.dumps(notebook, indent=1) + "\n"
        points = _points(course)
        got = sum(points[verdict.exercise] for verdict in verdicts if verdict.state == PASSED)
        replace_text(graded / one.student / one.assignment / one.chapter, text)
    except NotACourseNotebook as problem:
        return Grade(one.student, one.assignment, 0, out_of, str(problem))
    except Exception as problem:  # one learner's notebook doesn't end the class's grading
        said = " ".join(f"{type(problem).__name__}: {problem}".split())[:LONGEST_NOTE]
        return Grade(one.student, one.assignment, 0, out_of, f"can't be graded: {said}; look at it by hand")
    return Grade(one.student, one.assignment, got, out_of, one.note)


def _points(course: dict[str, Any]) -> dict[str, int]:
    return {cell.exercise: cell.points for cell in code_cells(course) if cell.role == "check"}


def write_grades(path: Path, grades: Sequence[Grade]) -> None:
    """The table: a line for each notebook, and after those of a learner their sum."""
    rows: list[tuple[object, ...]] = []
    for student, group in groupby(grades, key=lambda one: one.student):
        mine = list(group)
        rows += [(one.student, one.assignment, one.points, one.out_of, one.note) for one in mine]
        rows.append((student, "total", sum(one.points for one in mine), sum(one.out_of or 0 for one in mine), ""))
    write_table(path, ["student", "assignment", "points", "out of", "note"], rows)


def line(one: Grade) -> str:
    """A notebook's points in a line of the table."""
    out_of = "?" if one.out_of is None else one.out_of
    name = shown(one.student)
    return f"{name:<24} {shown(one.assignment):<6} {one.points:>2} of {out_of:>2}  {shown(one.note)}".rstrip()
