"""A folder for nbgrader: the chapters as assignments, with hidden tests in their check cells, and the settings.

Attributes:
    HIDDEN: The hidden test. nbgrader takes it out of what learners get and puts it back when it grades. It imports the
        engine afresh, so that a new ``check`` or a variable does nothing. It is there for an nbgrader with settings of
        its own, which runs the notebooks; with those that come along answers are judged outside of the notebook.
    SETTINGS: The file that nbgrader reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.build.lesson import LEARNER, ROOT
from tools.build.stored import replace_text
from tools.classroom.judge import read
from tools.classroom.slices import answer_of

HIDDEN = """\
### BEGIN HIDDEN TESTS
import sys as _sys

_old = {{name: _sys.modules.pop(name) for name in list(_sys.modules) if name.startswith("utils.course")}}
from utils.course.checks.core import require as _require

_require("{name}", {answer})
_sys.modules.update(_old)
### END HIDDEN TESTS"""

SETTINGS = "nbgrader_config.py"


class Refused(ValueError):
    """The command can't be done; the text says why and what to do."""


def chapters(wanted: Sequence[str]) -> list[Path]:
    """The learner's notebooks of these chapters, or of all. Raises `Refused` for a number that no chapter has."""
    there = {path.name[:2]: path for path in sorted((ROOT / LEARNER).glob("[0-9][0-9]_*.ipynb"))}
    numbers = [word.lower().removeprefix("ch").zfill(2) for word in wanted] or list(there)
    if unknown := [number for number in numbers if number not in there]:
        raise Refused(f"there is no chapter {unknown[0]}; there are {', '.join(there)}")
    return [there[number] for number in numbers]


def release(folder: Path, wanted: Sequence[str]) -> list[str]:
    """Write the chapters into nbgrader's source/ below `folder`, as ch00/00_topic.ipynb, and the settings beside it;
    returns the assignments' names. Raises `Refused` for an unknown chapter, before anything is written."""
    paths = chapters(wanted)
    settings = (ROOT / "classroom" / SETTINGS).read_text(encoding="utf-8").replace('"COURSE"', repr(str(ROOT)))
    if not (folder / SETTINGS).exists():  # it is the instructor's from then on
        replace_text(folder / SETTINGS, settings)
    for path in paths:
        text = json.dumps(assignment(read(path)), indent=1, ensure_ascii=False) + "\n"
        replace_text(folder / "source" / name_of(path) / path.name, text)
    return [name_of(path) for path in paths]


def name_of(notebook: Path) -> str:
    """The assignment's name: ch00."""
    return f"ch{notebook.name[:2]}"


def assignment(notebook: dict[str, Any]) -> dict[str, Any]:
    """A learner's notebook with the hidden tests and without outputs."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
            mark = cell["metadata"].get("nbgrader", {})
            if mark.get("grade"):
                source = "".join(cell["source"])
                name = mark["grade_id"].removeprefix("check-")
                cell["source"] = f"{source}\n{HIDDEN.format(name=name, answer=answer_of(source))}"
    return notebook
