"""The learner's own notebooks, ``work/NN_topic.ipynb``: made from ``notebooks/``, and brought to a new version of the
course with everything in them that is the learner's.

``notebooks/`` stays as the course has it, so a new version can always replace it. In ``work/`` a cell is the learner's
when its source is another than the one that was given, or when it wasn't given at all. :func:`carried` puts these cells
into a new version's notebook: an answer to where its exercise stands now, a changed cell to the cell of the same id,
and what has no place any more below the cell that it stood below, with a line that says so. Nothing is ever thrown
away: a copy that held changes is kept in ``work/old/`` before it is replaced.

``start.py`` runs this with a bare Python, so it needs the standard library only.

Attributes:
    FOLDER: Where the learner's notebooks are, from the course's folder; git ignores it.
    GIVEN: The file in it that holds, for each notebook, what was given: cell ids and hashes of their sources.
    OLD: The folder in it for copies that were replaced.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import platform
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.course.colab import SETUP_ID

FOLDER = "work"
GIVEN = ".given.json"
OLD = "old"
_NEXT = " next"  # after a notebook's name in GIVEN: the record of what is being written

Notebook = dict[str, Any]
Cell = dict[str, Any]

_STUB = re.compile(r"YOUR CODE HERE|raise NotImplementedError|= (None|\.\.\.)\s*$")
_KEPT = (
    "**Kept from your copy.** The cell below is yours; the new version of the course has no place for it any more, so "
    "it stands below the cell that it followed."
)
_NEW_STUB = (
    "**New in this version.** The exercise below has changed. This is how its cell begins now; your answer follows it."
)


class Unreadable(ValueError):
    """A notebook that can't be read; the text says which and why."""


@dataclass
class Carried:
    """What became of one notebook. answers: exercises whose answers were brought over. cells: other cells of the
    learner's that were. kept: cells that have no place any more and stand below their old neighbour. changed: exercises
    that the new version asks otherwise. fresh: nothing of the learner's was in it, or it is new. unreadable: why the
    learner's copy can't be read, if it can't. came: answers that were in another notebook, and in which. older: what
    came from another notebook and stays in the old copy alone, as the learner has another one here."""

    name: str
    answers: list[str] = field(default_factory=list)
    cells: int = 0
    kept: int = 0
    changed: list[str] = field(default_factory=list)
    fresh: bool = False
    unreadable: str = ""
    came: dict[str, str] = field(default_factory=dict)
    older: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        if self.unreadable:
            return f"{self.name}: {self.unreadable}; it is kept in {FOLDER}/{OLD}, and a fresh copy is in its place"
        if self.fresh:
            return f"{self.name}: the new version; there was nothing of yours in it"
        parts = [f"{_number(len(self.answers), 'answer')} ({', '.join(self.answers)})"] if self.answers else []
        for place in sorted(set(self.came.values())):
            names = [name for name in self.answers if self.came.get(name) == place]
            if names and len(names) == len(self.answers):
                parts[0] += f", which were in {place}"
            elif names:
                parts[0] += f", of which {', '.join(names)} from {place}"
        parts += [_number(self.cells, "other cell") + " of yours"] * bool(self.cells)
        parts += [_number(self.kept, "cell") + " without a place any more, marked"] * bool(self.kept)
        again = f"; asked otherwise now, check again: {', '.join(self.changed)}" if self.changed else ""
        older = f"; yours here stays, another one is in {FOLDER}/{OLD}: {', '.join(self.older)}" if self.older else ""
        brought = f", with {' and '.join(parts)}" if parts else ""
        return f"{self.name}: the new version{brought}{again}{older}"


def _number(count: int, what: str) -> str:
    return f"{count} {what}" + "s" * (count != 1)


# --------------------------------------------------------------------------------------------- making and resetting


def make_copies(home: Path) -> list[str]:
    """Make the learner's copy of each notebook that has none yet; the names of those made."""
    given = read_given(home)
    made = []
    for path in _notebooks(home):
        if not (home / FOLDER / path.name).exists():
            _give(home, path, given)
            made.append(path.name)
    if made:
        _write_given(home, given)
    return made


def follow_renames(home: Path) -> dict[str, str]:
    """Give the learner's copies the numbers that their chapters have now, where new chapters came before them; what was
    renamed, old name to new.

    A copy is that of another chapter now when the course has no notebook of its name any more, and one with the same
    topic. Nothing is renamed onto a copy that is there.
    """
    given, there = read_given(home), {path.name for path in _notebooks(home)}
    topics = {name[3:]: name for name in there}
    renamed = {}
    for old in sorted(set(given) - there):
        new = topics.get(old[3:])
        if new and (home / FOLDER / old).exists() and not (home / FOLDER / new).exists():
            given[new] = given[old]  # under both names first: a stop in between loses neither
            _write_given(home, given)
            os.replace(home / FOLDER / old, home / FOLDER / new)
            del given[old]
            _write_given(home, given)
            renamed[old] = new
    return renamed


def reset(home: Path, chapter: str, leave: Collection[str] = ()) -> tuple[str, Path | None]:
    """A fresh copy of a chapter's notebook; its name, and where the old copy is kept, if there was one. Copies whose
    chapters have other numbers now are renamed before; in a clone, all are brought over but `leave`.

    Raises ValueError for a chapter that there isn't.
    """
    found = [path for path in _notebooks(home) if path.name.startswith(f"{chapter}_")]
    if not found:
        numbers = [path.name[:2] for path in _notebooks(home)]
        raise ValueError(f"there is no chapter {chapter!r}; the chapters are {numbers[0]} to {numbers[-1]}")
    follow_renames(home)
    if (home / ".git").exists():
        bring_over(home, leave)  # or answers that belong to other chapters now would be in the old copy alone
    old = _set_aside(home, found[0].name)
    given = read_given(home)
    _give(home, found[0], given)
    _write_given(home, given)
    return found[0].name, old


def adopt(home: Path, name: str, original: str | None = None) -> Path | None:
    """Keep what was worked in ``notebooks/NAME`` itself, before a new version replaces it; where it is now.

    original: the notebook as the course had it; default: what the learner's copy was made from. It becomes the copy in
    ``work/`` where that holds nothing of the learner's yet, else it is kept in ``work/old/``. Nothing is done, and None
    returned, when it is as the course had it.
    """
    path, given = home / "notebooks" / name, read_given(home)
    try:
        worked, before = _read(path), hashes(json.loads(original)) if original is not None else given.get(name)
    except (Unreadable, ValueError):
        worked, before = None, None
    if worked is not None and before is not None:
        worked["cells"] = _with_ids(worked["cells"], before)
        for known in (before, given.get(name, before)):  # an update from a folder gave what git doesn't know
            if not any(_is_theirs(cell, known) for cell in worked["cells"]):
                return None
        mine = _read_or_none(home / FOLDER / name)
        if mine is None or not any(_is_theirs(cell, given.get(name, {})) for cell in _with_ids(mine["cells"], before)):
            if mine is None:
                _set_aside(home, name)
            _write(home / FOLDER / name, worked)
            given[name] = before
            _write_given(home, given)
            return home / FOLDER / name
    folder = home / FOLDER / OLD
    folder.mkdir(parents=True, exist_ok=True)
    kept = _free_name(folder, name)
    kept.write_bytes(path.read_bytes())
    return kept


def bring_over(home: Path, leave: Collection[str] = ()) -> list[Carried]:
    """Bring every notebook in ``work/`` to what ``notebooks/`` holds now; what was done, notebook by notebook.

    leave: notebooks of the course that are not to be looked at. A copy that can't be read is kept in ``work/old/`` and
    made afresh. One whose chapter there is no more is left alone: its answers go to where their exercises stand now.
    Notebooks of the course that the learner has no copy of are made. Raises Unreadable for a notebook of the course
    that can't be read. Copies whose chapters have other numbers now are renamed before.
    """
    follow_renames(home)
    given = read_given(home)
    _finish_record(home, given)
    new = {path.name: _read(path) for path in _notebooks(home) if path.name not in leave}
    places = {exercise: name for name, notebook in new.items() for exercise in _answers(notebook)}
    mine: dict[str, Notebook] = {}
    broken: dict[str, str] = {}
    for path in sorted((home / FOLDER).glob("[0-9][0-9]_*.ipynb")):
        if path.name not in new and path.name not in given:
            continue  # a copy that the learner made of a copy
        try:
            mine[path.name] = _read(path)
        except Unreadable as problem:
            broken[path.name] = str(problem)
    moved: dict[str, list[Cell]] = {}
    came: dict[str, dict[str, str]] = {}
    goes: dict[str, set[str]] = {}
    ids = {cell["id"]: name for name, notebook in new.items() for cell in notebook["cells"] if not _exercise(cell)}
    own = {name: {cell["id"] for cell in notebook["cells"]} for name, notebook in new.items()}
    for name, notebook in mine.items():
        notebook["cells"] = _with_ids(notebook["cells"], given.get(name, {}))
        for cell in notebook["cells"]:
            if not _is_theirs(cell, given.get(name, {})):
                continue
            exercise, place = _exercise(cell), name
            if exercise:
                place = places.get(exercise, name)
            elif cell["id"] not in own.get(name, ()):
                place = ids.get(cell["id"], name)
            if place != name and cell["id"] != SETUP_ID:
                moved.setdefault(place, []).append(cell)
                goes.setdefault(name, set()).add(place)
                if exercise:
                    came.setdefault(place, {})[exercise] = name.removesuffix(".ipynb")
    reports = []
    for name in _targets_first(list(new), goes):
        notebook = new[name]
        there = home / FOLDER / name
        if name in mine and given.get(name) == hashes(notebook) and name not in moved and name not in goes:
            continue
        report = Carried(name, unreadable=broken.get(name, ""), came=came.get(name, {}))
        elsewhere = {exercise for exercise, place in places.items() if place != name}
        elsewhere |= {id_ for id_ in ids if id_ not in own[name]}
        result = carried(notebook, mine.get(name), given.get(name, {}), moved.get(name, []), report, elsewhere)
        record = hashes(notebook)
        if name in mine and json.dumps(result, sort_keys=True) == json.dumps(mine[name], sort_keys=True):
            given[name] = record
            _write_given(home, given)
            if report.older and any(name in goes.get(source, ()) for source in new):
                reports.append(report)
            continue
        if name in mine and not report.fresh or report.unreadable:
            _set_aside(home, name)
        result = result if name in mine else _as_opened(home, result)
        given[name + _NEXT] = {**record, "": _hash_of(_text(result))}
        _write_given(home, given)
        _write(there, result)
        del given[name + _NEXT]
        given[name] = record
        _write_given(home, given)
        reports.append(report)
    return sorted(reports, key=lambda report: report.name)


def _targets_first(names: Sequence[str], goes: Mapping[str, Collection[str]]) -> list[str]:
    """The notebooks in an order in which answers are in their new place before they leave their old one."""
    left, order = list(names), []
    while left:
        name = next((n for n in left if not set(goes.get(n, ())) & (set(left) - {n})), left[0])
        left.remove(name)
        order.append(name)
    return order


def _finish_record(home: Path, given: dict[str, dict[str, str]]) -> None:
    """After a stop between a notebook and its record: the record is the new one if the notebook is."""
    for key in [key for key in given if key.endswith(_NEXT)]:
        name, record = key.removesuffix(_NEXT), given.pop(key)
        path, written = home / FOLDER / name, record.pop("", "")
        if path.exists() and _hash_of(path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")) == written:
            given[name] = record


# ------------------------------------------------------------------------------------------------------- one notebook


def carried(
    new: Notebook,
    mine: Notebook | None,
    given: Mapping[str, str],
    moved: Sequence[Cell] = (),
    report: Carried | None = None,
    elsewhere: Collection[str] = (),
) -> Notebook:
    """The new version's notebook with what is the learner's in `mine`.

    given: the hashes of the cells as they were given, by id. moved: answers that come from other notebooks. report: is
    filled in. elsewhere: exercises that stand in other notebooks, where their answers go.
    """
    report = report or Carried("")
    result = copy.deepcopy(new)
    if mine:  # the kernel is the new version's: an old one may be gone
        kernel = {key: value for key, value in new["metadata"].items() if key == "kernelspec"}
        result["metadata"] = {**new["metadata"], **mine["metadata"], **kernel}
    cells: list[Cell] = result["cells"]
    theirs = _with_ids(mine["cells"], given) if mine else []
    report.fresh = not any(_is_theirs(cell, given) for cell in theirs) and not moved
    by_exercise = {name: cell for name, cell in _answers(result).items()}
    _put_moved(cells, by_exercise, moved, theirs, given, report)
    before: str | None = None  # the id of the last cell of the learner's copy that the new one has
    for cell in theirs:
        there = next((c for c in cells if c["id"] == cell["id"]), None)
        if not _is_theirs(cell, given) or cell["id"] == SETUP_ID:  # an old one would fetch the old course again
            if there is not None:
                _keep_outputs(there, cell)
                before = there["id"]
            continue
        exercise = _exercise(cell)
        if exercise in elsewhere or not exercise and cell["id"] in elsewhere:
            continue
        if exercise in by_exercise and exercise not in report.answers:
            before = _put_answer(cells, by_exercise, cell, given, report)
        elif exercise in by_exercise:  # a cell that was split in two, or a second try: both stay
            before = _put_below(cells, before, _unmarked(cell), known=False, report=report)
        elif there is not None:
            cells[cells.index(there)] = copy.deepcopy(cell)
            report.cells += 1
            before = there["id"]
        else:
            before = _put_below(cells, before, cell, known=cell["id"] in given, report=report)
    return result


def _put_moved(
    cells: list[Cell],
    by_exercise: dict[str, Cell],
    moved: Sequence[Cell],
    theirs: Sequence[Cell],
    given: Mapping[str, str],
    report: Carried,
) -> None:
    """Put what comes from other notebooks in its place, all cells of an answer in their order. Where the learner has
    something there already, that stays; what isn't the same is named in the report, and is in the old copy."""
    mine = [cell for cell in theirs if _is_theirs(cell, given)]
    have, same = {_exercise(cell) or cell["id"] for cell in mine}, {_source(cell) for cell in mine}
    last: dict[str, str] = {}
    for cell in moved:
        exercise = _exercise(cell)
        if (exercise or cell["id"]) in have:
            if _source(cell) not in same:
                report.older.append(exercise or "a changed cell")
        elif not exercise:
            at = next(n for n, c in enumerate(cells) if c["id"] == cell["id"])
            cells[at] = copy.deepcopy(cell)
            report.cells += 1
        elif exercise in last:
            last[exercise] = _put_below(cells, last[exercise], _unmarked(cell), known=False, report=report)
        else:
            asked_so = cell["id"] == by_exercise[exercise]["id"]  # the exercise itself is as it was
            last[exercise] = _put_answer(cells, by_exercise, cell, {} if asked_so else given, report)


def _put_answer(
    cells: list[Cell], by_exercise: dict[str, Cell], answer: Cell, given: Mapping[str, str], report: Carried
) -> str:
    """Put the learner's answer in the place of the exercise's stub, and say so where the stub is another now."""
    exercise = _exercise(answer)
    there = by_exercise[exercise]
    at = cells.index(there)
    mine = copy.deepcopy(there)
    mine["source"], mine["outputs"] = answer["source"], answer.get("outputs", [])
    mine["execution_count"] = answer.get("execution_count")
    by_exercise[exercise] = cells[at] = mine
    report.answers.append(exercise)
    if given and there["id"] not in given:
        report.changed.append(exercise)
        stub = f"{_NEW_STUB}\n\n```python\n{_source(there)}\n```"
        cells.insert(at, _marked(stub, there["id"]))
    return mine["id"]


def _put_below(cells: list[Cell], before: str | None, cell: Cell, known: bool, report: Carried) -> str:
    """Put a cell of the learner's below the cell that it followed; marked where it was the course's once."""
    at = next((n for n, c in enumerate(cells) if c["id"] == before), -1) + 1
    added = copy.deepcopy(cell)
    if known:
        cells[at:at] = [_marked(_KEPT, cell["id"]), added]
        report.kept += 1
    else:
        cells.insert(at, added)
        report.cells += 1
    return added["id"]


def _unmarked(cell: Cell) -> Cell:
    """The cell without nbgrader's mark, which a notebook may hold once."""
    metadata = {key: value for key, value in cell["metadata"].items() if key != "nbgrader"}
    return {**cell, "metadata": metadata}


def _marked(text: str, beside: str) -> Cell:
    name = hashlib.sha1(f"{beside} {text}".encode()).hexdigest()[:12]
    return {"cell_type": "markdown", "id": name, "metadata": {"course": "carried"}, "source": text}


def _keep_outputs(there: Cell, cell: Cell) -> None:
    """What the learner's run of an unchanged cell showed stays, as long as the new version has the same source."""
    if there["cell_type"] == cell["cell_type"] == "code" and _source(there) == _source(cell):
        there["outputs"], there["execution_count"] = cell.get("outputs", []), cell.get("execution_count")


def _with_ids(cells: Sequence[Cell], given: Mapping[str, str]) -> list[Cell]:
    """The cells, each with an id: Colab saves it in the metadata, others not at all. An unchanged cell of theirs gets
    the one that it was given.
    """
    by_hash = {hash_: id_ for id_, hash_ in given.items()}

    def id_of(cell: Cell) -> str:
        return cell["metadata"].get("id") or by_hash.get(_hash(cell), _hash(cell)[:12])

    found: list[Cell] = []
    seen: dict[str, int] = {}
    for cell in cells:
        name = cell.get("id") or id_of(cell)
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:  # two cells with one id are two cells
            name = hashlib.sha1(f"{name} {seen[name]}".encode()).hexdigest()[:12]
        found.append({**cell, "id": name})
    return found


def _is_theirs(cell: Cell, given: Mapping[str, str]) -> bool:
    """Whether a cell's source is the learner's, or a mark of an earlier update. Empty cells are nobody's."""
    if cell["id"] not in given and _exercise(cell) and _hash(cell) in given.values():
        return False  # a stub that was duplicated
    return bool(_source(cell).strip()) and given.get(cell["id"]) != _hash(cell)


def _answers(notebook: Notebook) -> dict[str, Cell]:
    return {exercise: cell for cell in notebook["cells"] if (exercise := _exercise(cell))}


def _exercise(cell: Cell) -> str:
    """The exercise that a cell answers: nbgrader's mark on it says so. An empty string for all other cells."""
    mark = cell["metadata"].get("nbgrader")
    return str(mark.get("grade_id", "")) if isinstance(mark, dict) and mark.get("solution") else ""


# ------------------------------------------------------------------------------------------------------------- files


def read_given(home: Path) -> dict[str, dict[str, str]]:
    """What was given, by notebook: cell ids and hashes of their sources. Empty when there is no such file."""
    try:
        return json.loads((home / FOLDER / GIVEN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def hashes(notebook: Notebook) -> dict[str, str]:
    """The hashes of a notebook's cells as they are given, by id."""
    return {cell["id"]: _hash(cell) for cell in notebook["cells"]}


def _hash(cell: Cell) -> str:
    return hashlib.sha1(_source(cell).encode()).hexdigest()[:16]


def _source(cell: Cell) -> str:
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


def _notebooks(home: Path) -> list[Path]:
    return sorted((home / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def _read(path: Path) -> Notebook:
    try:
        notebook = json.loads(path.read_text(encoding="utf-8-sig"))
        for cell in (notebook, *notebook["cells"]):
            cell["metadata"].get("id")
        _ = [(_hash(cell), cell["cell_type"]) for cell in notebook["cells"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise Unreadable(f"{path} can't be read as a notebook: {problem}") from None
    return notebook


def _read_or_none(path: Path) -> Notebook | None:
    try:
        return _read(path)
    except Unreadable:
        return None


def _give(home: Path, path: Path, given: dict[str, dict[str, str]]) -> None:
    notebook = _read(path)
    given[path.name] = _as_it_came(home, path.name, notebook)
    _write(home / FOLDER / path.name, _as_opened(home, notebook))


def _as_it_came(home: Path, name: str, notebook: Notebook) -> dict[str, str]:
    """The hashes of a notebook of the course's that may have been worked in: those of its cells that are as the solved
    copy has them, and of exercises that still hold a stub. The others of the course's cells have no hash."""
    solved = _read_or_none(home / "solutions" / name)
    if solved is None:
        return hashes(notebook)
    course = hashes(solved)
    untouched = []
    for cell in notebook["cells"]:
        same = course.get(cell.get("id")) == _hash(cell)
        stub = _exercise(cell) and _STUB.search(_source(cell))
        links = cell["cell_type"] == "markdown" and cell.get("id") in course  # they lead to the other copies
        if same or stub or links:
            untouched.append(cell)
    return dict.fromkeys(course, "") | hashes({**notebook, "cells": untouched})


def _as_opened(home: Path, notebook: Notebook) -> Notebook:
    """The notebook with the version of the Python that runs it. JupyterLab writes it there when it opens one, and then
    takes a notebook that was only looked at for a changed one."""
    settings = home / ".venv" / "pyvenv.cfg"
    told = settings.read_text(encoding="utf-8", errors="replace") if settings.exists() else ""
    found = re.search(r"(?m)^version\w* *= *(\d+\.\d+\.\w+)", told)
    language = notebook["metadata"].get("language_info")
    if not language:
        return notebook
    language = {**language, "version": found[1] if found else platform.python_version()}
    return {**notebook, "metadata": {**notebook["metadata"], "language_info": language}}


def _write(path: Path, notebook: Notebook) -> None:
    _write_text(path, _text(notebook))


def _text(notebook: Notebook) -> str:
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _hash_of(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()[:16]


def _write_given(home: Path, given: Mapping[str, Mapping[str, str]]) -> None:
    _write_text(home / FOLDER / GIVEN, json.dumps(given) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.resolve()  # where a link leads, such as to a folder that is synchronized
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def _set_aside(home: Path, name: str) -> Path | None:
    """Keep the learner's copy under ``work/old/``, with the next free number; None when there is no copy."""
    path = home / FOLDER / name
    if not path.exists():
        return None
    folder = home / FOLDER / OLD
    folder.mkdir(parents=True, exist_ok=True)
    kept = _free_name(folder, name)
    kept.write_bytes(path.read_bytes())
    return kept


def _free_name(folder: Path, name: str) -> Path:
    stem = name.removesuffix(".ipynb")
    form = re.compile(rf"{re.escape(stem)}-(\d+)\.ipynb")
    taken = [int(match[1]) for path in folder.iterdir() if (match := form.fullmatch(path.name))]
    return folder / f"{stem}-{max(taken, default=0) + 1}.ipynb"
