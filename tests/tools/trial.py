"""Small lessons, and courses made of them, for the tests of the build."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat

from tools.build.lesson import HEADER, ROOT, Course, Lesson, read_lesson

SETUP = "from utils.quiet import quiet_upstream\n\nquiet_upstream()"

LESSON = (
    HEADER
    + """\
# Chapter 0: A trial

Opening.

```python
from tqdm.auto import tqdm

from utils import plots
from utils.course.checks import check, hint
from utils.course.checks.registry import Mistake, exercise
```

```python
for _ in tqdm(range(3), desc="training"):
    pass
print(f"loss {0.125:.3f}")
```

```python
plots.show(plots.lines({"a": ([1, 2], [3, 4])}, title="Loss", xlabel="step", ylabel="nats"))
```

```python
twin = 1
```

```python
exercise("add_one", reference=lambda x: x + 1, cases=[(1,)], hints=["Count on."])
```

<details><summary>Answer</summary>

```python .noeval
print("shown, not run")
```

</details>

```python
def add_one(x):
    ### BEGIN SOLUTION
    return x + 1
    ### END SOLUTION
```

A word between.

```python
add_one = check("add_one", add_one)
```

```python
twin = 1
```

```python tags=["nbval-ignore-output"]
# Not compared: a process's number is another one each time.
import os

print(os.getpid())
```

```python
hint("add_one")
print(add_one(2))
```
"""
)


def course_at(root: Path, **lessons: str) -> Course:
    """A course with the given lessons: name -> text."""
    for kind in ("lessons", "notebooks", "solutions"):
        (root / kind).mkdir(exist_ok=True, parents=True)
    for name, text in lessons.items():
        (root / "lessons" / f"{name}.md").write_text(text, encoding="utf-8")
    return Course(root, "OWNER/REPO", lambda lesson: SETUP + "\n", points=lambda name: 3, ref="v1", house_rules=False)


def lesson_of(root: Path, text: str) -> Lesson:
    course_at(root, **{"00_topic": text})
    return read_lesson(root / "lessons" / "00_topic.md")


def code_lesson(*cells: str) -> str:
    """A lesson of code cells below a title."""
    return HEADER + "# Title\n\n" + "\n\n".join(f"```python\n{cell}\n```" for cell in cells) + "\n"


def sources(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells]


def stored(course: Course, kind: str, stem: str = "00_trial"):
    return nbformat.read(course.root / kind / f"{stem}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(cell) -> str:
    return "".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in cell.outputs)


def change_stored(course: Course, kind: str, change) -> None:
    """Change a copy of the trial lesson where it is stored; `change` gets its JSON."""
    path = course.root / kind / "00_trial.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    change(notebook)
    path.write_text(json.dumps(notebook), encoding="utf-8")


def failures(root: Path, *arguments: str, strict: bool = False, path: Path = ROOT) -> dict[str, list[str]]:
    """What pytest, run in `root` with the code in `path`, says failed, by chapter: its items."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(path)}
    environment["COURSE_STRICT"] = "1" if strict else "0"
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", f"--rootdir={root}", *arguments]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    found: dict[str, list[str]] = {}
    for stem, item in re.findall(r"^(?:FAILED|ERROR) \w+/(\w+)\.ipynb::(.*?)(?: - .*)?$", done.stdout, re.M):
        found.setdefault(stem, []).append(item)
    assert done.returncode == (1 if found else 0), done.stdout[-3000:] + done.stderr[-3000:]
    return found
