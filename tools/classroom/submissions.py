"""Which notebooks a class handed in, and what can't be graded as it lies there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.classroom.release import name_of
from tools.classroom.tables import shown


@dataclass(frozen=True)
class Submission:
    """What lies in one place below submitted/.

    student, assignment: the folders' names. chapter: the file name in the course, "" when it can't be told. path: the
    notebook to grade, None when there is none. note: why there is none, or what else lies there.
    """

    student: str
    assignment: str
    chapter: str = ""
    path: Path | None = None
    note: str = ""


def submissions(folder: Path, chapters: list[Path]) -> list[Submission]:
    """Everything below the folder `submitted`, sorted. chapters: the course's own notebooks.

    Every notebook is in one of them: to be graded, or in a note. Hidden folders and files aren't looked at.
    """
    places: dict[tuple[str, ...], list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if (
            path.is_file()
            and path.suffix.lower() == ".ipynb"
            and not any(part.startswith((".", "__MACOSX")) for part in parts)
        ):
            places.setdefault(parts[:-1], []).append(path)
    found = [_place(parts, paths, chapters) for parts, paths in places.items()]
    return sorted([*found, *_empty(folder, places)], key=lambda one: (one.student, one.assignment))


def _empty(folder: Path, places: dict[tuple[str, ...], list[Path]]) -> Iterator[Submission]:
    """The learners whose folder holds no notebook."""
    for path in folder.glob("[!.]*"):
        if path.is_dir() and path.name not in {parts[0] for parts in places if parts}:
            yield Submission(path.name, "", note="no notebook is in this folder.")


def _place(parts: tuple[str, ...], paths: list[Path], chapters: list[Path]) -> Submission:
    names = ", ".join(shown(path.name) for path in paths)
    student, assignment = [*parts, "", ""][:2]
    by_folder = next((one.name for one in chapters if name_of(one) == assignment), "")
    mine = [(path, one) for path in paths for one in chapters if one.stem.lower() in path.stem.lower()]
    chapter = by_folder or (mine[0][1].name if mine else "")

    def noted(why: str) -> Submission:
        return Submission(student, assignment, chapter, None, why)

    if len(parts) != 2:
        return noted(f"{names}: a notebook is graded in STUDENT/ch00/ only; this one is in {shown('/'.join(parts))}/.")
    if not mine:
        return noted(f"{names} is no chapter of the course: a submission keeps its notebook's name.")
    if len(mine) > 1:
        return noted(f"{names}: leave the one notebook that is to be graded.")
    path, official = mine[0]
    if name_of(official) != assignment:
        return noted(f"{names} is of {name_of(official)}: put it into a folder of that name.")
    others = ", ".join(shown(other.name) for other in paths if other != path)
    return Submission(student, assignment, official.name, path, f"not graded: {others}" if others else "")
