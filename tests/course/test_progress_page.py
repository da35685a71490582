"""The page of `start.py progress` shows every chapter, every exercise, and what was passed of them."""

from __future__ import annotations

import json

import pytest

from tools.build.lesson import ROOT
from utils.course import progress
from utils.course.progress import NOT_RIGHT, PASSED, record
from utils.course.progress_page import WIDTH, Refused, answer, chapters


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    """The record of this test."""
    path = tmp_path / "progress.json"
    monkeypatch.setenv("COURSE_PROGRESS", str(path))
    monkeypatch.setattr(progress, "STRICT", False)
    return path


@pytest.fixture
def begun():
    """Chapter 0 is done, chapter 1 begun."""
    for name in ("linear_parameters", "lora_parameters", "attention_parameters"):
        record(name, PASSED)
    for state in (NOT_RIGHT, NOT_RIGHT, PASSED, NOT_RIGHT):
        record("training_gb", state)
    record("sequences_that_fit", NOT_RIGHT)


def test_the_exercises_are_the_registered_ones_in_the_lessons_order():
    import utils.course.checks  # noqa: F401  (registers them)
    from utils.course.checks.registry import registered

    theirs: dict[str, set[str]] = {}
    for found in registered().values():
        theirs.setdefault(found.chapter.removeprefix("ch"), set()).add(found.name)
    assert {chapter.number: set(chapter.exercises) for chapter in chapters(ROOT)} == theirs
    first = chapters(ROOT)[0]
    assert (first.title, first.exercises) == ("Start here", ("linear_parameters", "lora_parameters"))


def test_the_courses_page(begun):
    page = answer(ROOT, [])
    lines = page.splitlines()
    total = sum(len(chapter.exercises) for chapter in chapters(ROOT))
    assert lines[0] == f"The course: 4 of {total} exercises passed."
    assert lines[2].split() == ["00", "Start", "here", "[##########]", "2/2", "2", "tries"]
    assert lines[3].split()[-4:] == ["[####------]", "2/5", "5", "tries"]
    assert lines[4].startswith("    open: lora_training_gb, ") and "training_gb" not in lines[4].split(", ")
    assert [line[:2] for line in lines if line[:2].isdigit()] == [chapter.number for chapter in chapters(ROOT)]
    assert page.count("open: ") == 1, "of chapters that were not begun all is open"
    assert all(len(line) <= WIDTH for line in lines if "progress.json" not in line)  # a path may be longer


def test_a_chapters_page(begun):
    for word in ("01", "1"):
        lines = answer(ROOT, [word]).splitlines()
        assert lines[0] == "Chapter 1: The fine-tuning problem. 2 of 5 exercises passed."
        rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[3:8]}
        assert rows["attention_parameters"].split() == ["passed", "1"]
        assert rows["training_gb"].split() == [*"not right yet (passed before)".split(), "3"]
        assert rows["sequences_that_fit"].split() == ["not", "right", "yet", "1"]
        assert rows["chunked_loss"].split() == ["not", "tried", "0"]


def test_long_titles_and_many_exercises_stay_within_the_page(tmp_path):
    cells = "".join(f'\n```python\nx = check("name_{n:02}", x)\n```\n' for n in range(30))
    (tmp_path / "lessons").mkdir()
    (tmp_path / "lessons" / "07_long.md").write_text(f"# Chapter 7: {'Long words ' * 12}\n{cells}")
    record("name_00", PASSED)
    lines = answer(tmp_path, []).splitlines()
    assert max(map(len, lines[:8])) <= WIDTH and "..." in lines[2] and " 1/30    1 try" in lines[2]
    assert "\n".join(lines).count("name_") == 29


def test_a_check_in_prose_or_of_another_kind_is_no_exercise(tmp_path):
    (tmp_path / "lessons").mkdir()
    lesson = """# Chapter 1: One

Write `x = check("prose", x)`.

```text
y = check("shown", y)
```

```python
autograd.gradcheck("not_this")
grad.check("nor_this")
z = check("real", z)
z = check("real", z)
```
"""
    (tmp_path / "lessons" / "01_one.md").write_text(lesson)
    (tmp_path / "lessons" / "claims.md").write_text(lesson)
    assert [(c.number, c.title, c.exercises) for c in chapters(tmp_path)] == [("01", "One", ("real",))]


@pytest.mark.parametrize("words", [["99"], ["x"], ["01", "02"], ["03", "--forget"], ["--cpu"]])
def test_other_words_are_refused_in_a_sentence(begun, file, words):
    with pytest.raises(
        Refused, match=r"takes a chapter's number \(00 to \d\d\) or --forget, and got " + " ".join(words)
    ):
        answer(ROOT, words)
    assert file.exists()


def test_nothing_yet_and_forgetting(file, begun):
    assert answer(ROOT, ["--forget"]) == f"Deleted {file}: every exercise counts as not tried."
    assert not file.exists()
    assert answer(ROOT, ["--forget"]) == "No progress was kept: nothing to do."
    for words in ([], ["03"]):
        assert answer(ROOT, words).startswith("No exercise has been checked yet.")


@pytest.mark.parametrize("why", ["COURSE_PROGRESS is off", "COURSE_STRICT is set"])
def test_a_record_that_is_off_is_said_and_left_alone(begun, file, monkeypatch, why):
    if "STRICT" in why:
        monkeypatch.setattr(progress, "STRICT", True)
    else:
        monkeypatch.setenv("COURSE_PROGRESS", "off")
    for words in ([], ["--forget"]):
        with pytest.raises(Refused, match=why):
            answer(ROOT, words)
    assert file.exists()


def test_a_record_that_cannot_be_used_is_said_and_left_where_it_is(file):
    for data, why in (("{", "is damaged"), (json.dumps({"version": 2}), "was written by a newer version")):
        file.write_text(data)
        with pytest.raises(Refused, match=why):
            answer(ROOT, [])
        assert file.read_text() == data
    assert answer(ROOT, ["--forget"]).startswith("Deleted ")
