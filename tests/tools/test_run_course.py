"""tools/run_course.py: what it says of cells that fail, differ or write to stderr, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import sys
from types import SimpleNamespace

import nbformat
import psutil
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import run_course as tool
from tools.gpu.record import Record
from utils.models import ASSETS, ROOT

CELLS = [
    'import os, sys\nprint(os.environ["COURSE_PROFILE"], "COURSE_STRICT" in os.environ)',
    "1 / 0",
    'print("as stored")',
    'print("a warning", file=sys.stderr)',
    'print("otherwise")',
    "import random\nprint(random.random())  # not compared",
    'print("[passed] one")\ncheck = print\ncheck("one")',
]


def trial(tmp_path, copy="solutions"):
    """A small notebook in a folder named as a copy of the course's."""
    stored = ["tiny True\n", "", "as stored\n", "", "this\n", "0.5\n", "[passed] one\none\n"]
    cells = [new_markdown_cell("# A trial")]
    for source, text in zip(CELLS, stored, strict=True):
        output = [new_output("stream", name="stdout", text=text)] if text else []
        tags = {"tags": ["nbval-ignore-output"]} if "not compared" in source else {}
        cells.append(new_code_cell(source, outputs=output, execution_count=1, metadata=tags))
    path = tmp_path / copy / "00_trial.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(new_notebook(cells=cells), path)
    return path


def run(path, profile="tiny", cell_seconds=60, as_t4=False):
    before = set(psutil.Process().children(recursive=True))  # another test's, such as multiprocessing's tracker
    row = asyncio.run(tool.run_one(path, profile, tool.Course(ROOT, "o/r", str, len), cell_seconds, as_t4))
    left = set(psutil.Process().children(recursive=True)) - before
    assert not left, "the kernel is gone when its notebook is through"
    return row


def test_a_notebook_runs_to_its_end_and_all_that_is_wrong_is_told(tmp_path):
    path = trial(tmp_path)
    before = path.read_bytes()
    row = run(path)
    assert path.read_bytes() == before, "the stored notebook is not touched"
    assert row["state"] == "failed" and row["cells"] == len(CELLS) and row["checks"] == 1 and row["seconds"] > 0
    assert row["errors"] == [{"cell": 2, "said": "ZeroDivisionError: division by zero"}]
    assert row["stderr"] == [{"cell": 4, "said": "a warning"}]
    assert row["different"] == [{"cell": 5, "said": "this -> otherwise"}]
    assert row["cuda_used"] is False and row["peak_bytes"] == 0


def test_the_learners_copy_is_not_strict_and_the_profile_is_passed_on(tmp_path):
    row = run(trial(tmp_path, "notebooks"), "small")
    assert row["different"][0] == {"cell": 1, "said": "tiny True -> small False"}


def test_the_model_in_place_of_the_profiles_own_is_passed_on(monkeypatch):
    monkeypatch.setenv("COURSE_MODEL", "a/model")
    assert tool.kernel_environment("solutions", tool.Course(ROOT, "o/r", str, len))["COURSE_MODEL"] == "a/model"


def test_inside_a_t4s_limits_the_kernel_has_the_stand_in_and_a_row_says_so(tmp_path, monkeypatch):
    path = tmp_path / "solutions" / "00_trial.ipynb"
    path.parent.mkdir()
    cell = new_code_cell("import torch\nprint(torch.cuda.is_bf16_supported(), torch.cuda.get_device_capability())")
    cell.outputs, cell.execution_count = [new_output("stream", name="stdout", text="False (7, 5)\n")], 1
    nbformat.write(new_notebook(cells=[cell]), path)
    record = Record(tmp_path / "course.json", "a trial", seed=0)
    monkeypatch.setattr(tool.Course, "here", lambda: tool.Course(ROOT, "o/r", str, len))
    for as_t4 in (True, True, False):
        limits = {"at_once": 1, "cell_seconds": 60, "seconds": 60, "as_t4": as_t4}
        asyncio.run(tool.run_all([path], "small", record, **limits))
    t4, real = record.rows
    assert (t4["key"], t4["profile"], t4["stand_in"]) == ("small as T4 solutions/00_trial", "small", "T4")
    assert t4["state"] == "ran" and not t4["different"] and not t4["errors"]
    assert real["key"] == "small solutions/00_trial" and real["stand_in"] is None
    page = (tmp_path / "course.md").read_text()
    assert "| small as T4 | solutions/00_trial | ran |" in page and "| small | solutions/00_trial |" in page
    assert "*as T4*: this GPU stood in for a T4" in page
    monkeypatch.setattr(tool.t4, "environment", dict)
    row = run(path, "small", as_t4=True)
    assert row["state"] == "failed" and row["errors"][-1]["said"] == "the stand-in for a T4 wasn't in force"


def test_a_cell_that_never_ends_is_an_error_and_not_the_end_of_the_run(tmp_path):
    path = tmp_path / "notebooks" / "00_trial.ipynb"
    path.parent.mkdir()
    nbformat.write(new_notebook(cells=[new_code_cell("import time\ntime.sleep(60)", execution_count=1)]), path)
    row = run(path, cell_seconds=2)
    assert row["state"] == "failed" and row["errors"][0]["cell"] == 0
    assert row["errors"][0]["said"].startswith("CellTimeoutError") and row["peak_bytes"] is None


def test_an_interrupt_ends_the_run_and_is_not_recorded(tmp_path, monkeypatch):
    path, record = tmp_path / "notebooks" / "00_trial.ipynb", Record(tmp_path / "course.json", "a trial", seed=0)
    path.parent.mkdir()
    nbformat.write(new_notebook(cells=[new_code_cell("raise KeyboardInterrupt", execution_count=1)]), path)
    monkeypatch.setattr(tool.Course, "here", lambda: tool.Course(ROOT, "o/r", str, len))
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(tool.run_all([path], "tiny", record, at_once=1, cell_seconds=60, seconds=60))
    assert not record.rows


def test_the_report_names_every_error_and_a_second_run_goes_on(tmp_path, monkeypatch):
    path, record = trial(tmp_path), Record(tmp_path / "course.json", "a trial", seed=0)
    settings = {"at_once": 1, "cell_seconds": 60}
    monkeypatch.setattr(tool.Course, "here", lambda: tool.Course(ROOT, "o/r", str, len))
    asyncio.run(tool.run_all([path], "tiny", record, seconds=-1, **settings))
    assert not record.rows, "nothing is started when the time is over"
    for _ in range(2):
        asyncio.run(tool.run_all([path], "tiny", record, seconds=60, **settings))
    assert [row["key"] for row in record.rows] == ["tiny solutions/00_trial"]
    page = (tmp_path / "course.md").read_text()
    assert "0 of 1 notebooks ran without an error" in page
    assert "| tiny | solutions/00_trial | failed | 7 | 1 |" in page
    assert "- tiny solutions/00_trial, cell 2: `ZeroDivisionError: division by zero`" in page
    assert "## Standard error\n\n- tiny solutions/00_trial, cell 4: `a warning`" in page
    assert json.loads((tmp_path / "course.json").read_text())["rows"] == record.rows


def test_a_real_model_runs_the_chapters_from_02_on():
    names = {path.name[:2] for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")}
    assert {path.name[:2] for path in tool.chosen([], "small")} == {
        name for name in names if "02" <= name <= "21" and name != "19"
    }
    assert len(tool.chosen([], "tiny")) == 2 * len(list((ROOT / "lessons").glob("[0-9][0-9]_*.md")))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trial"], "error: --trial needs --out"),
        (["--trial", "--out", "x", "99"], "error: no notebook begins with 99; there are 00, 01"),
        (
            ["--trial", "--out", "x", "--profile", "small", "00"],
            "error: 00: with --profile small run chapters 02 to 21 but 19",
        ),
        (["--at-once", "0"], "error: --at-once is 0; run at least one"),
        pytest.param(
            [],
            "error: this runs the course on a CUDA GPU, and there is none here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so it would run"),
        ),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run_course.py", *arguments])
    with pytest.raises(SystemExit, match=said):
        tool.main()
    assert not list(tmp_path.iterdir())


# Rows that no GPU has run yet.
AWAITED: set[str] = set()


def test_the_page_says_which_rows_are_of_an_earlier_commit():
    row = {"profile": "tiny", "notebook": "notebooks/01_x", "state": "ran", "cells": 1, "checks": 0, "seconds": 1.0,
           "peak_bytes": None, "different": [], "errors": [], "stderr": []}  # fmt: skip
    head = {"hardware": "a card", "date": "today", "versions": {"torch": "2"}, "commit": "new"}
    said = tool.report(SimpleNamespace(head=head, rows=[row, row | {"until": "old"}, row | {"until": "old"}]))
    assert "torch 2, commit new; 2 notebooks at old or before. 3 of 3 notebooks ran" in said
    assert "commit new. 1 of 1" in tool.report(SimpleNamespace(head=head, rows=[row]))


def test_the_record_of_a_gpu_has_every_notebook_without_an_error_and_its_page():
    folder = ASSETS / "measurements"
    found = json.loads((folder / "course.json").read_text())
    record = SimpleNamespace(rows=found.pop("rows"), head=found)
    rows = {row["key"]: row for row in record.rows}
    tiny = {tool.row_key(path, "tiny") for path in tool.chosen([], "tiny")}
    solved = tool.chosen([], "small", [tool.SOLVED])  # a real model runs these; the learner's copies have no more code
    small, t4 = ({tool.row_key(path, "small", as_t4=where) for path in solved} for where in (False, True))
    assert not set(rows) & AWAITED, "it has run since: take it out of AWAITED"
    assert set(rows) | AWAITED == tiny | small | t4
    assert all((key in t4) == (row.get("stand_in") == "T4") for key, row in rows.items())
    assert record.head["hardware"].startswith("NVIDIA")
    for key, row in rows.items():
        assert row["state"] == "ran" and not row["errors"], key
        assert row["checks"] > 0 or "notebooks/" in key, f"{key}: a solved notebook passes its checks"
    assert (folder / "course.md").read_text() == tool.report(record)
