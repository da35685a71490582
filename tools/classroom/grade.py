"""Grade what a class handed in, without nbgrader: the same judge, the same folders, one table.

submitted/STUDENT/ch00/00_start_here.ipynb  ->  autograded/STUDENT/ch00/00_start_here.ipynb, grades.csv
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.build.stored import replace_text
from tools.classroom.judge import Limits, NotACourseNotebook, judge_notebook, official, read, write_verdicts
from tools.classroom.release import Refused
from tools.classroom.slices import code_cells
from utils.course.progress import PASSED

SUBMITTED, GRADED, GRADES = "submitted", "autograded", "grades.csv"


@dataclass(frozen=True)
class Grade:
    """One notebook's points. note: why there are none, where the file isn't one of the course's."""

    student: str
    assignment: str
    points: int
    out_of: int
    note: str = ""


def grade(folder: Path, limits: Limits | None = None, say: Callable[[str], None] = print) -> list[Grade]:
    """Judge every notebook in submitted/ and write it to autograded/ with its verdicts, and all points to grades.csv.

    A file that isn't a course's notebook gets a note and no points. Raises `Refused` when nothing was submitted.
    """
    paths = sorted((folder / SUBMITTED).glob("*/*/*.ipynb"))
    if not paths:
        raise Refused(f"nothing to grade: put the notebooks into {folder / SUBMITTED}/STUDENT/ch00/")
    grades = []
    for path in paths:
        student, assignment = path.parts[-3:-1]
        try:
            notebook = read(path)
            course = official(path.name)
            verdicts = judge_notebook(notebook, course, path.parent.resolve(), limits)
        except NotACourseNotebook as problem:
            grades.append(Grade(student, assignment, 0, 0, str(problem)))
        else:
            write_verdicts(notebook, course, verdicts)
            replace_text(folder / GRADED / path.relative_to(folder / SUBMITTED), json.dumps(notebook, indent=1) + "\n")
            points = {cell.exercise: cell.points for cell in code_cells(course) if cell.role == "check"}
            got = sum(points[verdict.exercise] for verdict in verdicts if verdict.state == PASSED)
            grades.append(Grade(student, assignment, got, sum(points.values())))
        say(line(grades[-1]))
    rows = io.StringIO()
    table = csv.writer(rows, lineterminator="\n")
    table.writerow(["student", "assignment", "points", "out of", "note"])
    table.writerows([g.student, g.assignment, g.points, g.out_of, g.note] for g in grades)
    replace_text(folder / GRADES, rows.getvalue())
    return grades


def line(one: Grade) -> str:
    """A notebook's points in a line of the table."""
    return f"{one.student:<24} {one.assignment:<6} {one.points:>2} of {one.out_of:>2}  {one.note}".rstrip()
