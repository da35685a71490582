"""The references of the exercises: each lesson's solved cells, as a module that the checks import.

lessons/NN_topic.md gives utils/course/checks/references/chNN.py: the solution cell of each exercise, as the solved
notebook has it but for the markers, below the imports that it needs from earlier cells. A chapter's checks say
``reference=lesson.NAME``, and :mod:`utils.course.checks.worked` prints the cell.

A solution may use what its own cell binds, what an earlier cell imports, what an earlier exercise's solution binds, and
what an earlier cell tagged "reference" binds. Such a cell comes along whole. The build refuses anything else, since
the module would lack it.

Attributes:
    FOLDER: Where the modules are, from the repository's root.
"""

from __future__ import annotations

import ast
import builtins
import subprocess
import symtable
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from tools.build.lesson import (
    BEGIN,
    END,
    REFERENCE_TAG,
    ROOT,
    BuildError,
    Course,
    Lesson,
    exercise_cells,
    split_solution,
)
from tools.build.one_run import bound
from tools.build.stored import stale_text, write_text

FOLDER = "utils/course/checks/references"

HEADER = '''\
"""The answers to chapter {number}'s exercises, cell by cell as the lesson solves them.

Generated from lessons/{name} by `make notebooks`: edit the lesson, not this file.
"""
'''


def reference_module(lesson: Lesson) -> str | None:
    """The text of the module of a lesson's references; None when the lesson has no exercise.

    Raises BuildError for a solution that uses a name which the module wouldn't have, for a name that two cells of the
    module bind to different things, and for a cell tagged "reference" that does more than import and define.
    """
    roles = exercise_cells(lesson)
    solutions = {index: name for index, (role, name) in roles.items() if role == "solution"}
    if not solutions:
        return None
    found = _Module(lesson, solutions)
    for index, name in solutions.items():
        found.take(index, name)
    found.refuse_collisions()
    head = HEADER.format(number=int(lesson.path.stem[:2]), name=lesson.path.name)
    if found.imports:
        head += "\n" + _sorted_imports("".join(f"{line}\n" for line in found.imports.values()))
    parts = [f"# -------- {found.title(index)}\n{found.cells[index]}\n" for index in sorted(found.taken)]
    return "\n\n".join([f"{head}\n# fmt: off", *parts])


@dataclass
class _Module:
    """What of a lesson stands in the module of its references.

    solutions: cell -> its exercise. taken: cells that the module has -> the exercise that needs them first. imports:
    name -> its import statement in an earlier cell.
    """

    lesson: Lesson
    solutions: dict[int, str]
    taken: dict[int, str] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)
    cells: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        code = [i for i, cell in enumerate(self.lesson.cells) if cell.cell_type == "code"]
        self.cells = {i: solved_cell(self.lesson, i) for i in code}

    def title(self, index: int) -> str:
        """What stands above a cell: its exercise's name, or what needs it."""
        return self.solutions.get(index) or f"for {self.taken[index]}"

    def take(self, index: int, exercise: str) -> None:
        """Take a cell, and whatever it needs of the cells above it."""
        if index in self.taken:
            return
        self.taken[index] = exercise
        for name in sorted(unbound(self.cells[index], self.lesson.where(index))):
            self._provide(name, index, exercise)

    def _provide(self, name: str, index: int, exercise: str) -> None:
        checks = {i for i, role in exercise_cells(self.lesson).items() if role[0] == "check"}
        above = [i for i in self.cells if i < index and i not in checks]
        binds = next((i for i in reversed(above) if name in _bound(self.cells[i], self.lesson.where(i))), None)
        uses = f"{self.lesson.where(index)}: the reference of {exercise!r} uses {name!r}, which"
        if binds is None:
            if not hasattr(builtins, name):
                raise BuildError(f"{uses} no cell above binds: import or define it in this cell")
        elif binds in self.solutions:
            self.take(binds, self.solutions[binds])
        elif REFERENCE_TAG in self.lesson.cells[binds].metadata.get("tags", []):
            _refuse_running(self.cells[binds], self.lesson.where(binds))
            self.take(binds, exercise)
        elif statement := imported(self.cells[binds]).get(name):
            if self.imports.setdefault(name, statement) != statement:
                raise BuildError(
                    f"{uses} an earlier exercise has from {self.imports[name]!r} and this one from {statement!r}: a "
                    "chapter's references are one module, so import one of them by another name"
                )
        else:
            aid = f'```python tags=["{REFERENCE_TAG}"]'
            raise BuildError(
                f"{uses} is bound in {self.lesson.where(binds)}, and only imports go with a solution: define it in "
                f"this cell, or begin that one with {aid}"
            )

    def refuse_collisions(self) -> None:
        """Raise BuildError when a name would mean two things in the module."""
        owners: dict[str, tuple[str, str]] = {name: ("an import above", how) for name, how in self.imports.items()}
        for index in sorted(self.taken):
            where, how = self.lesson.where(index), imported(self.cells[index])
            for name in sorted(_bound(self.cells[index], where)):
                mine = (f"the cell of {self.taken[index]!r}", how.get(name, ""))
                owner, its = owners.setdefault(name, mine)
                if (owner, its) != mine and not (its and its == mine[1]):
                    raise BuildError(
                        f"{where}: {name!r} is bound by {mine[0]} and by {owner}: a chapter's references are one "
                        "module, so give one of them another name"
                    )


def solved_cell(lesson: Lesson, index: int) -> str:
    """A code cell's source as solved, without the markers."""
    solved = split_solution(lesson.cells[index].source, lesson.where(index))[1]
    return "\n".join(line for line in solved.split("\n") if line.strip() not in (BEGIN, END))


def unbound(source: str, where: str) -> set[str]:
    """The names that a cell reads and doesn't bind, builtins among them. Raises BuildError when it isn't Python."""
    top = _symbols(source, where)
    read, waiting = set(), [top]
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        read |= {s.get_name() for s in table.get_symbols() if s.is_referenced() and (table is top or s.is_global())}
    return read - bound(source)


def imported(source: str) -> dict[str, str]:
    """The names that a cell's top-level imports bind, each with a statement of its own."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                one = ast.Import([alias]) if isinstance(node, ast.Import) else ast.ImportFrom(node.module, [alias], 0)
                found[name] = ast.unparse(one)
    return found


def _symbols(source: str, where: str) -> symtable.SymbolTable:
    try:
        return symtable.symtable(source, "cell", "exec")
    except SyntaxError as problem:
        raise BuildError(f"{where}: line {problem.lineno} of the cell: {problem.msg}") from None


def _bound(source: str, where: str) -> set[str]:
    _symbols(source, where)
    return bound(source)


def _refuse_running(source: str, where: str) -> None:
    for node in ast.parse(source).body:
        if not isinstance(
            node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
        ):
            said = ast.unparse(node).splitlines()[0]
            raise BuildError(f"{where}: a {REFERENCE_TAG} cell imports and defines, and this runs: {said}")


def _sorted_imports(text: str) -> str:
    command = [sys.executable, "-m", "ruff", "check", "--quiet", "--select", "I", "--fix", "--stdin-filename"]
    done = subprocess.run([*command, f"{FOLDER}/ch.py", "-"], input=text, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise BuildError(f"ruff can't sort the imports of a lesson's references: {done.stderr.strip()}\n{text}")
    return done.stdout


# ------------------------------------------------------------------------------------------- on the disk


def reference_modules(lessons: Sequence[Lesson]) -> dict[str, str]:
    """The modules of the lessons that have an exercise: path from the root -> text, see :func:`reference_module`."""
    texts = {f"{FOLDER}/ch{lesson.path.stem[:2]}.py": reference_module(lesson) for lesson in lessons}
    return {name: text for name, text in texts.items() if text is not None}


def write_references(modules: dict[str, str], course: Course) -> dict[str, str]:
    """Write what :func:`reference_modules` gave, each file atomically: path -> "written" or "unchanged"."""
    return {name: write_text(course.root / name, text) for name, text in modules.items()}


def stale_references(modules: dict[str, str], course: Course) -> list[str]:
    """How the stored modules differ from what :func:`reference_modules` gave."""
    return [said for name, text in modules.items() for said in stale_text(course.root, name, text)]


def stray_references(modules: dict[str, str], course: Course) -> list[str]:
    """Stored modules that no lesson gives."""
    names = [f"{FOLDER}/{path.name}" for path in sorted((course.root / FOLDER).glob("ch*.py"))]
    return [f"{name} has no lesson with exercises" for name in names if name not in modules]
