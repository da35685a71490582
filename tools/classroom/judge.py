"""Judge a submitted notebook: each answer in a process of its own, with limits, and the verdicts into the check cells.

The notebook isn't run from top to bottom. For each exercise a new process runs the cells that its answer needs and
judges it (:mod:`tools.classroom.answer`); this one runs no learner's code, holds the limits, and decides. So a crash, a
loop or a flood costs one exercise, and what one cell does to the engine doesn't reach the verdict on another.

Attributes:
    JOBS: So many answers are judged at once.
    LONGEST: So many bytes a process may answer; the rest isn't read.
    PAUSE: Seconds between two looks at what a process takes.
"""

from __future__ import annotations

import copy
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import nbformat
import psutil

from tools.build.lesson import LEARNER, ROOT
from tools.classroom.answer import Request, Verdict
from tools.classroom.slices import Cell, answer_of, code_cells, elsewhere, mark_of, needed, own_cell
from utils.course.progress import NBGRADER_VARIABLE, NOT_RIGHT, NOT_SOLVED, PASSED, STRICT_VARIABLE, VARIABLE

JOBS = 2
LONGEST = 100_000
PAUSE = 0.05


class NotACourseNotebook(ValueError):
    """A file that is no chapter of the course, or can't be read; the text says which and why."""


@dataclass(frozen=True)
class Limits:
    """What one answer may take, with the cells that it needs: seconds, and megabytes of memory."""

    seconds: float = 60
    megabytes: float = 4000


def read(path: Path) -> dict[str, Any]:
    """What a notebook's file holds. Raises `NotACourseNotebook` for one that isn't of format 4."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8-sig"))
        nbformat.validate(notebook, version=4)
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError, nbformat.ValidationError):
        raise NotACourseNotebook(f"{path} is no notebook of format 4: ask for it again") from None
    return notebook


def official(name: str) -> dict[str, Any]:
    """The course's own notebook of this file name. Raises `NotACourseNotebook` when there is none."""
    path = ROOT / LEARNER / name
    if not path.is_file():
        raise NotACourseNotebook(f"{name} is no chapter of the course: a submission keeps its notebook's name")
    return read(path)


def judge_notebook(
    notebook: dict[str, Any], course: dict[str, Any], folder: Path, limits: Limits | None = None
) -> list[Verdict]:
    """The verdicts on the exercises of a submitted notebook, in their order in the course's own, see :func:`official`.

    folder: where the submission is; its cells run there.
    """
    cells = code_cells(notebook)
    wanted = [(cell.exercise, answer_of(cell.source)) for cell in code_cells(course) if cell.role == "check"]
    with ThreadPoolExecutor(JOBS) as pool:
        return list(pool.map(lambda pair: _judge(cells, *pair, folder, limits or Limits()), wanted))


def _judge(cells: Sequence[Cell], exercise: str, answer: str, folder: Path, limits: Limits) -> Verdict:
    own = own_cell(cells, exercise, answer)
    if own is None:
        return Verdict(exercise, NOT_SOLVED, f"no cell of the notebook defines {answer}.")
    run = needed(cells, exercise, answer)
    sources = [cells[i].source for i in run]
    verdict = judge_answer(Request(exercise, answer, sources, run.index(own), str(folder)), limits)
    if verdict.state == NOT_SOLVED and not verdict.message and elsewhere(cells, own, answer):
        said = f"its own cell is as it came, and another one defines {answer}: the answer belongs into the first."
        return replace(verdict, message=said)
    return verdict


def judge_answer(request: Request, limits: Limits) -> Verdict:
    """The verdict on one answer, whatever its process does: whoever ends it without a verdict has not passed."""
    request = replace(request, secret=secrets.token_hex())
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "tools.classroom.answer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=request.folder,
        env=_environment(),
        start_new_session=True,
    )
    assert process.stdin and process.stdout
    said: list[bytes] = []
    reader = threading.Thread(target=lambda: said.append(process.stdout.read(LONGEST)), daemon=True)
    reader.start()
    try:
        try:
            process.stdin.write(json.dumps(asdict(request)).encode())
            process.stdin.close()
        except OSError:  # it has ended already
            pass
        stopped = _watch(process, limits)
    finally:
        _end(process)
    reader.join(timeout=5)
    if stopped:
        return Verdict(request.exercise, NOT_RIGHT, stopped)
    found = b"".join(said).decode("utf-8", "replace").partition(request.secret)[2].split("\0")
    if len(found) == 3 and found[0] in (PASSED, NOT_RIGHT, NOT_SOLVED):
        return Verdict(request.exercise, found[0], found[1])
    said_code = f"Python ended before the answer was judged (exit code {process.returncode})"
    return Verdict(request.exercise, NOT_RIGHT, f"{said_code}: does your code call exit, or crash?")


def _watch(process: subprocess.Popen[bytes], limits: Limits) -> str:
    """Wait until the process ends or passes a limit; why it has to be stopped, or nothing."""
    started, looked = time.monotonic(), psutil.Process(process.pid)
    while process.poll() is None:
        time.sleep(PAUSE)
        if time.monotonic() - started > limits.seconds:
            return f"your code, with the cells that it needs, had not come back after {limits.seconds:.0f} s."
        try:
            used = sum(one.memory_info().rss for one in (looked, *looked.children(recursive=True))) / 1e6
        except psutil.Error:  # one of them has just ended
            continue
        if used > limits.megabytes:
            return f"your code took more than {limits.megabytes:,.0f} MB of memory."
    return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and what it has started, also what has outlived it where the system has groups of processes."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        pass
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        family = []
    for one in (process, *family):
        try:
            one.kill()
        except (OSError, psutil.Error):
            pass
    process.wait()


def _environment() -> dict[str, str]:
    """The variables of an answer's process: this course, one thread, not strict, no record of what was passed."""
    ours = {STRICT_VARIABLE, NBGRADER_VARIABLE}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", VARIABLE: "off"}


def write_verdicts(notebook: dict[str, Any], course: dict[str, Any], verdicts: Sequence[Verdict]) -> None:
    """Put each verdict into the notebook as its check cell's output.

    It is an error where the answer didn't pass, which nbgrader counts as no points. A check cell that is missing is put
    at the end; one without a verdict fails.
    """
    there = {cell.exercise for cell in code_cells(notebook) if cell.role == "check"}
    for cell in course["cells"]:
        mark = mark_of(cell)
        if mark.get("grade") and mark["grade_id"].removeprefix("check-") not in there:
            added = copy.deepcopy(cell) | {"id": mark["grade_id"][:64]}
            if notebook.get("nbformat_minor", 0) < 5:
                del added["id"]  # these formats know none
            notebook["cells"].append(added)
    known = {verdict.exercise: verdict for verdict in verdicts}
    for cell in notebook["cells"]:
        mark = mark_of(cell)
        if cell["cell_type"] == "code" and mark.get("grade"):
            name = str(mark.get("grade_id", "")).removeprefix("check-")
            verdict = known.get(name, Verdict(name, NOT_SOLVED, "there is no such exercise."))
            cell["outputs"] = [_output(verdict)]
            cell["execution_count"] = None


def _output(verdict: Verdict) -> dict[str, Any]:
    if verdict.state == PASSED:
        return {"output_type": "stream", "name": "stdout", "text": f"{verdict.report}\n"}
    said = verdict.report
    return {"output_type": "error", "ename": "ExerciseFailed", "evalue": said, "traceback": [said]}
