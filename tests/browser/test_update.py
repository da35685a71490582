"""A new version of the course: the answer that was given in the browser is there, among the new version's words."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.browser.lab import copy_of_the_course

CHAPTER = "00_start_here.ipynb"
EXERCISE = "lora_parameters"
RIGHT = f"def {EXERCISE}(d_in, d_out, r):\n    return r * (d_in + d_out)"
NEW_WORDS = "That is all LoRA is, as the new version says."


def test_an_update_keeps_the_answer_and_brings_the_new_words(course, reader, tmp_path):
    one = reader(f"work/{CHAPTER}")
    one.write(f"def {EXERCISE}(", RIGHT)
    one.save()
    course.leave(one)

    said = update(course.root, a_new_version(tmp_path / "new"))
    assert EXERCISE in said, said

    one = reader(f"work/{CHAPTER}")
    assert one.source(f"def {EXERCISE}(") == RIGHT
    assert one.source("all LoRA is").startswith(NEW_WORDS)
    one.run("from utils.course.checks import check")
    said = one.answer(EXERCISE, RIGHT)
    one.shot("9-updated")
    assert said.startswith(f"[passed] {EXERCISE}"), said


def a_new_version(folder):
    """The course with one sentence of chapter 0 written anew."""
    path = copy_of_the_course(folder) / "notebooks" / CHAPTER
    notebook = json.loads(path.read_text(encoding="utf-8"))
    (cell,) = [cell for cell in notebook["cells"] if "That is all LoRA is." in "".join(cell["source"])]
    cell["source"] = "".join(cell["source"]).replace("That is all LoRA is.", NEW_WORDS)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder


def update(root, new):
    """What ``start.py update`` says when it has brought the course in `root` to the version in `new`."""
    command = [sys.executable, "start.py", "update", str(new)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
