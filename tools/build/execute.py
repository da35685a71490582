"""Run a chapter once and store the outputs in both of its copies.

Nothing is stored when a cell raises, writes to stderr, or shows what differs from run to run: a machine's path, an
object's address, a leaked repr.

Attributes:
    RUN, REUSE, LEAVE: Where outputs come from: from running the cells, from the stored notebooks, or from nowhere.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

from tools.build.lesson import (
    KERNELSPEC,
    LEARNER,
    METADATA,
    NOT_COMPARED,
    ROOT,
    SOLVED,
    BuildError,
    Course,
    Lesson,
    cell_ids,
    make,
)
from tools.build.one_run import Step, steps
from tools.build.stored import replace_text
from utils.course.colab import SETUP_ID
from utils.course.progress import VARIABLE

MACHINE_PATH = re.compile(r"/(root|home|tmp|usr|work|Users)/|\b[A-Z]:\\\\?Users\\")
LEAKED_REPR = re.compile(r"\bat 0x[0-9a-f]+>|<matplotlib\.|^\[<|^Text\(", re.M)
ANSI = re.compile(r"\x1b\[[0-9;]*m")

WIDGET = "application/vnd.jupyter.widget-view+json"
CELL_SECONDS = 300
AT_ONCE = 2


class ThisPython(KernelSpecManager):
    """Knows one kernel: the Python that runs the build, whatever kernels are registered on the machine."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
        return KernelSpec(argv=argv, display_name=KERNELSPEC["display_name"], language="python")


def kernel_environment(kind: str, course: Course) -> dict[str, str]:
    """The environment of a notebook's kernel: one thread, this checkout's utils and tools, strict when solved.

    Nothing is read from or written into the record of what a learner has passed: outputs don't depend on it.
    """
    changed = {"COURSE_STRICT", "COURSE_PROFILE", "FORCE_COLOR", "PYTHONWARNINGS"}
    environment = {key: value for key, value in os.environ.items() if key not in changed}
    path = [str(course.root), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path), VARIABLE: "off"}
    return environment | ({"COURSE_STRICT": "1"} if kind == SOLVED else {})


async def execute(learner: NotebookNode, solved: NotebookNode, lesson: Lesson, course: Course) -> None:
    """Run a chapter, in place: its two copies get their outputs from one run.

    Raises BuildError with the cell's place in the lesson and its traceback, or with what must not be stored.
    """
    copies = {LEARNER: learner, SOLVED: solved}
    taken = steps(learner, solved)
    run: list[tuple[Step, NotebookNode]] = []  # a step is one cell, or two when something happens before it
    for step in taken:
        sources = [step.before] * bool(step.before) + [copies[step.copy].cells[step.index].source]
        run += [(step, new_code_cell(source)) for source in sources]
    notebook = new_notebook(cells=[cell for _, cell in run], metadata=copy.deepcopy(METADATA))
    client = NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_spec_manager=ThisPython(), kernel_name=KERNELSPEC["name"]),
        timeout=CELL_SECONDS,
        resources={"metadata": {"path": str(course.root / SOLVED)}},
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
    )
    try:
        await run_cells(client, kernel_environment(SOLVED, course))
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as problem:
        at = next((i for i, c in reversed(list(enumerate(notebook.cells))) if c.get("execution_count")), 0)
        at = next((i for i, c in enumerate(notebook.cells) if _has_error(c)), at)
        step = run[at][0]
        said = ANSI.sub("", str(problem))
        where = place(copies[step.copy], step.index, lesson, step.copy)
        raise BuildError(f"{where} failed\n{said}{step.advice(said)}") from None
    shared = {step.index for step in taken} - {step.index for step in taken if step.copy == LEARNER}
    for (step, _), cell in zip(run, notebook.cells, strict=True):
        if cell.source != step.before:
            for kind in {step.copy, LEARNER} if step.index in shared else {step.copy}:
                copies[kind].cells[step.index].outputs = copy.deepcopy(cell.outputs)
    for kind, made in copies.items():
        normalise(made)
        problems = [f"{place(made, i, lesson, kind)} {said}" for i, said in output_problems(made.cells)]
        if problems:
            raise BuildError("\n".join(problems))


async def run_cells(client: NotebookClient, environment: dict[str, str]) -> None:
    """Run the client's notebook and end its kernel: nbclient keeps one that was handed to it."""
    manager = client.km  # a run that is killed from outside takes it from the client
    try:
        await client.async_execute(env=environment)
    finally:
        if manager is not None and manager.has_kernel:
            await manager.shutdown_kernel(now=True)


def _has_error(cell: NotebookNode) -> bool:
    return any(output.output_type == "error" for output in cell.get("outputs", []))


def place(notebook: NotebookNode, index: int, lesson: Lesson, kind: str) -> str:
    """Where a notebook's cell comes from, for an error message."""
    identity = notebook.cells[index].id
    at = lesson.where(cell_ids(lesson).index(identity)) if identity in cell_ids(lesson) else identity
    return f"{kind}/{lesson.path.stem}.ipynb, cell {index} ({at})"


def normalise(notebook: NotebookNode) -> None:
    """Drop what differs from run to run or says nothing: widget views (their ids are random), outputs'
    metadata but a picture's size and alt text, and the order in which the one run took the cells.

    A progress bar then shows its text form wherever the notebook is only read.
    """
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, 1):
        cell.execution_count = count
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
            if "data" in output:
                output.metadata = NotebookNode({k: v for k, v in output.metadata.items() if k == "image/png"})
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


# ------------------------------------------------------------------------------------------------- writing


RUN, REUSE, LEAVE = "run", "reuse", "leave"


async def build_one(lesson: Lesson, course: Course, outputs: str = RUN) -> dict[str, str]:
    """Write a chapter's notebooks, each atomically: copy -> "written" or "unchanged".

    Raises BuildError, and then writes nothing.
    """
    made = {kind: make(lesson, kind, course) for kind in (LEARNER, SOLVED)}
    paths = {kind: course.root / kind / f"{lesson.path.stem}.ipynb" for kind in made}
    for kind, path in paths.items():
        path.parent.mkdir(exist_ok=True)
        if outputs == REUSE:
            reuse(path, made[kind])
    if outputs == RUN:
        await execute(made[LEARNER], made[SOLVED], lesson, course)
    return {kind: write(paths[kind], notebook) for kind, notebook in made.items()}


def reuse(path: Path, notebook: NotebookNode) -> None:
    """Take the outputs from the stored notebook. Raises BuildError when its code is not this notebook's, as run."""
    stored = nbformat.read(path, as_version=4).cells if path.exists() else []
    old, new = ([cell for cell in cells if cell.cell_type == "code"] for cells in (stored, notebook.cells))
    if _sources(old) != _sources(new) or None in (cell.execution_count for cell in old):
        name = f"{path.parent.name}/{path.name}"
        raise BuildError(f"{name}: not only prose changed, so it has to be run: leave out --prose")
    for before, cell in zip(old, new, strict=True):
        cell.outputs, cell.execution_count = before.outputs, before.execution_count


def _sources(cells: Sequence[NotebookNode]) -> list[str]:
    """What the cells say, less the setup cell's text: that differs with every word of the lesson, and shows nothing."""
    return ["" if cell.id == SETUP_ID else cell.source for cell in cells]


def write(path: Path, notebook: NotebookNode) -> str:
    """Write a notebook, atomically: "written", or "unchanged" when it differs in outputs alone that aren't compared."""
    nbformat.validate(notebook)
    text = nbformat.writes(notebook, version=4).rstrip("\n") + "\n"
    if path.exists() and _compared(path.read_text(encoding="utf-8")) == _compared(text):
        return "unchanged"
    replace_text(path, text)
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


async def build(lessons: Sequence[Lesson], course: Course, outputs: str = RUN) -> list[str]:
    """Build both copies of the lessons, two chapters at a time; returns the errors' texts."""
    gate = asyncio.Semaphore(AT_ONCE)
    errors: list[str] = []

    async def one(lesson: Lesson) -> None:
        async with gate:
            start = time.monotonic()
            try:
                states = await build_one(lesson, course, outputs)
            except BuildError as problem:
                errors.append(str(problem))
                states = dict.fromkeys((LEARNER, SOLVED), "FAILED")
            seconds = time.monotonic() - start
            for kind, state in states.items():
                print(f"{state:9s} {kind}/{lesson.path.stem}.ipynb  {seconds:.0f} s", flush=True)

    await asyncio.gather(*(one(lesson) for lesson in lessons))
    return errors
