"""Whether the stored notebooks are what the lessons give. No kernel is started."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from tools.build.lesson import LEARNER, METADATA, SOLVED, Course, Lesson, cell_ids, make
from tools.build.one_run import disagreements


def stale(lessons: Sequence[Lesson], course: Course) -> list[str]:
    """How the stored notebooks differ from what the lessons give, and a chapter's two copies from one another."""
    said = []
    for lesson in lessons:
        paths = {kind: course.root / kind / f"{lesson.path.stem}.ipynb" for kind in (LEARNER, SOLVED)}
        reasons = {kind: _staleness(path, make(lesson, kind, course), lesson) for kind, path in paths.items()}
        said += [f"{kind}/{paths[kind].name} {reason}" for kind, reason in reasons.items() if reason]
        if not any(reasons.values()):
            copies = [nbformat.read(path, as_version=4) for path in paths.values()]
            said += [f"notebooks/{paths[LEARNER].name}, cell {i}: {what}" for i, what in disagreements(*copies)]
    return said


def strays(lessons: Sequence[Lesson], course: Course) -> list[str]:
    """Stored notebooks that no lesson gives."""
    stems = {lesson.path.stem for lesson in lessons}
    paths = [p for kind in (LEARNER, SOLVED) for p in sorted((course.root / kind).glob("*.ipynb"))]
    return [f"{p.parent.name}/{p.name} has no lesson" for p in paths if p.stem not in stems]


def _staleness(path: Path, fresh: NotebookNode, lesson: Lesson) -> str | None:
    if not path.exists():
        return "is missing"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        cells = [
            (c["cell_type"], c["id"], "".join(c["source"]), c["metadata"], c.get("execution_count", 0))
            for c in stored["cells"]
        ]
        metadata = stored["metadata"]
    except (ValueError, KeyError, TypeError) as problem:
        return f"can't be read: {type(problem).__name__}: {problem}"
    if metadata != METADATA:
        return "has other notebook metadata than the build writes"
    for index, (have, want) in enumerate(zip(cells, fresh.cells, strict=False)):
        for what, mine, its in zip(
            ("kind", "source", "id", "metadata"),
            (have[0], have[2], have[1], have[3]),
            (want.cell_type, want.source, want.id, json.loads(json.dumps(want.metadata))),
            strict=True,
        ):
            if mine != its:
                place = f"cell {index} ({have[1]}){_in_lesson(lesson, want.id)}"
                return f"is stale: the {what} of {place} is not what the lesson gives"
    if len(cells) != len(fresh.cells):
        return f"is stale: it has {len(cells)} cells, the lesson gives {len(fresh.cells)}"
    for index, cell in enumerate(cells):
        if cell[0] == "code" and cell[4] is None:
            return f"has a cell that was never run: cell {index} ({cell[1]}){_in_lesson(lesson, cell[1])}"
    return None


def _in_lesson(lesson: Lesson, identity: str) -> str:
    """Where a notebook's cell stands in its lesson; nothing for a cell that no lesson holds, such as the badge."""
    ids = cell_ids(lesson)
    return f", {lesson.where(ids.index(identity))}," if identity in ids else ""
