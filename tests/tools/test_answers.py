"""The checks are held against answers that are written down as learners give them."""

from pathlib import Path

import pytest

from tools import answers
from tools.answers import read

FILE = """\
# Chapter 0

## size | right | through len

What is said here is not read.

```python
def size(items):
    return len(items)
```

## size | wrong | one too many
```python
def size(items):
    return len(items) + 1
```

## size | wrong | nothing
```python
size = None
```
"""

LESSON = """\
```python
import math
from statistics import fmean as mean

from utils.course.checks import check
```

```python
%matplotlib inline
size = check("size", size)
```
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "00_size.md").write_text(FILE)
    (tmp_path / "README.md").write_text("## not | an answer")
    return tmp_path


@pytest.fixture
def course(monkeypatch, own_registry):
    """A course of one exercise, and its lesson."""
    from utils.course.checks.registry import Mistake, exercise

    exercise(
        "size", reference=len, cases=[([],), ([1, 2],)], drawn=lambda numbers: ([0] * numbers.randint(0, 9),), draws=8,
        mistakes=[Mistake(lambda items: len(items) + 1, "count from the first")],
    )  # fmt: skip
    monkeypatch.setattr(answers, "_lesson", lambda chapter: LESSON)
    for remembered in (answers._imports, answers._variables):
        remembered.cache_clear()
        monkeypatch.setattr(answers, remembered.__name__, remembered.__wrapped__)


def test_answers_are_read_in_their_order(folder):
    (folder / "01.md").write_text("## rank | wrong | a | in it\n```python\nrank = 8\n```\n")
    found = [(answer.chapter, answer.exercise, answer.right, answer.label) for answer in read(folder)]
    assert found == [
        ("00", "size", True, "through len"),
        ("00", "size", False, "one too many"),
        ("00", "size", False, "nothing"),
        ("01", "rank", False, "a | in it"),
    ]
    assert read(folder)[0].source == "def size(items):\n    return len(items)\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("## size | maybe | no\n```python\n```\n", "isn't '## exercise | wrong"),
        ("## size\n", "'## size' isn't"),
        ("## size | wrong | no cell\n\nsize = 1\n", "no cell of Python under '## size | wrong | no cell'"),
    ],
)
def test_what_is_not_in_the_form_is_refused(tmp_path, text, said):
    (tmp_path / "00.md").write_text(text)
    with pytest.raises(ValueError, match="00.md: .*" + said.replace("|", r"\|")):
        read(tmp_path)


def test_the_course_has_its_answers_where_they_are_looked_for():
    assert answers.FOLDER == Path(__file__).parents[1] / "course/answers"


def test_an_answer_is_judged_as_the_notebook_would(course, folder):
    right, wrong, nothing = map(answers.judge, read(folder))
    assert right.passed and right.seconds < 1
    assert not wrong.passed and wrong.named and wrong.message == "count from the first"
    assert not nothing.passed and not nothing.named


def judge(source):
    return answers.judge(answers.Answer("00", "size", True, "trial", source))


def test_an_answer_has_what_the_chapter_imports_and_nothing_of_another_ones(course):
    assert judge("size = lambda items: int(mean([len(items)] * 2)) + F.relu(torch.zeros(1)).int().item()").passed
    with pytest.raises(NameError):
        judge("stray = 1\nsize = lambda items: len(items)\nfmean")
    assert not judge("def size(items):\n    return len(items) + stray").passed


def test_an_answer_has_what_the_chapter_defines_before_it():
    """Chapter 13's `entries` calls `rotate`, an exercise before it, and `read_value` helpers of its lesson."""
    given = {a.label: a for a in answers.read() if a.exercise in ("entries", "read_value") and a.right}
    assert given and all(answers.judge(answer).passed for answer in given.values())


def test_an_answer_that_defines_something_else_is_refused(course):
    with pytest.raises(ValueError, match=r"size \| trial: the cell defines no size"):
        judge("length = len")


def test_the_table_counts_what_is_caught_and_what_is_taken(course, folder, capsys):
    assert answers.main([str(folder)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["exercise", "drawn", "named", "wrong", "caught", "said", "right", "taken", "s"]
    assert printed[1].split()[:8] == ["size", "8", "1", "2", "2", "1", "1", "1"]
    assert printed[2].split()[:8] == ["all", "8", "1", "2", "2", "1", "1", "1"] and len(printed) == 3


def test_an_answer_that_is_judged_wrongly_is_shown_and_fails(course, folder, capsys):
    path = folder / "00_size.md"
    path.write_text(
        FILE.replace("len(items) + 1", "len(items) + 0").replace("    return len(items)\n", "    return 1\n", 1)
    )
    assert answers.main([str(folder)]) == 1
    printed = capsys.readouterr().out
    assert "size | one too many: a wrong answer, judged right" in printed
    assert "size | through len: a right answer, judged wrong" in printed and "nothing:" not in printed


def test_what_a_learner_reads_is_printed_when_asked_for(course, folder, capsys):
    assert answers.main([str(folder), "--say", "--only", "size"]) == 0
    printed = capsys.readouterr().out
    assert "size | one too many: a wrong answer, judged wrong\n    named: count from the first" in printed
    assert "through len" not in printed


def test_nothing_to_judge_is_an_error(course, folder, capsys):
    assert answers.main([str(folder), "--only", "07"]) == 1
    assert "no answers in" in capsys.readouterr().err
