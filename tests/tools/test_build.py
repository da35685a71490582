"""tools/build_notebooks.py on small lessons: what it writes, what it refuses, what --check notices."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools import build_notebooks as build
from tools.build_notebooks import BuildError, Course, main, make, read_lesson, split_solution
from utils.course.checks.core import UnknownExercise

ROOT = Path(__file__).resolve().parents[2]

HEADER = """\
---
jupyter:
  jupytext:
    text_representation:
      extension: .md
      format_name: markdown
  kernelspec:
    display_name: LoRA course (lora-zero-to-hero)
    language: python
    name: lora-course
---

"""

LESSON = (
    HEADER
    + """\
# Chapter 0: A trial

Opening.

```python
from tqdm.auto import tqdm

from utils import plots
from utils.course.checks import check, hint
from utils.course.checks.core import Mistake, exercise
```

```python
for _ in tqdm(range(3), desc="training"):
    pass
print(f"loss {0.125:.3f}")
```

```python
plots.show(plots.lines({"a": ([1, 2], [3, 4])}, title="Loss", xlabel="step", ylabel="nats"))
```

```python
twin = 1
```

```python
exercise("add_one", reference=lambda x: x + 1, cases=[(1,)], hints=["Count on."])
```

<details><summary>Answer</summary>

```python .noeval
print("shown, not run")
```

</details>

```python
def add_one(x):
    ### BEGIN SOLUTION
    return x + 1
    ### END SOLUTION
```

A word between.

```python
add_one = check("add_one", add_one)
```

```python
twin = 1
```

```python tags=["nbval-ignore-output"]
# Not compared: a process's number is another one each time.
import os

print(os.getpid())
```

```python
hint("add_one")
print(add_one(2))
```
"""
)


def course_at(root: Path, **lessons: str) -> Course:
    """A course with the given lessons: name -> text."""
    for kind in ("lessons", "notebooks", "solutions"):
        (root / kind).mkdir(exist_ok=True, parents=True)
    for name, text in lessons.items():
        (root / "lessons" / f"{name}.md").write_text(text, encoding="utf-8")
    return Course(root, "OWNER/REPO", "# setup\npass\n", points=lambda name: 3, ref="v1")


def lesson_of(root: Path, text: str) -> build.Lesson:
    course_at(root, **{"_": text})
    return read_lesson(root / "lessons" / "_.md")


def code_lesson(*cells: str) -> str:
    """A lesson of code cells below a title."""
    return HEADER + "# Title\n\n" + "\n\n".join(f"```python\n{cell}\n```" for cell in cells) + "\n"


def sources(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The trial lesson, built once, with what the build printed; tests that change something copy it."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(ROOT))  # the kernel's utils are this checkout's
    course = course_at(tmp_path_factory.mktemp("course"), **{"00_trial": LESSON})
    assert main([], course) == 0
    yield course
    patch.undo()


@pytest.fixture
def copied(built, tmp_path):
    shutil.copytree(built.root, tmp_path / "copy")
    return replace(built, root=tmp_path / "copy")


def stored(course: Course, kind: str, stem: str = "00_trial"):
    return nbformat.read(course.root / kind / f"{stem}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(cell) -> str:
    return "".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in cell.outputs)


# ----------------------------------------------------------------------- what a built notebook holds


def test_the_head_is_badge_title_setup(built):
    for kind in ("notebooks", "solutions"):
        badge, title, setup = stored(built, kind).cells[:3]
        target = f"https://colab.research.google.com/github/OWNER/REPO/blob/v1/{kind}/00_trial.ipynb"
        assert badge.cell_type == "markdown" and target in badge.source and "Open in Colab" in badge.source
        assert title.source.startswith("# Chapter 0: A trial")
        assert (setup.cell_type, setup.source, setup.outputs) == ("code", "# setup\npass", [])
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
    assert cells[6].source.split("\n    ") == ["def add_one(x):", build.BEGIN, "return x + 1", build.END]
    assert text_of(cells[7]) == "[passed] add_one\n"


def test_outputs_are_stored_without_what_is_random(built):
    for kind in ("notebooks", "solutions"):
        notebook = stored(built, kind)
        bar, figure = code_cells(notebook)[2], code_cells(notebook)[3]
        assert bar.outputs[0].data == {"text/plain": "training:   0%|          | 0/3 [00:00<?, ?it/s]"}
        assert bar.outputs[1].text == "loss 0.125\n"
        assert set(figure.outputs[0].data) == {"image/png", "text/plain"}
        assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, 12))
        assert notebook.metadata == build.METADATA
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
    old, new = build.cell_ids(before), build.cell_ids(after)
    assert len(new) == len(old) + 1 and [i for i in new if i in old] == old


def test_building_twice_changes_no_byte(copied, capsys):
    files = sorted(copied.root.glob("*/*.ipynb"))
    before = [(f.read_bytes(), f.stat().st_mtime_ns) for f in files]
    assert main([], copied) == 0
    assert [(f.read_bytes(), f.stat().st_mtime_ns) for f in files] == before
    assert capsys.readouterr().out.count("unchanged") == 2
    assert main(["--check"], copied) == 0
    assert list(copied.root.glob("*/.*")) == []


def test_a_changed_printed_number_is_written(copied):
    lesson = copied.root / "lessons" / "00_trial.md"
    lesson.write_text(LESSON.replace("0.125", "0.25"), encoding="utf-8")
    assert main(["00"], copied) == 0
    assert text_of(code_cells(stored(copied, "notebooks"))[2]).endswith("loss 0.250\n")


# ------------------------------------------------------------------------------------------- markers


@pytest.mark.parametrize(
    ("source", "learner", "solved"),
    [
        ("x = 1", "x = 1", "x = 1"),
        (
            f"{build.BEGIN}\nx = 1\n{build.STUB}\n# x = None\n#     # a comment\n#\n\n{build.END}\ny = x",
            "x = None\n    # a comment\n\n\ny = x",
            f"{build.BEGIN}\nx = 1\n{build.END}\ny = x",
        ),
        (
            f"class A:\n    def f(self):\n        {build.BEGIN}\n        return 1\n        {build.END}\n\n"
            f"    def g(self):\n        {build.BEGIN}\n        return 2\n        {build.STUB}\n"
            f"        # return self.f() + ...\n        {build.END}",
            "class A:\n    def f(self):\n        # YOUR CODE HERE\n        raise NotImplementedError\n\n"
            "    def g(self):\n        return self.f() + ...",
            f"class A:\n    def f(self):\n        {build.BEGIN}\n        return 1\n        {build.END}\n\n"
            f"    def g(self):\n        {build.BEGIN}\n        return 2\n        {build.END}",
        ),
    ],
)
def test_solved_regions(source, learner, solved):
    assert split_solution(source, "here") == (learner, solved)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (f"def f():\n    {build.BEGIN}\n    {build.BEGIN}\n    {build.END}", "still open"),
        (f"def f():\n    {build.BEGIN}\n    pass", "without ### END"),
        (f"x = 1\n{build.END}", "without ### BEGIN"),
        (f"{build.STUB}\n# x = None", "outside a region"),
        (f"{build.BEGIN}\n{build.STUB}\n{build.STUB}\n{build.END}", "second one"),
        (f"{build.BEGIN}\nx = 1\n{build.END}", "at module level a solution needs"),
        (f"{build.BEGIN}\nx = 1\n{build.STUB}\nx = None\n{build.END}", "every line of a stub is a comment"),
        ("# BEGIN SOLUTION\nx = 1", "is no marker"),
        ("###END SOLUTION", "is no marker"),
    ],
)
def test_faulty_markers_are_refused_with_their_place(source, said):
    with pytest.raises(BuildError, match="^lessons/01.md, line 7: .*" + said):
        split_solution(source, "lessons/01.md, line 7")


lines = st.text(st.characters(blacklist_categories=("Cc", "Cs"), blacklist_characters="#"), max_size=8)


@settings(deadline=None)
@given(st.lists(lines, max_size=4), st.lists(lines, max_size=4), st.lists(lines, max_size=4))
def test_what_is_outside_a_region_is_in_both_copies_and_the_solution_in_one(before, solution, stub):
    """Whatever is written in the three parts, in a function."""
    region = [build.BEGIN, *solution, build.STUB, *("# " + line for line in stub), build.END]
    learner, solved = split_solution("\n".join([*before, *region, "after"]), "here")
    assert learner.split("\n") == [*before, *stub, "after"]
    assert solved.split("\n") == [*before, build.BEGIN, *solution, build.END, "after"]


# ----------------------------------------------------------------------------------- refused lessons

SOLVED = f"def f():\n    {build.BEGIN}\n    return 1\n    {build.END}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LESSON.replace("name: lora-course", "name: python3"), "kernelspec is 'python3', not 'lora-course'"),
        (code_lesson("x = 1").replace("```python", "```bash"), "line 16: a %%bash cell"),
        (LESSON.replace("nbval-ignore-output", "nbval_ignore_output"), "unknown cell metadata"),
        (code_lesson("x = 1").replace("```python", '```python name="five"'), "unknown cell metadata"),
        (code_lesson("# c", ""), "an empty code cell"),
        (LESSON.replace("```python .noeval", "```python"), "</details> end up in different cells"),
        (LESSON.replace("</summary>\n", "</summary>\n\nA.\n\n\nB."), "different cells"),
        (HEADER + "# T\n\n```text\nnever closed\n", "a ``` fence is not closed"),
        (HEADER + "Prose first.\n\n```python\nx = 1\n```\n", "opens with a title"),
        (code_lesson(SOLVED), 'line 16: no code cell calls check'),
        (code_lesson(SOLVED, "x = 1", 'f = check("f", f)'), "the next code cell has to call check"),
        (code_lesson("x = 1", 'f = check("f", f)'), "has no solved region in the code cell before"),
        (code_lesson(SOLVED, 'f = check("f", f)', SOLVED, 'f = check("f", f)'), "checked a second time"),
        (code_lesson(SOLVED, 'f = check("f", f)\ng = check("g", f)'), "one check a cell"),
        (code_lesson(f"def f():\n    {build.BEGIN}\n    return 1", "check('f', f)"), "without ### END"),
    ],
)  # fmt: skip
def test_faulty_lessons_are_refused_before_anything_runs(tmp_path, capsys, text, said):
    course = course_at(tmp_path, **{"00_bad": text})
    assert main([], course) == 1
    assert said in capsys.readouterr().err
    assert list((tmp_path / "notebooks").iterdir()) == []


def test_an_unregistered_exercise_is_refused(tmp_path):
    def points(name):
        raise UnknownExercise(f"there is no exercise {name!r}")

    lesson = lesson_of(tmp_path, code_lesson(SOLVED, 'f = check("f", f)'))
    with pytest.raises(BuildError, match="line 16: there is no exercise 'f'"):
        make(lesson, "notebooks", Course(tmp_path, "O/R", "pass", points))


def test_errors_name_the_line_of_the_lesson(tmp_path):
    lesson = lesson_of(tmp_path, LESSON)
    text = LESSON.split("\n")
    for cell, line in zip(lesson.cells, lesson.lines, strict=True):
        assert text[line - 1] == cell.source.split("\n")[0]


def test_no_lessons_and_unknown_chapters_are_errors(tmp_path, capsys):
    course = course_at(tmp_path)
    assert main([], course) == 1
    assert main(["--check"], course) == 1
    assert capsys.readouterr().err.count("there are no lessons") == 2
    assert main(["07"], course_at(tmp_path, **{"01_a": LESSON, "02_b": LESSON})) == 1
    assert "no lesson begins with '07'; there are 01_a, 02_b" in capsys.readouterr().err


# ----------------------------------------------------------------------------------- refused outputs


def run_learner(course: Course, stem: str) -> str:
    lesson = read_lesson(course.root / "lessons" / f"{stem}.md")
    return asyncio.run(build.build_one(lesson, "notebooks", course))


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
        run_learner(course, "00_bad")
    assert str(failure.value).startswith("notebooks/00_bad.ipynb, cell 4 (lessons/00_bad.md, line 20)")
    assert "\x1b" not in str(failure.value)
    assert old.read_text(encoding="utf-8") == "the old one"
    assert [p.name for p in (tmp_path / "notebooks").iterdir()] == ["00_bad.ipynb"]


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


def test_a_wrong_solution_fails_the_build(built, tmp_path, capsys):
    text = LESSON.replace("    return x + 1\n", "    return x + 2\n")
    course = course_at(tmp_path, **{"00_wrong": text})
    assert main([], course) == 1
    seen = capsys.readouterr()
    assert "ExerciseFailed" in seen.err and "solutions/00_wrong.ipynb" in seen.err
    assert (tmp_path / "notebooks" / "00_wrong.ipynb").exists()  # the learner's copy has no solution to be wrong
    assert not (tmp_path / "solutions" / "00_wrong.ipynb").exists()


# ----------------------------------------------------------------------------------------- staleness


def edit(course: Course, kind: str, change) -> None:
    path = course.root / kind / "00_trial.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    change(notebook)
    path.write_text(json.dumps(notebook), encoding="utf-8")


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
        "gives 16",
        BOTH,
    ),
    "id": (lambda c: edit(c, "notebooks", renamed), "the id of cell 4", LEARNER),
    "source": (lambda c: edit(c, "notebooks", rewritten), "the source of cell 4", LEARNER),
    "points": (lambda c: edit(c, "notebooks", more_points), "the metadata of cell", LEARNER),
    "kernel": (
        lambda c: edit(c, "notebooks", lambda n: n["metadata"].clear()),
        "other notebook metadata",
        LEARNER,
    ),
    "unrun": (lambda c: edit(c, "notebooks", never_run), "was never run: cell 2 (course-setup)", LEARNER),
    "missing": (lambda c: (c.root / LEARNERS).unlink(), "is missing", LEARNER),
    "no JSON": (lambda c: (c.root / LEARNERS).write_text("{"), "can't be read", LEARNER),
}


@pytest.mark.parametrize("kind", STALE)
def test_check_names_each_stale_notebook(copied, capsys, monkeypatch, kind):
    monkeypatch.setattr(build, "NotebookClient", None)  # --check starts no kernel
    assert main(["--check"], copied) == 0
    change, said, copies = STALE[kind]
    change(copied)
    capsys.readouterr()
    assert main(["--check"], copied) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert [line.split("/")[0] for line in errors] == [f"error: {copy}" for copy in copies]
    assert all("/00_trial.ipynb " in line and said in line for line in errors)


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


# --------------------------------------------------------------------------------------------- nbval


def nbval(course: Course) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval",
        "--nbval-current-env",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "--rootdir", str(course.root), "notebooks"],
        cwd=course.root, env=environment, capture_output=True, text=True,
    )  # fmt: skip


def test_nbval_passes_what_the_build_wrote(built):
    """A tqdm bar, a figure, an unsolved exercise, a cell that isn't compared."""
    done = nbval(built)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "11 passed" in done.stdout


def test_nbval_fails_on_a_changed_number_and_on_a_changed_figure_title(copied):
    """The negative control. nbval does not compare pictures: what a figure shows is printed, or titled."""

    def change(notebook):
        for cell in notebook["cells"]:
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                if output.get("text") == ["loss 0.125\n"]:
                    output["text"] = ["loss 0.126\n"]
                if "image/png" in data:
                    data["image/png"] = ""
                    data["text/plain"] = ["Figure: Losses"]

    edit(copied, "notebooks", change)
    done = nbval(copied)
    assert done.returncode == 1
    assert "2 failed, 9 passed" in done.stdout
    assert "loss 0.126" in done.stdout and "Figure: Losses" in done.stdout


# ----------------------------------------------------------------------------------------------- the script


def tagged(*cells: str, tags: str = '["capstone"]') -> str:
    return HEADER + "# Title\n\n" + "\n\n".join(f"```python tags={tags}\n{cell}\n```" for cell in cells) + "\n"


SCRIPT_CELLS = ('"""What it does."""\n\nimport sys\n\nLIMIT = 3', "def main():\n    print(sys.argv[1:], LIMIT)")


def test_tagged_cells_make_a_script_that_runs(tmp_path):
    course = course_at(tmp_path, **{"00_a": code_lesson("x = 1"), "01_b": tagged(*SCRIPT_CELLS)})
    assert main(["--no-execute"], course) == 0
    text = (tmp_path / "capstone.py").read_text()
    assert text.startswith("# Made by tools/build_notebooks.py from lessons/01_b.md") and "x = 1" not in text
    done = subprocess.run([sys.executable, tmp_path / "capstone.py", "a"], capture_output=True, text=True)
    assert done.stdout == "['a'] 3\n"
    assert subprocess.run([sys.executable, "-m", "ruff", "format", "--check", tmp_path / "capstone.py"]).returncode == 0
    stored = json.loads((tmp_path / "notebooks" / "01_b.ipynb").read_text())
    assert [c["metadata"] for c in stored["cells"][3:]] == [{"tags": ["capstone"]}] * 2
    assert "__main__" not in json.dumps(stored)


def test_check_notices_a_stale_missing_or_stray_script(tmp_path, capsys):
    course = course_at(tmp_path, **{"00_a": tagged(*SCRIPT_CELLS)})
    path = tmp_path / "capstone.py"
    lessons = [read_lesson(tmp_path / "lessons" / "00_a.md")]
    text = build.script(lessons)
    assert build.stale_script(text, course) == ["capstone.py is missing"]
    assert build.write_script(text, course) == "written" and build.write_script(text, course) == "unchanged"
    assert build.stale_script(text, course) == []
    path.write_text(text + "# edited\n")
    assert build.stale_script(text, course) == ["capstone.py is stale: its lesson gives another text"]
    assert main(["--check"], course) == 1 and "capstone.py is stale" in capsys.readouterr().err
    assert build.stale_script(None, course) == ["capstone.py has no lesson: no cell is tagged capstone"]
    assert build.write_script(None, course) is None and path.exists()


@pytest.mark.parametrize(
    "cells, tags, said",
    [
        (("import sys",), '["capstone"]', "no capstone cell defines main"),
        (("def main():\n    pass", "main()"), '["capstone"]', "this runs: main()"),
        (("def main():\n    pass", '"""Late."""'), '["capstone"]', "this runs: 'Late.'"),
        (("def main():\n    pass",), '["capstone", "nbval-skip"]', "no other tag"),
        (("def main():\n    ### BEGIN SOLUTION\n    pass\n    ### END SOLUTION",), '["capstone"]', "no exercise in it"),
    ],
)
def test_what_is_no_script_is_refused(tmp_path, cells, tags, said):
    with pytest.raises(BuildError, match=said):
        build.script([lesson_of(tmp_path, tagged(*cells, tags=tags))])


def test_one_lesson_makes_the_script(tmp_path):
    course_at(tmp_path, **{"00_a": tagged(*SCRIPT_CELLS), "01_b": tagged(*SCRIPT_CELLS)})
    with pytest.raises(BuildError, match="00_a.md, 01_b.md tag some"):
        build.script([read_lesson(path) for path in sorted((tmp_path / "lessons").glob("*.md"))])
