"""tools.build.rules: each rule is told with its line, by the build and before anything runs."""

import json
from dataclasses import replace

import pytest

from tools.build import execute, new
from tools.build.__main__ import main
from tools.build.lesson import ROOT, Course, read_lesson
from tools.build.rules import LONGEST, RECORD, broken, unwritten

STEM = "00_out_of_the_notebook"
SAYS = "Running all cells takes about 10 s on two CPU cores"


@pytest.fixture
def course(tmp_path):
    """A course of one chapter, as `make new` writes it."""
    (tmp_path / "lessons").mkdir()
    (tmp_path / "utils" / "course" / "checks").mkdir(parents=True)
    rows = "| | chapter |\n|---|---|\n| 99 | [Gone](notebooks/gone.ipynb) | x | 60 | [Colab][99] |\n\n[99]: gone\n"
    (tmp_path / "README.md").write_text(rows)
    course = Course(tmp_path, "OWNER/REPO", lambda lesson: "pass", points=lambda name: 1, ref="v1")
    new.new_chapter("00", "Out of the notebook", course, tmp_path / "utils" / "course" / "checks")
    return course


def told(course: Course) -> list[str]:
    return broken(read_lesson(course.root / "lessons" / f"{STEM}.md"), course)


CELL = "```python\nx = 1\n```\n"
LONG = "```python\n" + "x = 1\n" * (LONGEST + 1) + "```\n"
NOT_COMPARED = '```python tags=["nbval-ignore-output"]\n# Not compared: a time is another one.\nx = 1\n```\n\n'
AFTER = "## Recap"  # what is added stands above it
EDITS = {
    "title": ("# Chapter 0:", "# Chapter 1:", "# Chapter 1:", "the title is not '# Chapter 0: ...'"),
    "able": ("**You will be able to**", "You will:", "# Chapter 0:", "no '**You will be able to**' with a list"),
    "bullets": ("\n- [say", "\n[say", "# Chapter 0:", "no '**You will be able to**' with a list"),
    "minutes": ("About 60 minutes.", "An hour.", "# Chapter 0:", "no line that begins 'About 60 minutes.'"),
    "runs": (SAYS, "It runs fast", "# Chapter 0:", "the opening doesn't say 'Running all cells takes about 40 s"),
    "exercise": ("### Exercise: ", "### Task: ", "def update_size_00", "is no '### Exercise: title'"),
    "difficulty": ("Difficulty: ●○○", "Easy", "### Exercise:", "has no line 'Difficulty: ●○○ · about 5 minutes'"),
    "hint": ('`hint("update_size_00")`', "Ask.", "### Exercise:", "doesn't say how to open its hints"),
    "progress": ("progress()\n```\n\n## Read", "print(1)\n```\n\n## Read", "print(1)", "doesn't call progress()"),
    "comment": ("progress()\n```\n\n## Read", "# progress()\n```\n\n## Read", "# progress()", "doesn't call"),
    "no minutes": (" · about 5 minutes", "", "### Exercise:", "'update_size_00' ends without '· about 5 minutes'"),
    "other hint": ('`hint("update_size_00")`', '`hint("update_size_00")` `hint("no")`', "### Exercise:", 'hint("no")'),
    "other check": ('check("update_size_00"', 'check("update_sise_00"', "### Exercise:", "names misspelt?"),
    "nothing to read": ("- [a paper or a page, and why]", "", "## Read more", "'## Read more' lists nothing"),
    "no recap": ("- [five lines at the most]", "Five lines.", "## Recap", "'## Recap' lists nothing"),
    "recap": ("## Recap", "## In short", "## Read more", "the last two sections are not '## Recap' and '## Read more'"),
    "last": ("## Read more", "## Read more\n\n- x\n\n## More", "## More", "the last two sections are not"),
    "long": (AFTER, f"{LONG}\n{AFTER}", "x = 1", f"a code cell of {LONGEST + 1} lines"),
    "untagged": (AFTER, "```python\n# Not compared: it is a time\n```\n\n## Recap", "# Not compared", "has no tags="),
    "no reason": (AFTER, NOT_COMPARED.replace("a time is another one", "odd") + AFTER, "# Not compared", "says why"),
    "marker": (AFTER, f"```python\n# NBVAL_IGNORE_OUTPUT\nx = 1\n```\n\n{AFTER}", "# NBVAL", "not a comment"),
    "paper": ("- [a paper or a page, and why]", "- *LoRA*, arXiv 2106.09685.", "- *LoRA*", "write [*the title*](https"),
    "number": (AFTER, f"See [12](13_a.md).\n\n{AFTER}", "See", "'[12](13_a.md)' is called 12 and leads to chapter 13"),
    "chapter": (AFTER, f"[Chapter 1, \"A\"](00_a.md#b)\n\n{AFTER}", "[Chapter", "is called 1 and leads to chapter 0"),
    "bare address": (AFTER, f"See https://arxiv.org/abs/1412.6980.\n\n{AFTER}", "See", "arXiv's 1412.6980 is no link"),
    "escaped sign": (AFTER, f"$$a \\, b$$\n\n{AFTER}", "$$a", "'\\\\,' in $$a \\, b$$ is lost on GitHub"),
    "index": (AFTER, f"Then $(a b)_i$.\n\n{AFTER}", "Then", "')_' in $(a b)_i$ is lost on GitHub"),
    "hyphen": (AFTER, f"A rank-$r$ update.\n\n{AFTER}", "A rank", "$r$ stands right behind '-'"),
    "too many": (AFTER, NOT_COMPARED * 3 + AFTER, None, "3 of 9 code cells are not compared; 2 at the most"),
}  # fmt: skip


def test_the_skeleton_keeps_every_rule(course):
    assert told(course) == []


@pytest.mark.parametrize("rule", EDITS)
def test_a_broken_rule_is_told_with_its_line(course, rule):
    old, text, at, said = EDITS[rule]
    path = course.root / "lessons" / f"{STEM}.md"
    before = path.read_text(encoding="utf-8")
    assert old in before
    after = before.replace(old, text)
    path.write_text(after, encoding="utf-8")
    found = [line for line in told(course) if said in line]
    assert len(found) >= 1, told(course)
    assert rule not in ("no minutes", "other check") or len(told(course)) == 1  # one fault is told once
    if at:
        line = next(number for number, line in enumerate(after.splitlines(), 1) if line.startswith(at))
        assert found[0].startswith(f"lessons/{STEM}.md, line {line}: ")


def test_what_only_looks_like_a_fault_is_fine(course):
    path = course.root / "lessons" / f"{STEM}.md"
    fine = (
        "- [*LoRA*](https://arxiv.org/abs/2106.09685), 1.10203, 99.12345, $a_{i} \\thinspace b$, `$X*` and `$(Y)_Z`\n"
    )
    path.write_text(
        path.read_text(encoding="utf-8").replace("- [a paper or a page, and why]\n", fine), encoding="utf-8"
    )
    assert told(course) == []


def test_the_first_chapters_table_links_to_each_chapter(course):
    first = course.root / "lessons" / f"{STEM}.md"
    row = f"\n| | chapter | the question |\n|---|---|---|\n| 0 | [Out]({STEM}.md) | what? |\n"
    first.write_text(first.read_text(encoding="utf-8") + row, encoding="utf-8")
    new.new_chapter("01", "In it", course, course.root / "utils" / "course" / "checks")
    assert first.read_text(encoding="utf-8").endswith("| 1 | [In it](01_in_it.md) | [the question that it answers] |\n")
    second = read_lesson(course.root / "lessons" / "01_in_it.md")
    assert broken(second, course) == []
    first.write_text(first.read_text(encoding="utf-8").replace("(01_in_it.md)", "(01.md)"), encoding="utf-8")
    (said,) = broken(second, course)
    assert f"the table in lessons/{STEM}.md has no row '| 1 | [In it](01_in_it.md) | ... |'" in said


def test_a_long_median_and_a_chapter_without_exercises_are_told(course):
    path = course.root / "lessons" / f"{STEM}.md"
    text = path.read_text(encoding="utf-8")
    seven = "```python\n" + "x = 1\n" * 7 + "```\n\n"
    path.write_text(text.replace(AFTER, seven * 7 + AFTER), encoding="utf-8")
    assert any("the median code cell in notebooks/ has more than 6 lines" in line for line in told(course))
    at = text.index("### Exercise")
    path.write_text(text[:at] + text[text.index("## Recap") :], encoding="utf-8")
    assert any("the chapter has no exercise" in line for line in told(course))


def test_the_readme_has_the_title_the_minutes_and_the_link(course):
    readme = course.root / "README.md"
    page = f"https://colab.research.google.com/github/OWNER/REPO/blob/v1/notebooks/{STEM}.ipynb"
    assert f"\n[99]: gone\n[00]: {page}\n" in readme.read_text(encoding="utf-8")
    assert any(
        f"README.md has no line '[00]: {page.replace('v1', 'v2')}'" in line for line in told(replace(course, ref="v2"))
    )
    row = readme.read_text(encoding="utf-8")
    for old, other in (("[Out of the notebook]", "[Out]"), ("| 60 | [Colab][00]", "| 61 | [Colab][00]")):
        readme.write_text(row.replace(old, other), encoding="utf-8")
        (said,) = told(course)
        at = next(n for n, line in enumerate(row.splitlines(), 1) if line.startswith("| 00 | "))
        assert (
            f"line {at} of README.md, the chapter's row, isn't '| 00 | [Out of the notebook](notebooks/{STEM}" in said
        )
        assert "| ... | 60 | [Colab][00] |'" in said
    gone = "\n".join(line for line in row.splitlines() if not line.startswith("| 00 | "))
    readme.write_text(gone, encoding="utf-8")
    assert any("README.md's table has no row '| 00 | " in line for line in told(course))


@pytest.mark.parametrize(("measured", "fits"), [(10, True), (14, True), (16, False), (4, False), (13.3, True)])
def test_the_sentence_on_running_time_is_held_to_the_record(course, measured, fits):
    (course.root / RECORD).parent.mkdir(parents=True)
    (course.root / RECORD).write_text(json.dumps({"seconds": {STEM: measured, "other": 500}}))
    found = told(course)
    assert (found == []) == fits
    assert fits or f"running takes {measured:.0f} s by {RECORD}, not 10 s" in found[0]


def test_the_build_tells_all_rules_and_starts_no_kernel(course, monkeypatch, capsys):
    monkeypatch.setattr(execute, "NotebookClient", None)
    path = course.root / "lessons" / f"{STEM}.md"
    text = path.read_text(encoding="utf-8").replace("About 60 minutes.", "An hour.").replace("## Recap", "## In short")
    path.write_text(text, encoding="utf-8")
    for arguments in ([], ["--check"]):
        assert main(arguments, course) == 1
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 2 and all(f"lessons/{STEM}.md, line " in line for line in errors)
    assert "note: " not in capsys.readouterr().out


def test_what_make_new_left_to_write_is_noted_and_fails_nothing(course, capsys):
    assert main(["--no-execute"], course) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    path = course.root / "lessons" / f"{STEM}.md"
    lines = path.read_text(encoding="utf-8").splitlines()
    bracketed = [n for n, line in enumerate(lines, 1) if "[" in line and not line.startswith((" ", "print", "d_in"))]
    assert [int(note.split("line ")[1].split(":")[0]) for note in notes] == bracketed and len(notes) == 9
    assert notes[-1].endswith(f"line {bracketed[-1]}: to be written: [a paper or a page, and why]")


@pytest.mark.parametrize("path", sorted((ROOT / "lessons").glob("[0-9]*.md")), ids=lambda path: path.stem[:2])
def test_the_chapters_have_nothing_left_to_write(path):
    assert unwritten(read_lesson(path)) == []
