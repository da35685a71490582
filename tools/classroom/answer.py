"""Judge one answer in this process: run the cells that it needs, hand it to the engine, say what came out.

    python -P -m tools.classroom.answer < request.json

:mod:`tools.classroom.judge` starts it, once for each exercise, and limits its time and memory. The learner's code meets
the engine here, but not by name: what the cells can import as ``utils.course.checks`` is a stand-in with the four
functions that notebooks call. Nothing that the cells bind, set, print or delete is asked for the verdict. What code
that looks for the engine can still do is in classroom/README.md.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

CELL_SECONDS = 30
CHECKS = "utils.course.checks"
ONLY_THESE = f"of {CHECKS} an answer may use check, hint, progress and solution, and nothing else."


@dataclass(frozen=True)
class Request:
    """What to judge.

    exercise: its name. answer: the expression that the check judges. cells: to be run before, in order. own: which of
    them is the exercise's. folder: where the notebook is. secret: what the verdict's line begins with.
    """

    exercise: str
    answer: str
    cells: list[str]
    own: int
    folder: str
    secret: str = ""


@dataclass(frozen=True)
class Verdict:
    """How an answer was judged: the exercise, one of the states of utils.course.progress, and what is said of it."""

    exercise: str
    state: str
    message: str = ""

    @property
    def report(self) -> str:
        """As a check says it."""
        return f"[{self.state}] {self.exercise}" + (f": {self.message}" if self.message else "")


def judged(request: Request) -> Verdict:
    """Run the cells and judge the answer. The engine is out of reach afterwards: once in a process."""
    from utils.course.checks import core, judge
    from utils.course.checks.calls import TooLong, limit
    from utils.course.checks.describe import raised_text
    from utils.course.progress import NOT_RIGHT, NOT_SOLVED

    found = core.find(request.exercise)
    _hide_engine(core, request.exercise)
    from IPython.core.interactiveshell import InteractiveShell

    class Shell(InteractiveShell):
        def enable_matplotlib(self, gui: str | None = None) -> tuple[str, str]:
            """For ``%matplotlib``: nothing is shown here."""
            return gui or "agg", "agg"

    shell, made, evaluate = Shell.instance(), Verdict, judge.evaluate
    sys.path.append(request.folder)
    for index, source in enumerate(request.cells):
        own = index == request.own
        try:
            with limit(CELL_SECONDS if own else None):
                done = shell.run_cell(source)
            problem = done.error_before_exec or done.error_in_exec
        except TooLong as late:
            problem = late
        if isinstance(problem, NotImplementedError) and own:
            return made(found.name, NOT_SOLVED)
        if problem is not None:
            if isinstance(problem, TooLong):
                said = f"the cell had not ended after {CELL_SECONDS} s. Is there a loop in it that never ends?"
            elif isinstance(problem, ImportError) and CHECKS in str(problem):
                said = ONLY_THESE
            elif isinstance(problem, ModuleNotFoundError) and str(problem.name).startswith("utils."):
                said = f"the course has no {problem.name} today: is this an old version of the notebook?"
            elif isinstance(problem, SyntaxError):
                said = f"line {problem.lineno} of the cell is no Python: {problem.msg}."
            else:
                said = f"{raised_text(problem)}."
            where = "" if own else "in an earlier cell that the answer needs, "
            return made(found.name, NOT_RIGHT, where + said)
    try:
        answer = eval(request.answer, shell.user_ns)
    except NameError as problem:
        return made(found.name, NOT_SOLVED, f"no cell defines {problem.name or request.answer}.")
    except Exception as problem:
        return made(found.name, NOT_RIGHT, f"{raised_text(problem)}.")
    if core.is_reference(answer):
        return made(found.name, NOT_RIGHT, core.NOT_YOURS)
    result = evaluate(found, answer)
    return made(found.name, result.state, result.message)


def _hide_engine(core: Any, exercise: str) -> None:
    """Put the stand-in in the engine's place. Its check hands on whatever it is given for the exercise that is judged;
    after another one it goes on as in the notebook, with the reference where the answer isn't right."""
    stand_in = ModuleType(CHECKS, "The functions that notebooks call.")
    vars(stand_in).update(
        check=lambda name, answer=None: answer if name == exercise else core.check(name, answer),
        hint=lambda name: None,
        solution=lambda name: None,
        progress=lambda: None,
    )
    for name in [name for name in sys.modules if name == CHECKS or name.startswith(f"{CHECKS}.")]:
        del sys.modules[name]
    sys.modules[CHECKS] = stand_in
    sys.modules["utils.course"].checks = stand_in  # type: ignore[attr-defined]


def main() -> None:
    request = Request(**json.load(sys.stdin))
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    end = os._exit
    verdict = judged(request)
    # No function is called by name that a cell may have exchanged, such as json's.
    report.write(f"{request.secret}{verdict.state}\0{verdict.message}\0")
    report.flush()
    end(0)  # threads and exit handlers that the cells may have left have no say


if __name__ == "__main__":
    main()
