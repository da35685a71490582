"""A lesson, lessons/NN_topic.md, and the two notebooks that it gives.

A lesson is jupytext Markdown. Solved regions are marked as nbgrader marks them, with an optional stub between:

    ### BEGIN SOLUTION
    answer = 42
    ### STUB
    # answer = None
    ### END SOLUTION

The learner's copy gets the stub with one "# " taken off each line (or, inside a function, a
NotImplementedError); the solved copy keeps the solution and its two outer markers. The code cell after a
solved region calls ``check("name", ...)``; from that pair the build derives nbgrader's cell metadata. A
cell's id is a hash of its source in the lesson, so inserting a cell changes no other id, and both copies
agree. What a class hands in is graded by tools/classroom.

Attributes:
    LEARNER, SOLVED: The two copies; also the folders' names.
    BADGE: The picture that opens a notebook; tools/draw_badge.py draws it.
    BADGE_ID: The id of the badge, which is in no lesson; nor is the setup cell.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import jupytext
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools.build import navigation
from tools.build.navigation import LESSON_FILE, WAYS, to_notebooks
from tools.build.pictures import embedded
from utils.course.colab import SETUP_ID

ROOT = Path(__file__).resolve().parents[2]

LEARNER, SOLVED = "notebooks", "solutions"

BADGE = ROOT / "assets" / "open-in-colab.png"
BADGE_ID = "colab-badge"

# The one that Colab and Kaggle know, and that every environment with ipykernel has as its own.
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
# What ipykernel says of its language, whole: when JupyterLab opens a notebook that says anything else, it writes this
# into it, and the notebook counts as changed. The version is the reader's own: the copies in work/ are given it.
LANGUAGE_INFO = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
    "version": "3.11.0",
}
METADATA = {"kernelspec": KERNELSPEC, "language_info": LANGUAGE_INFO}
# What a lesson's file begins with; jupytext reads it.
HEADER = f"""\
---
jupyter:
  jupytext:
    text_representation:
      extension: .md
      format_name: markdown
  kernelspec:
    display_name: {KERNELSPEC["display_name"]}
    language: python
    name: {KERNELSPEC["name"]}
---

"""

BEGIN, STUB, END = "### BEGIN SOLUTION", "### STUB", "### END SOLUTION"
NOT_COMPARED = {"nbval-ignore-output", "nbval-skip"}
SCRIPT_TAG, REFERENCE_TAG = "capstone", "reference"
TAGS = NOT_COMPARED | {SCRIPT_TAG, REFERENCE_TAG}

CHECK_CALL = re.compile(r"""\bcheck\(\s*["']([A-Za-z0-9_]+)["']""")
NOEVAL = re.compile(r"^( *```\w+) +\.noeval *$", re.M)


class BuildError(Exception):
    """A lesson or its run is not fit to be stored; the text says where and why."""


@dataclass(frozen=True)
class Course:
    """What the build needs to know besides the lessons.

    root: the repository. repository: "OWNER/REPO" on GitHub. setup: gives the setup cell's source for a lesson's file.
    points: what an exercise counts, by name; raises KeyError for a name that isn't registered. ref: the branch or tag
    of badges.
    house_rules: whether the lessons have to keep those of rules.py; the build's own tests write lessons of a few lines.
    """

    root: Path
    repository: str
    setup: Callable[[Path], str]
    points: Callable[[str], int]
    ref: str = "HEAD"
    house_rules: bool = True

    @classmethod
    def here(cls, root: Path = ROOT) -> Course:
        """The course in `root`: address and ref from pyproject.toml, setup cell and exercises from utils/."""
        from utils.course.colab import origin, setup_cell

        here = origin(root)
        return cls(root, here.repository, partial(setup_cell, here), registered_points, here.ref)


def registered_points(name: str) -> int:
    """What a registered exercise counts.

    Raises KeyError for a name that isn't registered, and BuildError when the checks can't be imported, as when one
    names a reference that its lesson doesn't give. They are imported here and not before: they import the lessons'
    references, and a build writes those first.
    """
    try:
        import_module("utils.course.checks")  # registers every chapter's exercises
    except (ImportError, AttributeError) as problem:
        raise BuildError(f"utils/course/checks can't be imported: {problem}") from problem
    from utils.course.checks.registry import find

    return find(name).points


# ------------------------------------------------------------------------------------ solved regions


def split_solution(source: str, where: str) -> tuple[str, str]:
    """A cell's source as the learner and as the solved copy have it; the same when nothing is marked.

    Raises BuildError, beginning with `where`, for markers that are nested, stray or not closed, for a stub
    line that is not a comment, and for a solution at module level without a stub.
    """
    learner: list[str] = []
    solved: list[str] = []
    stub: list[str] | None = None
    state, indent = "outside", ""
    for line in source.split("\n"):
        mark = line.strip()
        if mark == BEGIN:
            if state != "outside":
                raise BuildError(f"{where}: {BEGIN} inside a region that is still open")
            state, stub, indent = "solution", None, line[: len(line) - len(line.lstrip())]
            solved.append(line)
        elif mark == STUB:
            if state != "solution":
                raise BuildError(f"{where}: {STUB} outside a region, or a second one in it")
            state, stub = "stub", []
        elif mark == END:
            if state == "outside":
                raise BuildError(f"{where}: {END} without {BEGIN}")
            if stub is None:
                if not indent:
                    raise BuildError(f"{where}: at module level a solution needs a {STUB} ('# x = None')")
                stub = [f"{indent}# YOUR CODE HERE", f"{indent}raise NotImplementedError"]
            learner += stub
            solved.append(line)
            state = "outside"
        elif state == "stub":
            if mark and not mark.startswith("#"):
                raise BuildError(f"{where}: every line of a stub is a comment, but not {mark!r}")
            stub.append(re.sub(r"^(\s*)# ?", r"\1", line, count=1))
        else:
            solved.append(line)
            if state == "outside":
                learner.append(line)
                if re.match(r"#+ ?(BEGIN|END) ?SOLUTION|#+ ?STUB$", mark, re.I):
                    raise BuildError(f"{where}: {mark!r} is no marker; write {BEGIN}, {STUB}, {END}")
    if state != "outside":
        raise BuildError(f"{where}: {BEGIN} without {END}")
    return "\n".join(learner), "\n".join(solved)


# ------------------------------------------------------------------------------- lesson to notebooks


@dataclass(frozen=True)
class Lesson:
    """A lesson's cells, with the line of the lesson on which each begins."""

    path: Path
    cells: tuple[NotebookNode, ...]
    lines: tuple[int, ...]

    def where(self, index: int) -> str:
        """Cell `index`, as an error message names it."""
        return f"{self.path.parent.name}/{self.path.name}, line {self.lines[index]}"


def read_lesson(path: Path) -> Lesson:
    """Read a lesson and check what easily goes wrong in one.

    Raises BuildError for a wrong kernel, for a fence that jupytext would take for something else, for
    <details> that end up in two cells, and for cell metadata other than the known tags.
    """
    text = path.read_text(encoding="utf-8")
    notebook = jupytext.reads(text, fmt="md")
    name, ours = notebook.metadata.get("kernelspec", {}).get("name"), KERNELSPEC["name"]
    if name != ours:
        raise BuildError(f"lessons/{path.name}: the header's kernelspec is {name!r}, not {ours!r}")
    lines, at = [], 0
    for cell in notebook.cells:
        source = re.sub(r"^%%.*\n", "", cell.source)  # a ```bash fence: jupytext makes its first line up
        found = text.find(source, at)
        at = max(found, at)
        lines.append(text.count("\n", 0, at) + 1)
        at += len(source)
    lesson = Lesson(path, tuple(notebook.cells), tuple(lines))
    for index, cell in enumerate(lesson.cells):
        cell.metadata.pop("lines_to_next_cell", None)
        _refuse(cell, lesson.where(index))
    return lesson


def _refuse(cell: NotebookNode, where: str) -> None:
    unknown = [key for key in cell.metadata if key != "tags"]
    unknown += [tag for tag in cell.metadata.get("tags", []) if tag not in TAGS]
    if unknown:
        example = '```python tags=["nbval-ignore-output"]'
        raise BuildError(f"{where}: unknown cell metadata {unknown}; write {example}; tags: {sorted(TAGS)}")
    if cell.cell_type == "code":
        if not cell.source.strip():
            raise BuildError(f"{where}: an empty code cell")
        if cell.source.startswith("%%"):
            magic = cell.source.split()[0]
            raise BuildError(f"{where}: a {magic} cell; write commands in a ```text or ```console fence")
    elif cell.source.count("<details") != cell.source.count("</details"):
        aid = "write a fence between them as ```python .noeval, and no two blank lines"
        raise BuildError(f"{where}: <details> and </details> end up in different cells; {aid}")
    elif len(re.findall(r"^ *```", cell.source, re.M)) % 2:
        raise BuildError(f"{where}: a ``` fence is not closed")


def cell_ids(lesson: Lesson) -> list[str]:
    """An id for each cell: a hash of its kind and source; the second equal cell gets -2, and so on."""
    seen: dict[str, int] = {}
    ids = []
    for cell in lesson.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        ids.append(digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
    return ids


def exercise_cells(lesson: Lesson) -> dict[int, tuple[str, str]]:
    """Which cells belong to an exercise: index -> ("solution" or "check", exercise's name).

    Raises BuildError when a cell with a solved region is not followed, in the next code cell, by its check,
    when a check has no solved region before it, and when one exercise is checked twice.
    """
    code = [i for i, cell in enumerate(lesson.cells) if cell.cell_type == "code"]
    roles: dict[int, tuple[str, str]] = {}
    taken: set[str] = set()
    previous: int | None = None
    for index in code:
        source = lesson.cells[index].source
        names = CHECK_CALL.findall(source)
        if previous is not None and not names:
            raise BuildError(f'{lesson.where(previous)}: the next code cell has to call check("name", ...)')
        if names and previous is None:
            call = f'check("{names[0]}", ...)'
            raise BuildError(f"{lesson.where(index)}: {call} has no solved region in the code cell before")
        if len(names) > 1:
            raise BuildError(f"{lesson.where(index)}: one check a cell, not {len(names)}")
        if names:
            if names[0] in taken:
                raise BuildError(f"{lesson.where(index)}: exercise {names[0]!r} is checked a second time")
            taken.add(names[0])
            roles[previous], roles[index] = ("solution", names[0]), ("check", names[0])
        previous = index if BEGIN in source else None
    if previous is not None:
        raise BuildError(f'{lesson.where(previous)}: no code cell calls check("name", ...) after it')
    return roles


def nbgrader_metadata(role: str, name: str, points: int) -> dict[str, Any]:
    """nbgrader's cell metadata (schema 3): the solution cell is edited, the check cell locked and graded."""
    graded = role == "check"
    metadata = {
        "grade": graded,
        "grade_id": f"check-{name}" if graded else name,
        "locked": graded,
        "schema_version": 3,
        "solution": not graded,
        "task": False,
    }
    return metadata | ({"points": points} if graded else {})


def make(lesson: Lesson, kind: str, course: Course) -> NotebookNode:
    """The lesson's notebook of one kind, not executed. Raises BuildError for a faulty exercise."""
    roles = exercise_cells(lesson)
    cells = []
    for index, (cell, identity) in enumerate(zip(lesson.cells, cell_ids(lesson), strict=True)):
        if cell.cell_type == "markdown":
            source = embedded(to_notebooks(NOEVAL.sub(r"\1", cell.source)), lesson.path.parent)
            cells.append(new_markdown_cell(source, id=identity, metadata=dict(cell.metadata)))
            continue
        learner, solved = split_solution(cell.source, lesson.where(index))
        metadata = dict(cell.metadata)
        if index in roles:
            role, name = roles[index]
            try:
                metadata["nbgrader"] = nbgrader_metadata(role, name, course.points(name))
            except KeyError as problem:
                raise BuildError(f"{lesson.where(index)}: {problem}") from None
        cells.append(new_code_cell(learner if kind == LEARNER else solved, id=identity, metadata=metadata))
    head = _head(lesson, kind, course)
    ways = _ways(cells[0], lesson, kind, course)
    return new_notebook(cells=[head[0], cells[0], head[1], *cells[1:], ways], metadata=copy.deepcopy(METADATA))


def _head(lesson: Lesson, kind: str, course: Course) -> tuple[NotebookNode, NotebookNode]:
    """The Colab badge, for above the title, and the setup cell, folded, for below the opening.

    The badge's picture stands in the cell as a data URI, the one form that shows everywhere: JupyterLab may be offline,
    Colab finds no relative path, no attachment and no SVG.
    """
    from utils.course.colab import Origin, notebook_page

    first = next(iter(lesson.cells), None)
    if not (first and first.cell_type == "markdown" and first.source.startswith("# ")):
        raise BuildError(f"lessons/{lesson.path.name}: a lesson opens with a title, '# Chapter N: ...'")
    page = notebook_page(Origin(course.repository, course.ref), f"{kind}/{lesson.path.stem}.ipynb")
    picture = base64.b64encode(BADGE.read_bytes()).decode()
    badge = new_markdown_cell(f"[![Open in Colab](data:image/png;base64,{picture})]({page})", id=BADGE_ID)
    folded = {"jupyter": {"source_hidden": True}}  # JupyterLab shows a bar to click on
    return badge, new_code_cell(course.setup(lesson.path).strip("\n"), id=SETUP_ID, metadata=folded)


def _ways(opening: NotebookNode, lesson: Lesson, kind: str, course: Course) -> NotebookNode:
    """Puts the links to the neighbours under the opening; gives the cell with all the links, for the end."""
    from utils.course.colab import Origin, notebook_page

    stem, chapters = lesson.path.stem, navigation.chapters(course.root)
    if links := navigation.line(stem, chapters):
        opening.source += f"\n\n{links}"
    other = ("this chapter, solved", SOLVED) if kind == LEARNER else ("this chapter with its exercises open", LEARNER)
    origin = Origin(course.repository, course.ref)
    source = navigation.end(stem, chapters, other, lambda name: notebook_page(origin, f"{kind}/{name}"))
    return new_markdown_cell(source, id=WAYS)


def find_lessons(course: Course, chapters: Sequence[str] = ()) -> list[Path]:
    """The lessons' files, or those of the given chapters. Raises BuildError when there is none."""
    paths = sorted((course.root / "lessons").glob(LESSON_FILE))
    if not paths:
        raise BuildError("there are no lessons: nothing like lessons/00_topic.md")
    for chapter in chapters:
        if not any(p.name.startswith(chapter) for p in paths):
            stems = ", ".join(p.stem for p in paths)
            raise BuildError(f"no lesson begins with {chapter!r}; there are {stems}")
    return [p for p in paths if not chapters or p.name.startswith(tuple(chapters))]
