"""tools.classroom.answer, run for real: what a learner's cells do, and what is said of it."""

from __future__ import annotations

import json

import pytest

from tools.classroom import sample
from tools.classroom.judge import NotACourseNotebook, judge_notebook, official, read
from tools.classroom.slices import code_cells, defines, elsewhere, needed, own_cell
from utils.course.progress import NOT_RIGHT, NOT_SOLVED, PASSED

CHAPTER = official(sample.NOTEBOOK)
FIRST = sample.FIRST
RIGHT = "def linear_parameters(layer):\n    return sum(p.numel() for p in layer.parameters())"
WRONG = "def linear_parameters(layer):\n    return 1"
STUB = "def linear_parameters(layer):\n    raise NotImplementedError"


def submitted(own: str, *before: str):
    """A notebook of these cells, of which `own` is the first exercise's."""

    def cell(source, **mark):
        return {"cell_type": "code", "source": source, "metadata": {"nbgrader": mark} if mark else {}, "outputs": []}

    check = cell(f'{FIRST} = check("{FIRST}", {FIRST})', grade_id=f"check-{FIRST}", grade=True)
    return {"cells": [*map(cell, before), cell(own, grade_id=FIRST, solution=True), check]}


PATCHED = "import json\nold = json.dumps\njson.dumps = lambda o, *a, **k: old({**o, 'state': 'passed'}, *a, **k)\n"
BROKEN = "import json\njson.dumps = lambda *a, **k: 'oops'\n"
ENGINE = "g = check.__globals__\nV = g['Verdict']\ng['Verdict'] = lambda name, *a: V(name, 'passed')\n"
CHECKS = "from utils.course.checks import check"
FIGURES = "%matplotlib inline\ndef same(x): return x"
ANSWERS = {
    "json's function exchanged": (submitted(PATCHED + WRONG), NOT_RIGHT, ""),
    "json's function broken": (submitted(BROKEN + RIGHT), PASSED, ""),
    "the verdict's class exchanged": (submitted(ENGINE + WRONG, CHECKS), NOT_RIGHT, ""),
    "figures in the notebook": (submitted(RIGHT.replace("layer.", "same(layer)."), FIGURES), PASSED, ""),
    "six seconds in the cell": (submitted(RIGHT + "\nimport time\ntime.sleep(6)"), PASSED, ""),
    "renamed": (submitted(RIGHT.replace(FIRST, "zaehle")), NOT_SOLVED, f"no cell defines {FIRST}."),
    "an old version": (submitted("import utils.checks\n" + RIGHT), NOT_RIGHT, "old version of the notebook?"),
    "in a cell further up": (submitted(STUB, RIGHT), NOT_SOLVED, "the answer belongs into the first"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ANSWERS)
def test_what_is_judged_of_an_answer(case, tmp_path):
    notebook, state, said = ANSWERS[case]
    marks = [(cell, cell["metadata"].get("nbgrader", {}).get("grade_id", "")) for cell in CHAPTER["cells"]]
    course = {"cells": [cell for cell, mark in marks if mark.endswith(FIRST)]}
    (verdict,) = judge_notebook(notebook, course, tmp_path)
    assert (verdict.state, said in verdict.message) == (state, True), verdict.message


def test_all_cells_in_one_are_the_answer():
    one = f'{RIGHT}\n{FIRST} = check("{FIRST}", {FIRST})'
    cells = code_cells({"cells": [{"cell_type": "code", "source": one, "metadata": {}}]})
    assert own_cell(cells, FIRST, FIRST) == 0 and needed(cells, FIRST, FIRST) == [0]


def test_an_answer_in_another_cell_than_its_own_is_seen():
    cells = code_cells(submitted(STUB, RIGHT))
    assert elsewhere(cells, 1, FIRST) and not elsewhere(cells[1:], 0, FIRST)


def test_what_a_check_hands_out_is_no_definition():
    assert not defines('f = check("f", f)', "f") and not defines("g = f", "f") and not defines("(", "f")
    assert defines("f = 1", "f") and defines("def f(): ...", "f") and defines("class f: ...", "f")


@pytest.mark.parametrize("source", ["x = " + "-" * 100_000 + "1", "+".join(["1"] * 20_000)])
def test_a_cell_too_deep_for_python_is_no_python(source):
    assert needed(code_cells(submitted(RIGHT, source)), FIRST, FIRST) == [1]


@pytest.mark.parametrize("mark", [None, "x", 3, []])
def test_a_mark_that_is_none_is_left_out(mark):
    notebook = {"cells": [{"cell_type": "code", "source": "f = 1", "metadata": {"nbgrader": mark}}]}
    assert [cell.role for cell in code_cells(notebook)] == [""]


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', "{}", ""])
def test_a_file_that_holds_no_notebook_is_called_that(tmp_path, text):
    (tmp_path / "x.ipynb").write_text(text)
    with pytest.raises(NotACourseNotebook, match="no notebook of format 4"):
        read(tmp_path / "x.ipynb")


def test_a_byte_order_mark_is_no_part_of_the_notebook(tmp_path):
    (tmp_path / "x.ipynb").write_text("\ufeff" + json.dumps(CHAPTER), encoding="utf-8")
    assert read(tmp_path / "x.ipynb") == CHAPTER
