"""Give chapters other numbers: make room for one, or exchange some.

    python -m tools.build.renumber 6                    6 becomes 7, 7 becomes 8, and so on: room for a new chapter 6
    python -m tools.build.renumber 18=20 19=21 20=19    18 becomes 20, 19 becomes 21, 20 becomes 19

The first is the second with every chapter from 6 on in its map. Files are renamed (lessons, notebooks, checks,
references, answers), and the numbers follow in their names wherever these stand, in the rows of the tables, and in
prose: "chapter 6", "chapters 5 to 8". Rows and lists come in the new order. Prose of tests and of the classroom's guide
is left alone, since many name a chapter of a made-up course, and so is "chapters 5 to 8" where these no longer stand
side by side: what may have to follow there is printed. Afterwards `make notebooks` and the tests tell what is left.

Attributes:
    NAMED: "chapter 6", "Chapters 5, 6 and 10" in prose; the numbers are its second and third group.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tools.build.lesson import ROOT, BuildError
from tools.build.navigation import LESSON_FILE
from utils.files import replaced_file

NAMED = re.compile(
    r"(?<![\w/])([Cc]hapters?\s+)(\d+)((?:(?:,\s+and\s+|,\s+|\s+and\s+|\s+to\s+|\s+or\s+|–)(?:chapter\s+)?\d+)*)(?!\d)"
)

_TEXTS = {".md", ".py", ".toml", ".json", ".yml"}
_NOT_OURS = {".git", ".venv", "work", "notebooks", "solutions", "scratch", "node_modules"}
_BY_HAND = re.compile(r"^(tests/(?!course/answers/)|classroom/)")
_HISTORY = re.compile(r"^CHANGELOG")
USAGE = "python -m tools.build.renumber 6, or 18=20 19=21 20=19 (a chapter and its new number)"

_RANGE = re.compile(r"\bto\b|–")


def make_room(root: Path, first: int) -> list[str]:
    """Move chapter `first` and all behind it by one; the lines that are left to be looked at, each with its place.

    Raises BuildError, with nothing changed, when there is no such chapter or a chapter would need a third digit.
    """
    behind = [number for number in _chapters(root) if number >= first]
    return renumber(root, {number: number + 1 for number in sorted({first, *behind})})


def renumber(root: Path, numbers: Mapping[int, int]) -> list[str]:
    """Give each chapter in `numbers` its new number; the lines that are left to be looked at, each with its place.

    Raises BuildError, with nothing changed, for a number without a chapter, for a new one that isn't 0 to 99, that two
    chapters would get or that a chapter has and keeps, and when a file is in the way.
    """
    stems = _chapters(root)
    _refuse(numbers, stems)
    moved = {old: new for old, new in numbers.items() if old != new}
    if not moved:
        raise BuildError("every chapter would keep its number: name one that gets another")
    course = _Numbers(stems, moved)
    names = {
        old: new
        for number, target in moved.items()
        for old, new in _files(root, stems[number], f"{target:02d}")
        if old.exists()
    }
    for new in names.values():
        if new.exists() and new not in names:
            raise BuildError(f"{new.relative_to(root)} is in the way, and no chapter's: move it away first")

    left, texts = [], {}
    for path in _texts(root):
        name = path.relative_to(root).as_posix()
        text = path.read_text(encoding="utf-8")
        new = text if _HISTORY.match(name) else _renumbered(name, text, course)
        if new != text:
            texts[path] = new
        if not _HISTORY.match(name):
            left += [f"{name}:{at}: {line}" for at, line in _left(name, text, course)]
    for path, text in texts.items():
        with replaced_file(path) as scratch:
            scratch.write_text(text, encoding="utf-8", newline="\n")
    waiting = {old.rename(old.with_name(f".{old.name}.moving")): new for old, new in names.items()}
    for old, new in waiting.items():
        old.rename(new)
    return left


def _chapters(root: Path) -> dict[int, str]:
    """Each chapter's number and its lesson's stem, in order. Raises BuildError for two lessons of one number."""
    stems = sorted(path.stem for path in (root / "lessons").glob(LESSON_FILE))
    for stem, other in itertools.pairwise(stems):
        if stem[:2] == other[:2]:
            raise BuildError(f"{stem} and {other} have one number: rename one of the lessons first")
    return {int(stem[:2]): stem for stem in stems}


def _refuse(numbers: Mapping[int, int], stems: Mapping[int, str]) -> None:
    got: dict[int, int] = {}
    words = ", ".join(f"{number:02d}" for number in stems)
    for old, new in numbers.items():
        if old not in stems:
            raise BuildError(f"there is no chapter {old}; there are {words}")
        if not 0 <= new <= 99:
            raise BuildError(f"chapter {old} can't become {new}: chapters have two digits")
        if new in got:
            raise BuildError(f"chapters {got[new]} and {old} would both become {new}: give one another number")
        if new in stems and new not in numbers:
            raise BuildError(f"chapter {old} can't become {new}, which is {stems[new]}: say what that becomes as well")
        got[new] = old


class _Numbers:
    """The old and the new numbers of a course's chapters."""

    def __init__(self, stems: Mapping[int, str], moved: Mapping[int, int]) -> None:
        self.stems, self.moved = stems, moved
        self.after = {moved.get(number, number) for number in stems}

    def of(self, number: int | str) -> int:
        return self.moved.get(int(number), int(number))

    def mention(self, text: str) -> str | None:
        """A mention such as "chapters 5 to 8" with the new numbers, a list in order; None for a range that was torn."""
        old = re.findall(r"\d+", text)
        new = [self.of(number) for number in old]
        if _RANGE.search(text):
            if not self._still_ranges(text):
                return None
        elif sorted(map(int, old)) == list(map(int, old)):
            new.sort()
        width = 2 if any(re.fullmatch(r"0\d", number) for number in old) else 1
        written = iter(new)
        return re.sub(r"\d+", lambda found: f"{next(written):0{width}d}", text)

    def _still_ranges(self, text: str) -> bool:
        """Whether from each range's new first to its new last chapter there are those that were between, no others."""
        for first, last in re.findall(r"(\d+)(?:\s+to\s+|–)(?:chapter\s+)?(\d+)", text):
            within = {self.of(number) for number in self.stems if int(first) <= number <= int(last)}
            if within != {number for number in self.after if self.of(first) <= number <= self.of(last)}:
                return False
        return True


def _texts(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if path.suffix in _TEXTS and path.is_file() and not path.is_symlink() and _NOT_OURS.isdisjoint(parts):
            yield path


def _renumbered(name: str, text: str, course: _Numbers) -> str:
    """A file's text with the new numbers: in chapters' names, in tables, and in prose where that isn't left alone."""
    stems = "|".join(re.escape(course.stems[number]) for number in course.moved)
    text = re.sub(rf"\b({stems})\b", lambda found: f"{course.of(found[1][:2]):02d}{found[1][2:]}", text)
    if not _BY_HAND.match(name):
        text = NAMED.sub(lambda found: course.mention(found[0]) or found[0], text)
        text = re.sub(r"(?<![\w.])ch(\d\d)\b", lambda found: f"ch{course.of(found[1]):02d}", text)
    label = r"(?<=\[)\d+(?=\]\((\d\d)_\w+\.md[)#])"  # [13](13_rank.md)
    text = re.sub(label, lambda f: _like(f[0], course.of(f[0])) if course.of(f[0]) == int(f[1]) else f[0], text)
    if name == "README.md":
        row = r"(?m)^(\| |\[)(\d\d)( \|.*\[Colab\]\[|\]: )(?:\d\d\] \|$)?"
        text = re.sub(
            row, lambda f: f"{f[1]}{course.of(f[2]):02d}{f[3]}" + f"{course.of(f[2]):02d}] |" * f[3].endswith("["), text
        )
        text = _in_order(_in_order(text, r"\| (\d\d) \| .*\[Colab\]"), r"\[(\d\d)\]: ")
    if name.startswith("lessons/00_"):
        text = re.sub(r"(?m)^\| (\d+) \| \[", lambda found: f"| {course.of(found[1])} | [", text)
        text = _in_order(text, r"\| (\d+) \| \[")
    return text


def _like(old: str, new: int) -> str:
    """The number `new` with a leading zero where `old` has one."""
    return f"{new:02d}" if old.startswith("0") and len(old) == 2 else str(new)


def _in_order(text: str, begins: str) -> str:
    """The lines that begin so, in their places, by the number in the pattern's group."""
    lines = text.splitlines(keepends=True)
    found = {at: int(row[1]) for at, line in enumerate(lines) if (row := re.match(begins, line))}
    for at, line in zip(found, [lines[at] for at in sorted(found, key=found.__getitem__)], strict=True):
        lines[at] = line
    return "".join(lines)


def _left(name: str, text: str, course: _Numbers) -> Iterator[tuple[int, str]]:
    """The lines that name a chapter that moves and keep its old number, each with its number in the old text."""
    by_hand = _BY_HAND.match(name)
    lines = text.splitlines()
    for found in NAMED.finditer(text):
        new = course.mention(found[0])
        if new is None or by_hand and new != found[0]:
            at = text.count("\n", 0, found.start())
            yield at + 1, lines[at].strip()


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
    pairs = [found.groups() for word in arguments if (found := re.fullmatch(r"(\d\d?)=(\d\d?)", word))]
    room = len(arguments) == 1 and re.fullmatch(r"\d\d?", arguments[0])
    if not room and (not pairs or len(pairs) < len(arguments)):
        print(f"usage: {USAGE}", file=sys.stderr)
        return 2
    numbers = {int(old): int(new) for old, new in pairs}
    try:
        if len(numbers) < len(pairs):
            raise BuildError("a chapter has one new number, and one here is given two")
        left = make_room(ROOT, int(arguments[0])) if room else renumber(ROOT, numbers)
    except BuildError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print("\n".join(["These lines were left as they are:", *left] if left else ["Nothing is left to be looked at."]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
