"""The committed notebooks are what their lessons give, were run, and hold to the course's house rules."""

import json
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from tools import build_notebooks as build
from utils.course import checks  # noqa: F401  (registers every exercise)
from utils.course.checks import core
from utils.course.colab import notebook_page, origin

ROOT = Path(__file__).resolve().parents[1]

LESSONS = sorted((ROOT / "lessons").glob("[0-9]*.md"))  # claims.md is no lesson
NOTEBOOKS = [ROOT / kind / f"{path.stem}.ipynb" for path in LESSONS for kind in ("notebooks", "solutions")]

LONGEST, MEDIAN = 25, 6
EXCLUDED = re.compile(r"^\s*#\s*(NBVAL_IGNORE_OUTPUT|NBVAL_SKIP|PYTEST_VALIDATE_IGNORE_OUTPUT)\s*$", re.M)

each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}/{p.stem}")


def cells_of(path: Path) -> list[dict]:
    """A stored notebook's cells, each source joined."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells]


def code_of(path: Path) -> list[dict]:
    return [cell for cell in cells_of(path) if cell["cell_type"] == "code"]


def is_compared(cell: dict) -> bool:
    """Whether nbval compares the cell's output."""
    return build.NOT_COMPARED.isdisjoint(cell["metadata"].get("tags", [])) and not EXCLUDED.search(cell["source"])


def nonblank(source: str) -> int:
    return sum(bool(line.strip()) for line in source.splitlines())


def stdout_of(cell: dict) -> str:
    return "".join("".join(o["text"]) for o in cell["outputs"] if o.get("name") == "stdout")


def exercises_in(path: Path) -> dict[str, dict[str, int]]:
    """A lesson's exercises: name -> index of its "solution" and of its "check" cell."""
    found: dict[str, dict[str, int]] = {}
    for index, (role, name) in build.exercise_cells(build.read_lesson(path)).items():
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
    status = build.main(["--check"])
    assert status == 0, capsys.readouterr().err


def test_the_check_would_notice_a_change(tmp_path, monkeypatch, capsys):
    """The negative control: the same command on the same notebooks, with one lesson edited."""
    course = build.Course.here()
    for kind in ("lessons", "notebooks", "solutions"):
        (tmp_path / kind).mkdir()
        for path in (ROOT / kind).glob("[0-9]*"):
            (tmp_path / kind / path.name).write_bytes(path.read_bytes())
    if (ROOT / build.SCRIPT).exists():
        (tmp_path / build.SCRIPT).write_bytes((ROOT / build.SCRIPT).read_bytes())
    edited = tmp_path / "lessons" / LESSONS[-1].name
    edited.write_text(edited.read_text(encoding="utf-8") + "\nOne sentence more.\n", encoding="utf-8")
    assert build.main(["--check"], replace(course, root=tmp_path)) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 2 and all(LESSONS[-1].stem in line for line in errors)


# ------------------------------------------------------------------------------------------ every notebook


@each_notebook
def test_every_cell_was_run_in_order(path):
    counts = [cell["execution_count"] for cell in code_of(path)]
    assert counts == list(range(1, len(counts) + 1))


@each_notebook
def test_no_output_is_an_error_or_differs_from_machine_to_machine(path):
    assert list(build.output_problems(cells_of(path))) == []


@each_notebook
def test_few_cells_are_not_compared_and_each_says_why(path):
    code = code_of(path)
    excluded = [cell for cell in code if not is_compared(cell)]
    assert len(excluded) <= max(2, len(code) // 10)
    for cell in excluded:
        first = cell["source"].splitlines()[0]
        assert re.match(r"# Not compared: \S+( \S+){2,}", first), f"no reason in the first line: {first!r}"


@each_notebook
def test_a_cell_that_says_it_is_not_compared_is_not(path):
    said = [cell for cell in code_of(path) if cell["source"].startswith("# Not compared:")]
    assert [cell["source"] for cell in said if is_compared(cell)] == [], "the tag nbval-ignore-output is missing"


@each_notebook
def test_code_cells_are_short(path):
    lengths = [nonblank(cell["source"]) for cell in code_of(path)]
    assert max(lengths) <= LONGEST
    assert statistics.median(lengths) <= MEDIAN


@each_notebook
def test_the_badge_and_the_setup_cell_lead(path):
    cells = cells_of(path)
    assert [cell["id"] for cell in cells if cell["id"] in ("colab-badge", "course-setup")] == [
        cells[0]["id"],
        cells[2]["id"],
    ]
    assert f"]({notebook_page(origin(ROOT), f'{path.parent.name}/{path.name}')})" in cells[0]["source"]
    assert cells[2]["outputs"] == [], "the setup cell prints nothing outside Colab"


@each_notebook
def test_every_check_says_what_this_copy_should(path):
    verdict = core.NOT_SOLVED if path.parent.name == "notebooks" else core.PASSED
    seen = []
    for cell in code_of(path):
        for name in build.CHECK_CALL.findall(cell["source"]):
            assert stdout_of(cell).startswith(f"[{verdict}] {name}")
            seen.append(name)
    assert seen == list(exercises_in(ROOT / "lessons" / f"{path.stem}.md"))


@each_notebook
def test_only_the_solved_copy_holds_solutions(path):
    marked = any(build.BEGIN in cell["source"] for cell in code_of(path))
    has_exercises = bool(exercises_in(ROOT / "lessons" / f"{path.stem}.md"))
    assert marked == (has_exercises and path.parent.name == "solutions")


# -------------------------------------------------------------------------------------------- every lesson


def test_lessons_and_checks_name_the_same_exercises():
    used = {f"ch{path.stem[:2]}": set(exercises_in(path)) for path in LESSONS}
    known: dict[str, set[str]] = {chapter: set() for chapter in used}
    for name, found in core.registered().items():
        known.setdefault(found.chapter, set()).add(name)
    assert used == known


def test_there_are_exercises():
    assert all(exercises_in(path) for path in LESSONS)


@each_lesson
def test_a_lesson_opens_with_what_it_is_for(path):
    opening = build.read_lesson(path).cells[0].source
    assert re.match(rf"# Chapter {int(path.stem[:2])}: \S", opening)
    assert re.search(r"\*\*You will be able to\*\*:?\s*\n\s*[-*] ", opening), (
        "no bullets of what one will be able to do"
    )
    assert re.search(r"\d+ minutes", opening), "not said how many minutes it takes"


@each_lesson
def test_a_lesson_closes_with_guide_recap_and_reading(path):
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    places = [
        next((i for i, heading in enumerate(headings) if heading.startswith(title)), None)
        for title in ("What the guide said", "Recap", "Read more")
    ]
    assert None not in places and places == sorted(places)


@each_lesson
def test_an_exercise_is_introduced(path):
    """By a title, its difficulty, the minutes it takes, and how to open its hints."""
    cells = build.read_lesson(path).cells
    for name, at in exercises_in(path).items():
        before = cells[at["solution"] - 1]
        assert before.cell_type == "markdown", f"{name}: no prose above the exercise"
        prose = before.source[before.source.rfind("### Exercise") :]
        assert prose.startswith("### Exercise: "), f"{name}: no '### Exercise: title'"
        line = re.search(r"^Difficulty: (●○○|●●○|●●●) · about \d+ minutes?\b", prose, re.M)
        assert line, f"{name}: no line 'Difficulty: ●○○ · about 5 minutes'"
        assert f'hint("{name}")' in prose, f"{name}: not said how to open its hints"


@each_lesson
def test_a_lesson_with_exercises_ends_with_progress(path):
    code = [cell.source for cell in build.read_lesson(path).cells if cell.cell_type == "code"]
    assert "progress()" in code[-1]
