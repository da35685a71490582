"""tools.build.new: a new chapter passes the build and the test run as it is, and what can't be one is refused."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.tools.trial import failures
from tools.build.lesson import ROOT, BuildError, Course
from tools.build.new import main, new_chapter


@pytest.mark.slow
def test_a_new_chapter_passes_as_it_is(tmp_path):
    """In a copy of the course: `make new`, the build, --check, the run, and the tests of its exercise."""
    for folder in ("lessons", "tools", "utils", "tests", "notebooks", "solutions"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    for name in ("README.md", "pyproject.toml", "start.py", "capstone.py"):
        shutil.copy(ROOT / name, tmp_path)
    taken = {path.name[:2] for path in (ROOT / "lessons").glob("[0-9][0-9]_*.md")}
    number = next(free for free in map("{:02d}".format, range(100)) if free not in taken)
    stem = f"{number}_two_words_and_a_half"
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    said = run("tools.build.new", number, "Two words, and a half")
    assert f"lessons/{stem}.md" in said and f"ch{number}.py" in said and "README.md" in said
    assert "note: " not in said
    for kind in ("notebooks", "solutions"):
        for other in (tmp_path / kind).glob("*.ipynb"):
            assert f"({stem}.ipynb)" in other.read_text(encoding="utf-8")
    run("tools.build", number)
    run("tools.build", "--check")
    assert failures(tmp_path, "-p", "tools.pytest_notebooks", f"solutions/{stem}.ipynb", path=tmp_path) == {}
    exercises = next((tmp_path / "tests").rglob("test_exercises.py"))
    assert " passed" in run("pytest", "-q", str(exercises), "-k", f"update_size_{number}")
    checks = [str(path) for path in (tmp_path / "utils").rglob(f"ch{number}.py")]
    assert len(checks) == 2  # the exercise, and its reference
    run("ruff", "check", *checks, "notebooks", "solutions")
    run("ruff", "format", "--check", *checks)


def test_what_is_no_new_chapter_is_refused_and_nothing_is_written(tmp_path, capsys):
    (tmp_path / "lessons").mkdir()
    folder = tmp_path / "checks"
    folder.mkdir()
    (tmp_path / "README.md").write_text("# A course\n")
    course = Course(tmp_path, "OWNER/REPO", lambda lesson: "pass", points=lambda name: 1)
    with pytest.raises(BuildError, match="next chapter's number is 00, not '03'"):
        new_chapter("03", "Title", course, folder)
    with pytest.raises(BuildError, match="a title has letters, not '...'"):
        new_chapter("00", "...", course, folder)
    with pytest.raises(BuildError, match="README.md has no table of chapters"):
        new_chapter("00", "Title", course, folder)
    (folder / "ch00.py").write_text("")
    with pytest.raises(BuildError, match="is there already, without a lesson"):
        new_chapter("00", "Title", course, folder)
    assert list((tmp_path / "lessons").iterdir()) == [] and main(["15", ""]) == 2
    assert 'usage: make new CH=22 TITLE="Vision"' in capsys.readouterr().err


def test_a_new_chapter_takes_the_room_that_was_made_for_it(tmp_path):
    for folder in ("lessons", "utils/course/checks"):
        (tmp_path / folder).mkdir(parents=True)
    rows = [f"| {n} | [Old {n}]({n:02d}_old.md) | why |" for n in (0, 1, 3)]
    for n in (0, 1, 3):
        (tmp_path / "lessons" / f"{n:02d}_old.md").write_text(
            "\n".join(rows) + "\n" if n == 0 else f"# Chapter {n}: Old\n"
        )
    table = "".join(
        f"| {n:02d} | [Old](notebooks/{n:02d}_old.ipynb) | x | 60 | [Colab][{n:02d}] |\n" for n in (0, 1, 3)
    )
    (tmp_path / "README.md").write_text(table + "\n" + "".join(f"[{n:02d}]: https://x/{n:02d}\n" for n in (0, 1, 3)))
    course = Course(tmp_path, "OWNER/REPO", lambda lesson: "pass", points=lambda name: 1)
    new_chapter("02", "New", course, tmp_path / "utils" / "course" / "checks")
    assert [line[:8] for line in (tmp_path / "lessons" / "00_old.md").read_text().splitlines()] == [
        "| 0 | [O", "| 1 | [O", "| 2 | [N", "| 3 | [O",
    ]  # fmt: skip
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert [line[2:4] for line in lines[:4]] == ["00", "01", "02", "03"]
    assert [line[:5] for line in lines[5:]] == ["[00]:", "[01]:", "[02]:", "[03]:"]
