"""Classes: which cells an answer needs, what a process may do, the tables, the folder without a network."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

import utils.course.checks  # noqa: F401  registers every chapter's exercises
from tools.build.lesson import LEARNER, ROOT
from tools.classroom import grade as grading
from tools.classroom import intact, judge, pack, sample
from tools.classroom.__main__ import main
from tools.classroom.answer import Request, Verdict
from tools.classroom.judge import Limits, NotACourseNotebook, judge_answer, judge_notebook, official, read
from tools.classroom.release import Refused, release
from tools.classroom.slices import Cell, answer_of, code_cells, needed, own_cell
from utils.course import progress
from utils.course.checks import core
from utils.start.failures import explain
from utils.start.torch_build import TORCH
from utils.start.wheels import where_from

CHAPTER = official(sample.NOTEBOOK)


# ----------------------------------------------------------------------------------------- which cells are run


def cells(*sources: str) -> list[Cell]:
    """Cells with these sources; `solution` and `check` begin those of exercise f."""
    return [Cell(source, source.split()[1] if source.startswith("# ") else "", "f") for source in sources]


CASES = {
    "what it reads, and what that reads": (
        ["import math", "unused = 1", "def g(x):\n    return math.pi", "# solution\ndef f(x): return g(x)", "# check"],
        [0, 2, 3],
    ),
    "of two that bind a name the last": (["a = 1", "a = 2", "# solution\nf = a", "# check"], [1, 2]),
    "what a cell reads before it binds it": (["a = 1", "a += 1", "# solution\nf = a", "# check"], [0, 1, 2]),
    "a name from below, before the check": (["# solution\ndef f(): return g()", "def g(): ...", "# check"], [0, 1]),
    "nothing from behind the check": (["# solution\ndef f():\n    return g()", "# check", "def g():\n    pass"], [0]),
    "the last of the learner's own versions": (["# solution\nf = 1", "f = 2", "# check"], [0, 1]),
    "a cell that is no Python": (["import os", "# solution\ndef f(:", "# check"], [1]),
    "stars and magics": (["from math import *", "%timeit 1", "!ls", "# solution\nf = cos(1)", "# check"], [0, 3]),
    "a timed cell": (["import math", "# solution\n", "%%time\nf = math.pi", "# check"], [0, 1, 2]),
    "builtins only where they are bound": (["sum = max", "# solution\nf = sum(len([1]), 2)", "# check"], [0, 1]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_cells_that_an_answer_needs(case):
    sources, wanted = CASES[case]
    assert needed(cells(*sources), "f", "f") == wanted


def test_an_earlier_exercise_comes_with_its_check():
    earlier = [Cell("def g(): ...", "solution", "g"), Cell('g = check("g", g)', "check", "g")]
    mine = [Cell("def f():\n    return g()", "solution", "f"), Cell('f = check("f", f)', "check", "f")]
    assert needed([Cell("from utils.course.checks import check"), *earlier, *mine], "f", "f") == [0, 1, 2, 3]


@pytest.mark.parametrize("check", ["# check", 'f = check("f", f)'])
def test_an_answer_without_its_mark_is_found_by_its_name(check):
    unmarked = cells("f = 1", "def f(): ...", check, "g = 2")
    assert own_cell(unmarked, "f", "f") == 1 and 1 in needed(unmarked, "f", "f")
    assert own_cell(cells(check, "g = 2"), "f", "f") is None


def test_what_a_check_judges():
    assert answer_of('# x\nLoRALayer = check("lora_layer", LoRALayer)') == "LoRALayer"
    with pytest.raises(ValueError, match="calls no check"):
        answer_of("progress()")


# ------------------------------------------------------------------------------------------- a process for each


STAND_IN = """
import json, os, sys, time
request = json.load(sys.stdin)
def say(state, message=""):
    print(f"{request['secret']}{state}\\0{message}\\0", flush=True)
"""

ENDS = {
    "say(state='passed')": (60, "passed", ""),
    "say(state='not right yet', message='no')": (60, "not right yet", "no"),
    "say('as good as passed')": (60, "not right yet", "exit code 0"),
    "print('passed\\0\\0')": (60, "not right yet", "exit code 0"),
    "os._exit(3)": (60, "not right yet", "exit code 3"),
    "time.sleep(60)": (0.2, "not right yet", "had not come back after 0 s"),
    "held = b'x' * 300_000_000; time.sleep(60)": (60, "not right yet", "more than 200 MB of memory"),
}


@pytest.mark.parametrize("body", ENDS)
def test_only_a_verdict_with_the_secret_counts(body, tmp_path, monkeypatch):
    """A small program in the place of tools.classroom.answer."""
    (tmp_path / "answer.py").write_text(STAND_IN + body)
    popen, command = subprocess.Popen, [sys.executable, "-S", tmp_path / "answer.py"]
    monkeypatch.setattr(judge.subprocess, "Popen", lambda _, **named: popen(command, **named))
    seconds, state, said = ENDS[body]
    verdict = judge_answer(Request("f", "f", [], -1, str(tmp_path)), Limits(seconds, megabytes=200))
    assert verdict.state == state and said in verdict.message


def test_grading_runs_without_strictness_in_the_answers_process(monkeypatch):
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    monkeypatch.setenv("COURSE_STRICT", "1")
    assert not progress.asks_for_strict(judge._environment()) and judge._environment()["COURSE_PROGRESS"] == "off"


# ----------------------------------------------------------------------------------- what the class's folder holds


def table(folder) -> list[list[str]]:
    """The lines of points.csv without their head."""
    return list(csv.reader((folder / "points.csv").read_text(encoding="utf-8-sig").splitlines()))[1:]


@pytest.fixture
def graded(tmp_path, monkeypatch):
    """A class of four, judged by their names."""
    verdicts = {
        "ada": [("passed", ""), ("passed", "")],
        "bob": [("not right yet", "the bias is missing: it has one."), ("not solved yet", "")],
        "cy": [("not right yet", "case 2 of 27, called with d_in=3: your code raised X: y."), ("passed", "")],
        "di": [("not right yet", "case 9 of 27, called with d_in=5: your code raised X: y."), ("not solved yet", "")],
    }
    names = (sample.FIRST, sample.SECOND)

    def judged(notebook, course, folder, limits):
        return [Verdict(name, *said) for name, said in zip(names, verdicts[folder.parent.name], strict=True)]

    monkeypatch.setattr(grading, "judge_notebook", judged)
    for name in verdicts:
        path = tmp_path / "submitted" / name / "ch00" / sample.NOTEBOOK
        path.parent.mkdir(parents=True)
        shutil.copy(ROOT / LEARNER / sample.NOTEBOOK, path)
    return tmp_path


def test_a_class_is_graded_into_a_table(graded, capsys):
    (graded / "submitted" / "eve" / "ch00").mkdir(parents=True)
    (graded / "submitted" / "eve" / "ch00" / sample.NOTEBOOK).write_text("{")
    assert main(["grade", str(graded)]) == 0
    assert [row[:4] for row in table(graded)] == [
        ["ada", "ch00", "2", "2"],
        ["ada", "total", "2", "2"],
        ["bob", "ch00", "0", "2"],
        ["bob", "total", "0", "2"],
        ["cy", "ch00", "1", "2"],
        ["cy", "total", "1", "2"],
        ["di", "ch00", "0", "2"],
        ["di", "total", "0", "2"],
        ["eve", "ch00", "0", "2"],
        ["eve", "total", "0", "2"],
    ]
    assert "is no notebook of format 4" in table(graded)[8][4] and "ada" in capsys.readouterr().out
    cells = read(graded / "graded/bob/ch00" / sample.NOTEBOOK)["cells"]
    checks = [cell["outputs"] for cell in cells if cell["metadata"].get("nbgrader", {}).get("grade")]
    assert [[output["output_type"] for output in outputs] for outputs in checks] == [["error"], ["error"]]


def test_the_overview_counts_a_mistake_once_however_its_case_is_told(graded, capsys):
    main(["grade", str(graded)])
    capsys.readouterr()
    assert main(["overview", str(graded)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ch00: 4 learners",
        "exercise           passed  not right  not solved",
        "linear_parameters       1          3           0",
        "    2 x  your code raised X: y.",
        "    1 x  the bias is missing: it has one.",
        "lora_parameters         2          0           2",
        "",
        "learner  passed   stuck at",
        "bob       0 of  2  ch00 linear_parameters (not right yet)",
        "di        0 of  2  ch00 linear_parameters (not right yet)",
        "cy        1 of  2  ch00 linear_parameters (not right yet)",
        "ada       2 of  2",
    ]
    assert len((graded / "overview.csv").read_text().splitlines()) == 9


def test_whatever_a_notebook_raises_ends_nobody_elses_grading(graded, monkeypatch, capsys):
    judged = grading.judge_notebook

    def raises(notebook, course, folder, limits):
        if folder.parent.name == "bob":
            raise AttributeError("'str' object has no\nattribute 'get'")
        if folder.parent.name == "di":  # what has been judged is in the table already
            assert [row[0] for row in table(graded)] == ["ada", "ada", "bob", "bob", "cy", "cy"]
        return judged(notebook, course, folder, limits)

    monkeypatch.setattr(grading, "judge_notebook", raises)
    assert main(["grade", str(graded)]) == 0
    said = "can't be graded: AttributeError: 'str' object has no attribute 'get'; look at it by hand"
    assert table(graded)[2] == ["bob", "ch00", "0", "2", said] and said in capsys.readouterr().out
    assert [row[2] for row in table(graded)[4::2]] == ["1", "0"]


@pytest.mark.skipif(sys.platform != "linux", reason="names are UTF-8 there")
def test_any_name_can_be_printed_and_is_no_formula(graded, monkeypatch, capsys):
    monkeypatch.setattr(grading, "judge_notebook", lambda *arguments: [Verdict(sample.FIRST, "passed")])
    for old, new in {"ada": "ada\n\x1b[2J", "bob": os.fsdecode(b"b\xf6b"), "cy": "=1+1"}.items():
        os.rename(graded / "submitted" / old, graded / "submitted" / new)
    assert main(["grade", str(graded)]) == 0 and main(["overview", str(graded)]) == 0
    assert [row[2] for row in table(graded)[::2]] == ["1"] * 4
    assert [row[0] for row in table(graded)[::2]] == ["'=1+1", r"ada\n\x1b[2J", r"b\udcf6b", "di"]
    assert r"b\udcf6b" in capsys.readouterr().out
    assert (graded / "points.csv").read_bytes().startswith(b"\xef\xbb\xbfstudent,")


def test_a_run_leaves_nothing_of_the_run_before_it(graded, capsys):
    main(["grade", str(graded)])
    shutil.rmtree(graded / "submitted" / "ada")
    (graded / "submitted" / "bob" / "ch00" / sample.NOTEBOOK).write_text("{")
    theirs = [graded / "grades.csv", graded / "graded" / "cy" / "notes.txt"]
    for path in theirs:
        path.write_text("mine")
    main(["grade", str(graded)])
    main(["overview", str(graded)])
    said = capsys.readouterr().out.splitlines()
    assert "ch00: 2 learners" in said and all(path.read_text() == "mine" for path in theirs)


def test_an_older_notebook_without_marks_is_in_the_overview(graded, capsys, recwarn):
    path = graded / "submitted" / "ada" / "ch00" / sample.NOTEBOOK
    old = {**read(path), "nbformat_minor": 0}
    old["cells"] = [{**cell, "metadata": {}} for cell in old["cells"]]
    for cell in old["cells"]:
        del cell["id"]
    path.write_text(json.dumps(old))
    new = json.loads(json.dumps({**old, "nbformat_minor": 5}))
    (graded / "submitted" / "bob" / "ch00" / sample.NOTEBOOK).write_text(json.dumps(new))
    main(["grade", str(graded)])
    (graded / "graded" / "cy" / "ch00" / sample.NOTEBOOK).write_text("{")
    blank = graded / "graded" / "di" / "ch00" / sample.NOTEBOOK
    blank.write_text(json.dumps({**CHAPTER, "cells": CHAPTER["cells"][:3]}))
    assert main(["overview", str(graded)]) == 0
    said = capsys.readouterr().out
    assert "ch00: 2 learners" in said
    assert not list(recwarn)
    assert re.findall(r"left out: (.*): (?:.* is no notebook|it has no verdicts)", said) == [
        f"graded/{name}/ch00/{sample.NOTEBOOK}" for name in ("cy", "di")
    ]


def test_the_overview_doesnt_mix_with_what_nbgrader_graded(graded, capsys):
    main(["grade", str(graded)])
    shutil.copytree(graded / "graded", graded / "autograded")
    assert main(["overview", str(graded)]) == 1 and "move one of them away" in capsys.readouterr().err
    shutil.rmtree(graded / "graded")
    assert main(["overview", str(graded)]) == 0


PLACES = {
    "a copy's name": (["ch00/Kopie von 00_start_here.ipynb"], "ch00", "2", ""),
    "a browser's name": (["ch00/00_start_here (1).IPYNB"], "ch00", "2", ""),
    "something beside it": (["ch00/00_start_here.ipynb", "ch00/try.ipynb"], "ch00", "2", "not graded: try.ipynb"),
    "two": (["ch00/00_start_here.ipynb", "ch00/Copy of 00_start_here.ipynb"], "ch00", "0", "leave the one notebook"),
    "two, not equal": (["ch00/00_start_here.ipynb", "ch00/05_data.ipynb"], "ch00", "0", "leave the one notebook"),
    "another name": (["ch00/mine.ipynb"], "ch00", "0", "mine.ipynb is no chapter of the course"),
    "another chapter": (["ch05/00_start_here.ipynb"], "ch05", "0", "is of ch00: put it into a folder of that name"),
    "no chapter's folder": (["abgabe/00_start_here.ipynb"], "abgabe", "0", "is of ch00"),
    "no folder": (["00_start_here.ipynb"], "", "0", "graded in STUDENT/ch00/ only; this one is in eve/."),
    "a deeper folder": (["ch00/hw/00_start_here.ipynb"], "ch00", "0", "this one is in eve/ch00/hw/."),
    "no notebook": (["ch00/answers.pdf"], "", "0", "no notebook is in this folder."),
    "a folder that is called so": (["ch00/00_start_here.ipynb/a.txt"], "", "0", "no notebook is in this folder."),
    "what an editor keeps": (["ch00/.ipynb_checkpoints/00_start_here.ipynb"], "", "0", "no notebook"),
}


@pytest.mark.parametrize("case", PLACES)
def test_wherever_a_notebook_lies_it_is_in_the_table(case, tmp_path, monkeypatch):
    verdicts = [Verdict(sample.FIRST, "passed"), Verdict(sample.SECOND, "passed")]
    monkeypatch.setattr(grading, "judge_notebook", lambda *arguments: verdicts)
    files, assignment, points, said = PLACES[case]
    for name in files:
        path = tmp_path / "submitted" / "eve" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / LEARNER / sample.NOTEBOOK, path)
    assert main(["grade", str(tmp_path)]) == 0
    row, total = table(tmp_path)
    assert row[:3] == ["eve", assignment, points] and said in row[4] and total[1:3] == ["total", points]
    if assignment in ("ch00", "abgabe"):
        assert row[3] == "2"
    if points == "2":
        assert (tmp_path / "graded" / "eve" / "ch00" / sample.NOTEBOOK).is_file()


def test_who_changes_the_course_while_being_graded_ends_the_points(graded, monkeypatch, capsys, tmp_path_factory):
    course = tmp_path_factory.mktemp("course")
    (course / "utils" / "__pycache__").mkdir(parents=True)
    (course / "utils" / "judge.py").write_text("wrong = 0")
    before = intact.fingerprints(course)
    (course / "utils" / "__pycache__" / "judge.pyc").write_text("compiled")
    assert before == intact.fingerprints(course) and len(before) == 1
    monkeypatch.setattr(grading, "fingerprints", lambda: intact.fingerprints(course))
    judged = grading.judge_notebook

    def writes(notebook, course_notebook, folder, limits):
        if folder.parent.name == "cy":
            (course / "utils" / "judge.py").write_text("wrong = 1")
        return judged(notebook, course_notebook, folder, limits)

    monkeypatch.setattr(grading, "judge_notebook", writes)
    assert main(["grade", str(graded)]) == 1
    said = "files of the course were changed while"
    assert f"error: {said} grading: utils/judge.py; restore them" in capsys.readouterr().err
    assert [row[2] for row in table(graded)[::2]] == ["2", "0", "0", "0"]
    assert table(graded)[4][4].startswith(said) and table(graded)[6][4].startswith("not graded")
    assert [path.parts[-3] for path in sorted((graded / "graded").glob("*/*/*"))] == ["ada", "bob"]


def test_a_check_cell_that_was_deleted_comes_back_with_its_verdict():
    notebook = sample.submission(sample.CLASS["deleted-the-check"])
    judge.write_verdicts(notebook, CHAPTER, [Verdict(sample.FIRST, "passed"), Verdict(sample.SECOND, "not solved yet")])
    last = notebook["cells"][-1]
    assert last["metadata"]["nbgrader"]["grade_id"] == "check-linear_parameters"
    assert last["outputs"][0]["text"] == "[passed] linear_parameters\n"


def test_an_exercise_whose_cell_is_missing_is_not_solved(tmp_path):
    kept = [cell for cell in CHAPTER["cells"] if not cell["metadata"].get("nbgrader", {}).get("solution")]
    verdicts = judge_notebook({**CHAPTER, "cells": kept}, CHAPTER, tmp_path)
    assert [verdict.report for verdict in verdicts] == [
        f"[not solved yet] {name}: no cell of the notebook defines {name}." for name in (sample.FIRST, sample.SECOND)
    ]


def test_the_sample_class_takes_nobodys_place(graded, capsys):
    assert main(["sample", str(graded)]) == 1
    assert "holds submissions already" in capsys.readouterr().err
    assert len(list((graded / "submitted").iterdir())) == 4


@pytest.mark.parametrize("command", ["grade", "overview"])
def test_an_empty_folder_is_said(command, tmp_path, capsys):
    assert main([command, str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_what_is_no_chapter_is_refused(tmp_path):
    with pytest.raises(NotACourseNotebook, match="mine.ipynb is no chapter"):
        official("mine.ipynb")
    with pytest.raises(Refused, match="there is no chapter 77; there are 00, 01"):
        release(tmp_path, ["0", "77"])
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ hidden tests


def test_a_released_chapter_has_a_hidden_test_in_each_check_cell(tmp_path, capsys):
    assert main(["release", str(tmp_path), "0"]) == 0
    notebook = read(tmp_path / "source" / "ch00" / sample.NOTEBOOK)
    checks = [c for c in notebook["cells"] if c["metadata"].get("nbgrader", {}).get("grade")]
    assert len(checks) == 2 and not any(cell.get("outputs") for cell in notebook["cells"])
    for cell in checks:
        name = cell["metadata"]["nbgrader"]["grade_id"].removeprefix("check-")
        assert cell["source"].startswith(f'{name} = check("{name}", {name})\n### BEGIN HIDDEN TESTS\n')
        assert cell["source"].endswith("\n### END HIDDEN TESTS")
    judged = [cell.source for cell in code_cells(notebook) if cell.role == "check"]
    assert judged == [f'{name} = check("{name}", {name})\n' for name in (sample.FIRST, sample.SECOND)]
    settings = (tmp_path / "nbgrader_config.py").read_text()
    assert f"sys.path.insert(0, {str(ROOT)!r})" in settings
    (tmp_path / "nbgrader_config.py").write_text("# the instructor's own")
    main(["release", str(tmp_path), "ch01"])
    assert (tmp_path / "nbgrader_config.py").read_text() == "# the instructor's own"
    assert (tmp_path / "source" / "ch01").is_dir()


def hidden_test(names: dict) -> None:
    """Run the first check cell's hidden test with these names in the notebook."""
    from tools.classroom.release import HIDDEN

    before = dict(sys.modules)
    try:
        exec(HIDDEN.format(name=sample.FIRST, answer=sample.FIRST), names)
    finally:
        sys.modules.update(before)


def test_the_hidden_test_takes_no_notice_of_what_was_done_to_the_engine(monkeypatch):
    monkeypatch.setattr(core, "evaluate", lambda *arguments: judge.Verdict("x", "passed"))
    monkeypatch.setattr(core, "require", lambda *arguments: None)
    names = {"check": lambda name, answer=None: answer, sample.FIRST: None}
    with pytest.raises(AssertionError, match="not solved yet"):
        hidden_test(names)
    exec(sample.RIGHT, names)
    hidden_test(names)


def test_the_hidden_test_refuses_the_reference():
    with pytest.raises(AssertionError, match="course's own reference"):
        hidden_test({sample.FIRST: core.find(sample.FIRST).reference})


# --------------------------------------------------------------------------------------- a room without a network


def test_pip_takes_the_wheels_that_lie_beside_start(tmp_path):
    assert where_from(tmp_path) == {}
    (tmp_path / "wheels").mkdir()
    assert where_from(tmp_path) == {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "wheels"}
    said = explain("ERROR: No matching distribution found for numpy==2.4.6", "packages", tmp_path / ".venv")
    assert said.startswith("The folder wheels has no numpy==2.4.6 for Python") and "pack it again" in said


def test_a_pack_holds_the_course_and_asks_pip_for_the_lock_and_torch(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(pack, "_wheels", lambda *what: asked.append(what) or what[0].mkdir(exist_ok=True))
    monkeypatch.setattr(pack, "course_files", lambda: ["start.py", "assets/tiny-llama/README.md"])
    monkeypatch.setenv("COURSE_TORCH_INDEX", "pip")
    room = tmp_path / "room"
    assert main(["pack", str(room)]) == 0
    assert asked == [(room / "wheels", "-r", str(ROOT / "requirements.lock")), (room / "wheels", TORCH)]
    assert (room / "assets/tiny-llama/README.md").is_file() and "0 wheels" in capsys.readouterr().out
    assert main(["pack", str(room)]) == 0  # again, as on another kind of machine


def test_a_pack_goes_nowhere_else(tmp_path, monkeypatch, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["pack", str(tmp_path)]) == 1
    monkeypatch.setattr(pack.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 10**8))
    assert main(["pack", str(tmp_path / "new")]) == 1
    said = capsys.readouterr().err
    assert "holds something else" in said and "about 2 GB are needed" in said


@pytest.mark.slow
def test_git_knows_the_files_of_a_pack():
    if not (ROOT / ".git").exists():
        pytest.skip("no clone: git can't list the course's files")
    files = pack.course_files()
    assert {"start.py", "requirements.lock", "notebooks/00_start_here.ipynb"} <= set(files)
    assert not [name for name in files if name.startswith((".venv/", "work/", "wheels/"))]


# ------------------------------------------------------------------------------------------------ the real thing


FEW = ("right-with-own-helper", "half", "built-on-a-blank", "cheat-reference", "cheat-engine")


@pytest.mark.slow
def test_a_few_of_the_sample_class(tmp_path, monkeypatch, capsys):
    """All of them, by nbgrader too: test_classroom_nbgrader.py, where nbgrader is installed."""
    monkeypatch.setattr(sample, "CLASS", {name: sample.CLASS[name] for name in FEW})
    main(["sample", str(tmp_path)])
    main(["grade", str(tmp_path)])
    assert {row[0]: int(row[2]) for row in table(tmp_path)} == {name: sample.CLASS[name].points for name in FEW}
    assert "the bias is missing" in json.dumps(read(tmp_path / "graded/half/ch00" / sample.NOTEBOOK))


# ------------------------------------------------------------------------------------------------ the guide

GUIDE = (ROOT / "classroom" / "README.md").read_text(encoding="utf-8")
MINUTES = {
    path.name[:2]: int(re.search(r"^About (\d+) minutes", path.read_text(encoding="utf-8"), re.M)[1])
    for path in sorted((ROOT / "lessons").glob("[0-9][0-9]_*.md"))
}


def test_the_guides_minutes_are_the_lessons():
    rows = [row for row in re.findall(r"^\| (.*?) \| (\d+) \| .*\|$", GUIDE, re.M) if not row[0].startswith("in all")]
    assert len(rows) >= 15
    for said, minutes in rows:
        numbers = re.findall(r"\b\d\d\b", said)
        assert numbers and int(minutes) == sum(MINUTES[number] for number in numbers), said
    for table in re.split(r"\n\n", GUIDE):
        if "| in all |" in table:
            *parts, whole = map(int, re.findall(r"^\|.*?\| (\d+) \|", table, re.M))
            assert sum(parts) == whole
    assert {n for said, _ in rows for n in re.findall(r"\b\d\d\b", said)} == set(MINUTES), "a chapter has no week"


def test_the_guides_titles_are_the_lessons():
    for number, title in re.findall(r"^\| (\d\d) (.*?)(?: \(.*?\))? \| \d+ \|", GUIDE, re.M):
        (lesson,) = (ROOT / "lessons").glob(f"{number}_*.md")
        assert f"\n# Chapter {int(number)}: {title}\n" in lesson.read_text(encoding="utf-8")


def test_the_guide_names_sections_that_there_are():
    (said,) = re.findall(r"^Chapter 9 builds on .*?\n\n", GUIDE, re.M | re.S)
    parts = re.findall(r'in (\d\d)\s((?:(?:, | and )?"[^"]+")+)', said)
    assert [number for number, _ in parts] == ["05", "06", "08"]
    for number, names in parts:
        (lesson,) = (ROOT / "lessons").glob(f"{number}_*.md")
        for name in re.findall('"([^"]+)"', names):
            assert f"\n## {name}\n" in lesson.read_text(encoding="utf-8")


def test_the_guides_mistakes_are_what_the_checks_say():
    rows = re.findall(r"^\| (\d\d) \| `(\w+)` \| (.*) \|$", GUIDE, re.M)
    assert {number for number, _, _ in rows} == set(MINUTES)
    for number, name, said in rows:
        found = core.find(name)
        assert found.chapter == f"ch{number}" and said in [mistake.expected_text for mistake in found.mistakes], name
    for name in re.findall(r"`([a-z_]+)`(?: and `([a-z_]+)`)? pass", GUIDE):
        assert all(core.find(one) for one in name if one)
