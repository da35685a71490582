"""Write both notebooks of each lesson: lessons/NN_topic.md -> notebooks/ (exercises open) and solutions/
(solved).

    python -m tools.build_notebooks             build everything: execute both copies, store the outputs
    python -m tools.build_notebooks 02 03       only these chapters
    python -m tools.build_notebooks --check     start no kernel; fail when a committed notebook is not its
    lesson's
    python -m tools.build_notebooks --no-execute 02     cells without outputs, to look at while writing

A lesson is jupytext Markdown. Solved regions are marked as nbgrader marks them, with an optional stub
between:

    ### BEGIN SOLUTION
    answer = 42
    ### STUB
    # answer = None
    ### END SOLUTION

The learner's copy gets the stub with one "# " taken off each line (or, inside a function, a
NotImplementedError); the solved copy keeps the solution and its two outer markers. The code cell after a
solved region calls ``check("name", ...)``; from that pair the build derives nbgrader's cell metadata. A
cell's id is a hash of its source in the lesson, so inserting a cell changes no other id, and both copies
agree. A classroom gives out notebooks/ (or what nbgrader makes of solutions/) and grades with
``COURSE_STRICT=1 nbgrader autograde``: without the variable a wrong answer does not raise.

The code cells that a lesson tags "capstone" also make a script: capstone.py, in the repository's root.

The build fails, and leaves the old notebook, when a cell raises, writes to stderr, or stores what differs
from run to run: a machine's path, an object's address, a leaked repr.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import copy
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]

LEARNER, SOLVED = "notebooks", "solutions"
"""The two copies; also the folders' names."""

KERNELSPEC = {"display_name": "LoRA course (lora-zero-to-hero)", "language": "python", "name": "lora-course"}
METADATA = {"kernelspec": KERNELSPEC, "language_info": {"name": "python"}}

BEGIN, STUB, END = "### BEGIN SOLUTION", "### STUB", "### END SOLUTION"
NOT_COMPARED = {"nbval-ignore-output", "nbval-skip"}
SCRIPT_TAG = "capstone"
TAGS = NOT_COMPARED | {SCRIPT_TAG}
SCRIPT = "capstone.py"

CHECK_CALL = re.compile(r"""\bcheck\(\s*["']([A-Za-z0-9_]+)["']""")
MACHINE_PATH = re.compile(r"/(root|home|tmp|usr|work|Users)/|\b[A-Z]:\\\\?Users\\")
LEAKED_REPR = re.compile(r"\bat 0x[0-9a-f]+>|<matplotlib\.|^\[<|^Text\(", re.M)
NOEVAL = re.compile(r"^( *```\w+) +\.noeval *$", re.M)
ANSI = re.compile(r"\x1b\[[0-9;]*m")

WIDGET = "application/vnd.jupyter.widget-view+json"
CELL_SECONDS = 300
AT_ONCE = 2


class BuildError(Exception):
    """A lesson or its run is not fit to be stored; the text says where and why."""


@dataclass(frozen=True)
class Course:
    """What the build needs to know besides the lessons.

    root: the repository. repository: "OWNER/REPO" on GitHub. setup: the setup cell's source. points: what an
    exercise counts, by name; raises KeyError for a name that isn't registered. ref: the branch or tag of badges.
    """

    root: Path
    repository: str
    setup: str
    points: Callable[[str], int]
    ref: str = "HEAD"

    @classmethod
    def here(cls, root: Path = ROOT) -> Course:
        """The course in `root`: address and ref from pyproject.toml, setup cell and exercises from utils/."""
        sys.path.insert(0, str(root))
        import_module("utils.course.checks")  # registers every chapter's exercises
        from utils.course.checks.core import find
        from utils.course.colab import origin, setup_cell

        repository, ref = origin(root)
        return cls(root, repository, setup_cell(repository, ref), lambda name: find(name).points, ref)


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
            source = NOEVAL.sub(r"\1", cell.source)
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
    return new_notebook(cells=[head[0], cells[0], head[1], *cells[1:]], metadata=copy.deepcopy(METADATA))


def _head(lesson: Lesson, kind: str, course: Course) -> tuple[NotebookNode, NotebookNode]:
    """The Colab badge, for above the title, and the setup cell, folded, for below the opening."""
    from utils.course.colab import COLAB, Origin, notebook_page

    first = next(iter(lesson.cells), None)
    if not (first and first.cell_type == "markdown" and first.source.startswith("# ")):
        raise BuildError(f"lessons/{lesson.path.name}: a lesson opens with a title, '# Chapter N: ...'")
    page = notebook_page(Origin(course.repository, course.ref), f"{kind}/{lesson.path.stem}.ipynb")
    badge = new_markdown_cell(f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({page})", id="colab-badge")
    folded = {"jupyter": {"source_hidden": True}}  # JupyterLab shows a bar to click on
    return badge, new_code_cell(course.setup.strip("\n"), id="course-setup", metadata=folded)


# --------------------------------------------------------------------------------------- the script


def script(lessons: Sequence[Lesson]) -> str | None:
    """The text of capstone.py: the cells tagged "capstone" in order, as ruff formats them; None when there are none.

    The first of them begins with the script's docstring and imports; one defines ``main()``, which the script calls
    when it is run. Raises BuildError for a tagged cell that is not compared or holds an exercise, for cells in two
    lessons, for a cell that does more than define and import, and when there is no ``main``.
    """
    parts: list[str] = []
    owners: set[str] = set()
    for lesson in lessons:
        for index, cell in enumerate(lesson.cells):
            if SCRIPT_TAG not in cell.metadata.get("tags", []):
                continue
            where = lesson.where(index)
            if cell.cell_type != "code" or BEGIN in cell.source or set(cell.metadata["tags"]) != {SCRIPT_TAG}:
                raise BuildError(f"{where}: a {SCRIPT_TAG} cell is plain code: no exercise in it, and no other tag")
            owners.add(lesson.path.name)
            if len(owners) > 1:
                raise BuildError(f"{SCRIPT} is made of one lesson's cells, and {', '.join(sorted(owners))} tag some")
            for node in ast.parse(cell.source).body:
                constant = isinstance(node, ast.Assign | ast.AnnAssign)
                docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and not parts
                if not (constant or docstring or isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef)):
                    said = ast.unparse(node).splitlines()[0]
                    raise BuildError(f"{where}: a {SCRIPT_TAG} cell imports and defines, and this runs: {said}")
            parts.append(cell.source)
    if not parts:
        return None
    if not any(re.search(r"^def main\(", part, re.M) for part in parts):
        raise BuildError(f"lessons/{owners.pop()}: no {SCRIPT_TAG} cell defines main()")
    note = f"# Made by tools/build_notebooks.py from lessons/{owners.pop()}: edit that."
    text = "\n\n\n".join([note + "\n" + parts[0], *parts[1:], 'if __name__ == "__main__":\n    main()']) + "\n"
    short = "format.skip-magic-trailing-comma = true"  # a cell is narrower than a script
    command = [sys.executable, "-m", "ruff", "format", "--quiet", "--config", short, "--stdin-filename", SCRIPT, "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise BuildError(f"{SCRIPT}: ruff can't format it: {done.stderr.strip()}")
    return done.stdout


def write_script(text: str | None, course: Course) -> str | None:
    """Write capstone.py, atomically: "written" or "unchanged"; None when no lesson makes one."""
    path = course.root / SCRIPT
    if text is None:
        return None
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return "unchanged"
    partial = path.with_name(f".{SCRIPT}.partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)
    return "written"


def stale_script(text: str | None, course: Course) -> list[str]:
    """Why capstone.py isn't what the lessons give, in a list of one sentence, or an empty one."""
    path = course.root / SCRIPT
    if text is None:
        return [f"{SCRIPT} has no lesson: no cell is tagged {SCRIPT_TAG}"] if path.exists() else []
    if not path.exists():
        return [f"{SCRIPT} is missing"]
    return [] if path.read_text(encoding="utf-8") == text else [f"{SCRIPT} is stale: its lesson gives another text"]


# ----------------------------------------------------------------------------------------- executing


class _ThisPython(KernelSpecManager):
    """Knows one kernel: the Python that runs the build, whatever kernels are registered on the machine."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
        return KernelSpec(argv=argv, display_name=KERNELSPEC["display_name"], language="python")


def kernel_environment(kind: str, course: Course) -> dict[str, str]:
    """The environment of a notebook's kernel: one thread, this checkout's utils, strict when solved."""
    changed = {"COURSE_STRICT", "COURSE_PROFILE", "FORCE_COLOR", "PYTHONWARNINGS"}
    environment = {key: value for key, value in os.environ.items() if key not in changed}
    path = [str(course.root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)}
    return environment | ({"COURSE_STRICT": "1"} if kind == SOLVED else {})


async def execute(notebook: NotebookNode, lesson: Lesson, kind: str, course: Course) -> None:
    """Run every cell, in place. Raises BuildError with the cell's place in the lesson and its traceback."""
    client = NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_spec_manager=_ThisPython(), kernel_name=KERNELSPEC["name"]),
        timeout=CELL_SECONDS,
        resources={"metadata": {"path": str(course.root / kind)}},
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
    )
    try:
        await run_cells(client, kernel_environment(kind, course))
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as problem:
        index = next((i for i, c in reversed(list(enumerate(notebook.cells))) if c.get("execution_count")), 0)
        index = next((i for i, c in enumerate(notebook.cells) if _has_error(c)), index)
        said = ANSI.sub("", str(problem))
        raise BuildError(f"{place(notebook, index, lesson, kind)} failed\n{said}") from None
    normalise(notebook)


async def run_cells(client: NotebookClient, environment: dict[str, str]) -> None:
    """Run the client's notebook and end its kernel: nbclient keeps one that was handed to it."""
    try:
        await client.async_execute(env=environment)
    finally:
        if client.km.has_kernel:
            await client.km.shutdown_kernel(now=True)


def _has_error(cell: NotebookNode) -> bool:
    return any(output.output_type == "error" for output in cell.get("outputs", []))


def place(notebook: NotebookNode, index: int, lesson: Lesson, kind: str) -> str:
    """Where a notebook's cell comes from, for an error message."""
    identity = notebook.cells[index].id
    at = lesson.where(cell_ids(lesson).index(identity)) if identity in cell_ids(lesson) else identity
    return f"{kind}/{lesson.path.stem}.ipynb, cell {index} ({at})"


def normalise(notebook: NotebookNode) -> None:
    """Drop what differs from run to run or says nothing: widget views (their ids are random), outputs'
    metadata.

    A progress bar then shows its text form wherever the notebook is only read.
    """
    notebook.metadata = nbformat.from_dict(copy.deepcopy(METADATA))
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata.pop("execution", None)
        for output in cell.outputs:
            if "data" in output:
                output.metadata = NotebookNode()
                output.data.pop(WIDGET, None)


def output_problems(cells: Sequence[dict[str, Any]]) -> Iterator[tuple[int, str]]:
    """What must not be stored, as (cell index, sentence): errors, stderr, paths, reprs, cells never run."""
    for index, cell in enumerate(cells):
        if cell["cell_type"] != "code":
            continue
        if cell["execution_count"] is None:
            yield index, "was never run"
        for output in cell["outputs"]:
            text = "".join(output.get("text", ""))
            for mime in ("text/plain", "text/html", "text/markdown"):
                text += "".join(output.get("data", {}).get(mime, ""))
            if output["output_type"] == "error":
                yield index, f"stores an error: {output['ename']}: {output['evalue']}"
            elif output.get("name") == "stderr":
                yield index, f"writes to stderr: {text.strip()[:300]}"
            elif found := MACHINE_PATH.search(text):
                yield index, f"shows a machine's path: {_line_of(text, found)}"
            elif found := LEAKED_REPR.search(text):
                yield index, f"shows an object's repr: {_line_of(text, found)}"


def _line_of(text: str, found: re.Match[str]) -> str:
    start = text.rfind("\n", 0, found.start()) + 1
    return text[start:].split("\n", 1)[0].strip()[:120]


# ---------------------------------------------------------------------------------------- build and check


async def build_one(lesson: Lesson, kind: str, course: Course, run: bool = True) -> str:
    """Write one notebook, atomically: "written" or "unchanged". Raises BuildError, then writes nothing."""
    notebook = make(lesson, kind, course)
    (course.root / kind).mkdir(exist_ok=True)
    if run:
        await execute(notebook, lesson, kind, course)
        problems = list(output_problems(notebook.cells))
        if problems:
            raise BuildError("\n".join(f"{place(notebook, i, lesson, kind)} {said}" for i, said in problems))
    nbformat.validate(notebook)
    text = nbformat.writes(notebook, version=4).rstrip("\n") + "\n"
    path = course.root / kind / f"{lesson.path.stem}.ipynb"
    if path.exists() and _compared(path.read_text(encoding="utf-8")) == _compared(text):
        return "unchanged"
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return "written"


def _compared(text: str) -> dict[str, Any] | str:
    """A stored notebook without the outputs that nbval does not compare, such as times."""
    try:
        notebook = json.loads(text)
        for cell in notebook["cells"]:
            if not NOT_COMPARED.isdisjoint(cell["metadata"].get("tags", [])) and cell["outputs"]:
                cell["outputs"] = ["not compared"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return text
    return notebook


async def build(lessons: Sequence[Lesson], course: Course, run: bool = True) -> list[str]:
    """Build both copies of the lessons, two at a time; returns the errors' texts."""
    gate = asyncio.Semaphore(AT_ONCE)
    errors: list[str] = []

    async def one(lesson: Lesson, kind: str) -> None:
        async with gate:
            start = time.monotonic()
            try:
                state = await build_one(lesson, kind, course, run)
            except BuildError as problem:
                errors.append(str(problem))
                state = "FAILED"
            seconds = time.monotonic() - start
            print(f"{state:9s} {kind}/{lesson.path.stem}.ipynb  {seconds:.0f} s", flush=True)

    await asyncio.gather(*(one(lesson, kind) for lesson in lessons for kind in (LEARNER, SOLVED)))
    return errors


def stale(lessons: Sequence[Lesson], course: Course) -> list[str]:
    """How the stored notebooks differ from what the lessons give, one sentence each; starts no kernel."""
    said = []
    for kind in (LEARNER, SOLVED):
        for lesson in lessons:
            path = course.root / kind / f"{lesson.path.stem}.ipynb"
            reason = _staleness(path, make(lesson, kind, course))
            if reason:
                said.append(f"{kind}/{path.name} {reason}")
    return said


def strays(lessons: Sequence[Lesson], course: Course) -> list[str]:
    """Stored notebooks that no lesson gives."""
    stems = {lesson.path.stem for lesson in lessons}
    paths = [p for kind in (LEARNER, SOLVED) for p in sorted((course.root / kind).glob("*.ipynb"))]
    return [f"{p.parent.name}/{p.name} has no lesson" for p in paths if p.stem not in stems]


def _staleness(path: Path, fresh: NotebookNode) -> str | None:
    if not path.exists():
        return "is missing"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        cells = [
            (c["cell_type"], c["id"], "".join(c["source"]), c["metadata"], c.get("execution_count", 0))
            for c in stored["cells"]
        ]
        metadata = stored["metadata"]
    except (ValueError, KeyError, TypeError) as problem:
        return f"can't be read: {type(problem).__name__}: {problem}"
    if metadata != METADATA:
        return "has other notebook metadata than the build writes"
    for index, (have, want) in enumerate(zip(cells, fresh.cells, strict=False)):
        for what, mine, its in zip(
            ("kind", "source", "id", "metadata"),
            (have[0], have[2], have[1], have[3]),
            (want.cell_type, want.source, want.id, json.loads(json.dumps(want.metadata))),
            strict=True,
        ):
            if mine != its:
                return f"is stale: the {what} of cell {index} ({have[1]}) is not what the lesson gives"
    if len(cells) != len(fresh.cells):
        return f"is stale: it has {len(cells)} cells, the lesson gives {len(fresh.cells)}"
    for index, cell in enumerate(cells):
        if cell[0] == "code" and cell[4] is None:
            return f"has a cell that was never run: cell {index} ({cell[1]})"
    return None


def find_lessons(course: Course, chapters: Sequence[str] = ()) -> list[Path]:
    """The lessons' files, or those of the given chapters. Raises BuildError when there is none."""
    paths = sorted((course.root / "lessons").glob("[0-9][0-9]_*.md"))
    if not paths:
        raise BuildError("there are no lessons: nothing like lessons/00_topic.md")
    for chapter in chapters:
        if not any(p.name.startswith(chapter) for p in paths):
            stems = ", ".join(p.stem for p in paths)
            raise BuildError(f"no lesson begins with {chapter!r}; there are {stems}")
    return [p for p in paths if not chapters or p.name.startswith(tuple(chapters))]


def main(arguments: Sequence[str] | None = None, course: Course | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Build notebooks/ and solutions/ from lessons/.")
    parser.add_argument("chapters", nargs="*", help="chapter numbers, such as 02; all when left out")
    parser.add_argument("--check", action="store_true", help="no kernel: fail on notebooks not up to date")
    parser.add_argument("--no-execute", action="store_true", help="write cells without outputs, for trying")
    options = parser.parse_args(arguments)
    try:
        course = course or Course.here()
        lessons = [read_lesson(path) for path in find_lessons(course, options.chapters)]
        text = script(lessons)
        if options.check:
            errors = stale(lessons, course) + ([] if options.chapters else strays(lessons, course))
            errors += stale_script(text, course) if text or not options.chapters else []
        else:
            for lesson in lessons:  # every lesson's own errors before the first kernel starts
                make(lesson, LEARNER, course)
            errors = asyncio.run(build(lessons, course, run=not options.no_execute))
            if not errors and (state := write_script(text, course)):
                print(f"{state:9s} {SCRIPT}")
    except BuildError as problem:
        errors = [str(problem)]
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if options.check and errors:
        print("Run `make notebooks` and commit the result.", file=sys.stderr)
    elif options.check:
        print(f"{2 * len(lessons)} notebooks are what their lessons give.")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
