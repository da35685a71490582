"""Chapters' new numbers: files, names, tables and prose follow, and what can't be known is told."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tools.build.lesson import ROOT, BuildError
from tools.build.renumber import main, make_room, renumber

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


def made(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def root(tmp_path):
    return made(tmp_path, FILES)


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*") if path.is_file()}


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
    with pytest.raises(BuildError, match=f"no chapter {first}; there are 00, 01, 02"):
        make_room(root, first)
    assert contents(root) == FILES


def test_chapters_exchange_their_numbers_and_leave_one_free(root):
    made(root, {"lessons/02_data.md": FILES["lessons/02_data.md"] + "Chapters 1 and 2; chapters 1 or 2; chapter 01.\n"})
    left = renumber(root, {1: 4, 2: 1})
    found = contents(root)
    assert sorted(name for name in found if re.search(r"\d\d[_.]", name)) == sorted(
        ["lessons/00_start.md", "lessons/01_data.md", *(re.sub("01(?=[_.])", "04", n) for n in FILES if "01" in n)]
    )
    assert found["lessons/00_start.md"].splitlines() == [
        "| 0 | [Start](00_start.md) |", "| 1 | [Data](01_data.md) | q |", "| 4 | [Rank](04_rank.md) | q |",
    ]  # fmt: skip
    assert found["README.md"].splitlines()[1:] == [
        "| 04 | [Rank](notebooks/04_rank.ipynb) | b | 60 | [Colab][04] |",
        "[00]: https://x/00_start.ipynb",
        "[04]: https://x/04_rank.ipynb",
    ]
    assert "# Chapter 4: Rank" in found["lessons/04_rank.md"]
    assert "chapters 1 and 4 go on, chapter 12 of a book" in found["lessons/04_rank.md"], "a list stays in order"
    data = "As [chapter 4](04_rank.md) and\nchapters 0 to\n2 say; see [4](04_rank.md#a), [0](00_start.md), "
    data += "[04](04_rank.md), [5](04_rank.md).\nChapters 1 and 4; chapters 1 or 4; chapter 04.\n"
    assert found["lessons/01_data.md"] == f"# Chapter 1: Data\n\n{data}"
    assert found["utils/course/checks/ch04.py"].endswith("from x import ch04 as lesson\n")
    assert left == ["lessons/02_data.md:4: chapters 0 to", 'tests/test_it.py:1: """As chapter 1 says."""']


def test_the_readme_s_rows_come_in_the_new_order(tmp_path):
    rows = "| {0:02d} | [X](notebooks/{0:02d}_{1}.ipynb) | a | 60 | [Colab][{0:02d}] |\n"
    link = "[{0:02d}]: https://x/{0:02d}_{1}.ipynb\n"
    named = [(0, "start"), (1, "rank"), (2, "data")]

    def files(chapters):
        lines = ["".join(row.format(*chapter) for chapter in chapters) for row in (rows, link)]
        return {"README.md": "\n".join(lines)} | {f"lessons/{at:02d}_{name}.md": "" for at, name in chapters}

    renumber(made(tmp_path, files(named)), {1: 2, 2: 1})
    assert contents(tmp_path) == files([(0, "start"), (1, "data"), (2, "rank")])


@given(data=st.data())
def test_there_and_back_changes_nothing(tmp_path_factory, data):
    root = made(tmp_path_factory.mktemp("course"), FILES)
    olds = data.draw(st.sets(st.sampled_from([1, 2]), min_size=1))
    free = [number for number in range(1, 10) if number not in {1, 2} - olds]  # 10 has no zero to lose
    news = data.draw(st.lists(st.sampled_from(free), min_size=len(olds), max_size=len(olds), unique=True))
    there = dict(zip(sorted(olds), news, strict=True))
    assume(any(old != new for old, new in there.items()) and 5 not in news)  # as a label of the fixture says
    renumber(root, there)
    assert not any(path.name.startswith(".") for path in root.rglob("*"))
    renumber(root, {new: old for old, new in there.items()})
    assert contents(root) == FILES


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({1: 2}, "chapter 1 can't become 2, which is 02_data: say what that becomes as well"),
        ({1: 5, 2: 5}, "chapters 1 and 2 would both become 5"),
        ({2: 3, 7: 8}, "there is no chapter 7; there are 00, 01, 02"),
        ({1: 100}, "chapter 1 can't become 100: chapters have two digits"),
        ({1: 1}, "every chapter would keep its number"),
        ({1: 2, 2: 6}, "checks/ch06.py is in the way"),
    ],
)
def test_what_can_t_be_is_refused_and_changes_nothing(root, numbers, said):
    files = contents(made(root, {"utils/course/checks/ch06.py": "", "utils/course/checks/ch02.py": ""}))
    with pytest.raises(BuildError, match=re.escape(said)):
        renumber(root, numbers)
    assert contents(root) == files


def test_two_lessons_of_one_number_are_refused(root):
    files = contents(made(root, {"lessons/02_other.md": ""}))
    with pytest.raises(BuildError, match="02_data and 02_other have one number"):
        make_room(root, 1)
    assert contents(root) == files


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
    for arguments in ([], ["six"], ["6", "7"], ["6", "7=8"], ["6="], ["6=100"]):
        assert main(arguments) == 2
        assert "usage: python -m tools.build.renumber 6" in capsys.readouterr().err
    assert main(["1=98", "1=99"]) == 1
    assert "error: a chapter has one new number, and one here is given two" in capsys.readouterr().err


def test_the_command_moves_the_chapters_of_its_course(root, monkeypatch, capsys):
    monkeypatch.setattr("tools.build.renumber.ROOT", root)
    assert main(["1=2"]) == 1 and "say what that becomes as well" in capsys.readouterr().err
    assert contents(root) == FILES
    assert main(["1=2", "2=1"]) == 0
    assert "left as they are:\nlessons/02_data.md:4" in capsys.readouterr().out
    assert (root / "lessons" / "01_data.md").exists()
