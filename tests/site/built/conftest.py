"""The built site and a browser that looks at it.

The tests need Node.js, Chromium and Playwright, none of which the course installs. Where all are there, what the build
needs is set up too; where something is missing, all of these tests are left out, which one line says.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tools.site import environment
from tools.site.build import built, served
from tools.site.collect import ROOT, address_of
from utils.course.colab import origin
from utils.start.testing import LEFT_OUT

SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Leave all out, in one line, where something is missing."""
    missing = [] if CHROMIUM else ["no Chromium"]
    missing += [] if shutil.which("node") and shutil.which("npm") else ["no Node.js with npm"]
    missing += [] if importlib.util.find_spec("playwright") else ["no playwright"]
    if not missing:
        try:
            environment.set_up(ROOT)
        except environment.SetUpError as problem:
            missing.append(str(problem))
    if missing:
        pytest.exit(f"the website's tests left out: {', '.join(missing)}", LEFT_OUT)


@pytest.fixture(scope="session")
def pages(tmp_path_factory) -> Path:
    """The folder of the built pages. A warning of Sphinx's fails it."""
    return built(ROOT, tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="session")
def address(pages: Path) -> Iterator[str]:
    """Where a static server has them: at the path that they have at GitHub Pages."""
    path = urlsplit(address_of(origin(ROOT))).path
    with served(pages, path=path) as where:
        yield where.rstrip("/") + path


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()
