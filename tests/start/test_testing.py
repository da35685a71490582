"""`start.py test` runs every stage, as CI does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from utils.start import testing

ROOT = Path(__file__).resolve().parents[2]


def test_tests_run_on_the_cpu_offline_with_one_thread_and_no_course_settings():
    before = {"PATH": "/bin", "COURSE_STRICT": "1", "COURSE_PROFILE": "7b", "OMP_NUM_THREADS": "8"}
    after = testing.environment_of_tests(before)
    ours = {name: value for name, value in after.items() if name.startswith("COURSE_")}
    assert after["PATH"] == "/bin" and ours == {"COURSE_PROGRESS": "off"}  # a learner's record is left alone
    assert after["OMP_NUM_THREADS"] == "1" and after["CUDA_VISIBLE_DEVICES"] == "-1" and after["HF_HUB_OFFLINE"] == "1"
    assert after["PYTHONUTF8"] == "1"
    (tests, how), (notebooks, once), browser, website = testing.stages()
    assert (tests, how) == ("tests", ["-n", "2", "--dist", "worksteal", "tests"])  # slow ones too: CI runs them here
    assert notebooks == "notebooks" and once[-1] == "solutions" and "tools.pytest_notebooks" in once
    assert once[once.index("--dist") + 1] == "loadfile", "a notebook's cells belong to one worker"
    assert browser == ("browser", ["tests/browser"]), "without workers: one JupyterLab for all"
    assert website == ("website", ["tests/site/built"]), "without workers: one build for all"


ONLY_WITH_WORKERS = {"-n", "2", "--dist", "worksteal", "loadfile", "--no-loadscope-reorder"}


def notebook(source: str, printed: str) -> str:
    """The text of a notebook with one code cell and what it is said to print."""
    output = {"output_type": "stream", "name": "stdout", "text": printed}
    cell = {
        "cell_type": "code",
        "id": "c",
        "execution_count": 1,
        "metadata": {},
        "outputs": [output],
        "source": source,
    }
    spec = {"name": "no-such-kernel", "display_name": "none", "language": "python"}
    return json.dumps({"cells": [cell], "metadata": {"kernelspec": spec}, "nbformat": 4, "nbformat_minor": 5})


def test_every_stage_runs_and_any_failure_counts(tmp_path, capfd, monkeypatch):
    """A small course for real: all passes but the learner's copy of a notebook, where something else is stored. There
    is no browser, which is said and is no failure."""
    home = tmp_path
    for folder in ("tests/browser", "tests/site/built", "notebooks", "solutions"):
        (home / folder).mkdir(parents=True)
    for folder in ("browser", "site/built"):
        (home / "tests" / folder / "conftest.py").write_text(
            f"import pytest\n\ndef pytest_sessionstart():\n    pytest.exit('no browser', {testing.LEFT_OUT})\n"
        )
    ask = "import os\nprint(os.environ.get('COURSE_STRICT'), os.environ['OMP_NUM_THREADS'])"
    (home / "tests" / "test_one.py").write_text(
        "import os\n\ndef test_one():\n    assert 'COURSE_STRICT' not in os.environ\n"
    )
    (home / "notebooks" / "a.ipynb").write_text(notebook(ask, "not that\n"))
    (home / "solutions" / "a.ipynb").write_text(notebook(ask, "1 1\n"))
    few = [
        (name, [word for word in arguments if word not in ONLY_WITH_WORKERS]) for name, arguments in testing.stages()
    ]
    monkeypatch.setattr(testing, "stages", lambda: few)  # without the two workers: they start slowly
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # this course has no tools/ of its own
    assert testing.run_tests(home, Path(sys.executable), 1.25) == 1
    out = capfd.readouterr().out
    rows = [re.fullmatch(r"(\S+) +([\d.]+) s   (.*)", line).groups() for line in out.strip().splitlines()[-5:]]
    assert [(name, verdict) for name, _, verdict in rows] == [
        ("set-up", "done"),
        ("tests", "passed"),
        ("notebooks", "FAILED (pytest's exit code 1)"),
        ("browser", "left out, for the reason above"),
        ("website", "left out, for the reason above"),
    ]
    assert all(0 < float(seconds) < 300 for _, seconds, _ in rows)
    assert re.search(r"^a +[\d.]+ s$", out, re.M), "the seconds of each notebook"
    assert "1 failed, 1 passed" in out and "the stored output differs between the two copies" in out


def test_a_stage_without_tests_is_a_failure_and_all_passed_is_none(home, monkeypatch, capsys):
    codes = iter([0, 5, 0, 0, 0, 0, testing.LEFT_OUT, testing.LEFT_OUT])
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: type("Done", (), {"wait": lambda self: next(codes)})())
    assert testing.run_tests(home, Path("python"), 0.0) == 1
    assert "notebooks" in (line := capsys.readouterr().out.splitlines()[-3]) and "found nothing to run" in line
    assert testing.run_tests(home, Path("python"), 0.0) == 0
