"""Make room for a chapter: it and those behind it get the next number.

    python -m tools.build.renumber 6        chapter 6 becomes 7, 7 becomes 8, and so on; then write the new chapter 6

Files are renamed (lessons, notebooks, checks, references, answers), and the numbers follow in their names wherever
these stand, in the rows of the tables, and in prose: "chapter 6", "chapters 5 to 8". Prose of tests and of the
classroom's guide is left alone, since many name a chapter of a made-up course: what may have to follow there is
printed. Afterwards `make notebooks` and the tests tell what is left.

Attributes:
    NAMED: "chapter 6", "Chapters 5, 6 and 10" in prose; the numbers are its second and third group.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tools.build.lesson import ROOT, BuildError
from tools.build.navigation import LESSON_FILE

NAMED = re.compile(
    r"(?<![\w/])([Cc]hapters?\s+)(\d+)((?:(?:,\s+and\s+|,\s+|\s+and\s+|\s+to\s+|\s+or\s+|–)(?:chapter\s+)?\d+)*)(?!\d)"
)

_TEXTS = {".md", ".py", ".toml", ".json", ".yml"}
_NOT_OURS = {".git", ".venv", "work", "notebooks", "solutions", "scratch", "node_modules"}
_BY_HAND = re.compile(r"^(tests/(?!course/answers/)|classroom/)")
_HISTORY = re.compile(r"^CHANGELOG")


def make_room(root: Path, first: int) -> list[str]:
    """Move chapter `first` and all behind it by one; the lines that are left to be looked at, each with its place.

    Raises BuildError, with nothing changed, when there is no such chapter or a chapter would need a third digit.
    """
    stems = sorted(path.stem for path in (root / "lessons").glob(LESSON_FILE))
    behind = [stem for stem in stems if int(stem[:2]) >= first]
    if not behind or int(behind[0][:2]) != first:
        raise BuildError(f"there is no chapter {first}; there are {stems[0][:2]} to {stems[-1][:2]}")
    last = int(behind[-1][:2])
    if last == 99:
        raise BuildError("chapter 99 can't move: chapters have two digits")

    def moved(number: str) -> str:
        return f"{int(number) + 1:0{len(number)}d}" if first <= int(number) <= last else number

    left = []
    for path in _texts(root):
        name = path.relative_to(root).as_posix()
        text = path.read_text(encoding="utf-8")
        new = text if _HISTORY.match(name) else _renumbered(name, text, behind, moved)
        if new != text:
            path.write_text(new, encoding="utf-8", newline="\n")
        if _BY_HAND.match(name):
            left += [f"{name}:{at}: {line.strip()}" for at, line in _naming(new, moved)]
    for stem in reversed(behind):
        for old, new in _files(root, stem, moved(stem[:2])):
            if old.exists():
                old.rename(new)
    return left


def _texts(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if path.suffix in _TEXTS and path.is_file() and not path.is_symlink() and _NOT_OURS.isdisjoint(parts):
            yield path


def _renumbered(name: str, text: str, behind: Sequence[str], moved: Callable[[str], str]) -> str:
    """A file's text with the new numbers: in chapters' names, in tables, and in prose where that isn't left alone."""
    text = re.sub(
        r"\b(" + "|".join(map(re.escape, behind)) + r")\b", lambda found: moved(found[1][:2]) + found[1][2:], text
    )
    if not _BY_HAND.match(name):
        text = NAMED.sub(lambda f: f[1] + moved(f[2]) + re.sub(r"\d+", lambda number: moved(number[0]), f[3]), text)
        text = re.sub(r"(?<![\w.])ch(\d\d)\b", lambda found: f"ch{moved(found[1])}", text)
    label = r"(?<=\[)\d+(?=\]\((\d\d)_\w+\.md[)#])"  # [13](13_rank.md)
    text = re.sub(label, lambda f: moved(f[0]) if int(moved(f[0])) == int(f[1]) else f[0], text)
    if name == "README.md":
        row = r"(?m)^(\| |\[)(\d\d)( \|.*\[Colab\]\[|\]: )(?:\d\d\] \|$)?"
        text = re.sub(row, lambda f: f"{f[1]}{moved(f[2])}{f[3]}" + f"{moved(f[2])}] |" * f[3].endswith("["), text)
    if name.startswith("lessons/00_"):
        text = re.sub(r"(?m)^\| (\d+) \| \[", lambda found: f"| {moved(found[1])} | [", text)
    return text


def _naming(text: str, moved: Callable[[str], str]) -> Iterator[tuple[int, str]]:
    """The lines that name a chapter that has moved."""
    for at, line in enumerate(text.splitlines(), 1):
        if any(moved(number) != number for found in NAMED.finditer(line) for number in re.findall(r"\d+", found[0])):
            yield at, line


def _files(root: Path, stem: str, number: str) -> Iterator[tuple[Path, Path]]:
    """Where a chapter's files are, and where they belong under the new number."""
    old, new = stem[:2], number + stem[2:]
    for folder, ending in (("lessons", "md"), ("notebooks", "ipynb"), ("solutions", "ipynb")):
        yield root / folder / f"{stem}.{ending}", root / folder / f"{new}.{ending}"
    checks = root / "utils" / "course" / "checks"
    for folder in (checks, checks / "references"):
        yield folder / f"ch{old}.py", folder / f"ch{number}.py"
    answers = root / "tests" / "course" / "answers"
    yield answers / f"{old}.md", answers / f"{number}.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1 or not re.fullmatch(r"\d\d?", arguments[0]):
        print("usage: python -m tools.build.renumber 6", file=sys.stderr)
        return 2
    try:
        left = make_room(ROOT, int(arguments[0]))
    except BuildError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print("\n".join(["These lines were left as they are:", *left] if left else ["Nothing is left to be looked at."]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
