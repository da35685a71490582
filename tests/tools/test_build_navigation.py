"""tools.build.navigation: each notebook leads to its neighbours, to all chapters and to its other copy."""

import re

import pytest

from tests.tools.trial import code_lesson, course_at
from tools.build import navigation
from tools.build.lesson import LEARNER, SOLVED, make, read_lesson

STEMS = ("00_start", "01_middle", "02_last")
SEE = "See [the middle](01_middle.md#why), `[no](link.md)` and [the ledger](../lessons/claims.md)."


@pytest.fixture
def course(tmp_path):
    text = code_lesson("x = 1")
    lessons = {
        stem: text.replace("# Title", f"# Chapter {number}: {stem[3:].title()}\n\n{SEE}")
        for number, stem in enumerate(STEMS)
    }
    return course_at(tmp_path, **lessons)


def cells(course, stem, kind=LEARNER):
    return make(read_lesson(course.root / "lessons" / f"{stem}.md"), kind, course).cells


def links(prose: str) -> list[str]:
    return re.findall(r"\]\((.*?)\)", prose)


BACK, ON = "[← Chapter 0: Start](00_start.ipynb)", "[Chapter 2: Last →](02_last.ipynb)"
LINES = {
    "00_start": "[Chapter 1: Middle →](01_middle.ipynb)",
    "01_middle": f"{BACK} · {ON}",
    "02_last": "[← Chapter 1: Middle](01_middle.ipynb)",
}


@pytest.mark.parametrize("stem", STEMS)
def test_the_neighbours_stand_under_the_opening_and_at_the_end(course, stem):
    for kind in (LEARNER, SOLVED):
        made = cells(course, stem, kind)
        assert made[1].source.endswith(f"\n\n{LINES[stem]}")
        assert made[-1].source.startswith(f"{LINES[stem]} · [") and made[-1].id == navigation.WAYS


def test_the_end_has_all_chapters_here_and_in_colab_and_the_other_copy(course):
    for kind, other in ((LEARNER, SOLVED), (SOLVED, LEARNER)):
        end = cells(course, "01_middle", kind)[-1].source
        page = f"https://colab.research.google.com/github/OWNER/REPO/blob/v1/{kind}"
        assert f"](../{other}/01_middle.ipynb)" in end
        rows = end.split("|---|---|---|\n")[1].split("\n\n")[0].splitlines()
        assert [links(row) for row in rows] == [
            ["00_start.ipynb", f"{page}/00_start.ipynb"],
            [f"{page}/01_middle.ipynb"],
            ["02_last.ipynb", f"{page}/02_last.ipynb"],
        ]
        assert "| 1 | **Middle** |" in end and end.count("<details>") == end.count("</details>") == 1


def test_a_link_to_a_lesson_leads_to_its_notebook(course):
    opening = cells(course, "00_start")[1].source
    assert links(opening)[:1] == ["01_middle.ipynb#why"]
    assert "](link.md)" in opening and "](../lessons/claims.md)" in opening


def test_a_course_of_one_chapter_has_no_neighbours(tmp_path):
    course = course_at(tmp_path, **{"00_only": code_lesson("x = 1")})
    made = cells(course, "00_only")
    assert made[1].source == "# Title" and made[-1].source.startswith(
        "[this chapter, solved](../solutions/00_only.ipynb)"
    )


def test_a_chapter_is_named_by_its_heading(course):
    found = navigation.chapters(course.root)
    assert [(chapter.number, chapter.title) for chapter in found] == [(0, "Start"), (1, "Middle"), (2, "Last")]
