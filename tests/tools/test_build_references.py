"""tools.build.references: a lesson's solutions, as the module that the checks import."""

import re
import subprocess
import sys
from importlib import import_module

import pytest

from tests.tools.trial import HEADER, LESSON, course_at
from tools.build.__main__ import main
from tools.build.lesson import BuildError, Course, exercise_cells, find_lessons, read_lesson
from tools.build.references import FOLDER, reference_module, solved_cell, unbound
from utils.course import checks  # noqa: F401  (registers every exercise)
from utils.course.checks.core import find, registered
from utils.course.checks.worked import source

TRIAL = f"{FOLDER}/ch00.py"
OWN = "    ### BEGIN SOLUTION\n    {}\n    ### END SOLUTION"


def solved(name: str, body: str, before: str = "", arguments: str = "x") -> str:
    """A solution cell and its check; `before` stands above the function."""
    cell = f"{before}def {name}({arguments}):\n{OWN.format(body)}"
    return f'```python\n{cell}\n```\n\n```python\n{name} = check("{name}", {name})\n```\n\n'


def cell(source: str, tags: str = "") -> str:
    return f"```python{tags}\n{source}\n```\n\n"


def module_of(tmp_path, *cells: str) -> str:
    course = course_at(tmp_path, **{"00_a": HEADER + "# Title\n\n" + "".join(cells)})
    return reference_module(read_lesson(course.root / "lessons" / "00_a.md")) or ""


def run(text: str) -> dict:
    names: dict = {}
    exec(text, names)
    return names


TAGGED = ' tags=["reference"]'
VALUE = """\
```python
### BEGIN SOLUTION
sizes = [size(4), 2]
### STUB
# sizes = None
### END SOLUTION
```

```python
sizes = check("sizes", sizes)
```

"""


def test_a_module_has_the_solved_cells_and_the_imports_that_they_need(tmp_path):
    text = module_of(
        tmp_path,
        cell("import math\nimport json\nfrom os.path import join, split as halves"),
        solved("size", "return math.sqrt(x)"),
        VALUE,
        solved("tail", "return halves(join(x, 'b'))", before="# What is last.\nfrom itertools import chain\n\n\n"),
    )
    names = run(text)
    assert names["size"](9) == 3 and names["sizes"] == [2, 2] and names["tail"]("a") == ("a", "b")
    assert (
        "json" not in text and "SOLUTION" not in text and "STUB" not in text and "check" not in text.split("\n\n", 3)[3]
    )
    assert text.index("import math\n") < text.index("from os.path import join") < text.index("# -------- size")
    assert "# -------- tail\n# What is last.\nfrom itertools import chain\n\n\ndef tail(x):\n    return" in text


def test_a_module_is_the_same_each_time_and_in_the_houses_format(tmp_path):
    cells = [
        cell("import zlib\nimport math, ast"),
        solved("a", "return ast, math,zlib  # as it is"),
        VALUE.replace("size(4)", "a(4)"),
    ]
    text = module_of(tmp_path, *cells)
    assert text == module_of(tmp_path, *cells) and "return ast, math,zlib  # as it is\n" in text
    command = [sys.executable, "-m", "ruff", "format", "--check", "-"]
    assert subprocess.run(command, input=text, capture_output=True, text=True).returncode == 0


def test_a_helper_comes_along_from_a_tagged_cell_with_what_it_needs(tmp_path):
    text = module_of(
        tmp_path,
        cell("import math"),
        cell("def root(x):\n    return math.sqrt(x)\n\n\nUNUSED = 1", TAGGED),
        cell("ALONE = 2", TAGGED),
        solved("size", "return root(x)"),
    )
    assert run(text)["size"](16) == 4 and "ALONE" not in text
    assert text.index("# -------- for size\ndef root") < text.index("# -------- size\n")


def test_the_last_binding_above_counts_and_a_check_is_none(tmp_path):
    """What the notebook's kernel holds when the solution is defined; a check hands its own name back."""
    cells = [cell("from math import floor as even"), solved("size", "return 2"), cell("from math import ceil as even")]
    text = module_of(tmp_path, *cells, solved("twice", "return even(x) * size(x)"), cell("even = size = None"))
    assert run(text)["twice"](1.5) == 4 and "floor" not in text


BAD = {
    "nothing": (
        [solved("f", "return missing(x)")],
        r"line \d+: the reference of 'f' uses 'missing', which no cell above",
    ),
    "below": (
        [solved("f", "return late(x)"), cell("import late")],
        "uses 'late', which no cell above binds: import or",
    ),
    "a plain cell": (
        [cell("b = 3"), solved("f", "return b * x")],
        r"uses 'b', which is bound in .*, line \d+, and only imports",
    ),
    "rebound": ([cell("import ast"), cell("ast = 1"), solved("f", "return ast")], "uses 'ast', which is bound in"),
    "a helper's own": (
        [cell("b = 3"), cell("def help(x):\n    return b", TAGGED), solved("f", "return help(x)")],
        "the reference of 'f' uses 'b', which is bound in",
    ),
    "a helper that runs": (
        [cell("b = 3\nprint(b)", TAGGED), solved("f", "return b")],
        r"a reference cell imports and defines, and this runs: print\(b\)",
    ),
    "one name": (
        [solved("f", "return x", before="LIMIT = 1\n\n\n"), solved("g", "return x", before="LIMIT = 2\n\n\n")],
        "'LIMIT' is bound by the cell of 'g' and by the cell of 'f': a chapter's references are one module",
    ),
    "one function": (
        [solved("f", "return x"), solved("f", "return 2").replace('check("f"', 'check("g"')],
        "'f' is bound by the cell of 'g' and by the cell of 'f'",
    ),
    "an import": (
        [cell("import math"), solved("f", "return math.pi"), solved("g", "return x", before="math = 1\n\n\n")],
        "'math' is bound by the cell of 'g' and by an import above",
    ),
    "two imports": (
        [cell("import math as m"), solved("f", "return m"), cell("import ast as m"), solved("g", "return m")],
        "'m', which an earlier exercise has from 'import math as m' and this one from 'import ast as m'",
    ),
    "no Python": ([solved("f", "return (")], "of the cell: '\\(' was never closed"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_a_module_would_lack_or_mix_up_is_refused(tmp_path, kind):
    cells, said = BAD[kind]
    with pytest.raises(BuildError, match=said):
        module_of(tmp_path, *cells)


def test_the_same_import_twice_is_no_collision(tmp_path):
    text = module_of(
        tmp_path,
        cell("import math"),
        solved("f", "return math.floor(x)"),
        solved("g", "return math.ceil(x)", before="import math\n\n\n"),
        solved("h", "return math.pi"),
    )
    assert run(text)["g"](1.5) == 2


def test_what_a_cell_reads_and_does_not_bind():
    function = "def f(c, d=e):\n    g = [h for h in c]\n    return lambda: (g, i, a, f)\n"
    source = f"a = b\n{function}class J(k):\n    l = m\n    n = l\n"
    assert unbound(source, "") == {"b", "e", "i", "k", "m"}


def test_a_lesson_without_exercises_has_no_module(tmp_path):
    assert module_of(tmp_path, cell("x = 1")) == ""


# ------------------------------------------------------------------------------------------------ the course's own


def test_each_exercise_is_held_against_its_lessons_cell():
    """The reference is what the check cell hands in, of the module that the lesson gives; `source` prints the cell."""
    names = set()
    for path in find_lessons(Course.here()):
        lesson, module = read_lesson(path), import_module(f"utils.course.checks.references.ch{path.stem[:2]}")
        roles = exercise_cells(lesson)
        for index, (role, name) in roles.items():
            if role == "check":
                answer = re.search(rf'check\("{name}", (\w+)\)', lesson.cells[index].source)
                assert answer and find(name).reference is getattr(module, answer[1]), name
            else:
                assert source(name) == solved_cell(lesson, index), name
            names.add(name)
    assert names == set(registered())


# ---------------------------------------------------------------------------------------------- the command line


def edited(course: Course, old: str, new: str) -> None:
    assert LESSON.count(old) == 1
    (course.root / "lessons" / "00_trial.md").write_text(LESSON.replace(old, new), encoding="utf-8")


def test_every_build_writes_the_module(tmp_path, capsys):
    course = course_at(tmp_path, **{"00_trial": LESSON})
    assert main(["--no-execute", "00"], course) == 0
    assert f"written   {TRIAL}\n" in capsys.readouterr().out
    text = (tmp_path / TRIAL).read_text(encoding="utf-8")
    assert run(text)["add_one"](2) == 3 and "lessons/00_trial.md" in text.split('"""')[1]
    assert main(["--no-execute"], course) == 0
    assert f"unchanged {TRIAL}\n" in capsys.readouterr().out


def test_a_build_of_prose_alone_writes_a_module_that_is_missing(copied, capsys):
    (copied.root / TRIAL).unlink()
    assert main(["--prose", "00"], copied) == 0
    assert (copied.root / TRIAL).exists()


def test_check_tells_a_stale_missing_or_stray_module(copied, capsys):
    def told(*arguments: str) -> list[str]:
        assert main(["--check", *arguments], copied) == 1
        said = capsys.readouterr().err
        assert "Run `make notebooks` and commit the result." in said
        return [line for line in said.splitlines() if FOLDER in line]

    path = copied.root / TRIAL
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("x + 1", "1 + x"), encoding="utf-8")
    assert told() == told("00") == [f"error: {TRIAL} is stale: its lesson gives another text"]
    path.unlink()
    assert told() == [f"error: {TRIAL} is missing"]
    path.write_text(text, encoding="utf-8")
    path.with_name("ch01.py").write_text("", encoding="utf-8")
    assert told() == [f"error: {FOLDER}/ch01.py has no lesson with exercises"]
    assert main(["--check", "00"], copied) == 0
    path.with_name("ch01.py").unlink()
    edited(copied, "return x + 1", "return 1 + x")
    assert told() == [f"error: {TRIAL} is stale: its lesson gives another text"]


def test_check_tells_a_missing_module_although_the_checks_cannot_be_imported_then(copied, capsys):
    def points(name: str) -> int:
        raise BuildError("utils/course/checks can't be imported: no ch00")

    course = Course(copied.root, "OWNER/REPO", lambda lesson: "pass", points=points, house_rules=False)
    (copied.root / TRIAL).unlink()
    assert main(["--check"], course) == 1
    said = capsys.readouterr().err
    assert f"{TRIAL} is missing" in said and "can't be imported: no ch00" in said and "Run `make notebooks`" in said


def test_nothing_is_written_when_a_lesson_is_refused(tmp_path, capsys):
    bad = LESSON.replace("return x + 1", "return x + one")
    course = course_at(tmp_path, **{"00_trial": LESSON, "01_trial": bad})
    assert main(["--no-execute"], course) == 1
    assert "the reference of 'add_one' uses 'one', which no cell above binds" in capsys.readouterr().err
    assert not (tmp_path / FOLDER).exists()
