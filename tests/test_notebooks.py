"""The committed notebooks are what their lessons give, were run, and hold to the course's house rules."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tools.build.__main__ import main
from tools.build.execute import output_problems
from tools.build.lesson import BEGIN, CHECK_CALL, ROOT, Course, exercise_cells, read_lesson
from tools.build.references import FOLDER
from tools.build.rules import broken
from tools.build.script import SCRIPT
from utils.course import checks  # noqa: F401  (registers every exercise)
from utils.course.checks import core, registry
from utils.course.colab import notebook_page, origin

LESSONS = sorted((ROOT / "lessons").glob("[0-9]*.md"))  # claims.md is no lesson
NOTEBOOKS = [ROOT / kind / f"{path.stem}.ipynb" for path in LESSONS for kind in ("notebooks", "solutions")]

each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}/{p.stem}")


def cells_of(path: Path) -> list[dict]:
    """A stored notebook's cells, each source joined."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells]


def code_of(path: Path) -> list[dict]:
    return [cell for cell in cells_of(path) if cell["cell_type"] == "code"]


def stdout_of(cell: dict) -> str:
    return "".join("".join(o["text"]) for o in cell["outputs"] if o.get("name") == "stdout")


def exercises_in(path: Path) -> dict[str, dict[str, int]]:
    """A lesson's exercises: name -> index of its "solution" and of its "check" cell."""
    found: dict[str, dict[str, int]] = {}
    for index, (role, name) in exercise_cells(read_lesson(path)).items():
        found.setdefault(name, {})[role] = index
    return found


# -------------------------------------------------------------------------------- the set and its freshness


def test_there_are_lessons():
    """Without this, every test below would pass on an empty course."""
    assert LESSONS, "no lessons/*.md"
    assert all(re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem) for path in LESSONS)
    numbers = [path.stem[:2] for path in LESSONS]
    assert numbers == [f"{n:02d}" for n in range(len(LESSONS))], "a chapter's number is missing or used twice"


def test_the_build_finds_nothing_stale(capsys):
    status = main(["--check"])
    assert status == 0, capsys.readouterr().err


def test_the_check_would_notice_a_change(tmp_path, monkeypatch, capsys):
    """The negative control: the same command on the same notebooks, with one lesson edited."""
    course = Course.here()
    for kind in ("lessons", "notebooks", "solutions"):
        (tmp_path / kind).mkdir()
        for path in (ROOT / kind).glob("[0-9]*"):
            (tmp_path / kind / path.name).write_bytes(path.read_bytes())
    for name in (SCRIPT, "README.md"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    shutil.copytree(ROOT / FOLDER, tmp_path / FOLDER)
    shutil.copytree(ROOT / "lessons" / "images", tmp_path / "lessons" / "images")
    edited = tmp_path / "lessons" / LESSONS[-1].name
    text = edited.read_text(encoding="utf-8")
    edited.write_text(f"{text}\nOne sentence more.\n", encoding="utf-8")
    assert main(["--check"], replace(course, root=tmp_path)) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 2 and all(LESSONS[-1].stem in line for line in errors)


# ------------------------------------------------------------------------------------------ every notebook


@each_notebook
def test_every_cell_was_run_in_order(path):
    counts = [cell["execution_count"] for cell in code_of(path)]
    assert counts == list(range(1, len(counts) + 1))


@each_notebook
def test_no_output_is_an_error_or_differs_from_machine_to_machine(path):
    assert list(output_problems(cells_of(path))) == []


@each_notebook
def test_the_badge_and_the_setup_cell_lead(path):
    cells = cells_of(path)
    assert [cell["id"] for cell in cells if cell["id"] in ("colab-badge", "course-setup")] == [
        cells[0]["id"],
        cells[2]["id"],
    ]
    assert f"]({notebook_page(origin(ROOT), f'{path.parent.name}/{path.name}')})" in cells[0]["source"]
    assert cells[2]["outputs"] == [], "the setup cell prints nothing outside Colab"


@pytest.mark.parametrize("path", [*NOTEBOOKS, *ROOT.glob("lessons/*.md")], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_relative_link_leads_to_a_file(path):
    cells = cells_of(path) if path.suffix == ".ipynb" else [{"source": path.read_text(encoding="utf-8")}]
    prose = "\n".join(cell["source"] for cell in cells if cell.get("cell_type") != "code")
    prose = re.sub(r"(?ms)^ *```.*?^ *```|`[^`\n]*`", "", prose)
    links = re.findall(r"\]\((?!\w+:|#)(.*?)(?:[?#].*?)?\)", prose)
    assert [link for link in links if not (path.parent / link).exists()] == []
    if path.suffix == ".ipynb":
        others = {other.name for other in NOTEBOOKS} - {path.name}
        assert others <= set(links), "a notebook links to every other chapter"


@each_notebook
def test_every_check_says_what_this_copy_should(path):
    verdict = core.NOT_SOLVED if path.parent.name == "notebooks" else core.PASSED
    seen = []
    for cell in code_of(path):
        for name in CHECK_CALL.findall(cell["source"]):
            assert stdout_of(cell).startswith(f"[{verdict}] {name}")
            seen.append(name)
    assert seen == list(exercises_in(ROOT / "lessons" / f"{path.stem}.md"))


@each_notebook
def test_only_the_solved_copy_holds_solutions(path):
    marked = any(BEGIN in cell["source"] for cell in code_of(path))
    has_exercises = bool(exercises_in(ROOT / "lessons" / f"{path.stem}.md"))
    assert marked == (has_exercises and path.parent.name == "solutions")


# -------------------------------------------------------------------------------------------- every lesson


def test_lessons_and_checks_name_the_same_exercises():
    used = {f"ch{path.stem[:2]}": set(exercises_in(path)) for path in LESSONS}
    known: dict[str, set[str]] = {chapter: set() for chapter in used}
    for name, found in registry.registered().items():
        known.setdefault(found.chapter, set()).add(name)
    assert used == known


def test_there_are_exercises():
    assert all(exercises_in(path) for path in LESSONS)


@each_lesson
def test_a_lesson_keeps_the_house_rules(path):
    assert broken(read_lesson(path), Course.here()) == []
