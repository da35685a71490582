"""The learner's notebooks at a start, an update and a reset."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from utils.start import notebooks
from utils.start.words import Trouble


def notebook(*sources):
    cells = [
        {"cell_type": "code", "id": f"c{n}", "metadata": {}, "source": s, "outputs": [], "execution_count": None}
        for n, s in enumerate(sources)
    ]
    metadata = {"language_info": {"name": "python", "version": "3.11.0"}}
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def git(where, *arguments):
    settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(where), *settings, *arguments], check=True, capture_output=True)


@pytest.fixture
def course(home):
    """A course with one chapter, in git."""
    (home / "notebooks").mkdir()
    (home / "notebooks/00_start_here.ipynb").write_text(notebook("import torch", "r = 8"))
    (home / ".gitignore").write_text("/work/\n/.venv/\n")
    git(home, "init", "-q")
    git(home, "add", "-A")
    git(home, "commit", "-q", "-m", "one")
    return home


def edit(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def sources(home):
    return [cell["source"] for cell in json.loads((home / "work/00_start_here.ipynb").read_text())["cells"]]


def test_the_first_start_makes_the_notebooks_and_the_next_says_nothing(course, capsys):
    (course / ".venv").mkdir()
    (course / ".venv/pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.13.9\n")
    notebooks.prepare(course)
    assert capsys.readouterr().out == "Your notebooks are in work/; those in notebooks/ stay as they came.\n"
    made = json.loads((course / "work/00_start_here.ipynb").read_text())
    assert made["metadata"]["language_info"]["version"] == "3.13.9", "else JupyterLab writes it there"
    assert made["cells"] == json.loads((course / "notebooks/00_start_here.ipynb").read_text())["cells"]
    notebooks.prepare(course)
    assert capsys.readouterr().out == ""
    assert subprocess.run(["git", "-C", course, "status", "-s"], capture_output=True).stdout == b""


def test_after_a_pull_by_hand_the_notebooks_follow(course, capsys):
    notebooks.prepare(course)
    edit(course / "work/00_start_here.ipynb", "r = 8", "r = 16")
    (course / "notebooks/00_start_here.ipynb").write_text(notebook("import torch", "r = 8", "print(r)"))
    git(course, "commit", "-qam", "two")
    capsys.readouterr()
    notebooks.prepare(course)
    out = capsys.readouterr().out
    assert "  00_start_here.ipynb: the new version, with 1 other cell of yours" in out and "are in work/old/" in out
    assert sources(course) == ["import torch", "r = 16", "print(r)"]


def test_what_was_worked_in_where_it_was_given_is_adopted_once(course, capsys):
    edit(course / "notebooks/00_start_here.ipynb", "r = 8", "r = 16")
    notebooks.prepare(course)
    said = "What you did in notebooks/00_start_here.ipynb is in work/00_start_here.ipynb now; go on there.\n"
    assert said in capsys.readouterr().out
    assert sources(course) == ["import torch", "r = 16"]
    edit(course / "work/00_start_here.ipynb", "r = 16", "r = 32")
    notebooks.prepare(course)
    assert capsys.readouterr().out == "" and sources(course) == ["import torch", "r = 32"]


def test_a_chapter_with_another_number_is_told_and_followed(course, capsys):
    notebooks.prepare(course)
    edit(course / "work/00_start_here.ipynb", "r = 8", "r = 9")
    git(course, "mv", "notebooks/00_start_here.ipynb", "notebooks/01_start_here.ipynb")
    git(course, "commit", "-q", "-m", "two")
    capsys.readouterr()
    notebooks.prepare(course)
    said = capsys.readouterr().out
    assert "  work/00_start_here.ipynb is work/01_start_here.ipynb\n" in said
    assert [path.name for path in (course / "work").glob("*.ipynb")] == ["01_start_here.ipynb"]
    assert "r = 9" in (course / "work/01_start_here.ipynb").read_text()
    notebooks.prepare(course)
    assert capsys.readouterr().out == ""


def test_a_maintainers_built_notebook_stays_as_it_is(course):
    notebooks.prepare(course)
    built = notebook("import torch", "r = 8", "print('built and not committed')")
    (course / "notebooks/00_start_here.ipynb").write_text(built)
    notebooks.prepare(course)
    assert (course / "notebooks/00_start_here.ipynb").read_text() == built and len(sources(course)) == 2


def test_a_notebook_of_the_course_that_is_broken_is_told(course):
    (course / "notebooks/00_start_here.ipynb").write_text("<<<<<<< HEAD")
    with pytest.raises(Trouble, match="00_start_here.ipynb can't be read as a notebook.*get that file"):
        notebooks.prepare(course)


def test_a_reset_says_where_the_old_one_is(course, start, capsys):
    notebooks.prepare(course)
    capsys.readouterr()
    assert start("reset", "0") == 0
    said = "work/00_start_here.ipynb is as the course has it; the old one is work/old/00_start_here-1.ipynb.\n"
    assert capsys.readouterr().out.startswith(said)
    assert start("reset", "07") == 1
    assert "Nothing is reset: there is no chapter '07'; the chapters are 00 to 00." in capsys.readouterr().out


def test_an_update_that_cannot_be_is_told_in_a_sentence(home, start, capsys):
    assert start("update") == 1
    said = capsys.readouterr().out
    assert said.startswith("\nThe course is as it was: ") and "is no clone of the course's repository" in said
    assert said.count("\n") == 2


def test_the_new_versions_own_code_carries_over(whole, capfd):
    """The new version's module says another sentence than the one that runs the update."""
    (whole / "notebooks").mkdir()
    (whole / "notebooks/00_start_here.ipynb").write_text(notebook("import torch", "r = 8"))
    new = whole.parent / "new"
    shutil.copytree(whole, new)
    (new / "notebooks/00_start_here.ipynb").write_text(notebook("import torch", "r = 8", "print(r)"))
    edit(new / "utils/start/notebooks.py", "Go on with: python3 start.py", "The new code was here")

    def start(*words):
        return subprocess.run([sys.executable, "start.py", *words], cwd=whole).returncode

    notebooks.prepare(whole)
    edit(whole / "work/00_start_here.ipynb", "r = 8", "r = 16")
    capfd.readouterr()
    assert start("update", str(new)) == 0
    out = capfd.readouterr().out
    assert "files are those of" in out and "1 other cell of yours" in out and out.endswith("The new code was here\n")
    assert sources(whole) == ["import torch", "r = 16", "print(r)"]
    assert start("update", str(new)) == 0
    assert "No notebook has anything new." in capfd.readouterr().out
