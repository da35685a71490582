"""A chapter runs on with other right answers in the place of its own."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tools import replay
from tools.answers import Answer, read


def answer(exercise, label, right=True):
    return Answer("06", exercise, right, label, f"# {label}\n")


def test_every_right_answer_is_in_some_round_and_no_round_has_two_of_one_exercise():
    given = [answer("a", "one"), answer("a", "two"), answer("b", "three"), answer("b", "wrong", right=False)]
    assert [[a.label for a in round_] for round_ in replay.rounds(given)] == [["one", "three"], ["two"]]
    assert replay.rounds([]) == []


def test_the_answers_stand_in_the_exercises_cells_and_the_outputs_stay():
    mark = {"nbgrader": {"grade_id": "scaling", "solution": True}}
    cells = [new_code_cell("print(1)"), new_code_cell("def scaling(): ...", metadata=mark)]
    made = replay.replaced(new_notebook(cells=cells), [answer("scaling", "mine")])
    assert [cell.source for cell in made.cells] == ["print(1)", "# mine\n"]
    (one, two) = [new_code_cell("random = 1"), new_code_cell("", metadata=mark)]
    counting = Answer("06", "scaling", True, "x", "math.floor(1)\n")
    assert replay.replaced(new_notebook(cells=[one, two]), [counting]).cells[1].source == "import math\nmath.floor(1)\n"
    with pytest.raises(ValueError, match="chapter 06 has no such exercise"):
        replay.replaced(new_notebook(cells=cells), [answer("other", "mine")])


@pytest.mark.slow
def test_chapter_8_goes_on_with_other_right_answers():
    """One round of `python -m tools.replay 08`; the others, and the other chapters, are run before a release."""
    assert replay.replay("08", replay.rounds([a for a in read() if a.chapter == "08"])[0]) == ""


@pytest.mark.slow
def test_an_answer_with_which_the_chapter_does_not_go_on_is_found(tmp_path, monkeypatch):
    """The check is taken out, so that a wrong answer gets as far as the cells behind it."""
    (tmp_path / "solutions").mkdir()
    mark = {"nbgrader": {"grade_id": "scaling", "solution": True}}
    cells = [new_code_cell("def scaling(r): return 1 / r", metadata=mark), new_code_cell("print(scaling(2))")]
    cells[1].outputs = [nbformat.v4.new_output("stream", text="0.5\n")]
    for number, cell in enumerate(cells, start=1):
        cell.execution_count = number
    notebook = new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, tmp_path / "solutions/06_toy.ipynb")
    monkeypatch.setattr(replay, "ROOT", tmp_path)
    right, wrong = (Answer("06", "scaling", True, "", f"def scaling(r): return {body}\n") for body in ("r**-1", "r"))
    assert replay.replay("06", [right]) == ""
    assert "Cell outputs differ" in replay.replay("06", [wrong])
