"""The course on Google Colab: the setup cell that opens every notebook, and the installing that it asks for.

This module is imported before anything is installed, so it needs the standard library only.

Attributes:
    KEPT: What Colab has built for its GPUs: never installed, never replaced.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

COLAB = "https://colab.research.google.com"

KEPT = ("torch", "numpy")

SETUP_CELL = """\
# Setup. On Colab: fetch the course and install what is missing. Everywhere: silence three upstream warnings.
import os
import subprocess
import sys

if "google.colab" in sys.modules:
    home = os.environ.get("COURSE_HOME", "/content/lora-zero-to-hero")
    if not os.path.isdir(home):
        address = os.environ.get("COURSE_REPO", "{address}")
        branch = os.environ.get("COURSE_REF", "{ref}")
        subprocess.run(["git", "clone", "-q", "--depth=1", "-b", branch, address, home], check=True)
    os.chdir(os.path.join(home, "notebooks"))
    sys.path.insert(0, home)
    from utils.course.colab import ensure_packages
    ensure_packages(home)
from utils.quiet import quiet_upstream

quiet_upstream()
"""


class Origin(NamedTuple):
    """Where readers get the course from: "OWNER/NAME" on GitHub, and the branch or tag that links and clones go to."""

    repository: str
    ref: str


def origin(root: Path) -> Origin:
    """Reads where the course in `root` lives from its pyproject.toml, the only file that says so.

    Raises KeyError when ``[project.urls] Repository`` or ``[tool.course] ref`` is missing.
    """
    pyproject = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    address = pyproject["project"]["urls"]["Repository"]
    repository = address.removeprefix("https://github.com/").removesuffix(".git").strip("/")
    return Origin(repository, pyproject["tool"]["course"]["ref"])


def notebook_page(origin: Origin, notebook: str) -> str:
    """Gives the address that opens a notebook in Colab.

    Args:
        origin: where the course lives.
        notebook: its path in the repository, such as "notebooks/00_start_here.ipynb".
    """
    return f"{COLAB}/github/{origin.repository}/blob/{origin.ref}/{notebook}"


class Need(NamedTuple):
    """A package that is missing or doesn't fit: its name, what pip is to install, the version found."""

    name: str
    requirement: str
    found: str | None


def setup_cell(repository: str, ref: str) -> str:
    """Gives the source of the setup cell for a course that lives in `repository`.

    Args:
        repository: "OWNER/NAME" on GitHub, or the address that git clones from.
        ref: the branch or tag to fetch.

    On Colab the cell obeys three environment variables: COURSE_REPO (an address in place of `repository`),
    COURSE_REF (a branch or a tag in place of `ref`) and COURSE_HOME (the folder to clone to).
    """
    address = repository if "://" in repository else f"https://github.com/{repository}"
    return SETUP_CELL.format(address=address, ref=ref)


def installed_version(name: str) -> str | None:
    """Gives the version of an installed package, or None when it is missing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _requirement_class():
    """Finds Requirement in packaging or in pip's copy of it; None where neither can be imported."""
    for module in ("packaging.requirements", "pip._vendor.packaging.requirements"):
        try:
            return importlib.import_module(module).Requirement
        except ImportError:
            continue
    return None


def unmet(requirements: list[str]) -> list[Need]:
    """Finds the requirements that the installed packages don't meet, in the order given.

    A requirement whose marker excludes this machine counts as met. Where neither packaging nor pip can be
    imported, versions can't be compared and only missing packages are found.
    """
    parse = _requirement_class()
    needs = []
    for text in requirements:
        name = re.findall(r"[\w.-]+", text)[0]
        found = installed_version(name)
        if parse is None:
            met = found is not None
        else:
            wanted = parse(text)
            applies = wanted.marker is None or wanted.marker.evaluate()
            met = not applies or (found is not None and wanted.specifier.contains(found, prereleases=True))
        if not met:
            needs.append(Need(name, text, found))
    return needs


def ensure_packages(root: str | os.PathLike[str]) -> list[str]:
    """Installs what the course needs and this Python lacks, or has outside pyproject.toml's range.

    torch and numpy are never touched: they are held at their installed versions while pip looks for the rest,
    so that no other package can replace them. Prints one line about what was done, and one more where torch
    or numpy don't fit or the session has to be restarted.

    Args:
        root: the folder of the repository, where pyproject.toml lies.

    Returns:
        The names of the packages that were installed or replaced.

    Raises:
        RuntimeError: pip failed; the message has its last error and what to try.
    """
    project = tomllib.loads((Path(root) / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needs = unmet(project["dependencies"])
    for need in needs:
        if need.name in KEPT:
            print(
                f"The course asks for {need.requirement} and finds {need.found or 'none'}; it is left alone. "
                "Choose a newer runtime under Runtime > Change runtime type."
            )
    wanted = [need for need in needs if need.name not in KEPT]
    if not wanted:
        print("The course is ready; nothing had to be installed.")
        return []
    _pip_install([need.requirement for need in wanted])
    importlib.invalidate_caches()
    done = ", ".join(f"{need.name} {installed_version(need.name)}" for need in wanted)
    kept = " and ".join(f"{name} {installed_version(name)}" for name in KEPT if installed_version(name))
    print(f"The course is ready; installed {done}" + (f"; left {kept} as they were." if kept else "."))
    stale = [need.name for need in wanted if need.found and need.name.replace("-", "_") in sys.modules]
    if stale:
        names = " and ".join(stale)
        print(f"An older {names} is in use already: choose Runtime > Restart session, then run this again.")
    return [need.name for need in wanted]


def _pip_install(requirements: list[str]) -> None:
    """Runs pip with torch and numpy held at their installed versions."""
    held = [f"{name}=={installed_version(name)}" for name in KEPT if installed_version(name)]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "held.txt"
        constraints.write_text("\n".join(held) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "-q", "-c", str(constraints), *requirements]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        last = (errors or done.stderr.strip().splitlines() or ["it did not say why"])[-1]
        raise RuntimeError(
            f"pip could not install {', '.join(requirements)} on this runtime ({last}). Check that it "
            "is online, then choose Runtime > Disconnect and delete runtime, and run this cell again."
        )
