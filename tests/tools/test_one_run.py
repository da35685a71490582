"""One run of a chapter proves both copies: it finds what running each copy by itself finds, and says where."""

import hashlib
import json
import random
import shutil

import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tests.tools.trial import HEADER, change_stored, course_at, failures, stored
from tools.build import aside
from tools.build.__main__ import main
from tools.build.lesson import LEARNER, SOLVED, BuildError
from tools.build.one_run import bound, disagreements, steps
from utils.course import progress
from utils.course.checks import core

CHAPTER = (
    HEADER
    + """\
# Chapter 0: Sizes

```python
from utils.course.checks import check, progress
from utils.course.checks.registry import Mistake, exercise

exercise("size", reference=400, mistakes=[Mistake(300, "one too few.")], hints=["Count."])
step = kept = 10
```

```python
step = step + 1
### BEGIN SOLUTION
helper = kept = 2
size = 200 * helper
### STUB
# size = 300
### END SOLUTION
print("step", step)
```

```python
size = check("size", size)
```

```python
print(size, step)
```

```python
progress()
```
"""
)
SETUP, GIVEN, SOLUTION, CHECK, READS, PROGRESS = range(2, 8)
"""Indices of the chapter's code cells; the badge and the title come before them."""


@pytest.fixture(scope="module")
def chapter(tmp_path_factory):
    """A course whose one chapter has been built."""
    course = course_at(tmp_path_factory.mktemp("one"), **{"00_fine": CHAPTER})
    assert main([], course) == 0
    return course


def printed(notebook, index: int) -> str:
    return "".join(output["text"] for output in notebook.cells[index].outputs)


def test_the_build_stores_what_each_copy_prints(chapter):
    learner, solved = (stored(chapter, kind, "00_fine") for kind in (LEARNER, SOLVED))
    assert printed(learner, CHECK).startswith("[not right yet] size: one too few.")
    assert printed(solved, CHECK) == "[passed] size\n"
    assert "0 of 1 exercises passed" in printed(learner, PROGRESS)
    assert "1 of 1 exercises passed" in printed(solved, PROGRESS)
    for copy in (learner, solved):  # the stub's step isn't the solution's
        assert printed(copy, SOLUTION) == "step 11\n" and printed(copy, READS) == "400 11\n"
        assert [cell.execution_count for cell in copy.cells[SETUP:-1]] == [1, 2, 3, 4, 5, 6]


def test_a_lesson_that_reads_the_solutions_names_fails_the_build_with_its_line(tmp_path, capsys):
    text = CHAPTER.replace("print(size, step)", "print(size, helper)")
    assert main([], course_at(tmp_path, **{"00_bad": text})) == 1
    said = capsys.readouterr().err
    line = text.split("\n").index("print(size, helper)") + 1
    assert f"lessons/00_bad.md, line {line}) failed" in said and "NameError" in said
    assert "Only the solution of 'size' binds 'helper' and its stub doesn't" in said


# ------------------------------------------------------------------------------- beside two full runs


def source(text: str):
    return lambda cell: cell.update(source=[text])


def output(old: str, new: str):
    def change(cell):
        lines = cell["outputs"][0]["text"]
        assert any(old in line for line in lines)
        cell["outputs"][0]["text"] = [line.replace(old, new) for line in lines]

    return change


def other_message(cell):
    cell["source"] = [line.replace("one too few", "too few by one") for line in cell["source"]]


BOTH = (LEARNER, SOLVED)
STUB, LEARNERS_CHECK, LEARNERS_PROGRESS = (f"Cell {index} (learner's)" for index in (SOLUTION, CHECK, PROGRESS))
FAULTS = {  # stem -> what is changed: (copies, cell, change); the full runs that find it; the items that one run names
    "01_stub_raises": (
        [([LEARNER], SOLUTION, source("step += 1\n1 / 0"))],
        [LEARNER],
        [STUB, LEARNERS_CHECK, LEARNERS_PROGRESS],
    ),
    "02_reads_the_solutions_name": (
        [(BOTH, READS, source("print(size, helper)")), (BOTH, READS, output("400 11", "400 2"))],
        [LEARNER],
        [f"Cell {READS}"],
    ),
    "03_stored_in_the_learners_copy": (
        [([LEARNER], READS, output("400 11", "500 11")), ([LEARNER], PROGRESS, output("0 of 1", "1 of 1"))],
        [LEARNER],
        ["Both copies", LEARNERS_PROGRESS],
    ),
    "04_stored_in_the_solved_copy": (
        [([SOLVED], READS, output("400 11", "500 11"))],
        [SOLVED],
        ["Both copies", f"Cell {READS}"],
    ),
    "05_other_message": ([(BOTH, GIVEN, other_message)], [LEARNER], [LEARNERS_CHECK]),
    "06_wrong_solution": (
        [([SOLVED], SOLUTION, source("step += 1\nsize = 500\nprint('step', step)"))],
        [SOLVED],
        [f"Cell {CHECK}", f"Cell {READS}", f"Cell {PROGRESS}"],
    ),
    "07_reads_a_name_that_the_solution_binds_anew": (  # two full runs pass: each has its own value stored
        [
            (BOTH, READS, source("print(kept)")),
            ([LEARNER], READS, output("400 11", "10")),
            ([SOLVED], READS, output("400 11", "2")),
        ],
        [],
        ["Both copies", f"Cell {READS}"],
    ),
}


@pytest.mark.slow
def test_one_run_finds_what_two_full_runs_find(chapter, tmp_path):
    """And one thing more. Each fault is put into a copy of the same sound chapter."""
    for stem, (changes, _, _) in FAULTS.items():
        for kind in BOTH:
            notebook = json.loads((chapter.root / kind / "00_fine.ipynb").read_text(encoding="utf-8"))
            for copies, index, change in changes:
                if kind in copies:
                    change(notebook["cells"][index])
            (tmp_path / kind).mkdir(exist_ok=True)
            (tmp_path / kind / f"{stem}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    for kind in BOTH:
        stems = {stem for stem, (_, full, _) in FAULTS.items() if kind in full}
        paths = [f"{kind}/{stem}.ipynb" for stem in sorted(stems)]
        assert set(failures(tmp_path, "--nbval", "--nbval-current-env", *paths, strict=kind == SOLVED)) == stems
    one = failures(tmp_path, "-p", "tools.pytest_notebooks", SOLVED)
    assert one == {stem: items for stem, (_, _, items) in FAULTS.items()}


def test_one_run_passes_what_the_build_wrote_and_fails_on_a_number_and_on_a_figures_title(copied):
    """A tqdm bar and a cell that isn't compared are in it. nbval compares no pictures: a figure is titled."""
    assert failures(copied.root, "-p", "tools.pytest_notebooks", SOLVED) == {}

    def change(notebook):
        for cell in notebook["cells"]:
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                if output.get("text") == ["loss 0.125\n"]:
                    output["text"] = ["loss 0.126\n"]
                if "image/png" in data:
                    data["image/png"] = ""
                    data["text/plain"] = ["Figure: Losses"]

    for kind in BOTH:
        change_stored(copied, kind, change)
    assert failures(copied.root, "-p", "tools.pytest_notebooks", SOLVED) == {"00_trial": ["Cell 4", "Cell 5"]}


def test_seconds_are_listed_and_recorded_when_all_passed(chapter, tmp_path):
    shutil.copytree(chapter.root, tmp_path, dirs_exist_ok=True)
    record = tmp_path / "seconds.json"
    record.write_text('{"seconds": {"00_fine": 99.0, "01_kept": 1.5}}')
    assert failures(tmp_path, "-p", "tools.pytest_notebooks", f"--seconds={record}", SOLVED) == {}
    seconds = json.loads(record.read_text())["seconds"]
    assert seconds["01_kept"] == 1.5 and 0.5 < seconds["00_fine"] < 90


# ------------------------------------------------------------------------------------------- its pieces


def test_the_kernel_is_as_it_was_after_the_learners_cells(monkeypatch):
    monkeypatch.setattr(core, "_kernel", core._Kernel({"size": "passed"}, hints={"size": 1}))
    monkeypatch.setattr(aside, "_learners_outcomes", {})
    monkeypatch.setattr(progress, "STRICT", True)
    names = {"step": 10, "kept": 1}
    random.seed(0)
    torch.manual_seed(0)
    drawn = random.random(), torch.rand(1).item()
    random.seed(0)
    torch.manual_seed(0)

    aside.enter(names, ["helper", "size", "step"])
    assert not progress.strict() and core._kernel.states == {}
    names.update(step=11, size=3)
    core._kernel.states["size"], core._kernel.hints["size"] = "not right yet", 2
    random.random(), torch.rand(1)
    aside.leave(names)
    assert names == {"step": 10, "kept": 1} and progress.strict()
    assert (core._kernel.states, core._kernel.hints) == ({"size": "passed"}, {"size": 1})
    assert (random.random(), torch.rand(1).item()) == drawn

    names.update(helper=2, size=4, kept=2)
    aside.withhold(names, ["helper", "kept"])
    assert names == {"step": 10, "size": 4}
    aside.enter(names, [])
    assert core._kernel.states == {"size": "not right yet"}
    aside.leave(names)


def test_names_that_a_cell_binds():
    text = "import a.b, c as d\nfrom e import f\nx, (y, *z) = 1, (2, 3)\nfor i in x: pass\nwith o as w: pass\n"
    text += "def g(p):\n    q = p\nclass K:\n    m = 1\nprint(u, [t for t in x])\nif (n := 1): v += 1"
    assert bound(text) == {"a", "d", "f", "x", "y", "z", "i", "w", "g", "K", "n", "v"}


def pair(*cells):
    return tuple(new_notebook(cells=[make(copy) for make in cells]) for copy in (0, 1))


def code(*sources: str, role: str | None = None):
    """What makes a cell of each copy; one source is the same in both."""
    marks = {"nbgrader": {"solution": role == "solution", "grade": role == "check", "grade_id": "e"}} if role else {}

    def make(copy: int):
        identity = hashlib.sha256(sources[0].encode()).hexdigest()[:12]
        return new_code_cell(sources[min(copy, len(sources) - 1)], id=identity, metadata=marks)

    return make


def test_a_learner_lacks_a_name_until_a_cell_binds_it():
    check = code('x = check("e", x)', role="check")
    cells = code("x = None", "y = x = 1", role="solution"), check, code("print(y)"), code("y = 3"), code("print(y) ")
    taken = steps(*pair(*cells))
    assert [step.withheld for step in taken if step.copy == SOLVED] == [{}, {}, {"y": "e"}, {"y": "e"}, {}]
    assert "Only the solution of 'e' binds 'y'" in taken[4].advice("print(y)") and taken[4].advice("print(yy)") == ""
    assert [step.index for step in taken] == [0, 1, 0, 1, 2, 3, 4]
    assert [step.copy for step in taken][:4] == [LEARNER, LEARNER, SOLVED, SOLVED]


def test_copies_that_cannot_be_run_together_are_refused():
    with pytest.raises(BuildError, match="different cells"):
        steps(new_notebook(cells=[new_code_cell("x", id="a")]), new_notebook(cells=[new_code_cell("x", id="b")]))
    with pytest.raises(BuildError, match="isn't its check"):
        steps(*pair(code("x = None", "x = 1", role="solution"), code("print(x)")))


def test_what_differs_between_the_copies(chapter):
    learner, solved = (stored(chapter, kind, "00_fine") for kind in BOTH)
    assert list(disagreements(learner, solved)) == []
    learner.cells[1].source += " and more"
    learner.cells[READS].outputs[0].text = "5\n"
    solved.cells.append(new_markdown_cell("More."))
    found = list(disagreements(learner, solved))
    assert [index for index, _ in found] == [1, READS, len(learner.cells)]
    assert "'5\\n' | '400 11\\n'" in found[1][1]
