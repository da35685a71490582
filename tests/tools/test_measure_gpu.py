"""tools/measure_gpu.py and its records: whole files, rows of one machine, and what a run that was cut off does."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from tools.gpu import record as module
from tools.gpu.record import Record
from utils.models import ROOT


def tool(*arguments):
    command = [sys.executable, "-m", "tools.measure_gpu", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_record_says_where_and_when_and_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "new" / "x.json"
    record = Record(path, "a trial", seed=3, unit="ms")
    assert not path.exists(), "nothing is written before the first row"
    record.add("one", value=1.5)
    again = Record(path, "a trial", seed=3, unit="ms")
    assert "one" in again and "two" not in again
    again.add("two", value=2)
    found = json.loads(path.read_text())
    assert found["rows"] == [{"key": "one", "value": 1.5}, {"key": "two", "value": 2}]
    assert found["hardware"] and found["seed"] == 3 and found["unit"] == "ms" and found["versions"]["torch"]
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_a_row_that_cant_be_written_leaves_the_file_as_it_was(tmp_path):
    record = Record(tmp_path / "x.json", "a trial", seed=0)
    record.add("one", value=1)
    before = record.path.read_text()
    for key, value in (("one", 2), ("two", float("nan"))):
        with pytest.raises(ValueError, match=r"already|JSON"):
            record.add(key, value=value)
    record.add("three", value=3)
    assert json.loads(record.path.read_text())["rows"] == [*json.loads(before)["rows"], {"key": "three", "value": 3}]


def test_another_machines_record_is_not_mixed_in(tmp_path, monkeypatch):
    Record(tmp_path / "x.json", "a trial", seed=0).add("one", value=1)
    monkeypatch.setattr(module, "hardware", lambda: "another card")
    with pytest.raises(ValueError, match=r"hardware .* 'another card'"):
        Record(tmp_path / "x.json", "a trial", seed=0)


def test_bad_arguments_are_refused_before_anything_runs(tmp_path):
    for arguments, message in (
        (["nonsense", "--trial", "--out", tmp_path], "no section nonsense; there are"),
        (["--trial"], "--trial needs --out"),
    ):
        done = tool(*arguments)
        assert done.returncode == 1 and message in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so it would measure")
def test_without_a_gpu_the_tool_says_so():
    done = tool()
    assert done.returncode == 1 and done.stderr.startswith("error: this measures a GPU, and there is none here")
