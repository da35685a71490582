"""Run a chapter's solved notebook with other right answers in the place of its own, and compare every output.

``python -m tools.replay 03 06`` takes, for each exercise of these chapters, the right answers of
:mod:`tools.answers` one after another: so many runs as the exercise with the most of them has. A cell that raises, or
that prints something else than what is stored, is a fault of the check: it took an answer with which the chapter
doesn't go on. (Or the chapter measures the reader's own code, as chapter 21 does, and its numbers differ.) nbval runs
and compares, as it does for the notebooks themselves.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat

from tools.answers import Answer, read, with_basics

ROOT = Path(__file__).parents[1]


def replaced(notebook: nbformat.NotebookNode, answers: Sequence[Answer]) -> nbformat.NotebookNode:
    """The solved notebook with these answers' cells, its stored outputs left as they are.

    Raises ValueError for an answer to an exercise that isn't in it.
    """
    cells = {cell.metadata.nbgrader.grade_id: cell for cell in notebook.cells if "nbgrader" in cell.metadata}
    for answer in answers:
        if answer.exercise not in cells:
            raise ValueError(f"{answer.exercise} | {answer.label}: chapter {answer.chapter} has no such exercise")
        cells[answer.exercise].source = with_basics(answer.source)
    return notebook


def rounds(answers: Sequence[Answer]) -> list[list[Answer]]:
    """The right answers, at most one to an exercise in each round, so that every one is in some round."""
    by_exercise: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.right:
            by_exercise.setdefault(answer.exercise, []).append(answer)
    most = max(map(len, by_exercise.values()), default=0)
    return [[mine[at] for mine in by_exercise.values() if at < len(mine)] for at in range(most)]


def replay(chapter: str, answers: Sequence[Answer]) -> str:
    """Run the chapter with these answers; what pytest says when a cell fails, else an empty string."""
    stored = next((ROOT / "solutions").glob(f"{chapter}_*.ipynb"))
    notebook = replaced(nbformat.read(stored, as_version=4), answers)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / stored.name
        nbformat.write(notebook, copy)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--rootdir", folder]
        command += ["-c", os.devnull, "--nbval", "--nbval-current-env", "--nbval-cell-timeout=300", str(copy)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COURSE_STRICT": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.replay", description="Run chapters with other answers.")
    parser.add_argument("chapters", nargs="+", help="two digits each")
    failed = 0
    for chapter in parser.parse_args(arguments).chapters:
        for number, answers in enumerate(rounds([a for a in read() if a.chapter == chapter]), start=1):
            said = replay(chapter, answers)
            print(f"chapter {chapter}, round {number}: {len(answers)} other answers, {'FAILED' if said else 'passed'}")
            if said:
                print("\n".join(f"    {answer.exercise} | {answer.label}" for answer in answers), said, sep="\n")
            failed += bool(said)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
