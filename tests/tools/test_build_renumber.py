"""Making room for a chapter: files, names, tables and prose follow, and what can't be known is told."""

from __future__ import annotations

import re

import pytest

from tools.build.lesson import ROOT, BuildError
from tools.build.renumber import main, make_room

FILES = {
    "lessons/00_start.md": "| 0 | [Start](00_start.md) |\n| 1 | [Rank](01_rank.md) | q |\n"
    "| 2 | [Data](02_data.md) | q |\n",
    "lessons/01_rank.md": "# Chapter 1: Rank\n\nChapter 0 said so; chapters 1 and 2 go on, chapter 12 of a book "
    "doesn't.\n",
    "lessons/02_data.md": "# Chapter 2: Data\n\nAs [chapter 1](01_rank.md) and\nchapters 0 to\n2 say; "
    "see [1](01_rank.md#a), [0](00_start.md), [01](01_rank.md), "
    "[5](01_rank.md).\n",
    "lessons/claims.toml": 'cell = "01_rank"\n',
    "README.md": "| 00 | [Start](notebooks/00_start.ipynb) | a | 20 | [Colab][00] |\n"
    "| 01 | [Rank](notebooks/01_rank.ipynb) | b | 60 | [Colab][01] |\n"
    "[00]: https://x/00_start.ipynb\n[01]: https://x/01_rank.ipynb\n",
    "CHANGELOG.md": "Chapter 1 is new.\n",
    "notebooks/01_rank.ipynb": "{}",
    "solutions/01_rank.ipynb": "{}",
    "utils/course/checks/ch01.py": '"""Chapter 1\'s exercises."""\nfrom x import ch01 as lesson\n',
    "utils/course/checks/references/ch01.py": "",
    "tests/course/answers/01.md": "# Answers to chapter 1's exercises\n",
    "tests/test_it.py": '"""As chapter 1 says."""\nPATH = "01_rank"\nOTHER = "01_trial"\n',
}


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_files_names_tables_and_prose_follow(root):
    left = make_room(root, 1)
    there = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    renamed = {"lessons/01_rank.md": "lessons/02_rank.md", "lessons/02_data.md": "lessons/03_data.md"}
    renamed |= {name: re.sub("01(?=[_.])", "02", name) for name in FILES if "01" in name}
    assert there == {renamed.get(name, name) for name in FILES}

    def read(name):
        return (root / name).read_text()

    assert "Chapter 0 said so; chapters 2 and 3 go on, chapter 12 of a book doesn't." in read("lessons/02_rank.md")
    said = "As [chapter 2](02_rank.md) and\nchapters 0 to\n3 say; see [2](02_rank.md#a), [0](00_start.md), "
    said += "[02](02_rank.md), [5](02_rank.md).\n"
    assert read("lessons/03_data.md") == f"# Chapter 3: Data\n\n{said}"
    rows = ["| 0 | [Start](00_start.md) |", "| 2 | [Rank](02_rank.md) | q |", "| 3 | [Data](03_data.md) | q |"]
    assert read("lessons/00_start.md").splitlines() == rows
    assert read("README.md").splitlines()[1:] == [
        "| 02 | [Rank](notebooks/02_rank.ipynb) | b | 60 | [Colab][02] |",
        "[00]: https://x/00_start.ipynb",
        "[02]: https://x/02_rank.ipynb",
    ]
    assert read("lessons/claims.toml") == 'cell = "02_rank"\n'
    checks = '"""Chapter 2\'s exercises."""\nfrom x import ch02 as lesson\n'
    assert read("utils/course/checks/ch02.py") == checks
    assert read("tests/course/answers/02.md") == "# Answers to chapter 2's exercises\n"
    assert read("CHANGELOG.md") == "Chapter 1 is new.\n", "what was, stays"
    assert read("tests/test_it.py") == '"""As chapter 1 says."""\nPATH = "02_rank"\nOTHER = "01_trial"\n'
    assert left == ['tests/test_it.py:1: """As chapter 1 says."""']


@pytest.mark.parametrize("first", [3, 99])
def test_a_chapter_that_there_is_not_changes_nothing(root, first):
    with pytest.raises(BuildError, match=f"no chapter {first}; there are 00 to 02"):
        make_room(root, first)
    assert {name: (root / name).read_text() for name in FILES} == FILES


def test_the_real_course_has_a_place_for_every_file_that_moves():
    """A chapter's files are all known to the tool: a new kind of file with a chapter's number would be left behind."""
    folders = ("assets", "classroom", "lessons", "notebooks", "solutions", "tests", "tools", "utils")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    listed = {path.relative_to(ROOT).as_posix() for path in paths if re.match(r"(ch)?05(_|\.)", path.name)}
    (stem,) = (path.stem for path in (ROOT / "lessons").glob("05_*.md"))
    checks = "utils/course/checks"
    assert listed == {
        f"lessons/{stem}.md", f"notebooks/{stem}.ipynb", f"solutions/{stem}.ipynb", f"{checks}/ch05.py",
        f"{checks}/references/ch05.py", "tests/course/answers/05.md",
    }  # fmt: skip


def test_bad_arguments_are_told(capsys):
    assert main([]) == main(["six"]) == 2
    assert "usage: python -m tools.build.renumber 6" in capsys.readouterr().err
