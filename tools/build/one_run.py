"""One run of a chapter for both of its copies, the learner's (notebooks/) and the solved one (solutions/).

The copies differ in three kinds of cells: an exercise's solution cell (by its source), the check cell after it
(by its output) and a cell that calls ``progress()`` (by its output). So the solved copy is run from top to bottom, and
at each such place the learner's cells are run too, before the solved ones:

    learner's stub, learner's check      aside, not strict: see aside.py
    solution, its check                  strict
    the rest                             without the names that the solution binds and the stub doesn't

After an exercise the kernel is as the learner's would be, but for one thing: under the name that the check hands back
is the solution and not the reference, which has the same text and stands in a module. Any other cell has one output for
both copies: :func:`disagreements` finds those where the stored ones differ.

The build (execute.py) stores the outputs of these steps; the test run (tools/pytest_notebooks.py) compares them with
what is stored.
"""

from __future__ import annotations

import re
import symtable
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from nbformat import NotebookNode

from tools.build.aside import call
from tools.build.lesson import BADGE_ID, LEARNER, NOT_COMPARED, SOLVED, BuildError
from tools.build.navigation import WAYS

PROGRESS = re.compile(r"\bprogress\(\)")


@dataclass(frozen=True)
class Step:
    """One cell of one copy, and what happens before it is run.

    index: of the cell, the same in both copies. copy: whose cell it is, LEARNER or SOLVED; the output belongs to it,
    and to both copies when the other has no step of this index. before: code for the kernel. withheld: names that only
    an exercise's solution bound and nothing has bound since -> that exercise.
    """

    index: int
    copy: str
    before: str = ""
    withheld: dict[str, str] = field(default_factory=dict)

    def advice(self, said: str) -> str:
        """What to add to `said`, an error of this step with its cell's source: a word on each withheld name in it."""
        return "".join(
            f"\nOnly the solution of {exercise!r} binds {name!r} and its stub doesn't, so the copies differ in it from "
            "there on: bind it in the stub too, or in a cell of its own."
            for name, exercise in self.withheld.items()
            if re.search(rf"\b{name}\b", said)
        )


def role(cell: NotebookNode) -> str | None:
    """Why a code cell is run for each copy: it is a "solution", a "check" or shows "progress"; None for the others."""
    marks = cell.metadata.get("nbgrader", {})
    if marks.get("solution"):
        return "solution"
    if marks.get("grade"):
        return "check"
    return "progress" if PROGRESS.search(cell.source) else None


def steps(learner: NotebookNode, solved: NotebookNode) -> list[Step]:
    """The steps that run the two copies of one chapter once.

    Raises BuildError when the copies have different cells, or a solution isn't followed by its check.
    """
    if [(c.cell_type, c.id) for c in learner.cells] != [(c.cell_type, c.id) for c in solved.cells]:
        raise BuildError("the two copies have different cells")
    found: list[Step] = []
    before, withheld = "", {}  # what the next step does first; the names that no learner has
    code = iter([index for index, cell in enumerate(solved.cells) if cell.cell_type == "code"])
    for index in code:
        kind = role(solved.cells[index])
        if kind is None:
            found.append(Step(index, SOLVED, before, withheld))
            before, withheld = "", _without(withheld, bound(solved.cells[index].source))
            continue
        group = [index]
        if kind == "solution":
            group.append(next(code, index))
            if role(solved.cells[group[-1]]) != "check":
                raise BuildError(f"cell {index} is a solution, and the next code cell isn't its check")
        mine, theirs = (bound(*(notebook.cells[i].source for i in group)) for notebook in (learner, solved))
        enter, only = call("enter", sorted(mine | theirs)), sorted(theirs - mine)
        for copy, first in ((LEARNER, f"{before}\n{enter}".lstrip()), (SOLVED, call("leave"))):
            found += [Step(i, copy, first if i == index else "", withheld) for i in group]
        exercise = solved.cells[index].metadata.get("nbgrader", {}).get("grade_id", "")
        before = call("withhold", only) if only else ""
        withheld = _without(withheld, mine | theirs) | dict.fromkeys(only, exercise)
    return found


def _without(withheld: dict[str, str], names: set[str]) -> dict[str, str]:
    return {name: exercise for name, exercise in withheld.items() if name not in names}


def bound(*sources: str) -> set[str]:
    """The names that cells with these sources bind in the notebook."""
    symbols = (s for source in sources for s in symtable.symtable(source, "cell", "exec").get_symbols())
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}


def disagreements(learner: NotebookNode, solved: NotebookNode) -> Iterator[tuple[int, str]]:
    """Where the stored copies of one chapter differ and must not: (cell's index, what differs).

    What may differ is what :func:`steps` runs for both copies, the badge's address, the links at the end, and outputs
    that aren't compared.
    """
    for index, (mine, theirs) in enumerate(zip(learner.cells, solved.cells, strict=False)):
        if (mine.cell_type, mine.id) != (theirs.cell_type, theirs.id):
            yield index, "the two copies have different cells here"
            return
        kind = role(theirs) if theirs.cell_type == "code" else None
        if mine.source != theirs.source and kind != "solution" and theirs.id not in (BADGE_ID, WAYS):
            yield index, "the source differs between the two copies"
        if theirs.cell_type == "code" and kind is None and is_compared(theirs) and mine.outputs != theirs.outputs:
            said = " | ".join(_texts(cell.outputs) for cell in (mine, theirs))
            yield index, f"the stored output differs between the two copies: {said}"
    if len(learner.cells) != len(solved.cells):
        yield min(len(learner.cells), len(solved.cells)), "one copy has more cells than the other"


def is_compared(cell: NotebookNode) -> bool:
    """Whether a code cell's output is compared with the stored one."""
    return NOT_COMPARED.isdisjoint(cell.metadata.get("tags", []))


def _texts(outputs: Sequence[NotebookNode]) -> str:
    return " ".join(repr(o.get("text") or o.get("data", {}).get("text/plain", ""))[:200] for o in outputs) or "nothing"
