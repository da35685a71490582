"""What a learner has done, kept outside the notebooks in ``work/progress.json``, which git ignores.

So it outlives a kernel, and a new version of the course. The file holds, for each exercise that was checked, its last
state, how many tries it took, and whether it ever passed: no person, no path, no time. ``python3 start.py progress
--forget`` deletes it. Several kernels may write at once: each change is made to what the file holds at that moment,
under a lock, and the file is replaced in one step. Trouble with the file is told in a sentence and never stops a check.

``start.py`` reads the record with a bare Python, so this module needs the standard library only.

Attributes:
    PASSED, NOT_RIGHT, NOT_SOLVED, NOT_TRIED: An exercise's states, in the words that a learner reads.
    VARIABLE: The environment variable that names another file, from the course's folder where it isn't absolute; with
        "off" nothing is read or written. Builds and tests run so.
    STRICT_VARIABLE: The environment variable that makes checks strict, see :func:`strict`; nothing is read or written
        then, either.
    NBGRADER_VARIABLE: The environment variable that nbgrader sets while it grades or validates, which is strict too.
    STRICT: Whether checks are strict in this process: read once, when this module is imported, so that no cell of a
        notebook can switch it off by changing a variable.
    DEFAULT: The file, from the course's folder.
    FORMAT: The version of the file's form. A file of another one is set aside.
    PATIENCE: Seconds after which a lock that doesn't change hands counts as left by a process that was killed. Writing
        takes milliseconds.
    ASIDE: What stands between the record's name and a number in the name of a file that was set aside.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

PASSED = "passed"
NOT_RIGHT = "not right yet"
NOT_SOLVED = "not solved yet"
NOT_TRIED = "not tried"

VARIABLE = "COURSE_PROGRESS"
STRICT_VARIABLE = "COURSE_STRICT"
NBGRADER_VARIABLE = "NBGRADER_EXECUTION"

DEFAULT = "work/progress.json"
FORMAT = 1
PATIENCE = 1.0
ASIDE = ".old-"

ROOT = Path(__file__).resolve().parents[2]

# Windows refuses, for a moment, to touch a file that another process has open or is deleting.
_BUSY: tuple[type[OSError], ...] = (PermissionError,) if os.name == "nt" else ()


class Unreadable(Exception):
    """The record isn't one, or a newer version of the course wrote it. The text goes on after the file's name."""


@dataclass(frozen=True)
class Entry:
    """What the record holds of one exercise.

    state: how the last check ended. tries: the answers that were judged, up to the first that passed. passed: whether
    one ever did.
    """

    state: str = NOT_SOLVED
    tries: int = 0
    passed: bool = False

    def after(self, state: str) -> Entry:
        """The entry after one more check, which ended in `state`. An exercise that isn't solved was not tried."""
        tried = state != NOT_SOLVED and not self.passed
        return Entry(state, self.tries + tried, self.passed or state == PASSED)

    def joined(self, later: Entry) -> Entry:
        """This entry and a `later` one of the same exercise."""
        return Entry(later.state, max(self.tries, later.tries), self.passed or later.passed)


# What this kernel could not write, and the sentences that it has said.
_kept: dict[str, Entry] = {}
_said: set[str] = set()


# ------------------------------------------------------------------------------------------- for the checks


def asks_for_strict(environment: Mapping[str, str]) -> bool:
    """Whether these variables ask for strict checks: ``COURSE_STRICT``, set to something else than 0, or nbgrader's."""
    return environment.get(STRICT_VARIABLE, "0") not in ("", "0") or bool(environment.get(NBGRADER_VARIABLE))


STRICT = asks_for_strict(os.environ)


def strict() -> bool:
    """Whether this is grading, and an answer that doesn't pass raises; see STRICT."""
    return STRICT


def record(name: str, state: str) -> None:
    """Keep how a check of the exercise `name` ended: PASSED, NOT_RIGHT or NOT_SOLVED. Never raises for a file.

    Where the file can't be written the entry is kept in this kernel, which is said once, and written when it can be.
    """
    path = place(ROOT)
    if path is None:
        return
    known: dict[str, Entry] = {}
    try:
        if path == ROOT / DEFAULT and (ROOT / "lessons").is_dir():  # not where utils/ was installed without the course
            path.parent.mkdir(exist_ok=True)
        with _locked(path):
            known = _load_or_set_aside(path)
            merged = _with_kept(known)
            merged[name] = merged.get(name, Entry()).after(state)
            if merged != known:
                _save(path, merged)
        _kept.clear()
    except OSError as error:
        _kept[name] = _with_kept(known).get(name, Entry()).after(state)
        _say_once(
            f"Your progress can't be kept in {called(path, ROOT)} ({error.strerror or error}), so it is remembered "
            f"until this kernel ends. {VARIABLE} can name another file."
        )


def recorded() -> dict[str, Entry]:
    """What is known of each exercise that was ever checked; empty when nothing is, or the record is off.

    A file that can't be read counts as empty here: the next check says so.
    """
    path = place(ROOT)
    if path is None:
        return {}
    try:
        return _with_kept(load(path))
    except (OSError, Unreadable):
        return dict(_kept)


def join(entries: Mapping[str, Entry]) -> None:
    """Add the `entries` of another record to this one. Raises OSError when it can't be written."""
    path = place(ROOT)
    if path is None or not entries:
        return
    with _locked(path):
        known = _load_or_set_aside(path)
        _save(path, known | {name: known.get(name, Entry()).joined(entry) for name, entry in entries.items()})


def described(now: str | None, entry: Entry | None) -> tuple[str, bool]:
    """What to show of an exercise, and whether it counts as passed: once passed, it does for good.

    now: its state in this kernel, where it was checked in this kernel. entry: what the record has.
    """
    last = now or (entry.state if entry else NOT_TRIED)
    passed = last == PASSED or (entry is not None and entry.passed)
    return (f"{last} (passed before)" if passed and last != PASSED else last), passed


def course_line(names: Iterable[str], entries: dict[str, Entry]) -> str:
    """How many of the course's exercises, `names`, have passed, in a sentence."""
    passed = [described(None, entries.get(name))[1] for name in names]
    return f"The course: {sum(passed)} of {len(passed)} exercises passed."


# ------------------------------------------------------------------------------------------------- the file


def place(root: Path) -> Path | None:
    """The record's file for the course in `root`; None when nothing is to be read or written."""
    wanted = os.environ.get(VARIABLE, "")
    if strict() or wanted.lower() == "off":
        return None
    return root / (os.path.expanduser(wanted or DEFAULT))


def called(path: Path, root: Path) -> str:
    """`path` for a reader, from the course's folder where it is inside."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def load(path: Path) -> dict[str, Entry]:
    """The record in a file; empty when there is no file. Raises `Unreadable`, and OSError when it can't be opened."""
    try:
        data = _patiently(path.read_bytes)
    except FileNotFoundError:
        return {}
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError):
        raise Unreadable("is damaged") from None
    version = whole.get("version") if isinstance(whole, dict) else None
    if type(version) is int and version > FORMAT:
        raise Unreadable("was written by a newer version of the course")
    exercises = whole.get("exercises") if version == FORMAT else None
    if not isinstance(exercises, dict) or not all(map(_is_entry, exercises.values())):
        raise Unreadable("is damaged")
    return {name: Entry(**fields) for name, fields in exercises.items()}


def forget(path: Path) -> list[Path]:
    """Delete the record and what was set aside of it; returns what was deleted. Raises OSError when that fails."""
    gone = [file for file in (path, *sorted(path.parent.glob(f"{path.name}{ASIDE}*"))) if file.exists()]
    for file in gone:
        file.unlink()
    return gone


def _is_entry(fields: Any) -> bool:
    return (
        isinstance(fields, dict)
        and fields.keys() == {"state", "tries", "passed"}
        and fields["state"] in (PASSED, NOT_RIGHT, NOT_SOLVED)
        and type(fields["tries"]) is int
        and fields["tries"] >= 0
        and type(fields["passed"]) is bool
    )


def _with_kept(known: dict[str, Entry]) -> dict[str, Entry]:
    """`known`, and what this kernel could not write yet."""
    return known | {name: known.get(name, Entry()).joined(entry) for name, entry in _kept.items()}


def _load_or_set_aside(path: Path) -> dict[str, Entry]:
    """The record in the file. One that can't be used gets another name, and a sentence says so."""
    try:
        return load(path)
    except Unreadable as problem:
        others = (path.with_name(f"{path.name}{ASIDE}{number}") for number in count(1))
        aside = next(other for other in others if not other.exists())
        os.replace(path, aside)
        print(f"Your progress in {called(path, ROOT)} {problem}: the file is now {aside.name}, and a new one begins.")
        return {}


def _save(path: Path, entries: dict[str, Entry]) -> None:
    """Write the record in one step: whoever reads sees the old file or the new one, also after a power cut."""
    whole = {"version": FORMAT, "exercises": {name: asdict(entries[name]) for name in sorted(entries)}}
    partial = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with open(partial, "w", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(whole, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        _patiently(lambda: os.replace(partial, path))
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The block runs while no other process is in such a block for the same record.

    The lock is a file, which works on every system and on network folders. Raises OSError when it can't be made.
    """
    lock = path.with_name(f".{path.name}.lock")
    holder, deadline = _identity(lock), time.monotonic() + PATIENCE
    while True:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            break
        except (FileExistsError, *_BUSY):
            now = _identity(lock)
            if now != holder:
                holder, deadline = now, time.monotonic() + PATIENCE
            elif time.monotonic() > deadline:
                if now is None:
                    raise
                lock.unlink(missing_ok=True)
            time.sleep(0.01)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _identity(lock: Path) -> tuple[int, int] | None:
    """What tells one lock file from the next of the same name; None when there is none."""
    try:
        found = lock.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _patiently(step: Callable[[], Any]) -> Any:
    """`step()`, tried again for a while where another process's use of the file is in the way."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return step()
        except _BUSY:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _say_once(sentence: str) -> None:
    if sentence not in _said:
        _said.add(sentence)
        print(sentence)
