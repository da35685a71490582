"""The learner's notebooks in work/: made at the first start, brought to a new version of the course, or made afresh.

``python -m utils.start.notebooks`` brings them to what notebooks/ holds: an update runs that as a new process, so that
the new version's own code does it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from utils.course.update import CanNot, adopt_worked_in, fetch, worked_in_place
from utils.course.workspace import FOLDER, GIVEN, Carried, Unreadable, bring_over, follow_renames, make_copies
from utils.course.workspace import reset as make_afresh
from utils.start.words import AGAIN, Trouble, say

ROOT = Path(__file__).resolve().parents[2]

_RELOAD = "For a notebook that is open in JupyterLab, choose File, Reload Notebook from Disk there."


def prepare(home: Path) -> None:
    """Make the notebooks in work/ that are missing, and bring the others along with the course's.

    Where git says that one in notebooks/ was changed, it is no new version: what was worked in it becomes the learner's
    copy if there is none yet, and else nothing is done. Raises Trouble for a notebook of the course that can't be read.
    """
    first = not (home / FOLDER / GIVEN).exists()
    worked = worked_in_place(home)
    new = {name: text for name, text in worked.items() if not (home / FOLDER / name).exists()}
    try:
        for line in adopt_worked_in(home, new):
            say(line)
        _follow_renames(home)
        made = make_copies(home)
        carried = bring_over(home, leave=worked) if (home / ".git").exists() else []
    except Unreadable as problem:
        raise Trouble(f"{problem}; get that file of the course again {AGAIN}") from None
    if made and first:
        say(f"Your notebooks are in {FOLDER}/; those in notebooks/ stay as they came.")
    if carried:
        say("The course is newer than your notebooks:")
        _tell(carried)


def update(home: Path, source: str | None) -> int:
    """Bring the course to a new version, then the learner's notebooks, and say what came; the exit code."""
    if not (home / FOLDER / GIVEN).exists():
        prepare(home)  # or nobody could say afterwards what of the notebooks was the course's
    try:
        say(fetch(home, source))
    except CanNot as problem:
        raise Trouble(f"The course is as it was: {problem}") from None
    return subprocess.call([sys.executable, "-m", "utils.start.notebooks"], cwd=str(home))


def reset(home: Path, chapter: str) -> int:
    """Give a chapter's notebook afresh, keep the old one, and say where. Raises Trouble for a chapter there isn't."""
    try:
        name, old = make_afresh(home, chapter.zfill(2), worked_in_place(home))
    except (ValueError, Unreadable) as problem:
        raise Trouble(f"Nothing is reset: {problem}.") from None
    kept = f"; the old one is {old.relative_to(home).as_posix()}" if old else ""
    say(f"{FOLDER}/{name} is as the course has it{kept}.\n{_RELOAD}")
    return 0


def _follow_renames(home: Path) -> None:
    renamed = follow_renames(home)
    if renamed:
        say("Chapters have new numbers; your notebooks are called like them now:")
    for old, new in renamed.items():
        say(f"  {FOLDER}/{old} is {FOLDER}/{new}")


def _tell(carried: list[Carried]) -> None:
    for report in carried:
        say(f"  {report}")
    if any(not report.fresh for report in carried):
        say(f"Your copies as they were are in {FOLDER}/old/.")
    say(_RELOAD)


def main(home: Path = ROOT) -> int:
    """What an update runs with the new version's code; the exit code."""
    try:
        if not (home / FOLDER / GIVEN).exists():
            prepare(home)
        _follow_renames(home)
        carried = bring_over(home)
    except (Trouble, Unreadable) as problem:
        say(f"{problem}")
        return 1
    except OSError as problem:
        say(f"Your notebooks are not all brought over: {problem}. Mend that and run python3 start.py update again.")
        return 1
    except KeyboardInterrupt:
        say("Stopped. Run python3 start.py update again; it goes on from here.")
        return 130
    there = len(list((home / FOLDER).glob("[0-9][0-9]_*.ipynb")))
    if carried:
        _tell(carried)
    others = there - len(carried)
    if others:
        say(
            f"No other notebook has anything new ({others} of {there})." if carried else "No notebook has anything new."
        )
    say("Go on with: python3 start.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
