"""An exercise as a newcomer meets it: wrong, a hint, right, a restart of the kernel, saved, opened again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.browser.reader import Reader, faults

CHAPTER = "work/00_start_here.ipynb"
EXERCISE = "linear_parameters"
CHECK = f'check("{EXERCISE}"'

WRONG = f"def {EXERCISE}(layer):\n    return layer.weight.numel()"
RIGHT = f"def {EXERCISE}(layer):\n    return sum(p.numel() for p in layer.parameters())"
HINT = f'hint("{EXERCISE}")'


def sources(path: Path) -> dict[str, tuple[Any, ...]]:
    """What a reader owns of a notebook's cells, by id: all but outputs and counts."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return {cell["id"]: (cell["cell_type"], "".join(cell["source"]), cell["metadata"]) for cell in cells}


def test_an_exercise_from_wrong_to_right_and_over_a_restart(course, reader):
    file = course.root / CHAPTER
    given = sources(file)

    one = reader(CHAPTER)
    one.shot("1-opened")
    an_open_exercise_stops_nothing(one)
    a_wrong_answer_is_told_what_is_wrong(one)
    a_hint_opens(one)
    a_second_check_does_not_pass(one)
    a_right_answer_passes(one)
    a_restart_forgets_no_progress(one)
    one.save()
    saving_changes_the_answer_alone(given, sources(file))
    course.leave(one)
    an_opened_again_notebook_has_the_answer(reader(CHAPTER))


def an_open_exercise_stops_nothing(one: Reader) -> None:
    one.run_all()
    assert one.shown(CHECK).startswith(f"[not solved yet] {EXERCISE}")
    one.shot("2-all-run")
    assert faults(one.cells()) == []


def a_wrong_answer_is_told_what_is_wrong(one: Reader) -> None:
    said = one.answer(EXERCISE, WRONG)
    one.shot("3-wrong")
    assert said.startswith(f"[not right yet] {EXERCISE}: the bias is missing"), said


def a_hint_opens(one: Reader) -> None:
    one.add_below(CHECK, HINT)
    said = one.run(HINT)
    one.shot("4-hint")
    assert "layer.parameters() gives the weight" in said, said


def a_second_check_does_not_pass(one: Reader) -> None:
    said = one.run(CHECK)
    one.shot("5-checked-twice")
    assert said.startswith(f"[not solved yet] {EXERCISE}: the name holds the reference"), said


def a_right_answer_passes(one: Reader) -> None:
    said = one.answer(EXERCISE, RIGHT)
    one.shot("6-right")
    assert said.startswith(f"[passed] {EXERCISE}"), said


def a_restart_forgets_no_progress(one: Reader) -> None:
    one.restart()
    one.run("from utils.course.checks import check")
    said = one.run("progress()")
    one.shot("7-restarted")
    assert re.search(r"The course: 1 of \d+ exercises passed", said), said


def saving_changes_the_answer_alone(before: dict[str, tuple[Any, ...]], after: dict[str, tuple[Any, ...]]) -> None:
    changed = [after[name][1] for name in before if before[name] != after.get(name)]
    added = [after[name][1] for name in after if name not in before]
    assert (changed, added) == ([RIGHT], [HINT])


def an_opened_again_notebook_has_the_answer(one: Reader) -> None:
    one.shot("8-opened-again")
    assert one.source(f"def {EXERCISE}(") == RIGHT
    assert not one.is_changed()
