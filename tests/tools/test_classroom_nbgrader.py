"""The sample class, graded by nbgrader as an instructor runs it. nbgrader isn't locked: without it this is skipped.

.venv/bin/python -m pip install -c requirements.lock "nbgrader>=0.9.6,<0.10"
PATH="$PWD/.venv/bin:$PATH" .venv/bin/python -m pytest tests/tools/test_classroom_nbgrader.py
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import pytest

from tools.classroom import sample
from tools.classroom.__main__ import main

pytest.importorskip("nbgrader", reason="nbgrader isn't installed: classroom/README.md says how")

SETTINGS_OF_ITS_OWN = """
c = get_config()
c.ClearSolutions.enabled = False
c.Execute.timeout = 120
c.Execute.kernel_name = "python3"
"""
CHEATS = ("cheat-variable", "cheat-new-check", "cheat-reference")


def nbgrader(folder, *arguments: str) -> str:
    """Run nbgrader in the class's folder; what it said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def graded(folder) -> dict[str, int]:
    """What nbgrader gave to each of the sample class."""
    main(["sample", str(folder)])
    nbgrader(folder, "generate_assignment", "ch00")
    nbgrader(folder, "autograde", "ch00")
    nbgrader(folder, "export")
    with open(folder / "grades.csv", encoding="utf-8") as file:
        return {row["student_id"]: int(float(row["score"])) for row in csv.DictReader(file)}


@pytest.mark.slow
def test_everybody_gets_what_they_deserve(tmp_path):
    main(["release", str(tmp_path), "00"])
    assert graded(tmp_path) == {name: learner.points for name, learner in sample.CLASS.items()}


@pytest.mark.slow
def test_an_nbgrader_that_runs_the_notebooks_itself_gives_the_first_cheats_nothing(tmp_path, monkeypatch):
    """By strictness and hidden tests alone."""
    monkeypatch.setattr(sample, "CLASS", {name: sample.CLASS[name] for name in ("right", *CHEATS)})
    (tmp_path / "nbgrader_config.py").write_text(SETTINGS_OF_ITS_OWN)
    main(["release", str(tmp_path), "00"])
    assert graded(tmp_path) == {"right": 2} | dict.fromkeys(CHEATS, 0)
