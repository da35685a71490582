"""Hold the checks against answers as learners give them: wrong ones and right ones, written down by exercise.

``python -m tools.answers [FOLDER]`` prints a line for each exercise: how many calls are drawn, how many mistakes are
listed, how many of the wrong answers are caught (and of them, how many by a sentence that names what is wrong), how
many of the right ones pass, and how long the longest verdict takes; then each answer that is judged wrongly.
With ``--say`` it prints what the learner reads on every wrong answer.

An answer file is Markdown: a heading ``## exercise | wrong | what is wrong with it`` (or ``right``), and the cell that
a learner would write. The cell runs in a namespace of its own, which has what the chapter's earlier cells import, their
definitions for reference, and the answers of its other exercises.

Attributes:
    FOLDER: The answers that the tests hold the checks against.
    BASICS: What every answer may use without importing it.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tools.build.references import imported

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests/course/answers"
BASICS = (
    "import collections, copy, itertools, math, os, random, re\nimport numpy as np\nimport torch\n"
    "import torch.nn.functional as F\nfrom torch import Tensor, nn\n"
)

HEADING = re.compile(r"^## (\w+) \| (wrong|right) \| (.+)$", re.M)


@dataclass(frozen=True)
class Answer:
    """One learner's answer. chapter: two digits. right: whether it should pass. label: what is wrong with it, or how
    it is written. source: the cell."""

    chapter: str
    exercise: str
    right: bool
    label: str
    source: str


@dataclass(frozen=True)
class Verdict:
    """What the checks made of an answer. passed: whether they took it. named: whether a wrong one was named, by a
    mistake's, a property's or a test's sentence. seconds: how long they took, the reference's own calls not counted."""

    answer: Answer
    passed: bool
    named: bool
    message: str
    seconds: float


def read(folder: Path = FOLDER) -> list[Answer]:
    """All answers of a folder's files ``NN*.md``. Raises ValueError for a heading or a cell that isn't in the form."""
    answers = []
    for path in sorted(folder.glob("[0-9][0-9]*.md")):
        text = path.read_text(encoding="utf-8")
        if unread := [line for line in re.findall(r"^## .*$", text, re.M) if not HEADING.match(line)]:
            raise ValueError(f"{path.name}: {unread[0]!r} isn't '## exercise | wrong | what is wrong with it'")
        parts = HEADING.split(text)[1:]
        for name, kind, label, body in zip(*(parts[at::4] for at in range(4)), strict=True):
            cell = re.search(r"^```python\n(.*?)^```$", body, re.M | re.S)
            if cell is None:
                raise ValueError(f"{path.name}: no cell of Python under '## {name} | {kind} | {label}'")
            answers.append(Answer(path.name[:2], name, kind == "right", label.strip(), cell[1]))
    return answers


def judge(answer: Answer) -> Verdict:
    """Run the answer's cell and give what it defines to the checks."""
    from utils.course.checks import judge as checks
    from utils.course.checks.registry import find
    from utils.course.progress import PASSED

    value = _value(answer)
    begin = time.perf_counter()
    result = checks.evaluate(find(answer.exercise), value)
    seconds = time.perf_counter() - begin
    return Verdict(answer, result.state == PASSED, result.named, result.message, seconds)


def with_basics(source: str) -> str:
    """The answer's source below those imports of BASICS that it uses."""
    return _used(imported(BASICS), source) + source


def _used(imports: dict[str, str], source: str) -> str:
    used = [statement for name, statement in imports.items() if re.search(rf"\b{re.escape(name)}\b", source)]
    return "".join(f"{statement}\n" for statement in used)


def _value(answer: Answer) -> Any:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(BASICS, namespace)
    exec(_used(_imports(answer.chapter), answer.source), namespace)
    namespace |= _defined_before(answer)
    exec(compile(answer.source, f"<{answer.exercise}: {answer.label}>", "exec"), namespace)
    variable = _variables(answer.chapter)[answer.exercise]
    if variable not in namespace:
        raise ValueError(f"{answer.exercise} | {answer.label}: the cell defines no {variable}")
    return namespace[variable]


def _defined_before(answer: Answer) -> dict[str, Any]:
    """What the answer uses of the chapter's own definitions: of its cells for reference, and of exercises before."""
    try:
        solved = importlib.import_module(f"utils.course.checks.references.ch{answer.chapter}")
    except ImportError:
        return {}
    own = _variables(answer.chapter).get(answer.exercise)
    used = set(re.findall(r"\w+", answer.source)) - {own}
    return {name: value for name, value in vars(solved).items() if name in used}


@cache
def _lesson(chapter: str) -> str:
    return next((ROOT / "lessons").glob(f"{chapter}_*.md")).read_text(encoding="utf-8")


@cache
def _imports(chapter: str) -> dict[str, str]:
    cells = re.findall(r"^```python[^\n]*\n(.*?)^```$", _lesson(chapter), re.M | re.S)
    plain = (re.sub(r"^[%!].*$", "", cell, flags=re.M) for cell in cells if "import" in cell)
    return {name: statement for cell in plain for name, statement in imported(cell).items()}


@cache
def _variables(chapter: str) -> dict[str, str]:
    found = re.findall(r'^(\w+) = check\("(\w+)"', _lesson(chapter), re.M)
    return {exercise: variable for variable, exercise in found}


def table(verdicts: list[Verdict]) -> str:
    """A line for each exercise that is registered, and one for all."""
    from utils.course.checks.registry import registered

    head = _line("exercise", ("drawn", "named", "wrong", "caught", "said", "right", "taken"), "s")
    lines, sums = [head], [0] * 7
    for name, found in registered().items():
        mine = [verdict for verdict in verdicts if verdict.answer.exercise == name]
        wrong = [verdict for verdict in mine if not verdict.answer.right]
        right = [verdict for verdict in mine if verdict.answer.right]
        caught = [verdict for verdict in wrong if not verdict.passed]
        counts = (
            sum(case.seed > 0 for case in found.cases), len(found.mistakes), len(wrong), len(caught),
            sum(verdict.named for verdict in caught), len(right), sum(verdict.passed for verdict in right),
        )  # fmt: skip
        sums = [total + count for total, count in zip(sums, counts, strict=True)]
        lines.append(_line(name, counts, _slowest(mine)))
    return "\n".join([*lines, _line("all", sums, _slowest(verdicts))])


def _slowest(verdicts: list[Verdict]) -> str:
    return f"{max((verdict.seconds for verdict in verdicts), default=0.0):.2f}"


def _line(name: str, counts: Any, seconds: str) -> str:
    return f"{name:<22}" + "".join(f"{count:>7}" for count in counts) + f"{seconds:>7}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.answers", description="Hold the checks against answers.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="of answer files NN*.md")
    parser.add_argument("--only", help="an exercise's name, or a chapter's two digits")
    parser.add_argument("--say", action="store_true", help="print what is said on every wrong answer")
    chosen = parser.parse_args(arguments)
    answers = [a for a in read(chosen.folder) if chosen.only in (None, a.exercise, a.chapter)]
    if not answers:
        print(f"no answers in {chosen.folder}", file=sys.stderr)
        return 1
    import utils.course.checks  # noqa: F401 - registers the exercises

    verdicts = [judge(answer) for answer in answers]
    print(table(verdicts))
    for verdict in verdicts:
        answer = verdict.answer
        if verdict.passed != answer.right or (chosen.say and not answer.right):
            kind, judged = ("right" if is_right else "wrong" for is_right in (answer.right, verdict.passed))
            print(f"\n{answer.exercise} | {answer.label}: a {kind} answer, judged {judged}")
            print(f"    {'named: ' * verdict.named}{verdict.message}")
    return int(any(verdict.passed != verdict.answer.right for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
