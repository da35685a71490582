"""pytest runs each chapter once and proves both of its copies by it: ``pytest -p tools.pytest_notebooks solutions``.

Comparing is nbval's, and as strict as ``--nbval``: every output as it is stored, nothing on stderr that isn't stored, a
cell tagged nbval-ignore-output only has to run. What is added: the learner's cells, which :mod:`tools.build.one_run`
puts between the solved copy's, are compared with the learner's copy; and an item for what both copies share. At the end
the seconds of each chapter are listed; ``--seconds=FILE`` also writes those of the chapters that passed, as JSON.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from queue import Empty
from typing import Any

import nbformat
import pytest
from nbval.plugin import IPyNbCell, IPyNbFile, NbCellError, find_comment_markers, find_metadata_tags

from tools.build.execute import CELL_SECONDS
from tools.build.lesson import LEARNER, ROOT, SOLVED, BuildError
from tools.build.one_run import Step, disagreements, steps
from utils.course.progress import VARIABLE

RECORD = ROOT / "assets" / "measurements" / "minutes.json"
PRELUDE_SECONDS = 60


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--seconds``."""
    parser.addoption("--seconds", type=Path, metavar="FILE", help="write there the seconds of each chapter that passed")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """A notebook in a folder ``solutions`` is a chapter; nbval collects nothing without ``--nbval``."""
    if file_path.suffix == ".ipynb" and file_path.parent.name == SOLVED:
        return Chapter.from_parent(parent, path=file_path)
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest chapters first, so that no worker is left with a long one at the end; a new one counts as slow."""
    recorded = recorded_seconds()
    items.sort(key=lambda item: -recorded.get(item.path.stem, float("inf")) if isinstance(item, Cell | Shared) else 0)


def recorded_seconds() -> dict[str, float]:
    """Each chapter's seconds in the committed record; empty when there is none."""
    return json.loads(RECORD.read_text(encoding="utf-8"))["seconds"] if RECORD.exists() else {}


class Chapter(IPyNbFile):
    """A chapter: its solved notebook, run once, and the learner's cells beside."""

    def collect(self) -> Iterator[pytest.Item]:
        """The cells in the order in which they are run. Raises BuildError for copies with different cells."""
        learners = self.path.parents[1] / LEARNER / self.path.name
        self.nb = nbformat.read(self.path, as_version=4)
        copies = {LEARNER: nbformat.read(learners, as_version=4), SOLVED: self.nb}
        yield Shared.from_parent(self, name="Both copies", copies=copies)
        for step in steps(copies[LEARNER], copies[SOLVED]):
            cell = copies[step.copy].cells[step.index]
            options = defaultdict(bool, find_metadata_tags(cell.metadata)) | dict(find_comment_markers(cell.source))
            options.setdefault("check", True)
            name = f"Cell {step.index}" + " (learner's)" * (step.copy == LEARNER)
            yield Cell.from_parent(self, name=name, cell_num=step.index, cell=cell, options=options, step=step)

    def setup(self) -> None:
        """Starts the kernel: strict, with this checkout's utils and tools, and without a record of what was passed."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COURSE_STRICT", "1")
            patch.setenv(VARIABLE, "off")
            patch.setenv("PYTHONPATH", path)
            super().setup()

    def prelude(self, code: str) -> None:
        """Runs code in the kernel that belongs to no cell. Raises RuntimeError when it fails."""
        said, reply = self.kernel.kc.execute(code, silent=True, allow_stdin=False), {}
        try:
            while reply.get("parent_header", {}).get("msg_id") != said:
                reply = self.kernel.get_message("shell", timeout=PRELUDE_SECONDS)
            self.kernel.await_idle(said, timeout=PRELUDE_SECONDS)
        except Empty:
            raise RuntimeError(f"the kernel didn't answer within {PRELUDE_SECONDS} s to: {code}") from None
        if reply["content"]["status"] != "ok":
            raise RuntimeError("\n".join([code, *reply["content"].get("traceback", [])]))


class Cell(IPyNbCell):
    """A cell of one of the copies, compared as nbval does."""

    def __init__(self, *, step: Step, **named: Any) -> None:
        super().__init__(**named)
        self.step = step

    def reportinfo(self) -> tuple[Path, int, str]:
        """Where pytest says that the cell is."""
        return self.path, 0, self.name

    def runtest(self) -> None:
        """Runs and compares the cell. Raises NbCellError, which also says when a learner lacks a name."""
        if self.step.before:
            self.parent.prelude(self.step.before)
        try:
            super().runtest()
        except NbCellError as error:
            said = f"{error.source}\n{error.inner_traceback}"
            error.args = (f"{error}{self.step.advice(said)}",)
            raise


class Shared(pytest.Item):
    """What both copies share is stored alike in both."""

    def __init__(self, *, copies: dict[str, nbformat.NotebookNode], **named: Any) -> None:
        super().__init__(**named)
        self.copies = copies

    def runtest(self) -> None:
        """Raises BuildError with each cell that differs."""
        found = [f"cell {index}: {said}" for index, said in disagreements(self.copies[LEARNER], self.copies[SOLVED])]
        if found:
            raise BuildError("\n".join(found))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException]) -> str:
        """Without a traceback: it would show this file."""
        return str(excinfo.value)


# ------------------------------------------------------------------------------------------------- the seconds


class Seconds:
    """Adds up how long each chapter took, from pytest's reports; one in the process that prints the summary."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        path = Path(report.nodeid.split("::")[0])
        if path.suffix == ".ipynb":
            self.spent[path.stem] += report.duration
            self.failed |= {path.stem} if report.failed else set()

    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> None:
        if self.spent:
            terminalreporter.section("seconds of each chapter")
        for stem, seconds in sorted(self.spent.items()):
            terminalreporter.write_line(f"{stem:40s} {seconds:6.1f} s")
        if config.option.seconds:
            write_record(config.option.seconds, {s: t for s, t in self.spent.items() if s not in self.failed})


def pytest_configure(config: pytest.Config) -> None:
    """Sets nbval to this Python and the build's time limit; registers the clock, but not in xdist's workers."""
    config.option.nbval_current_env = True
    config.option.nbval_cell_timeout = CELL_SECONDS
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Seconds(), "seconds-of-chapters")


def write_record(path: Path, spent: dict[str, float]) -> None:
    """Writes the record that the sentence at a chapter's head is held to; the others keep theirs."""
    before = json.loads(path.read_text(encoding="utf-8"))["seconds"] if path.exists() else {}
    seconds = {stem: round(value, 1) for stem, value in sorted((before | spent).items())}
    head = {
        "what": "seconds of a chapter: its kernel's start, all cells, and the learner's exercise cells beside",
        "tool": "make minutes",
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": version("torch"),
    }
    path.write_text(json.dumps(head | {"seconds": seconds}, indent=2) + "\n", encoding="utf-8")
