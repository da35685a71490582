"""A new version of the course into this folder: ``python3 start.py update``.

From where the folder was cloned, or from another folder or a zip file of the course, without a network. The learner's
notebooks are in ``work/`` and are none of the course's files; :mod:`utils.course.workspace` brings them over
afterwards. Files of the course that were changed here are never overwritten: notebooks become the learner's copies, for
all others the update stops before it has touched anything, and says which they are.

``start.py`` runs this with a bare Python, so it needs the standard library only.

Attributes:
    OURS: Folders and files that are the machine's or the learner's and in no version of the course.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from utils.course.workspace import adopt

OURS = {".git", ".venv", ".venv-oldest", ".venv-newest", "work", "scratch", "__pycache__", ".ipynb_checkpoints"}


class CanNot(Exception):
    """The update can't be made; the text says why and what to do, and nothing was changed."""


def fetch(home: Path, source: str | None = None) -> str:
    """Bring the course's files to the newest version, or to the one in `source`; one line on what was done.

    source: a folder or a zip file of the course, else the repository that this folder was cloned from. Raises CanNot,
    with nothing changed, when there is no such source, when it is no version of the course, or when files were changed
    here that the new version would overwrite.
    """
    if source is not None:
        return _from_files(home, Path(source).expanduser())
    if not (home / ".git").exists():
        raise CanNot(
            f"{home} is no clone of the course's repository, so there is nowhere to fetch from: download the new "
            "version as a zip file from the repository's page and run `python3 start.py update FILE.zip`."
        )
    if shutil.which("git") is None:
        raise CanNot("git is not installed: install it, or download the new version as a zip file and name it.")
    return _from_git(home)


# --------------------------------------------------------------------------------------------------------------- git


def _from_git(home: Path) -> str:
    changed = _changed(home)
    notebooks = [name for name in changed if name.startswith("notebooks/") and name.endswith(".ipynb")]
    others = [name for name in changed if name not in notebooks]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise CanNot(
            f"files of the course were changed here: {', '.join(others[:3])}{more}. `git stash` puts the changes aside "
            "(and `git stash pop` brings them back after the update); then run the same command again."
        )
    before = _git(home, "rev-parse", "HEAD")
    upstream = _git(home, "rev-parse", "--abbrev-ref", "@{upstream}", fails="")
    if not upstream:
        raise CanNot(
            "this clone is on no branch that follows the course's repository, so there is nothing to fetch: go back to "
            "it with `git switch main`, then run the same command again."
        )
    _git(home, "fetch", "--quiet", upstream.partition("/")[0])
    ahead = _git(home, "rev-list", "--count", "@{upstream}..HEAD")
    if ahead != "0":
        raise CanNot(
            f"this clone has {ahead} commits of its own, so it can't just be moved on: merge the course's branch "
            f"yourself (`git merge {upstream}`), then run `python3 start.py update` for the notebooks."
        )
    for name in notebooks:
        adopt(home, Path(name).name, _git(home, "show", f"HEAD:{name}"))
        _git(home, "checkout", "--quiet", "HEAD", "--", name)
    _git(home, "merge", "--quiet", "--ff-only", "@{upstream}")
    after = _git(home, "rev-parse", "HEAD")
    if before == after:
        return "The course is the newest version already."
    count = _git(home, "rev-list", "--count", f"{before}..{after}")
    return f"The course is brought to {after[:9]} ({count} commits newer)."


def _changed(home: Path) -> list[str]:
    """The tracked files that are not as the last commit has them."""
    lines = _git(home, "status", "--porcelain", "--untracked-files=no", "-z", strip=False).split("\0")
    return [line[3:] for line in lines if line]


def _git(home: Path, *arguments: str, fails: str | None = None, strip: bool = True) -> str:
    """What git says. Raises CanNot with its last line when it fails, or gives `fails` where that is a text."""
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    done = subprocess.run(
        ["git", "-C", str(home), *arguments], capture_output=True, encoding="utf-8", errors="replace", env=environment
    )
    if done.returncode and fails is None:
        last = (done.stderr.strip().splitlines() or ["it did not say why"])[-1]
        raise CanNot(f"git could not do `git {arguments[0]}` ({last}); mend that and run the same command again.")
    return fails or "" if done.returncode else done.stdout.strip() if strip else done.stdout


# ------------------------------------------------------------------------------------------------------ folder or zip


def _from_files(home: Path, source: Path) -> str:
    if not source.exists():
        raise CanNot(f"there is no {source}: name the folder or the zip file of the new version.")
    with tempfile.TemporaryDirectory(prefix="course-") as scratch:
        root = _root_of(source, Path(scratch))
        if root.resolve() == home.resolve():
            raise CanNot(f"{source} is this very folder: name the folder or the zip file of the new version.")
        new = {path.relative_to(root) for path in _files(root)}
        for path in home.glob("notebooks/*.ipynb"):
            adopt(home, path.name)
        for path in sorted(new):
            target = home / path
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.part")
            shutil.copyfile(root / path, part)
            shutil.copymode(root / path, part)
            os.replace(part, target)
        gone = [path for path in _files(home) if path.relative_to(home) not in new and _is_a_chapters(path)]
        for path in gone:
            path.unlink()
    return f"The course's {len(new)} files are those of {source} now."


def _root_of(source: Path, scratch: Path) -> Path:
    """The course's folder in a folder or a zip file. Raises CanNot when there is none."""
    if source.is_file():
        try:
            with zipfile.ZipFile(source) as archive:
                archive.extractall(scratch)
        except (zipfile.BadZipFile, OSError) as problem:
            raise CanNot(f"{source} can't be read as a zip file ({problem}): download it again.") from None
        source = scratch
    for root in (source, *sorted(path for path in source.iterdir() if path.is_dir())):
        if (root / "start.py").is_file() and (root / "notebooks").is_dir():
            return root
    raise CanNot(f"{source} holds no version of the course (no start.py with notebooks/ beside it).")


def _files(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if name not in OURS and not name.endswith((".egg-info", "_cache"))]
        yield from (Path(folder) / name for name in files)


def _is_a_chapters(path: Path) -> bool:
    """Whether a file is one of a chapter's, by the course's own way of naming them. What else the new version lacks is
    left where it is: it may be the learner's."""
    return re.fullmatch(r"\d\d_.+\.(ipynb|md)|ch\d\d\.py", path.name) is not None
