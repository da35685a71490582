"""tools.build.execute: what a built notebook holds, and what is not stored."""

import asyncio
import re
from dataclasses import replace

import nbformat
import pytest

from tests.tools.trial import LESSON, SETUP, code_cells, code_lesson, course_at, lesson_of, stored, text_of
from tools.build import execute as build
from tools.build.__main__ import main
from tools.build.lesson import BEGIN, END, METADATA, BuildError, Course, cell_ids, read_lesson

# ----------------------------------------------------------------------- what a built notebook holds


def test_the_head_is_badge_title_setup(built):
    for kind in ("notebooks", "solutions"):
        badge, title, setup = stored(built, kind).cells[:3]
        target = f"https://colab.research.google.com/github/OWNER/REPO/blob/v1/{kind}/00_trial.ipynb"
        assert badge.cell_type == "markdown" and target in badge.source and "Open in Colab" in badge.source
        assert title.source.startswith("# Chapter 0: A trial")
        assert (setup.cell_type, setup.source, setup.outputs) == ("code", SETUP, [])
        assert setup.metadata == {"jupyter": {"source_hidden": True}}


def test_the_learner_gets_a_stub_and_runs_on(built):
    cells = code_cells(stored(built, "notebooks"))
    stub, checked = cells[6], cells[7]
    assert stub.source == "def add_one(x):\n    # YOUR CODE HERE\n    raise NotImplementedError"
    assert text_of(checked).startswith("[not solved yet] add_one")
    assert text_of(cells[-1]) == "Hint 1 of 1: Count on.\n3\n"
    assert "return x + 1" not in "".join(cell.source for cell in cells)


def test_the_solved_copy_passes_and_keeps_nbgraders_markers(built):
    cells = code_cells(stored(built, "solutions"))
    assert cells[6].source.split("\n    ") == ["def add_one(x):", BEGIN, "return x + 1", END]
    assert text_of(cells[7]) == "[passed] add_one\n"


def test_outputs_are_stored_without_what_is_random(built):
    for kind in ("notebooks", "solutions"):
        notebook = stored(built, kind)
        bar, figure = code_cells(notebook)[2], code_cells(notebook)[3]
        assert bar.outputs[0].data == {"text/plain": "training:   0%|          | 0/3 [00:00<?, ?it/s]"}
        assert bar.outputs[1].text == "loss 0.125\n"
        assert set(figure.outputs[0].data) == {"image/png", "text/plain"}
        assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, 12))
        assert notebook.metadata == METADATA
        assert not any("execution" in cell.metadata for cell in notebook.cells)
        nbformat.validate(notebook)


def test_shown_code_is_prose_and_loses_its_mark(built):
    prose = [c.source for c in stored(built, "notebooks").cells if c.cell_type == "markdown"]
    assert any('```python\nprint("shown, not run")\n```\n\n</details>' in source for source in prose)


def test_nbgraders_metadata_pairs_solution_and_check(built):
    for kind in ("notebooks", "solutions"):
        marked = [c.metadata["nbgrader"] for c in stored(built, kind).cells if "nbgrader" in c.metadata]
        solution = {"grade": False, "solution": True, "locked": False, "grade_id": "add_one"}
        check = {"grade": True, "solution": False, "locked": True, "grade_id": "check-add_one", "points": 3}
        assert marked == [x | {"schema_version": 3, "task": False} for x in (solution, check)]


def test_both_copies_have_the_same_unique_ids(built):
    ids = [[cell.id for cell in stored(built, kind).cells] for kind in ("notebooks", "solutions")]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == len(ids[0])
    twins = [c.id for c in stored(built, "notebooks").cells if c.source == "twin = 1"]
    assert twins[1] == twins[0] + "-2"


def test_inserting_a_cell_changes_no_other_id(tmp_path):
    before = lesson_of(tmp_path, LESSON)
    after = lesson_of(tmp_path, LESSON.replace("A word between.", "A word between.\n\n\nAnother cell."))
    old, new = cell_ids(before), cell_ids(after)
    assert len(new) == len(old) + 1 and [i for i in new if i in old] == old


def test_building_twice_changes_no_byte(copied, capsys):
    files = sorted([*copied.root.glob("*/*.ipynb"), *copied.root.rglob("ch00.py")])
    before = [(f.read_bytes(), f.stat().st_mtime_ns) for f in files]
    assert main([], copied) == 0
    assert [(f.read_bytes(), f.stat().st_mtime_ns) for f in files] == before
    assert capsys.readouterr().out.count("unchanged") == len(files) == 3
    assert main(["--check"], copied) == 0
    assert list(copied.root.glob("*/.*")) == []


def test_a_changed_printed_number_is_written(copied):
    lesson = copied.root / "lessons" / "00_trial.md"
    lesson.write_text(LESSON.replace("0.125", "0.25"), encoding="utf-8")
    assert main(["00"], copied) == 0
    assert text_of(code_cells(stored(copied, "notebooks"))[2]).endswith("loss 0.250\n")


def test_prose_alone_needs_no_kernel_and_code_does(copied, monkeypatch, capsys):
    before = {kind: [c.outputs for c in code_cells(stored(copied, kind))] for kind in ("notebooks", "solutions")}
    monkeypatch.setattr(build, "NotebookClient", None)
    lesson = copied.root / "lessons" / "00_trial.md"
    lesson.write_text(LESSON.replace("Opening.", "An opening."), encoding="utf-8")
    copied = replace(copied, setup=lambda lesson: f"version = {lesson.stat().st_size}")  # as a lesson's hash is in it
    assert main(["--prose"], copied) == 0 and main(["--check"], copied) == 0
    for kind, outputs in before.items():
        assert [c.outputs for c in code_cells(stored(copied, kind))] == outputs
        assert stored(copied, kind).cells[1].source.endswith("An opening.")
    lesson.write_text(LESSON.replace("0.125", "0.25"), encoding="utf-8")
    assert main(["--prose"], copied) == 1
    assert "notebooks/00_trial.ipynb: not only prose changed" in capsys.readouterr().err


# ----------------------------------------------------------------------------------- refused outputs


def run(course: Course, stem: str) -> dict[str, str]:
    lesson = read_lesson(course.root / "lessons" / f"{stem}.md")
    return asyncio.run(build.build_one(lesson, course))


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("x = 1\nx / 0", "ZeroDivisionError"),
        ("import warnings\nwarnings.warn('old')", "writes to stderr: .*UserWarning: old"),
        ("print('/home/me/lora.py')", "shows a machine's path: /home/me/lora.py"),
        ("object()", "shows an object's repr: <object at 0x"),
        ("print([(lambda x: x)])", "shows an object's repr"),
        ("raise SystemExit(1)", "SystemExit"),
    ],
)
def test_unfit_outputs_fail_the_build_and_leave_the_old_notebook(tmp_path, cell, said):
    course = course_at(tmp_path, **{"00_bad": code_lesson("y = 1", cell)})
    old = tmp_path / "notebooks" / "00_bad.ipynb"
    old.write_text("the old one", encoding="utf-8")
    with pytest.raises(BuildError, match="(?s)" + said) as failure:
        run(course, "00_bad")
    place = r"(notebooks|solutions)/00_bad\.ipynb, cell 4 \(lessons/00_bad\.md, line 20\)"
    assert re.match(place, str(failure.value))
    assert "\x1b" not in str(failure.value)
    assert old.read_text(encoding="utf-8") == "the old one"
    assert [p.name for kind in ("notebooks", "solutions") for p in (tmp_path / kind).iterdir()] == ["00_bad.ipynb"]


@pytest.mark.parametrize(
    "text",
    [
        "loss 0.1",
        "a/b/c",
        "see https://example.org/docs",
        "Figure: spectrum",
        "[1, 2]",
        "A[0] < 3",
        "work/x",
        "3 < 4",
    ],
)
def test_ordinary_outputs_are_fit(text):
    for output in (
        {"output_type": "stream", "name": "stdout", "text": text},
        {"output_type": "display_data", "data": {"text/plain": text}},
    ):
        cell = {"cell_type": "code", "execution_count": 1, "outputs": [output]}
        assert list(build.output_problems([cell])) == []


@pytest.mark.parametrize(
    "text",
    [
        "/tmp/x",
        "in /usr/lib/python3",
        "<f at 0x7f01>",
        "[<matplotlib.lines.Line2D>]",
        "Text(0, 1, 'a')",
        "[<a>]",
    ],
)
def test_leaks_are_found_in_every_text_output(text):
    for output in (
        {"output_type": "stream", "name": "stdout", "text": ["fine\n", text]},
        {"output_type": "execute_result", "data": {"text/plain": text}},
        {"output_type": "display_data", "data": {"text/html": text, "text/plain": ""}},
    ):
        cell = {"cell_type": "code", "execution_count": 1, "outputs": [output]}
        assert len(list(build.output_problems([cell]))) == 1


def test_the_solved_copy_is_strict_and_the_learners_is_not(tmp_path, monkeypatch):
    course = course_at(tmp_path)
    monkeypatch.setenv("COURSE_STRICT", "1")
    assert "COURSE_STRICT" not in build.kernel_environment("notebooks", course)
    monkeypatch.delenv("COURSE_STRICT")
    assert build.kernel_environment("solutions", course)["COURSE_STRICT"] == "1"


def test_no_copy_depends_on_what_somebody_has_passed(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_PROGRESS", "mine.json")
    for kind in ("notebooks", "solutions"):
        assert build.kernel_environment(kind, course_at(tmp_path))["COURSE_PROGRESS"] == "off"


def test_a_wrong_solution_fails_the_build(built, tmp_path, capsys):
    text = LESSON.replace("    return x + 1\n", "    return x + 2\n")
    course = course_at(tmp_path, **{"00_wrong": text})
    assert main([], course) == 1
    seen = capsys.readouterr()
    assert "ExerciseFailed" in seen.err and "solutions/00_wrong.ipynb" in seen.err
    assert not (tmp_path / "notebooks" / "00_wrong.ipynb").exists()
    assert not (tmp_path / "solutions" / "00_wrong.ipynb").exists()
