"""Write a new chapter's skeleton: a lesson with one exercise, its checks and reference, and its rows in the tables.

    python -m tools.build.new 22 "Vision"        (`make new CH=22 TITLE="Vision"`)

The skeleton passes the build and the tests as it is; what is in square brackets is yours to write. The tables are the
README's and chapter 0's, and every other notebook gets its link to the new chapter.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.build.execute import REUSE, build
from tools.build.lesson import BEGIN, END, HEADER, ROOT, BuildError, Course, find_lessons, read_lesson
from tools.build.navigation import LESSON_FILE
from tools.build.references import reference_modules, write_references
from tools.build.rules import colab_link

LESSON = """\
# Chapter {number}: {title}

[The answer to the question that the reader comes with, in three to six lines, with the call to copy.]

**You will be able to**

- [say what the reader can do afterwards]

About 60 minutes. You need chapter 4's LoRA layer.
Running all cells takes about 10 s on two CPU cores, without a network.

```python
from {package} import check, progress
```

## [What the section finds]

[Why, before how. One idea a cell; each number is printed by a cell.]

```python
d_in, d_out, r = 64, 32, 4
print(f"an update of rank {{r}}: {{r * (d_in + d_out)}} numbers of {{d_in * d_out}}")
```

### Exercise: [a title]

Difficulty: ●○○ · about 5 minutes

[The task: here, how many numbers an update of rank r has.] Stuck? `hint("{name}")`.

```python
def {name}(d_in, d_out, r):
    {begin}
    return r * (d_in + d_out)
    {end}
```

```python
{name} = check("{name}", {name})
```

### [What the exercise's result is used for]

```python
print({name}(4096, 4096, 8))
```

## Recap

- [five lines at the most]

```python
progress()
```

## Read more

- [a paper or a page, and why]
"""

CHECKS = '''\
"""Chapter {number}'s exercise: [what it is about]."""

from __future__ import annotations

from {package}.references import ch{number:02d} as lesson
from {package}.registry import Mistake, exercise

exercise(
    "{name}",
    reference=lesson.{name},
    cases=[(64, 32, 4), (8, 8, 1), (5, 7, 3)],
    drawn=lambda rng: (rng.randint(1, 99), rng.randint(1, 99), rng.randint(1, 16)),
    mistakes=[
        Mistake(lambda d_in, d_out, r: r * d_in, "that is A alone: B has numbers too."),
        Mistake(lambda d_in, d_out, r: r * d_out, "that is B alone: A has numbers too."),
        Mistake(lambda d_in, d_out, r: d_in * d_out, "that is the full update, whatever its rank."),
        Mistake(lambda d_in, d_out, r: d_in + d_out, "the rank is missing."),
        Mistake(lambda d_in, d_out, r: r * d_in * d_out, "the two are added, not multiplied."),
        Mistake(lambda d_in, d_out, r: 2 * r * d_in, "A and B are equally large in a square layer only."),
    ],
    hints=["Count A's numbers and B's.", "A is (r, d_in), B is (d_out, r)."],
    why="A has r * d_in numbers and B d_out * r.",
)
'''

ROW = "| {number:02d} | [{title}](notebooks/{stem}.ipynb) | [what one builds] | 60 | [Colab][{number:02d}] |"
WAY = "| {number} | [{title}]({stem}.md) | [the question that it answers] |"


def new_chapter(number: str, title: str, course: Course, checks: Path | None = None) -> list[Path]:
    """Write the skeleton and return the files that it made or changed.

    Its number is the first that no chapter has: behind the last one, or where `tools.build.renumber` has made room.
    checks: the folder of the chapters' checks; default: the package's. Raises BuildError for another number, for a
    title without letters, and when a file is there already.
    """
    root, checks = course.root, checks or _checks_folder()
    lessons = sorted((root / "lessons").glob(LESSON_FILE))
    taken = {int(path.name[:2]) for path in lessons}
    following = next(free for free in range(len(taken) + 1) if free not in taken)
    if number != f"{following:02d}":
        raise BuildError(
            f"the next chapter's number is {following:02d}, not {number!r}: chapters are numbered without gaps"
        )
    words = "_".join(re.findall(r"[a-z0-9]+", title.lower()))
    if not words:
        raise BuildError(f'a title has letters, not {title!r}: make new CH={number} TITLE="Out of the notebook"')
    stem = f"{number}_{words}"
    lesson, module, readme = root / "lessons" / f"{stem}.md", checks / f"ch{number}.py", root / "README.md"
    if module.exists():
        raise BuildError(f"{module} is there already, without a lesson; move it away first")
    package = ".".join(checks.relative_to(root).parts)
    given = {
        "number": following,
        "title": title,
        "stem": stem,
        "name": f"update_size_{number}",
        "package": package,
        "begin": BEGIN,
        "end": END,
    }
    tables = {readme: [(r"\| \d\d \| \[", ROW.format(**given)), (r"\[\d\d\]: ", colab_link(stem, course))]}
    if lessons:
        tables[lessons[0]] = [(r"\| \d+ \| ", WAY.format(**given))]
    texts = {path: _with_rows(path, rows) for path, rows in tables.items()}
    texts |= {lesson: HEADER + LESSON.format(**given), module: CHECKS.format(**given)}
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8", newline="\n")
    references = write_references(reference_modules([read_lesson(lesson)]), course)  # which the checks import
    return [lesson, module, *(root / name for name in references), *tables]


def _with_rows(path: Path, rows: Sequence[tuple[str, str]]) -> str:
    """A file's text with each line put where it belongs in order, among those that begin as the pattern says."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for begins, line in rows:
        places = [i for i, text in enumerate(lines) if re.match(begins, text)]
        before = [i for i in places if _first_number(lines[i]) < _first_number(line)]
        last = max(before or places, default=None)
        if last is None:
            raise BuildError(
                f"{path.name} has no table of chapters, or no links to Colab below it; {line!r} belongs there"
            )
        lines.insert(last + 1, line)
    return "\n".join(lines) + "\n"


def _first_number(line: str) -> int:
    return int(re.findall(r"\d+", line)[0])


def _checks_folder() -> Path:
    from utils.course import checks

    return Path(checks.__path__[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 2 or not all(arguments):
        print('usage: make new CH=22 TITLE="Vision"', file=sys.stderr)
        return 2
    try:
        course = Course.here()
        others = find_lessons(course)
        paths = new_chapter(*arguments, course)
        print("\n".join(str(path.relative_to(ROOT)) for path in paths))
        errors = asyncio.run(build([read_lesson(path) for path in others], course, REUSE))  # their links
    except BuildError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    for error in errors:
        print(f"note: no link to the new chapter yet: {error}")
    print(f"Next: write, then `make notebooks CH={arguments[0]}` and `make architecture`.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
