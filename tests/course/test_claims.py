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
    Cell,
    Claim,
    LedgerError,
    Record,
    Test,
    proofs,
    proved_by,
    read_ledger,
    read_traps,
    verdict_kind,
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
    assert f"{counts['cell']} are proved by a cell" in page and min(counts.values()) >= 5
    every = proofs(EVERY)
    assert f"Together that makes {every['cell']} cells, {every['test']} tests and {every['record']} GPU records" in page
    assert sum(every.values()) == sum(len(claim.proofs) for claim in EVERY)
    assert len({target for target, _ in LINKS}) >= 20
    for target, _ in LINKS:
        assert (ROOT / "lessons" / target).resolve().is_file(), target


def test_every_anchor_on_the_page_is_a_heading_or_the_line_of_a_proof():
    page = (ROOT / "lessons" / "claims.md").read_text(encoding="utf-8")
    known = {"#" + tool.slug(h) for h in re.findall(r"^#+ (.*)$", page, re.M)}
    assert set(re.findall(r"\]\((#[^)]*)\)", page)) <= known
    wanted = {p.line for claim in EVERY for p in claim.proofs if isinstance(p, Cell)}
    wanted |= {f"def {p.function}(" for claim in EVERY for p in claim.proofs if isinstance(p, Test)}
    reached = set()
    for target, anchor in LINKS:
        text = (ROOT / "lessons" / target).read_text(encoding="utf-8")
        if number := re.fullmatch(r"L(\d+)", anchor):
            line = text.splitlines()[int(number[1]) - 1].strip()
            reached.add(line.split("(")[0] + "(" if target.endswith(".py") else line)
        elif anchor:
            headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
            slugs = [tool.slug(h) for h in headings]
            assert slugs.count(anchor) == 1, f"{target}#{anchor}: GitHub takes the first of several"
    assert reached == wanted, "each proof is one click away, at its own line"


def test_it_is_no_lesson_to_the_build():
    from tools.build.lesson import Course, find_lessons

    assert all(path.stem[:2].isdigit() for path in find_lessons(Course(ROOT, "", str, lambda name: 1)))


def test_verdicts_are_counted_by_kind():
    assert sum(verdicts(CLAIMS).values()) == len(CLAIMS)
    found = [
        verdict_kind(v) for v in ("right, incomplete", "half true", "wrong for NeoX", "trap", "no effect on Llama")
    ]
    assert found == ["right", "half true", "wrong", "incomplete", "wrong"]
    with pytest.raises(LedgerError, match="'nice' is no verdict"):
        verdict_kind("nice")


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
        ('verdict = "rounded, up"', 'verdict = " "', "C02: verdict is missing or empty"),
        ('verdict = "rounded, up"', 'judgement = "rounded"', "C02: unknown field 'judgement'"),
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
        ('id = "T03"', 'id = "T04"', "has not the traps T01 to T08 in order; missing: T03; twice: T04"),
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
    claim = Claim("C01", "1.1", "It | says.", "wrong", "The truth.", (proof,))
    page = tool.page([claim])
    assert "| [C01](#c01) | 1.1 | It \\| says. | wrong |" in page and "**Wrong.** The truth." in page
    assert "## Traps" not in page and "Beside the guide's section 1.1" in tool.page([claim], [claim])
    with pytest.raises(LedgerError, match="has 0 functions test_x"):
        tool.page([Claim("C01", "1.1", "It", "wrong", "The truth.", (Test("tests/course/test_claims.py", "test_x"),))])


def test_a_line_is_found_once_or_refused(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("```python\n    x = 1\ny = 2\ny = 2\n```\n")
    assert tool.line_of(path, "x = 1") == 2
    for line, count in (("y = 2", 2), ("z", 0)):
        with pytest.raises(LedgerError, match=f"{count} times, not once"):
            tool.line_of(path, line)
