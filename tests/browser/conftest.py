"""A browser for these tests, and the course served to it.

The tests need what the course doesn't install: Playwright and a Chromium. Where one is missing, all of them are left
out, which one line says. They may take five minutes in all, and longer only where more chapters are asked for.

Attributes:
    CHAPTERS: The chapters that are run unless others are named: the first, and one with something to operate.
    SECONDS: How long the tests may take in all, for each two chapters.
    HARMLESS: What the console may say, each with the reason.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.browser.lab import copy_of_the_course, jupyterlab
from tests.browser.reader import Reader
from utils.course.workspace import make_copies
from utils.start.testing import LEFT_OUT

CHAPTERS = ("00", "12")
SECONDS = 300
HARMLESS: dict[str, str] = {}

_SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
_SWITCHES += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """What the tests may be told."""
    parser.addoption("--shots", type=Path, help="folder for screenshots of every step")
    parser.addoption("--chapters", default="", help='chapters to run through, "03 05" or "all"')
    parser.addoption("--chromium", default=shutil.which("chromium") or shutil.which("chromium-browser"))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Leave all out, in one line, where something is missing."""
    missing = [] if session.config.getoption("--chromium") else ["no Chromium"]
    missing += [] if importlib.util.find_spec("playwright") else ["no playwright"]
    if missing:
        pytest.exit(
            f"browser tests left out: {', '.join(missing)}; apt-get install chromium, pip install playwright", LEFT_OUT
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each chapter, where a test asks for one."""
    if "chapter" in metafunc.fixturenames:
        metafunc.parametrize("chapter", _chapters(metafunc.config))


def _chapters(config: pytest.Config) -> list[str]:
    wanted = config.getoption("--chapters").split() or list(CHAPTERS)
    every = [path.name[:2] for path in sorted((config.rootpath / "notebooks").glob("[0-9][0-9]_*.ipynb"))]
    return every if wanted == ["all"] else wanted


@dataclass
class Course:
    """The course as it is served: its folder, its address, the browser, who has a page open, and until when."""

    root: Path
    address: str
    browser: Any
    shots: Path | None
    until: float
    readers: list[Reader] = field(default_factory=list)

    def open(self, path: str) -> Reader:
        """A reader who has opened the notebook at `path`."""
        page = self.browser.new_page(viewport={"width": 1280, "height": 900})
        self.readers.append(Reader(page, self.address, self.shots, self.left))
        self.readers[-1].open(path)
        return self.readers[-1]

    def left(self) -> float:
        """How many seconds are left for the tests. Fails the test when none are."""
        left = self.until - time.monotonic()
        assert left > 0, "the browser's tests took longer than they may in all: see SECONDS"
        return left

    def leave(self, reader: Reader) -> None:
        """Close the reader's page, if it is open."""
        if reader in self.readers:
            reader.page.close()
            self.readers.remove(reader)

    def errors(self) -> list[str]:
        """What consoles and pages said of errors since the last call, without what is harmless."""
        said = [error for reader in self.readers for error in reader.errors if error not in HARMLESS]
        for reader in self.readers:
            reader.errors.clear()
        return said


@pytest.fixture(scope="session")
def course(request, tmp_path_factory) -> Iterator[Course]:
    """A copy of the course, served, with a browser."""
    from playwright.sync_api import sync_playwright

    options = request.config.option
    if options.shots:
        options.shots.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + SECONDS * max(1, len(_chapters(request.config)) / 2)
    scratch = tmp_path_factory.mktemp("lab")
    root = copy_of_the_course(scratch / "course")
    make_copies(root)
    with sync_playwright() as playwright, jupyterlab(root, scratch) as address:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=_SWITCHES)
        yield Course(root, address, browser, options.shots, until)
        browser.close()


@pytest.fixture(autouse=True)
def quiet_console(course) -> Iterator[None]:
    """A test fails for an error in the console, too."""
    course.left()
    yield
    errors = course.errors()
    assert not errors, errors


@pytest.fixture
def reader(course) -> Iterator[Callable[[str], Reader]]:
    """Opens a notebook for this test alone."""
    opened: list[Reader] = []

    def open_one(path: str) -> Reader:
        opened.append(course.open(path))
        return opened[-1]

    yield open_one
    for one in opened:
        course.leave(one)


@pytest.fixture(scope="module")
def chapters(course) -> Iterator[Callable[[str], Reader]]:
    """A reader of a chapter who has run all of its cells, the same one for every test of a file."""
    known: dict[str, Reader] = {}

    def run(chapter: str) -> Reader:
        if chapter not in known:
            (path,) = (course.root / "work").glob(f"{chapter}_*.ipynb")
            known[chapter] = course.open(f"work/{path.name}")
            known[chapter].run_all()
        return known[chapter]

    yield run
    for reader in known.values():
        course.leave(reader)
