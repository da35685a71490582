"""Which cells of a notebook an exercise's answer needs: its own, and those that bind what these read."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager

from tools.build.lesson import CHECK_CALL, BuildError
from tools.build.one_run import bound
from tools.build.references import unbound

HIDDEN_TESTS = re.compile(r"(?ms)^### BEGIN HIDDEN TESTS$.*?^### END HIDDEN TESTS$")
# A cell that may bind any name.
STAR = re.compile(r"(?m)^\s*from .* import \*")
# What a cell's text can make Python's parser raise: some are too deep for it.
NO_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)
MAGIC = re.compile(r"^\s*%%.*\n")


@dataclass(frozen=True)
class Cell:
    """A code cell: its source, and of which exercise it is the "solution" or the "check"; of none, both are empty.

    points: what a check counts.
    """

    source: str
    role: str = ""
    exercise: str = ""
    points: int = 0


def code_cells(notebook: dict[str, Any]) -> list[Cell]:
    """A notebook's code cells in their order, from what a file of format 4 holds; hidden tests are left out."""
    cells = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            mark = mark_of(cell)
            role = "check" if mark.get("grade") else "solution" if mark.get("solution") else ""
            exercise = str(mark.get("grade_id", "")).removeprefix("check-") if role else ""
            source = HIDDEN_TESTS.sub("", "".join(cell["source"]))  # a string, or its lines
            cells.append(Cell(source, role, exercise, mark.get("points", 0)))
    return cells


def mark_of(cell: dict[str, Any]) -> dict[str, Any]:
    """nbgrader's mark on a cell; empty where there is none, or none that could be read."""
    mark = (cell.get("metadata") or {}).get("nbgrader")
    return mark if isinstance(mark, dict) else {}


def elsewhere(cells: Sequence[Cell], own: int, answer: str) -> bool:
    """Whether another cell than the exercise's own binds what the check judges."""
    return any(defines(cell.source, answer) for i, cell in enumerate(cells) if i != own)


def defines(source: str, answer: str) -> bool:
    """Whether a cell binds a name of `answer` otherwise than to what a check returned."""
    try:
        tree = ast.parse(_python(source))
    except NO_PYTHON:
        return False
    names = _read(answer)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names:
            return True
        if isinstance(node, ast.Assign) and not CHECK_CALL.match(ast.unparse(node.value)):
            if names & {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}:
                return True
    return False


def answer_of(source: str) -> str:
    """What a check cell judges: the second argument of its ``check("name", answer)``, as Python.

    Raises ValueError when the cell holds no such call.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "check":
            return ast.unparse(node.args[1])
    raise ValueError(f"this cell calls no check: {source!r}")


def own_cell(cells: Sequence[Cell], exercise: str, answer: str) -> int | None:
    """The cell that solves the exercise: the last that is marked so; where none is, as when it was written anew or an
    editor dropped the marks, the last that binds what the check judges, one without a call of check if there is any.
    None when there is none."""
    marked = [i for i, cell in enumerate(cells) if (cell.role, cell.exercise) == ("solution", exercise)]
    written = [
        i for i, cell in enumerate(cells) if _bound(_python(cell.source)) & _read(answer) and cell.role != "check"
    ]
    plain = [i for i in written if not CHECK_CALL.search(cells[i].source)]
    with_more = [i for i in written if defines(cells[i].source, answer)]
    return (marked or plain or with_more or [None])[-1]


def needed(cells: Sequence[Cell], exercise: str, answer: str) -> list[int]:
    """The cells to run, in their order, before `answer` can be judged as that of the exercise.

    The exercise's own check isn't among them; those of earlier exercises are, so that an answer which builds on one of
    them gets what it gets in the notebook. Of the cells that bind a name the last one above is taken. The exercise's
    own cell always comes along: it may be no Python at all, which is then what there is to say.
    """
    end = next((i for i, c in enumerate(cells) if (c.role, c.exercise) == ("check", exercise)), len(cells))
    plain = [_python(cell.source) for cell in cells]
    binds = [_bound(source) for source in plain]
    own = own_cell(cells, exercise, answer)
    taken: set[int] = set()
    waiting = [*((name, end) for name in _read(answer)), *((None, i) for i in [own] if i is not None)]
    waiting += [(None, i) for i in range(end) if STAR.search(plain[i])]
    while waiting:
        name, place = waiting.pop()
        if name is not None:
            above = [i for i in range(place) if name in binds[i]] or [i for i in range(end) if name in binds[i]]
            if not above or (name in dir(builtins) and name not in binds[above[-1]]):
                continue
            place = above[-1]
        if place not in taken:
            taken.add(place)
            waiting += [(name, place) for name in _read(plain[place])]
    return sorted(taken)


def _python(source: str) -> str:
    """A cell without IPython's ``%`` and ``!`` lines, which become calls, and without a ``%%`` line at its head."""
    try:
        return TransformerManager().transform_cell(MAGIC.sub("", source))
    except NO_PYTHON:
        return source


def _bound(source: str) -> set[str]:
    try:
        return bound(source)
    except NO_PYTHON:
        return set()


def _read(source: str) -> set[str]:
    try:
        return unbound(source, "") | (_bound(source) & _reads_first(source))
    except (BuildError, *NO_PYTHON):
        return set()


def _reads_first(source: str) -> set[str]:
    """The names that a cell may read before it binds them: ``answer = check("name", answer)``."""
    return {
        name.id
        for statement in ast.parse(source).body
        if isinstance(statement, ast.Assign | ast.AugAssign)
        for name in ast.walk(statement)
        if isinstance(name, ast.Name) and (isinstance(name.ctx, ast.Load) or isinstance(statement, ast.AugAssign))
    }
