"""The course on Google Colab and on Kaggle: the setup cell that opens every notebook, and where work is kept there.

This module is imported before anything is installed, so it needs the standard library only.

Attributes:
    COLAB: Where Colab is.
    DRIVE: What :func:`keep_in_drive` uses of Google Drive, once that is mounted.
    WORKING: What Kaggle keeps of a session, with a saved version.
    SETUP_ID: The id of the setup cell, which is in no lesson.
    SETUP_CELL: The setup cell. A branch moves on and a copy of a notebook doesn't, so the cell names its lesson and the
        lesson's git hash: where the branch has another lesson by now, it takes the last commit that had this one. A
        release's tag has it at once. Readers' copies call ``begin(home)`` for years, so that keeps its name.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

from utils.course import progress
from utils.course.packages import Menus, SetupProblem, ensure_packages

COLAB = "https://colab.research.google.com"

DRIVE = Path("/content/drive/MyDrive/lora-zero-to-hero")
WORKING = Path("/kaggle/working/lora-zero-to-hero")

SETUP_ID = "course-setup"

SETUP_CELL = """\
# Setup.
# On Colab and Kaggle: fetch the course as this notebook knows it, and what is missing.
# Everywhere: silence four upstream warnings.
import os
import shutil
import subprocess
import sys

if "google.colab" in sys.modules or "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
    address = os.environ.get("COURSE_REPO", "{address}")
    ref = os.environ.get("COURSE_REF", "{ref}")
    home = os.environ.get("COURSE_HOME", os.path.expanduser("~/lora-zero-to-hero"))
    lesson, version = "{lesson}", "{version}"

    def git(*words, cwd=home):
        return subprocess.run(["git", *words], cwd=cwd, capture_output=True, text=True)

    if not os.path.isdir(home):
        part = home + ".part"
        shutil.rmtree(part, ignore_errors=True)
        options = ["-q", "--filter=blob:none", "--single-branch", "-b", ref]
        done = git("clone", *options, address, part, cwd=None)
        if "not found in upstream" in done.stderr:
            raise SystemExit(f"{{ref}} is gone from {{address}}: open the chapter afresh from there.")
        if done.returncode:
            advice = "On Kaggle: Settings > Turn on internet."
            raise SystemExit(f"No way to {{address}}. {{advice}}\\n{{done.stderr}}")
        os.rename(part, home)
    if git("rev-parse", f"HEAD:{{lesson}}").stdout.strip() != version:
        search = ["log", "-1", "--first-parent", "-m", "--no-renames", "--format=%H^"]
        last = git(*search, f"--find-object={{version}}", "--", lesson).stdout.strip()
        if not last or git("checkout", "-q", last).returncode:
            print(f"{{address}} has this version of the chapter no more: today's course is used.")
    sys.path.insert(0, home)
    from utils.course.colab import begin

    begin(home)
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


def setup_cell(origin: Origin, lesson: Path) -> str:
    """Gives the source of the setup cell for the notebooks of a lesson, lessons/NN_topic.md.

    On Colab and Kaggle the cell obeys three environment variables: COURSE_REPO (an address in place of the origin's),
    COURSE_REF (a branch or a tag in place of its ref) and COURSE_HOME (the folder to clone to).
    """
    repository = origin.repository
    return SETUP_CELL.format(
        address=repository if "://" in repository else f"https://github.com/{repository}",
        ref=origin.ref,
        lesson=f"{lesson.parent.name}/{lesson.name}",
        version=git_hash(lesson.read_bytes().replace(b"\r\n", b"\n")),
    )


def git_hash(content: bytes) -> str:
    """The name that git gives a file of this content, as `git hash-object` prints it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


# ----------------------------------------------------------------------------------------- what the cell calls


class Host(NamedTuple):
    """A place that runs notebooks for its readers: its name, its menus, and what becomes of a reader's work there."""

    name: str
    menus: Menus
    advice: str


_COLAB = Host(
    "Colab",
    Menus(
        restart="Runtime > Restart session",
        newer="Runtime > Change runtime type",
        fresh="Runtime > Disconnect and delete runtime",
    ),
    "Before you write anything: File > Save a copy in Drive. Your answers are kept in that copy only.\n"
    "Progress and trained adapters end with this session. To keep them in your Drive, run in a cell of its own:\n"
    "    from utils.course.colab import keep_in_drive; keep_in_drive()",
)
_KAGGLE = Host(
    "Kaggle",
    Menus(
        restart="Run > Restart & clear cell outputs",
        newer="Settings > Environment preferences > the latest environment",
        fresh="Run > Power off, and start the session again",
    ),
    f"Progress and trained adapters are written to {WORKING}, which Kaggle keeps with each Save Version. To have them\n"
    "in your next session too: Settings > Persistence > Files only.",
)


def host() -> Host | None:
    """Which host this Python runs on; None elsewhere, as on your own machine."""
    if "google.colab" in sys.modules:
        return _COLAB
    return _KAGGLE if "KAGGLE_KERNEL_RUN_TYPE" in os.environ else None


def begin(home: str | os.PathLike[str]) -> None:
    """Make the session ready for the course, which the setup cell has fetched to `home`: it is told where its work is
    kept and stands in the notebooks' folder, and what is missing is installed.

    Raises SetupProblem as :func:`utils.course.packages.ensure_packages` does, and RuntimeError away from a host.
    """
    here = host()
    if here is None:
        raise RuntimeError("this is neither Colab nor Kaggle: python3 start.py sets the course up on your own machine")
    os.chdir(Path(home) / "notebooks")
    if progress.VARIABLE not in os.environ:
        if here is _KAGGLE:
            keep_in(WORKING)
        print(here.advice)
    ensure_packages(home, here.menus)


def keep_in_drive() -> None:
    """On Colab: ask for your Google Drive, and keep progress and trained adapters there from now on.

    What was passed in this session is brought along. Elsewhere it says that there is no need. Raises SetupProblem when
    the Drive isn't given.
    """
    if "google.colab" not in sys.modules:
        return print("This isn't Colab: your work is kept on this machine already, and nothing was changed.")
    try:
        importlib.import_module("google.colab.drive").mount(str(DRIVE.parents[1]))
    except Exception as problem:  # Colab's own kinds, by version
        raise SetupProblem(
            f"Your Drive was not opened ({problem}), and nothing was changed. Run the cell again, and allow Colab to "
            "see and change files there; it uses the folder lora-zero-to-hero alone."
        ) from problem
    keep_in(DRIVE)
    print(f"Progress and trained adapters are kept in your Drive from now on: {DRIVE}.")
    print("Run this cell again in the next session, or in another chapter, to go on from there.")


def keep_in(folder: Path) -> None:
    """Keep progress and trained adapters in `folder` from now on, and bring along what this session has passed.

    It sets COURSE_PROGRESS and COURSE_CACHE. Raises OSError when nothing can be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = progress.recorded()
    os.environ["COURSE_CACHE"] = str(folder / "cache")
    os.environ[progress.VARIABLE] = str(folder / "progress.json")
    progress.join(before)
