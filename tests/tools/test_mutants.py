"""The tool for mutants: what it changes and what it leaves alone, which tests it runs, and that the checkout stays."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest

from tools import mutants
from utils.models import ROOT

MODULE = b'''"""A docstring with 1 < 2."""
import os
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import sys

@os.cache(maxsize=7)
def clipped(x: "int < 3", top: int = 9, *, deep: bool = True) -> "1 + 1":
    """Not 5."""
    if x > top and not deep:
        raise ValueError(f"{x + 1} is more than {top}: " + "so" * 2)
    x += 2
    os.environ["a"] = "b" % top
    os.warn("no" + str(3 + 4))
    return [v for v in x[1:] if v] / 2.5
'''


def test_what_is_changed_and_what_is_left_alone():
    found = mutants.mutants_of("utils/m.py", MODULE)
    changes = Counter((m.operator, m.old.split("(")[0], m.new.split("(")[0]) for m in found)
    assert changes == Counter(
        {
            ("number", "9", "10"): 1, ("truth", "True", "False"): 1, ("compare", ">", ">="): 1,
            ("boolean", "and", "or"): 1, ("not", "not ", ""): 1, ("statement", "raise ValueError", "pass"): 1,
            ("statement", "x += 2", "pass"): 1, ("number", "2", "3"): 1,
            ("statement", 'os.environ["a"] = "b" % top', "pass"): 1, ("statement", "os.warn", "pass"): 1,
            ("slice", "1", ""): 1, ("number", "1", "2"): 1, ("condition", "v", "not "): 1,
            ("arithmetic", "/", "*"): 1, ("number", "2.5", "5.0"): 1,
        }
    )  # fmt: skip
    assert {m.operator for m in found} == set(mutants.OPERATORS)
    for m in found:
        text = mutants.mutated(MODULE, m)
        assert text != MODULE and len(text) - len(MODULE) == len(m.new) - len(m.old)
        assert MODULE.splitlines()[m.line - 1].decode().strip() in MODULE.decode() and m.old in MODULE.decode()


def test_every_operator_of_the_language_that_is_known_is_exchanged():
    source = b"a = (b < c) + (b <= c) - (b > c) * (b >= c) / (b == c) // (b != c) % (b is c) ** (b is not c)\n"
    source += b"d = (b in c) or (b not in c)\nwhile d:\n    pass\n"
    changes = {(m.old, m.new) for m in mutants.mutants_of("utils/m.py", source)}
    wanted = {*mutants._COMPARE.values(), *mutants._ARITHMETIC.values(), ("or", "and"), ("d", "not (d)")}
    assert changes == wanted


def test_the_sample_is_the_seeds_and_a_larger_one_goes_on():
    one, other = mutants.sample(ROOT, 0, "utils/quant"), mutants.sample(ROOT, 1, "utils/quant")
    assert one == mutants.sample(ROOT, 0, "utils/quant") and one != other and set(one) == set(other)
    assert len({m.key for m in one}) == len(one) > 100


def test_a_mutant_keeps_its_key_and_its_place_while_its_line_stays(tmp_path):
    def order(source: bytes) -> list[str]:
        (tmp_path / "utils").mkdir(exist_ok=True)
        (tmp_path / "utils" / "m.py").write_bytes(source)
        return [m.key for m in mutants.sample(tmp_path, 0)]

    before, after = order(MODULE), order(b"import re\n" + MODULE.replace(b"x += 2", b"x += 5"))
    changed = set(before) - set(after)
    assert len(changed) == 2 and [key for key in before if key not in changed] == [k for k in after if k in before]


def test_every_module_has_tests_and_no_entry_is_left_behind():
    without = [name for name in mutants.modules(ROOT) if not mutants.tests_of(name)]
    assert [name for name in without if mutants.mutants_of(name, (ROOT / name).read_bytes())] == []
    assert [name for name in mutants.ELSEWHERE if not (ROOT / "utils" / f"{name}.py").is_file()] == []
    assert [t for tests in mutants.ELSEWHERE.values() for t in tests if not (ROOT / t).is_file()] == []


@pytest.mark.slow
def test_survivors_are_named_the_checkout_stays_whole_and_a_second_run_has_nothing_to_do(tmp_path):
    course, journal = tmp_path / "course", tmp_path / "journal.jsonl"
    for name, text in {
        "utils/__init__.py": "", "utils/p/__init__.py": "",
        "utils/p/m.py": "def clipped(x, top=9):\n    if x > top:\n        return top\n    return x + 0\n",
        "utils/p/broken.py": "ONE = 1\n",
        "tests/p/test_m.py": "from utils.p.m import clipped\n\n"
                             "def test_it():\n    assert [clipped(x) for x in (1, 20)] == [1, 9]\n",
        "tests/p/test_broken.py": "def test_it():\n    assert False\n",
        "pyproject.toml": "[tool.pytest.ini_options]\naddopts = ['--import-mode=importlib']\n"
                          "markers = ['slow: slow']\n",
    }.items():  # fmt: skip
        (course / name).parent.mkdir(parents=True, exist_ok=True)
        (course / name).write_text(text)
    subprocess.run(["git", "init", "-q", str(course)], check=True)
    before = {path: path.read_bytes() for path in course.rglob("*.py")}
    program = (
        "import sys; from pathlib import Path; from tools import mutants; mutants.HEAVY = ('pytest', 'hypothesis')\n"
        "sys.exit(mutants.main(['--journal', sys.argv[2], *sys.argv[3:]], Path(sys.argv[1])))"
    )

    def run(*more: str) -> list[str]:
        command = [sys.executable, "-c", program, str(course), str(journal), *more]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    first = run("--count", "3")
    assert len(first) >= 3 and len(journal.read_text().splitlines()) <= 5
    said = run("--count", "99")
    assert "the tests of utils/p/broken.py fail as it is: FAILED tests/p/test_broken.py::test_it" in said[-2]
    assert said[-1] == "2 of 4 mutants killed: 50%; 1 whose tests fail without a change"
    assert [text.split(None, 1)[1] for text in said[-4:-2]] == [
        "utils/p/m.py:2 compare: '>' -> '>='", "utils/p/m.py:4 arithmetic: '+' -> '-'",
    ]  # fmt: skip
    rows = [json.loads(text) for text in journal.read_text().splitlines()]
    assert len({row["key"] for row in rows}) == len(rows) == 5 + 2, "five mutants, and two modules without one"
    assert run("--count", "99") == said[-4:], "nothing is run twice"
    assert len(run("--count", "99", "--again")) == 4 + 3, "but what nothing killed is, when asked for"
    assert {path: path.read_bytes() for path in course.rglob("*.py")} == before


def test_every_mutant_is_another_program():
    """Doubling 0.0 changes nothing."""
    (found,) = [m for m in mutants.mutants_of("utils/m.py", b"x = 0.0\n") if m.operator == "number"]
    assert (found.old, found.new) == ("0.0", "1.0")
