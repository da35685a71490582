"""The script that a lesson's tagged cells make: capstone.py.

Attributes:
    SCRIPT: Its name, in the repository's root.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Sequence

from tools.build.lesson import BEGIN, ROOT, SCRIPT_TAG, BuildError, Course, Lesson
from tools.build.stored import stale_text, write_text

SCRIPT = "capstone.py"


def script(lessons: Sequence[Lesson]) -> str | None:
    """The text of capstone.py: the cells tagged "capstone" in order, as ruff formats them; None when there are none.

    The first of them begins with the script's docstring and imports; one defines ``main()``, which the script calls
    when it is run. Raises BuildError for a tagged cell that is not compared or holds an exercise, for cells in two
    lessons, for a cell that does more than define and import, and when there is no ``main``.
    """
    parts: list[str] = []
    owners: set[str] = set()
    for lesson in lessons:
        for index, cell in enumerate(lesson.cells):
            if SCRIPT_TAG not in cell.metadata.get("tags", []):
                continue
            where = lesson.where(index)
            if cell.cell_type != "code" or BEGIN in cell.source or set(cell.metadata["tags"]) != {SCRIPT_TAG}:
                raise BuildError(f"{where}: a {SCRIPT_TAG} cell is plain code: no exercise in it, and no other tag")
            owners.add(lesson.path.name)
            if len(owners) > 1:
                raise BuildError(f"{SCRIPT} is made of one lesson's cells, and {', '.join(sorted(owners))} tag some")
            for node in ast.parse(cell.source).body:
                constant = isinstance(node, ast.Assign | ast.AnnAssign)
                docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and not parts
                if not (constant or docstring or isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef)):
                    said = ast.unparse(node).splitlines()[0]
                    raise BuildError(f"{where}: a {SCRIPT_TAG} cell imports and defines, and this runs: {said}")
            parts.append(cell.source)
    if not parts:
        return None
    if not any(re.search(r"^def main\(", part, re.M) for part in parts):
        raise BuildError(f"lessons/{owners.pop()}: no {SCRIPT_TAG} cell defines main()")
    note = f"# Made by tools/build from lessons/{owners.pop()}: edit that."
    text = "\n\n\n".join([note + "\n" + parts[0], *parts[1:], 'if __name__ == "__main__":\n    main()']) + "\n"
    short = "format.skip-magic-trailing-comma = true"  # a cell is narrower than a script
    command = [sys.executable, "-m", "ruff", "format", "--quiet", "--config", short, "--stdin-filename", SCRIPT, "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise BuildError(f"{SCRIPT}: ruff can't format it: {done.stderr.strip()}")
    return done.stdout


def write_script(text: str | None, course: Course) -> str | None:
    """Write capstone.py, atomically: "written" or "unchanged"; None when no lesson makes one."""
    return None if text is None else write_text(course.root / SCRIPT, text)


def stale_script(text: str | None, course: Course) -> list[str]:
    """Why capstone.py isn't what the lessons give, in a list of one sentence, or an empty one."""
    if text is None:
        there = (course.root / SCRIPT).exists()
        return [f"{SCRIPT} has no lesson: no cell is tagged {SCRIPT_TAG}"] if there else []
    return stale_text(course.root, SCRIPT, text)
