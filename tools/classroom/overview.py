"""What a class did, from its graded notebooks: who is stuck where, and which mistakes are frequent.

It reads the outputs of check cells in graded/STUDENT/ASSIGNMENT/*.ipynb, which `python -m tools.classroom grade` wrote,
or in nbgrader's autograded/.

Attributes:
    SAID: A report, as a check gives it: [state] exercise: message.
    CASE: What a message begins with that only shows a case. Learners with one mistake may have different ones.
    AUTOGRADED: Where nbgrader writes.
    FREQUENT: So many mistakes of an exercise are shown.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from tools.classroom.grade import GRADED
from tools.classroom.judge import NotACourseNotebook, read
from tools.classroom.release import Refused
from tools.classroom.slices import mark_of
from tools.classroom.tables import shown, write_table
from utils.course.progress import NOT_RIGHT, NOT_SOLVED, PASSED

SAID = re.compile(rf"\[({PASSED}|{NOT_RIGHT}|{NOT_SOLVED})\] ([a-z]\w*)(?:: (.*))?")
CASE = re.compile(r"^case \d+ of \d+, called with .*?: (?=your|expected|the |it |\S+ is )")
AUTOGRADED = "autograded"
FREQUENT = 3


@dataclass(frozen=True)
class Row:
    """How one exercise of one learner was judged."""

    student: str
    assignment: str
    exercise: str
    state: str
    said: str

    @property
    def mistake(self) -> str:
        """The message without what differs from one learner to the next."""
        return CASE.sub("", self.said.partition(" For example: ")[0])


def graded(folder: Path) -> list[Path]:
    """The graded notebooks. Raises `Refused` when there are none, and when there are `grade`'s and nbgrader's."""
    ours, theirs = (sorted((folder / name).glob("*/*/*.ipynb")) for name in (GRADED, AUTOGRADED))
    if ours and theirs:
        raise Refused(f"{folder} has {GRADED}/ by `grade` and {AUTOGRADED}/ by nbgrader: move one of them away")
    if not ours and not theirs:
        raise Refused(f"nothing has been graded in {folder}: run `nbgrader autograde` or `grade` first")
    return ours or theirs


def rows(path: Path) -> list[Row]:
    """The verdicts in one graded notebook. Raises `NotACourseNotebook` when it can't be read or has none."""
    found = []
    for cell in read(path)["cells"]:
        if cell["cell_type"] == "code" and mark_of(cell).get("grade"):
            if said := SAID.search("\n".join(map(_text, cell["outputs"]))):
                found.append(Row(*map(shown, path.parts[-3:-1]), said[2], said[1], said[3] or ""))
    if not found:
        raise NotACourseNotebook("it has no verdicts: grade it again")
    return found


def _text(output: dict) -> str:
    text = output.get("evalue") or output.get("text") or ""
    return text if isinstance(text, str) else "".join(text)


def overview(folder: Path) -> str:
    """The page of a class; the verdicts go to overview.csv beside it. Raises `Refused` when nothing has been graded."""
    every: list[Row] = []
    left_out = []
    for path in graded(folder):
        try:
            every += rows(path)
        except NotACourseNotebook as problem:
            left_out.append(f"left out: {shown(str(path.relative_to(folder)))}: {shown(str(problem))}")
    write_table(folder / "overview.csv", ["student", "assignment", "exercise", "state", "said"], map(astuple, every))
    names = dict.fromkeys(row.assignment for row in sorted(every, key=lambda row: row.assignment))
    pages = [assignment_page(name, [row for row in every if row.assignment == name]) for name in names]
    return "\n\n".join([*pages, students_page(every), *(["\n".join(left_out)] if left_out else [])])


def assignment_page(name: str, every: Sequence[Row]) -> str:
    """A line for each exercise, and below it what was said most often."""
    students = {row.student for row in every}
    names = dict.fromkeys(row.exercise for row in every)
    width = max(len("exercise"), *map(len, names))
    lines = [f"{name}: {len(students)} learners", f"{'exercise':<{width}}  passed  not right  not solved"]
    for exercise in names:
        here = [row for row in every if row.exercise == exercise]
        passed, wrong, open_ = (sum(row.state == state for row in here) for state in (PASSED, NOT_RIGHT, NOT_SOLVED))
        lines.append(f"{exercise:<{width}}  {passed:>6}  {wrong:>9}  {open_:>10}")
        said = Counter(row.mistake for row in here if row.state == NOT_RIGHT)
        for mistake, times in said.most_common(FREQUENT):
            lines.append(textwrap.fill(mistake, 100, initial_indent=f"    {times} x  ", subsequent_indent=" " * 9))
    return "\n".join(lines)


def students_page(every: Iterable[Row]) -> str:
    """A line for each learner: how many exercises have passed, and the first that hasn't, with what was said."""
    by_student: dict[str, list[Row]] = {}
    for row in every:
        by_student.setdefault(row.student, []).append(row)
    width = max(len("learner"), *map(len, by_student))
    lines = [f"{'learner':<{width}}  passed   stuck at"]
    order = sorted(by_student.items(), key=lambda pair: sum(row.state == PASSED for row in pair[1]))
    for student, mine in order:
        passed = sum(row.state == PASSED for row in mine)
        stuck = next((row for row in mine if row.state != PASSED), None)
        where = f"{stuck.assignment} {stuck.exercise} ({stuck.state})" if stuck else ""
        lines.append(f"{student:<{width}}  {passed:>2} of {len(mine):>2}  {where}".rstrip())
    return "\n".join(lines)
