"""The house rules for a lesson, each told with the lesson's line. CONTRIBUTING.md says them in prose.

The build asks :func:`broken` before it runs anything, and tests/test_notebooks.py asks it for every lesson.

Attributes:
    LONGEST, MEDIAN: Lines that aren't blank: of the longest code cell, and of the median one.
    TOLERANCE, AT_LEAST: The sentence may differ by a quarter from the record, or by five seconds.
    Found: What a rule finds: a line of the lesson, and what is wrong there.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterator

from tools.build.lesson import LEARNER, SOLVED, Course, Lesson, exercise_cells, find_lessons, split_solution
from tools.build.one_run import is_compared
from tools.build.pictures import PICTURE, faults

LONGEST, MEDIAN = 25, 6

RUNS = re.compile(r"Running all cells takes about (\d+) s on two CPU cores\b")
RECORD = "assets/measurements/minutes.json"
TOLERANCE, AT_LEAST = 0.25, 5

SECTION = re.compile(r"^## (.*)$((?:\n(?!## ).*)*)", re.M)
PLACEHOLDER = re.compile(r"^(?:- |#+ (?:Exercise: )?)?(\[[^\]\n]+\])(?![(\[:])", re.M)

# A number of arXiv, month and count, that doesn't end a link to its page.
UNLINKED_PAPER = re.compile(r"(?<!\]\(https://arxiv\.org/abs/)\b((?:0[7-9]|[12]\d)(?:0[1-9]|1[0-2])\.\d{4,5})\b")

FORMULA = re.compile(r"`[^`\n]*`|\$\$.+?\$\$|(?<![\\$])\$(?!\s)[^$\n]+?(?<!\s)\$", re.S)
# GitHub reads a lesson's formulas as Markdown first: an escaped sign loses its backslash, and _ behind a bracket or a
# prime, or *, may begin italics.
EATEN = re.compile(r"\\[^A-Za-z\s]|[)}\]'|]_|\*")

COMMENT_MARKERS = re.compile(r"^\s*#\s*(NBVAL_\w+|PYTEST_VALIDATE_IGNORE_OUTPUT)\s*$", re.M)

# A link called by a chapter's number: [13](13_x.md), [chapter 13](13_x.md), [chapter 13, "A heading"](13_x.md#y).
NUMBERED = re.compile(r"\[(?:[Cc]hapter\s+)?(\d+)(?!\d|\.\d)[^\]\[]*\]\((\d\d)_\w+\.md[)#]")

Found = Iterator[tuple[int, str]]


def broken(lesson: Lesson, course: Course) -> list[str]:
    """Every rule that the lesson breaks, one sentence each, with its line."""
    name = f"{lesson.path.parent.name}/{lesson.path.name}"
    return [f"{name}, line {line}: {said}" for rule in RULES for line, said in rule(lesson, course)]


def unwritten(lesson: Lesson) -> list[str]:
    """What `make new` left to be written and stands there still: text in square brackets that is no link."""
    name = f"{lesson.path.parent.name}/{lesson.path.name}"
    return [f"{name}, line {line}: to be written: {found[1]}" for line, found in _in_prose(lesson, PLACEHOLDER)]


def _in_prose(lesson: Lesson, pattern: re.Pattern[str]) -> Iterator[tuple[int, re.Match[str]]]:
    """Where `pattern` stands in the prose, code in fences aside: the lesson's line, and the match."""
    for index, cell in enumerate(lesson.cells):
        if cell.cell_type == "markdown":
            prose = re.sub(r"(?ms)^```.*?^```", lambda fence: "\n" * fence[0].count("\n"), cell.source)
            for found in pattern.finditer(prose):
                yield lesson.lines[index] + prose.count("\n", 0, found.start()), found


def _opening(lesson: Lesson, course: Course) -> Found:
    """A title with the chapter's number, what one will be able to do, and the minutes."""
    if not re.fullmatch(r"\d\d_[a-z0-9_]+", lesson.path.stem):
        yield 1, "a lesson's file is called like 09_sft_training.md"
        return
    line, text = lesson.lines[0], lesson.cells[0].source
    number = int(lesson.path.stem[:2])
    if not re.match(rf"# Chapter {number}: \S", text):
        yield line, f"the title is not '# Chapter {number}: ...'"
    if not re.search(r"\*\*You will be able to\*\*:?\s*\n\s*[-*] ", text):
        yield line, "the opening has no '**You will be able to**' with a list under it"
    if not _minutes(text):
        yield line, "the opening has no line that begins 'About 60 minutes.', what reading and exercises take"


def _minutes(opening: str) -> str | None:
    found = re.search(r"^About (\d+) minutes\.", opening, re.M)
    return found and found[1]


def _running_time(lesson: Lesson, course: Course) -> Found:
    """How long running takes, as measured: `make minutes` writes the record and the sentence."""
    text = lesson.cells[0].source
    said = RUNS.search(text)
    if not said:
        yield lesson.lines[0], "the opening doesn't say 'Running all cells takes about 40 s on two CPU cores'"
        return
    path = course.root / RECORD
    measured = json.loads(path.read_text(encoding="utf-8"))["seconds"] if path.exists() else {}
    seconds = measured.get(lesson.path.stem, int(said[1]))
    if not near(int(said[1]), seconds):
        line = lesson.lines[0] + text.count("\n", 0, said.start())
        yield (
            line,
            f"running takes {seconds:.0f} s by {RECORD}, not {said[1]} s; `make minutes` measures and writes both",
        )


def near(said: int, measured: float) -> bool:
    """Whether a lesson may say `said` seconds of a run that took `measured`."""
    return abs(said - measured) <= max(AT_LEAST, TOLERANCE * measured)


def _readme(lesson: Lesson, course: Course) -> Found:
    """The README's table has the chapter, with this title and these minutes, and below it is the link to Colab."""
    stem, text = lesson.path.stem, lesson.cells[0].source
    title, minutes = text.split("\n", 1)[0].partition(": ")[2], _minutes(text)
    if minutes is None:  # said by the rule on the opening
        return
    begins, ends = (
        f"| {stem[:2]} | [{title}](notebooks/{stem}.ipynb) | ",
        f" | {minutes} | [Colab][{stem[:2]}] |",
    )
    lines = (course.root / "README.md").read_text(encoding="utf-8").splitlines()
    if not any(line.startswith(begins) and line.endswith(ends) for line in lines):
        there = next((n for n, line in enumerate(lines, 1) if line.startswith(f"| {stem[:2]} | ")), None)
        said = f"line {there} of README.md, the chapter's row, isn't" if there else "README.md's table has no row"
        yield lesson.lines[0], f"{said} '{begins}...{ends}', ... being what one builds"
    link = colab_link(stem, course)
    if link not in lines:
        yield lesson.lines[0], f"README.md has no line '{link}'"


def _way(lesson: Lesson, course: Course) -> Found:
    """Chapter 0's table has the chapter, with this title, and links to it."""
    first = find_lessons(course)[0]
    if lesson.path == first:
        return
    number, _, title = lesson.cells[0].source.split("\n", 1)[0].removeprefix("# Chapter ").partition(": ")
    begins = f"| {number} | [{title}]({lesson.path.name}) | "
    if not any(line.startswith(begins) for line in first.read_text(encoding="utf-8").splitlines()):
        yield lesson.lines[0], f"the table in lessons/{first.name} has no row '{begins}... |', ... being its question"


def colab_link(stem: str, course: Course) -> str:
    """The README's line that says where a chapter opens in Colab."""
    from utils.course.colab import Origin, notebook_page

    return f"[{stem[:2]}]: {notebook_page(Origin(course.repository, course.ref), f'{LEARNER}/{stem}.ipynb')}"


def _closing(lesson: Lesson, course: Course) -> Found:
    """The last sections are a recap and what to read, and each lists something."""
    sections = [(line, found[1], found[2]) for line, found in _in_prose(lesson, SECTION)]
    last = sections[-2:]
    if [title for _, title, _ in last] != ["Recap", "Read more"]:
        line = sections[-1][0] if sections else lesson.lines[0]
        found = ", ".join(f"'## {title}'" for _, title, _ in last) or "none"
        yield line, f"the last two sections are not '## Recap' and '## Read more', but {found}"
        return
    for line, title, below in last:
        if not re.search(r"^([-*]|\d+\.|\|) *\S", below, re.M):
            yield line, f"'## {title}' lists nothing: write '- ...' below it"


def _exercises(lesson: Lesson, course: Course) -> Found:
    """Each has a title, its difficulty, its minutes, and how to open its hints; after the last one comes progress()."""
    roles = exercise_cells(lesson)
    if not roles:
        yield lesson.lines[0], "the chapter has no exercise"
        return
    for index, (role, name) in roles.items():
        if role != "solution":
            continue
        before, line = lesson.cells[index - 1], lesson.lines[index - 1]
        if before.cell_type != "markdown" or "### Exercise: " not in before.source:
            yield lesson.lines[index], f"above the exercise {name!r} is no '### Exercise: title'"
            continue
        at = before.source.rfind("### Exercise: ")
        line, prose = line + before.source.count("\n", 0, at), before.source[at:]
        if not re.search(r"^Difficulty: (●○○|●●○|●●●)( |$)", prose, re.M):
            yield line, f"the exercise {name!r} has no line 'Difficulty: ●○○ · about 5 minutes'"
        elif not re.search(r"^Difficulty: ... · about \d+ minutes?\b", prose, re.M):
            yield line, f"the line 'Difficulty: ...' of the exercise {name!r} ends without '· about 5 minutes'"
        hints = set(re.findall(r'hint\("(\w+)"\)', prose))
        if not hints:
            yield line, f'the exercise {name!r} doesn\'t say how to open its hints: `hint("{name}")`'
        for other in hints - {name}:
            yield line, f'hint("{other}") stands above check("{name}", ...): is one of the two names misspelt?'
    last = max(index for index, cell in enumerate(lesson.cells) if cell.cell_type == "code")
    if not re.search(r"^progress\(\)", lesson.cells[last].source, re.M):
        yield lesson.lines[last], "the last code cell doesn't call progress()"


def _lengths(lesson: Lesson, course: Course) -> Found:
    """Code cells are short."""
    code = [(i, cell.source) for i, cell in enumerate(lesson.cells) if cell.cell_type == "code"]
    for kind, which in ((LEARNER, 0), (SOLVED, 1)):
        lengths = {
            i: sum(bool(line.strip()) for line in split_solution(source, lesson.where(i))[which].splitlines())
            for i, source in code
        }
        for index, length in lengths.items():
            if length > LONGEST:
                yield lesson.lines[index], f"a code cell of {length} lines in {kind}/; {LONGEST} at the most"
        if lengths and statistics.median(lengths.values()) > MEDIAN:
            yield lesson.lines[0], f"the median code cell in {kind}/ has more than {MEDIAN} lines"


def _not_compared(lesson: Lesson, course: Course) -> Found:
    """Few cells are not compared; each says why in its first line."""
    code = [(lesson.lines[i], cell) for i, cell in enumerate(lesson.cells) if cell.cell_type == "code"]
    excluded = [line for line, cell in code if not is_compared(cell)]
    most = max(2, len(code) // 10)
    if len(excluded) > most:
        yield excluded[most], f"{len(excluded)} of {len(code)} code cells are not compared; {most} at the most"
    for line, cell in code:
        said = cell.source.startswith("# Not compared:")
        if COMMENT_MARKERS.search(cell.source):
            yield line, 'write ```python tags=["nbval-ignore-output"], not a comment, where a cell is not compared'
        elif said and is_compared(cell):
            yield line, 'the cell says that it is not compared, and has no tags=["nbval-ignore-output"]'
        elif not is_compared(cell) and not re.match(r"# Not compared: \S+( \S+){2,}", cell.source):
            yield line, "a cell that is not compared says why in its first line: '# Not compared: a time, ...'"


def _pictures(lesson: Lesson, course: Course) -> Found:
    """A picture is a drawing of the lessons', with a text for who doesn't see it."""
    for line, found in _in_prose(lesson, PICTURE):
        for fault in faults(found[1], found[2], lesson.path.parent):
            yield line, fault


def _numbers(lesson: Lesson, course: Course) -> Found:
    """A link that is called by a chapter's number leads to that chapter."""
    for line, found in _in_prose(lesson, NUMBERED):
        if int(found[1]) != int(found[2]):
            yield line, f"the link {found[0]!r} is called {found[1]} and leads to chapter {int(found[2])}"


def _papers(lesson: Lesson, course: Course) -> Found:
    """A paper's number at arXiv is the address of a link."""
    for line, found in _in_prose(lesson, UNLINKED_PAPER):
        yield line, f"arXiv's {found[1]} is no link: write [*the title*](https://arxiv.org/abs/{found[1]})"


def _formulas(lesson: Lesson, course: Course) -> Found:
    """A formula reads the same in JupyterLab, in Colab and, as part of a lesson, on GitHub."""
    for line, found in _in_prose(lesson, FORMULA):
        if found[0].startswith("`"):  # code, with a $ of its own
            continue
        if eaten := EATEN.search(found[0]):
            instead = r"write \thinspace, \lbrace, \cr or \ast, and name what is in the brackets"
            yield line, f"{eaten[0]!r} in {found[0]} is lost on GitHub, which reads it as Markdown: {instead}"
        before = found.string[found.start() - 1 : found.start()]
        if re.match(r"[\w-]", before):
            yield line, f"{found[0]} stands right behind {before!r}, and GitHub shows no formula there"


RULES: tuple[Callable[[Lesson, Course], Found], ...] = (
    _opening,
    _running_time,
    _readme,
    _way,
    _exercises,
    _lengths,
    _not_compared,
    _closing,
    _numbers,
    _papers,
    _pictures,
    _formulas,
)
