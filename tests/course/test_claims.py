"""The claims ledger: every claim has a proof, every proof holds, and a proof that doesn't is told apart."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import build_claims as tool
from utils.course.claims import (
    LEDGER,
    QUESTIONS,
    VERDICTS,
    Cell,
    Claim,
    LedgerError,
    Record,
    Test,
    by_question,
    proofs,
    proved_by,
    read_ledger,
    read_traps,
    verdicts,
)
from utils.models import ROOT

CLAIMS, TRAPS = read_ledger(), read_traps()
EVERY = [*CLAIMS, *TRAPS]
TEXT = LEDGER.read_text(encoding="utf-8")


# -------------------------------------------------------------------------------------------------------- the ledger


def test_every_claim_that_a_lesson_cites_is_there():
    lessons = [path.read_text(encoding="utf-8") for path in (ROOT / "lessons").glob("[0-9]*.md")]
    cited = {name for text in lessons for name in re.findall(r"\b[CT]\d\d\b", text)}
    assert len(cited) > 30 and cited <= {claim.id for claim in EVERY}


def test_a_new_claim_goes_to_the_end_and_nowhere_else(tmp_path):
    last = CLAIMS[-1].id
    following = f"C{len(CLAIMS) + 1:02d}"
    claim = TEXT[TEXT.index(f'[[claim]]\nid = "{last}"') : TEXT.index("[[trap]]")]
    path = tmp_path / "claims.toml"
    path.write_text(TEXT.replace(claim, claim + claim.replace(last, following, 1), 1), encoding="utf-8")
    assert [c.id for c in read_ledger(path)] == [*(c.id for c in CLAIMS), following]
    path.write_text(TEXT.replace(claim, claim + claim.replace(last, "C99", 1), 1), encoding="utf-8")
    with pytest.raises(LedgerError, match=f"missing: {following}; unknown: C99"):
        read_ledger(path)
    path.write_text("", encoding="utf-8")
    with pytest.raises(LedgerError, match='has no traps: the first is .*"T01"'):
        read_traps(path)


@pytest.mark.parametrize("claim", EVERY, ids=lambda claim: claim.id)
def test_every_proof_holds(claim):
    assert tool.problems([claim]) == []


def test_the_page_is_what_the_ledger_gives(capsys):
    assert tool.main(["--check"]) == 0, capsys.readouterr().err


def test_pytest_collects_every_test_that_is_a_proof():
    named = sorted({f"{p.file}::{p.function}" for claim in EVERY for p in claim.proofs if isinstance(p, Test)})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *named]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    found = {line.split("[")[0] for line in done.stdout.splitlines() if "::" in line}
    assert found == set(named)


LINKS = re.findall(r"\]\(([^)#?:]+)(?:\?plain=1)?(?:#([^)]*))?\)", (ROOT / "lessons" / "claims.md").read_text("utf-8"))
"""Every link of the page to a file of the repository, and its anchor."""


def test_the_page_counts_and_links_what_there_is():
    page = (ROOT / "lessons" / "claims.md").read_text(encoding="utf-8")
    counts = proved_by(CLAIMS)
    assert f"{counts['cell']} of the claims are proved by a cell" in page and min(counts.values()) >= 5
    every = proofs(EVERY)
    assert f"Together that makes {every['cell']} cells, {every['test']} tests and {every['record']} GPU records" in page
    assert sum(every.values()) == sum(len(claim.proofs) for claim in EVERY)
    assert len({target for target, _ in LINKS}) >= 20
    for target, _ in LINKS:
        assert (ROOT / "lessons" / target).resolve().is_file(), target


def test_every_anchor_on_the_page_is_a_heading_or_the_line_of_a_proof():
    assert tool.link_problems((ROOT / "lessons" / "claims.md").read_text(encoding="utf-8")) == []
    wanted = {p.line for claim in EVERY for p in claim.proofs if isinstance(p, Cell)}
    wanted |= {f"def {p.function}(" for claim in EVERY for p in claim.proofs if isinstance(p, Test)}
    reached = set()
    for target, anchor in LINKS:
        text = (ROOT / "lessons" / target).read_text(encoding="utf-8")
        if number := re.fullmatch(r"L(\d+)", anchor):
            line = text.splitlines()[int(number[1]) - 1].strip()
            reached.add(line.split("(")[0] + "(" if target.endswith(".py") else line)
    assert reached == wanted, "each proof is one click away, at its own line"


def test_it_is_no_lesson_to_the_build():
    from tools.build.lesson import Course, find_lessons

    assert all(path.stem[:2].isdigit() for path in find_lessons(Course(ROOT, "", str, lambda name: 1)))


def test_there_are_five_verdicts_and_the_page_counts_the_claims_of_each():
    assert list(VERDICTS) == ["right", "right under conditions", "outdated", "wrong", "not settled"]
    counts = verdicts(CLAIMS)
    assert list(counts) == list(VERDICTS) and min(counts.values()) > 0 and sum(counts.values()) == len(CLAIMS)
    page = (ROOT / "lessons" / "claims.md").read_text(encoding="utf-8")
    for verdict in VERDICTS:
        count = sum(claim.verdict == verdict for claim in CLAIMS)
        assert counts[verdict] == count and f"\n| {verdict} | {count} | " in page
    assert verdicts([]) == dict.fromkeys(VERDICTS, 0)


def test_every_question_has_a_claim_and_every_entry_stands_under_its_questions():
    found = by_question(EVERY)
    assert list(found) == list(QUESTIONS) and all(by_question(CLAIMS).values())
    index = (ROOT / "lessons" / "claims.md").read_text(encoding="utf-8").split("## By question")[1]
    sections = re.findall(r"^### (.*?)\n(.*?)(?=^##)", index.split("## One by one")[0] + "##", re.M | re.S)
    listed = {heading: re.findall(r"^- \[(\w+)\]\(#\w+\) ", body, re.M) for heading, body in sections}
    assert listed == {text: [claim.id for claim in found[key]] for key, text in QUESTIONS.items()}
    assert {name for names in listed.values() for name in names} == {claim.id for claim in EVERY}


def test_the_document_has_its_name_at_the_head_of_the_page_and_is_no_guide_of_the_readers():
    page = (ROOT / "lessons" / "claims.md").read_text(encoding="utf-8")
    assert "*LoRA: Zero to Hero, a comprehensive guide*" in page.split("## By question")[0]
    for claim in EVERY:
        assert not re.search(r"\bguide\b", claim.says + claim.truth), claim.id


HEADINGS = """# Why?

## What `A` starts as, and [why](paper.md#a) ##

```python
# no heading
```

~~~~
## nor this
```
~~~~

## Why?
###### W_0 + <sub>s</sub>BA: 2.5 %
#hashtag
## why
"""


def test_anchors_are_made_as_github_makes_them():
    assert tool.headings(HEADINGS) == [
        (1, "Why?", "why"),
        (3, "What `A` starts as, and [why](paper.md#a)", "what-a-starts-as-and-why"),
        (14, "Why?", "why-1"),
        (15, "W_0 + <sub>s</sub>BA: 2.5 %", "w_0--sba-25-"),
        (17, "why", "why-2"),
    ]


@pytest.mark.parametrize(
    "link, said",
    [
        ("[a](01_x.md#why-1)", None),
        ("[a](01_x.md?plain=1#L17)", None),
        ("[a](../tests/test_x.py#L1)", None),
        ("[a](#here) and [b](https://example.org/none#x)", None),
        ("[a](01_x.md#why-3)", "links to 01_x.md#why-3, and 01_x.md has no such heading or line"),
        ("[a](01_x.md#no-heading)", "01_x.md has no such heading"),
        ("[a](01_x.md?plain=1#L18)", "links to 01_x.md?plain=1#L18, and 01_x.md has no such heading or line"),
        ("[a](01_x.md?plain=1#L0)", "no such heading or line"),
        ("[a](02_x.md#why)", "links to 02_x.md, and there is no such file"),
        ("[a](#there)", "links to #there, and the page has no such heading"),
    ],
)
def test_a_link_of_the_page_leads_to_a_heading_or_a_line_that_is_there(tmp_path, link, said):
    (tmp_path / "lessons").mkdir()
    (tmp_path / "lessons" / "01_x.md").write_text(HEADINGS)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text("x = 1\n")
    found = tool.link_problems(f"# Here\n\n{link}\n", tmp_path)
    assert found == [] if said is None else (len(found) == 1 and said in found[0]), found


# --------------------------------------------------------------------------------------------- the ledger can fail


def ledger(tmp_path: Path, old: str, new: str) -> Path:
    """The real ledger with one text exchanged, which has to be in it."""
    assert old in TEXT
    path = tmp_path / "claims.toml"
    path.write_text(TEXT.replace(old, new, 1), encoding="utf-8")
    return path


FIRST = TEXT[TEXT.index("[[claim.proof]]") : TEXT.index('[[claim]]\nid = "C02"')]


@pytest.mark.parametrize(
    "old, new, said",
    [
        (FIRST, "", "C01 has no proof"),
        ('id = "C07"', 'id = "C99"', "missing: C07; unknown: C99"),
        ('id = "C08"', 'id = "C07"', "missing: C08; twice: C07"),
        ('verdict = "wrong"', 'verdict = " "', "C02: verdict is missing or empty"),
        ('verdict = "wrong"', 'judgement = "wrong"', "C02: unknown field 'judgement'"),
        ('verdict = "wrong"', 'verdict = "half true"',
         "C02: 'half true' is no verdict; the five are right, right under conditions, outdated, wrong, not settled"),
        ('verdict = "wrong"', 'verdict = "wrong for NeoX"', "C02: 'wrong for NeoX' is no verdict; the five are right"),
        ('question = ["fit"]', "", "C01: question is missing or no list; it names one or more of fit, layer"),
        ('question = ["fit"]', 'question = "fit"', "C01: question is missing or no list"),
        ('question = ["fit"]', "question = []", "C01: question is missing or no list"),
        ('question = ["fit"]', 'question = ["fits"]', "C01: 'fits' is no question, or twice there; known are fit, "),
        ('question = ["fit"]', 'question = ["fit", "fit"]', "C01: 'fit' is no question, or twice there"),
        ('shows = ["256.0 times fewer",', 'shows = ["256",', "C05: shows needs texts of 4 characters or more"),
        ("at_least = 26.5e9", "at_least = 99e9", "C04: no value lies between"),
        ("::test_adam_really_holds_what_is_counted", "",
         "C01: a test is written file::function"),
        ('[[claim.proof]]\ntest = "tests/profiling/test_memory.py', '[[claim.proof]]\nhearsay = 1\n#',
         "C01: a proof names one of cell, test, record"),
        ("at_most = 28.5e9\n", "", "C04: a record proof needs at_most"),
        ('id = "C01"', 'id = "C01', "is not valid TOML"),
        ('[[trap]]\nid = "T01"', '[guess]\nx = 1\n\n[[trap]]\nid = "T01"', "unknown table 'guess'"),
    ],
)  # fmt: skip
def test_a_faulty_ledger_is_refused(tmp_path, old, new, said):
    with pytest.raises(LedgerError, match=re.escape(said)):
        read_ledger(ledger(tmp_path, old, new))


@pytest.mark.parametrize(
    "old, new, said",
    [
        ('id = "T03"', 'id = "T04"', "has not the traps T01 to T11 in order; missing: T03; twice: T04"),
        (TEXT[TEXT.index("[[trap.proof]]") : TEXT.index('[[trap]]\nid = "T02"')], "", "T01 has no proof"),
    ],
)
def test_a_faulty_trap_is_refused(tmp_path, capsys, old, new, said):
    with pytest.raises(LedgerError, match=re.escape(said)):
        read_traps(ledger(tmp_path, old, new))
    (tmp_path / "lessons").mkdir()
    (tmp_path / "claims.toml").rename(tmp_path / "lessons" / "claims.toml")
    assert tool.main(["--check"], tmp_path) == 1 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("7 billion parameters, float32: 112 GB", "7 billion parameters, float32: 111 GB", "doesn't show '7 billion"),
        ('cell = "01_the_fine_tuning_problem"', 'cell = "01_the_problem"', "no readable notebook solutions/01_the"),
        ("line = 'print(\"gradcheck:\"", "line = 'print(\"grad check:\"", "no cell has the line"),
        ("line = 'print(f\"{per_parameter:.0f} bytes for each parameter\")'", "line = ')'", "cells have the line"),
        ("::test_adam_really_holds_what_is_counted", "::test_adam_holds_it", "has 0 functions test_adam_holds_it"),
        ('"tests/profiling/test_memory.py', '"tests/test_memories.py', "no test file tests/test_memories.py"),
        ("at_least = 26.5e9", "at_least = 28e9", "is 2.75181e+10, not between"),
        ('trains = "LoRA r=8 q,k,v,o", checkpointing = false }, "peak"', 'checkpointing = false }, "peak"', "2 rows"),
        ('checkpointing = false }, "peak"]\nat_least = 26.5e9', 'checkpointing = false }, "peek"]\nat_least = 26.5e9',
         "has no 'peek'"),
        ('record = "assets/measurements/loading_7b.json"', 'record = "assets/measurements/loading.json"',
         "there is no record assets/measurements/loading.json"),
    ],
)  # fmt: skip
def test_a_proof_that_does_not_hold_is_named(tmp_path, old, new, said):
    found = tool.problems(read_ledger(ledger(tmp_path, old, new)))
    assert len(found) == 1 and re.match(r"C\d\d: ", found[0]) and said in found[0], found


def small_course(root: Path, **changes) -> tool.Cell:
    """A lesson with one cell that prints 2, stored in both copies; `changes` go into the stored cell."""
    cell = {
        "cell_type": "code", "source": ["print(1 + 1)"], "execution_count": 1, "metadata": {},
        "outputs": [{"output_type": "stream", "name": "stdout", "text": ["the sum is 2\n"]}],
    } | changes  # fmt: skip
    for copy in tool.COPIES:
        (root / copy).mkdir(parents=True)
        (root / copy / "00_x.ipynb").write_text(json.dumps({"cells": [cell]}))
    return tool.Cell("00_x", "print(1 + 1)", ("the sum is 2",))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({}, None),
        ({"execution_count": None}, "was never run"),
        ({"metadata": {"tags": ["nbval-ignore-output"]}}, "is not compared in CI"),
        ({"source": ["print(1 + 1)\n", "# NBVAL_IGNORE_OUTPUT"]}, "is not compared in CI"),
        ({"outputs": []}, "doesn't show 'the sum is 2' any more"),
        ({"outputs": [{"output_type": "stream", "name": "stderr", "text": ["the sum is 2"]}]}, "doesn't show"),
    ],
)
def test_a_cell_proves_only_what_is_run_compared_and_shown(tmp_path, changes, said):
    found = tool.cell_problem(small_course(tmp_path, **changes), tmp_path)
    assert found is None if said is None else said in found


def test_both_copies_have_to_show_it(tmp_path):
    proof = small_course(tmp_path)
    (tmp_path / "notebooks" / "00_x.ipynb").write_text('{"cells": []}')
    tool._cells.cache_clear()
    assert "notebooks/00_x.ipynb: no cell has the line" in tool.cell_problem(proof, tmp_path)


@pytest.mark.parametrize(
    "code, said",
    [
        ("def test_it():\n    assert 1", None),
        ("@pytest.mark.parametrize('x', [1])\ndef test_it(x):\n    assert x", None),
        ("def test_it():\n    pass\ndef test_it():\n    pass", "has 2 functions"),
        ("class Other:\n    def test_it(self):\n        pass", "has 0 functions"),
        ("@pytest.mark.skipif(True, reason='')\ndef test_it():\n    pass", "may be skipped"),
        ("@pytest.mark.xfail\ndef test_it():\n    pass", "may be skipped"),
        ("pytestmark = pytest.mark.skip\ndef test_it():\n    pass", "may be skipped"),
        ("trl = pytest.importorskip('trl')\ndef test_it():\n    pass", "may be skipped"),
        ("def test_it():\n    pytest.skip('later')", "may be skipped"),
    ],
)
def test_a_test_proves_only_what_pytest_runs(tmp_path, code, said):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text(f"import pytest\n{code}\n")
    found = tool.test_problem(Test("tests/test_x.py", "test_it"), tmp_path)
    assert found is None if said is None else said in found


@pytest.mark.parametrize(
    "record, said",
    [
        ({"gpu": "NVIDIA X", "rows": [{"a": 3}]}, None),
        ({"gpu": "NVIDIA X", "rows": [{"a": 9}]}, "is 9, not between 2 and 4"),
        ({"rows": [{"a": 3}]}, "doesn't name the hardware"),
        ({"hardware": "AMD EPYC", "rows": [{"a": 3}]}, "which is no GPU"),
        ({"gpu": "NVIDIA X", "rows": []}, "has 0 rows with"),
        ({"gpu": "NVIDIA X", "rows": [{"a": "3"}]}, "has 0 rows with"),
    ],
)
def test_a_record_proves_only_a_value_in_its_range_on_a_named_gpu(tmp_path, record, said):
    (tmp_path / "r.json").write_text(json.dumps(record))
    rows = record["rows"]
    step = {"a": rows[0]["a"]} if rows and not isinstance(rows[0]["a"], str) else {"a": 0}
    found = tool.record_problem(Record("r.json", ("rows", step, "a"), 2, 4, "the value"), tmp_path)
    assert found is None if said is None else said in found


def test_a_stale_page_fails_and_a_broken_ledger_leaves_the_page_alone(tmp_path, capsys):
    for folder in ("notebooks", "solutions", "tests", "assets"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "lessons").mkdir()
    for lesson in (ROOT / "lessons").glob("[0-9]*.md"):
        (tmp_path / "lessons" / lesson.name).symlink_to(lesson)
    (tmp_path / "lessons" / "claims.toml").write_text(TEXT, encoding="utf-8")
    assert tool.main(["--check"], tmp_path) == 1 and "is not what the ledger gives" in capsys.readouterr().err
    assert tool.main([], tmp_path) == 0 and tool.main(["--check"], tmp_path) == 0
    page = tmp_path / "lessons" / "claims.md"
    written = page.read_bytes()
    ledger(tmp_path / "lessons", "float32: 112 GB", "float32: 113 GB")
    assert tool.main([], tmp_path) == 1 and page.read_bytes() == written
    assert "C01: solutions/01_the_fine_tuning_problem.ipynb" in capsys.readouterr().err


def test_a_claim_is_what_the_page_shows():
    proof = Test("tests/course/test_claims.py", "test_a_claim_is_what_the_page_shows")
    claim = Claim("C01", ("rate",), "It says.", "not settled", "The truth.", (proof,), ("[A](https://a.org)",), "1.1")
    page = tool.page([claim])
    assert "### Which learning rate, and which alpha?\n\n- [C01](#c01) It says. **Not settled.**\n" in page
    shown = page[page.index("### C01") :]
    assert shown.startswith(
        "### C01\n\nA common claim: It says.\n\n**Not settled.** The truth.\n\nSource: [A](https://a.org)\n\n- test: "
    )
    assert shown.endswith("\n\nIn the document: section 1.1.\n")
    assert QUESTIONS["fit"] not in page and "## Traps" not in page
    assert "It belongs to the document's section 1.1." in tool.page([claim], [claim])
    unsaid = Claim("C01", ("rate",), "It", "wrong", "The truth.", (proof,))
    assert "In the document" not in tool.page([unsaid])
    missing = Test("tests/course/test_claims.py", "test_x")
    with pytest.raises(LedgerError, match="has 0 functions test_x"):
        tool.page([Claim("C01", ("rate",), "It", "wrong", "The truth.", (missing,))])


def test_a_cell_is_linked_to_the_heading_above_its_line_which_the_notebook_has_too(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["## Twice"]},
        {"cell_type": "code", "source": ["y = 0"]},
        {"cell_type": "markdown", "source": ["## Twice"]},
    ]
    proof = small_course(tmp_path)
    stored = json.loads((tmp_path / "notebooks" / "00_x.ipynb").read_text())["cells"]
    (tmp_path / "notebooks" / "00_x.ipynb").write_text(json.dumps({"cells": cells + stored}))
    (tmp_path / "lessons").mkdir()
    lesson = tmp_path / "lessons" / "00_x.md"
    lesson.write_text("## Twice\n\n```python\ny = 0\n```\n\n## Twice\n\n```python\n# a comment\nprint(1 + 1)\n```\n")
    claim = Claim("C01", ("rate",), "It", "wrong", "The truth.", (proof,))
    tool._cells.cache_clear()
    page = tool.page([claim], root=tmp_path)
    assert "(00_x.md#twice-1)" in page and "(00_x.md?plain=1#L11)" in page
    assert tool.link_problems(page, tmp_path) == []
    lesson.write_text(lesson.read_text().replace("## Twice\n\n```python\n#", "## Another\n\n```python\n#"))
    tool._lines.cache_clear()
    with pytest.raises(LedgerError, match="under the heading 'Twice', and lessons/00_x.md under 'Another': build"):
        tool.page([claim], root=tmp_path)
    assert tool.link_problems(page, tmp_path) == [
        "lessons/claims.md links to 00_x.md#twice-1, and 00_x.md has no such heading or line"
    ]


def test_what_a_cell_shows_stays_on_one_line():
    assert tool._code("two\nlines") == "`two\\nlines`" and tool._code("a `b`") == "`` a `b` ``"


def test_a_line_is_found_once_or_refused(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("```python\n    x = 1\ny = 2\ny = 2\n```\n")
    assert tool.line_of(path, "x = 1") == 2
    for line, count in (("y = 2", 2), ("z", 0)):
        with pytest.raises(LedgerError, match=f"{count} times, not once"):
            tool.line_of(path, line)
