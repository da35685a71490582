"""A new version of the course into this folder: ``python3 start.py update``.

From where the folder was cloned, or from another folder or a zip file of the course, without a network. The learner's
notebooks are in ``work/`` and are none of the course's files; :mod:`utils.course.workspace` brings them over
afterwards. What was changed here is never lost: notebooks become the learner's copies; for other files an update by git
stops before it has touched anything and says which they are, one from a folder keeps the old ones in ``work/old/``.

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
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from utils.course.workspace import FOLDER, OLD, adopt

OURS = {".git", ".venv", ".venv-oldest", ".venv-newest", "work", "scratch", "__pycache__", ".ipynb_checkpoints"}

_WHOLE = ("start.py", "notebooks", "utils/course", "utils/start")


class CanNot(Exception):
    """The update can't be made; the text says why and what to do, and nothing was changed."""


def fetch(home: Path, source: str | None = None) -> str:
    """Bring the course's files to the newest version, or to the one in `source`; what was done, in lines.

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


def worked_in_place(home: Path) -> dict[str, str]:
    """The notebooks in ``notebooks/`` that git says were changed, each as the last commit has it. Empty without git."""
    if not (home / ".git").exists() or shutil.which("git") is None:
        return {}
    listed = _git(home, "diff", "--name-only", "-z", "HEAD", "--", "notebooks", fails="", strip=False).split("\0")
    names = [Path(name).name for name in listed if name.endswith(".ipynb") and (home / name).exists()]
    known = {name: _git(home, "show", f"HEAD:notebooks/{name}", fails="", strip=False) for name in names}
    return {name: text for name, text in known.items() if text}


def adopt_worked_in(home: Path, worked: Mapping[str, str]) -> list[str]:
    """Make the learner's copies of notebooks that were worked in where they were given; a line on each."""
    lines = []
    for name, original in worked.items():
        kept = adopt(home, name, original)
        if kept:
            lines.append(
                f"What you did in notebooks/{name} is in {kept.relative_to(home).as_posix()} now; go on there."
            )
    return lines


# --------------------------------------------------------------------------------------------------------------- git


def _from_git(home: Path) -> str:
    upstream = _git(home, "rev-parse", "--abbrev-ref", "@{upstream}", fails="")
    if not upstream:
        raise CanNot(
            "this clone is on no branch that follows the course's repository, so there is nothing to fetch: go back to "
            "it with `git switch main`, then run the same command again."
        )
    _git(home, "fetch", "--quiet", upstream.partition("/")[0])
    worked = worked_in_place(home)
    others = [name for name in _changed(home) if name.removeprefix("notebooks/") not in worked]
    taken = _taken(home)
    others = [name for name in others if name not in taken]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise CanNot(
            f"files of the course were changed here: {', '.join(others[:3])}{more}. `git stash` puts the changes aside "
            "(and `git stash pop` brings them back after the update); then run the same command again."
        )
    before = _git(home, "rev-parse", "HEAD")
    ahead = int(_git(home, "rev-list", "--count", "@{upstream}..HEAD"))
    if ahead:
        raise CanNot(
            f"this clone has {_commits(ahead)} of its own, so it can't just be moved on: merge the course's branch "
            f"yourself (`git merge {upstream}`), then run `python3 start.py update` for the notebooks."
        )
    lines = adopt_worked_in(home, worked)
    for name in worked:
        _git(home, "checkout", "--quiet", "HEAD", "--", f"notebooks/{name}")
    if taken:
        _git(home, "add", "--all", "--pathspec-from-file=-", "--pathspec-file-nul", given="\0".join(taken))
    _git(home, "merge", "--quiet", "--ff-only", "@{upstream}")
    after = _git(home, "rev-parse", "HEAD")
    count = int(_git(home, "rev-list", "--count", f"{before}..{after}"))
    newest = "The course is the newest version already."
    return "\n".join([*lines, f"The course is brought to {after[:9]} ({_commits(count)} newer)." if count else newest])


def _commits(count: int) -> str:
    return f"{count} commit" + "s" * (count != 1)


def _changed(home: Path) -> list[str]:
    """The tracked files that are not as the last commit has them."""
    listed = _git(home, "diff", "--name-only", "--no-renames", "-z", "HEAD", strip=False)
    return [name for name in listed.split("\0") if name]


def _taken(home: Path) -> list[str]:
    """The files that are as the new version has them already: from a folder or a zip file, or taken by hand."""
    listed = _git(home, "diff", "--name-only", "--no-renames", "-z", "HEAD", "@{upstream}")
    differing = [name for name in listed.split("\0") if name]
    tree = [line.split("\t", 1) for line in _git(home, "ls-tree", "-r", "-z", "@{upstream}").split("\0") if line]
    blobs = {name: about.split()[2] for about, name in tree}
    here = [name for name in differing if name in blobs and (home / name).is_file()]
    found = _git(home, "hash-object", "--stdin-paths", given="\n".join(here)).split()
    same = [name for name, blob in zip(here, found, strict=True) if blobs[name] == blob]
    return same + [name for name in differing if name not in blobs and not (home / name).exists()]


def _git(home: Path, *arguments: str, fails: str | None = None, strip: bool = True, given: str | None = None) -> str:
    """What git says, `given` being its input. Raises CanNot with its words when it fails, or gives `fails` if that is a
    text."""
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    command = ["git", "-C", str(home), *arguments]
    done = subprocess.run(
        command, input=given, capture_output=True, encoding="utf-8", errors="surrogateescape", env=environment
    )
    if done.returncode and fails is None:
        said = done.stderr.strip().splitlines() or ["it did not say why"]
        at = next((n for n, line in enumerate(said) if line.startswith(("error:", "fatal:"))), len(said) - 1)
        why = said[at]
        if why.endswith(":"):  # the files follow, a line each
            why += " " + ", ".join(line.strip() for line in said[at + 1 :] if line.startswith(("\t", " ")))
        if "index.lock" in why:
            lock = home / ".git" / "index.lock"
            raise CanNot(
                f"git was stopped in its work and left {lock}: delete that file and run the same command again."
            )
        raise CanNot(f"git could not do `git {arguments[0]}` ({why}); mend that and run the same command again.")
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
        worked = worked_in_place(home)
        lines = adopt_worked_in(home, worked)
        for path in home.glob("notebooks/*.ipynb"):
            if path.name not in worked and (kept := adopt(home, path.name)):
                lines.append(f"What you did in notebooks/{path.name} is in {kept.relative_to(home).as_posix()} now.")
        gone = {path.relative_to(home) for path in _files(home)} - new
        aside = _Aside(home)
        for path in sorted(path for path in gone if _is_the_courses(path)):
            aside.keep(path)
            (home / path).unlink()
        for path in sorted(new, key=lambda path: (path.parts[0] in ("notebooks", "solutions"), path)):  # code first
            if (home / path).exists():
                if (home / path).read_bytes() == (root / path).read_bytes():
                    continue
                aside.keep(path)
            _replace(root / path, home / path)
    lines.append(f"The course's {len(new)} files are those of {source} now.")
    if aside.count:
        kept = aside.folder.relative_to(home).as_posix()
        lines.append(f"Old files kept: {aside.count}, in {kept}; delete that folder if you had changed none of them.")
    return "\n".join(lines)


def _root_of(source: Path, scratch: Path) -> Path:
    """The course's folder in a folder or a zip file. Raises CanNot when there is none."""
    given = source
    if source.is_file():
        try:
            with zipfile.ZipFile(source) as archive:
                archive.extractall(scratch)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as problem:  # Runtime: encrypted
            raise CanNot(f"{source} can't be read as a zip file ({problem}): download it again.") from None
        source = scratch
    for root in (source, *sorted(path for path in source.iterdir() if path.is_dir())):
        if all((root / name).exists() for name in _WHOLE):
            return root
    raise CanNot(f"{given} holds no whole version of the course: {', '.join(_WHOLE)} beside each other.")


def _files(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if name not in OURS and not name.endswith((".egg-info", "_cache"))]
        yield from (Path(folder) / name for name in files)


def _is_the_courses(path: Path) -> bool:
    """Whether a file that the new version lacks was the course's, by the course's own way of naming. All others are
    left where they are: they may be the learner's."""
    chapters = re.fullmatch(r"\d\d_.+\.(ipynb|md)", path.name) is not None
    return chapters or path.parts[0] in ("utils", "tests", "tools") and path.suffix == ".py"


def _replace(source: Path, target: Path) -> None:
    """Put a file in the place of another in one step; what may be run stays what may be run."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.copyfile(source, part)
        shutil.copymode(target if target.exists() else source, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


class _Aside:
    """The folder ``work/old/course-N`` for files that are about to be replaced and that nobody else has. Notebooks are
    left out: they were adopted."""

    def __init__(self, home: Path) -> None:
        old = home / FOLDER / OLD
        taken = [int(path.name.removeprefix("course-")) for path in old.glob("course-*") if path.name[7:].isdigit()]
        self.home, self.folder, self.count = home, old / f"course-{max(taken, default=0) + 1}", 0
        tracked = _git(home, "ls-files", "-z", fails="", strip=False) if (home / ".git").exists() else ""
        self.in_git = set(tracked.split("\0")) - set(_changed(home)) if tracked else set()

    def keep(self, path: Path) -> None:
        """Keep the course's file `path`, from the course's folder, unless git has it as it is."""
        if path.as_posix() in self.in_git or path.parts[0] == "notebooks":
            return
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(self.home / path, self.folder / path)
        self.count += 1
