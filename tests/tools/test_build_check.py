"""python -m tools.build --check: what it notices, without a kernel."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tools.trial import LESSON, change_stored
from tools.build import execute
from tools.build.__main__ import main
from tools.build.lesson import Course

# ----------------------------------------------------------------------------------------- staleness


def lesson_edited(course: Course, old: str, new: str) -> None:
    assert old in LESSON
    (course.root / "lessons" / "00_trial.md").write_text(LESSON.replace(old, new), encoding="utf-8")


def first_code(notebook):
    return next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")


def renamed(notebook):
    notebook["cells"][4]["id"] = "other"


def rewritten(notebook):
    notebook["cells"][4]["source"] = ["pass"]


def more_points(notebook):
    for cell in notebook["cells"]:
        cell["metadata"].get("nbgrader", {}).update(points=9)


def never_run(notebook):
    first_code(notebook)["execution_count"] = None


LEARNERS = Path("notebooks", "00_trial.ipynb")
BOTH, LEARNER = ["notebooks", "solutions"], ["notebooks"]
STALE = {
    "prose": (lambda c: lesson_edited(c, "Opening.", "An opening."), "the source of cell 1", BOTH),
    "code": (lambda c: lesson_edited(c, "0.125", "0.25"), "the source of cell 4", BOTH),
    "tag": (lambda c: lesson_edited(c, ' tags=["nbval-ignore-output"]', ""), "the metadata of cell", BOTH),
    "longer": (
        lambda c: lesson_edited(c, "add_one(2))\n```\n", "add_one(2))\n```\n\nEnd.\n"),
        "the source of cell 15",
        BOTH,
    ),
    "shorter": (
        lambda c: change_stored(c, "notebooks", lambda n: n["cells"].pop()),
        "has 15 cells, the lesson gives 16",
        LEARNER,
    ),
    "id": (lambda c: change_stored(c, "notebooks", renamed), "the id of cell 4", LEARNER),
    "source": (lambda c: change_stored(c, "notebooks", rewritten), "the source of cell 4", LEARNER),
    "points": (lambda c: change_stored(c, "notebooks", more_points), "the metadata of cell", LEARNER),
    "kernel": (
        lambda c: change_stored(c, "notebooks", lambda n: n["metadata"].clear()),
        "other notebook metadata",
        LEARNER,
    ),
    "unrun": (lambda c: change_stored(c, "notebooks", never_run), "was never run: cell 2 (course-setup)", LEARNER),
    "missing": (lambda c: (c.root / LEARNERS).unlink(), "is missing", LEARNER),
    "no JSON": (lambda c: (c.root / LEARNERS).write_text("{"), "can't be read", LEARNER),
}


@pytest.mark.parametrize("kind", STALE)
def test_check_names_each_stale_notebook(copied, capsys, monkeypatch, kind):
    monkeypatch.setattr(execute, "NotebookClient", None)  # --check starts no kernel
    assert main(["--check"], copied) == 0
    change, said, copies = STALE[kind]
    change(copied)
    capsys.readouterr()
    assert main(["--check"], copied) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert [line.split("/")[0] for line in errors] == [f"error: {copy}" for copy in copies]
    assert all("/00_trial.ipynb " in line and said in line for line in errors)


def test_check_says_where_in_the_lesson(copied, capsys):
    lesson_edited(copied, "0.125", "0.25")
    assert main(["--check"], copied) == 1
    said = capsys.readouterr().err
    assert "is stale: the source of cell 4" in said and "make notebooks" in said
    at = LESSON[: LESSON.index("for _ in tqdm")].count("\n")  # the fence above it
    assert (
        f", lessons/00_trial.md, line {at}, is not" in said or f", lessons/00_trial.md, line {at + 1}, is not" in said
    )


def test_check_advises_a_build_only_where_a_build_helps(copied, capsys):
    lesson_edited(copied, 'hint("add_one")\nprint', 'check("add_one", add_one)\nprint')
    assert main(["--check"], copied) == 1
    said = capsys.readouterr().err
    assert "has no solved region in the code cell before" in said and "make notebooks" not in said


def test_check_names_an_output_that_differs_between_the_copies(copied, capsys):
    def change(notebook):
        notebook["cells"][4]["outputs"][1]["text"] = ["loss 0.126\n"]

    change_stored(copied, "solutions", change)
    assert main(["--check"], copied) == 1
    said = capsys.readouterr().err
    assert "notebooks/00_trial.ipynb, cell 4: the stored output differs" in said and "loss 0.126" in said


def test_check_names_a_notebook_without_a_lesson(copied, capsys):
    shutil.copy(copied.root / "solutions" / "00_trial.ipynb", copied.root / "solutions" / "09_gone.ipynb")
    assert main(["--check"], copied) == 1
    assert "solutions/09_gone.ipynb has no lesson" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"repository": "SOMEONE/ELSE"}, {"ref": "v2"}])
def test_check_of_the_committed_address_notices_another_repository_or_ref(copied, capsys, change):
    assert main(["--check"], replace(copied, **change)) == 1
    assert "the source of cell 0 (colab-badge)" in capsys.readouterr().err


def test_unexecuted_trials_are_not_up_to_date(copied, capsys):
    assert main(["--no-execute"], copied) == 0
    assert main(["--check"], copied) == 1
    assert capsys.readouterr().err.count("never run") == 2
