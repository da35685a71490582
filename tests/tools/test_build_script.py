"""tools.build.script: capstone.py."""

import json
import subprocess
import sys

import pytest

from tests.tools.trial import HEADER, code_lesson, course_at, lesson_of
from tools.build import script as build
from tools.build.__main__ import main
from tools.build.lesson import BuildError, read_lesson

# ----------------------------------------------------------------------------------------------- the script


def tagged(*cells: str, tags: str = '["capstone"]') -> str:
    return HEADER + "# Title\n\n" + "\n\n".join(f"```python tags={tags}\n{cell}\n```" for cell in cells) + "\n"


SCRIPT_CELLS = ('"""What it does."""\n\nimport sys\n\nLIMIT = 3', "def main():\n    print(sys.argv[1:], LIMIT)")


def test_tagged_cells_make_a_script_that_runs(tmp_path):
    course = course_at(tmp_path, **{"00_a": code_lesson("x = 1"), "01_b": tagged(*SCRIPT_CELLS)})
    assert main(["--no-execute"], course) == 0
    text = (tmp_path / "capstone.py").read_text()
    assert text.startswith("# Made by tools/build from lessons/01_b.md") and "x = 1" not in text
    done = subprocess.run([sys.executable, tmp_path / "capstone.py", "a"], capture_output=True, text=True)
    assert done.stdout == "['a'] 3\n"
    assert subprocess.run([sys.executable, "-m", "ruff", "format", "--check", tmp_path / "capstone.py"]).returncode == 0
    stored = json.loads((tmp_path / "notebooks" / "01_b.ipynb").read_text())
    assert [c["metadata"] for c in stored["cells"][3:-1]] == [{"tags": ["capstone"]}] * 2
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
