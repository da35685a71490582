"""Hold every proof of the claims ledger against the notebooks, tests and records, and write lessons/claims.md.

    python -m tools.build_claims            check all proofs, then write the page
    python -m tools.build_claims --check    write nothing; fail when a proof doesn't hold or the page is not up to date

The ledger is lessons/claims.toml. It needs no kernel and takes a second: that a cell still prints what is stored is
nbval's to say, and that a test passes is pytest's; both run in CI beside this.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from utils.course.claims import (
    QUESTIONS,
    VERDICTS,
    Cell,
    Claim,
    LedgerError,
    Record,
    Test,
    by_question,
    hardware,
    measured,
    proofs,
    proved_by,
    read_ledger,
    read_traps,
    verdicts,
)

ROOT = Path(__file__).resolve().parents[1]

PAGE = Path("lessons") / "claims.md"
COPIES = ("solutions", "notebooks")
NOT_COMPARED = {"nbval-ignore-output", "nbval-skip"}
IGNORED_BY_COMMENT = re.compile(r"^\s*#\s*(NBVAL_IGNORE_OUTPUT|NBVAL_SKIP|PYTEST_VALIDATE_IGNORE_OUTPUT)\s*$", re.M)
NEVER_RUN = re.compile(r"\b(skip|skipif|xfail|importorskip)\b")


# ------------------------------------------------------------------------------------------------------------- cells


def headings(text: str) -> list[tuple[int, str, str]]:
    """Every heading of a Markdown text outside its code blocks: its line's number from 1, its text, and its anchor.

    Anchors are made as GitHub makes them, so that of two equal headings the second has "-1" at its end.

    >>> headings("# Why?\\n\\n## What `A` is\\n\\n## Why?")
    [(1, 'Why?', 'why'), (3, 'What `A` is', 'what-a-is'), (5, 'Why?', 'why-1')]
    """
    found, taken, fence = [], set(), ""
    for number, line in enumerate(text.splitlines(), 1):
        mark = re.match(r" {0,3}(`{3,}|~{3,})", line)
        if fence:
            fence = "" if mark and mark[1].startswith(fence) and not line.strip(" `~") else fence
        elif mark:
            fence = mark[1]
        elif heading := re.fullmatch(r"#{1,6} +(.*?)(?: +#+)?\s*", line):
            plain = slug(heading[1])
            anchor = next(a for a in (plain, *(f"{plain}-{n}" for n in range(1, len(taken) + 2))) if a not in taken)
            taken.add(anchor)
            found.append((number, heading[1], anchor))
    return found


def slug(heading: str) -> str:
    """A heading's anchor as GitHub makes it, as if no other heading had the same.

    >>> slug("What `A` starts as, and [why](paper.md)")
    'what-a-starts-as-and-why'
    """
    shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"</?\w+[^>]*>", "", heading))
    return re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")


@cache
def _cells(path: Path) -> tuple[dict, ...]:
    """A notebook's code cells, each with its source in one piece and the heading above it."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise LedgerError(
            f"there is no readable notebook {path.parent.name}/{path.name} ({type(error).__name__})"
        ) from None
    heading, found = "", []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            found_here = headings(source)
            heading = found_here[-1][1] if found_here else heading
        else:
            found.append(cell | {"source": source, "heading": heading})
    return tuple(found)


def _find(path: Path, proof: Cell) -> dict:
    cells = [c for c in _cells(path) if proof.line in map(str.strip, c["source"].splitlines())]
    if len(cells) != 1:
        count = "no cell has" if not cells else f"{len(cells)} cells have"
        raise LedgerError(
            f"{path.parent.name}/{path.name}: {count} the line {proof.line!r}; a proof needs one that has it"
        )
    return cells[0]


def output_of(cell: dict) -> str:
    """What nbval compares of a cell: its printed text and its results as text; no pictures, no stderr."""
    parts = []
    for output in cell["outputs"]:
        if output["output_type"] == "stream" and output["name"] == "stdout":
            parts.append("".join(output["text"]))
        for mime in ("text/plain", "text/html", "text/markdown"):
            parts.append("".join(output.get("data", {}).get(mime, "")))
    return "".join(parts)


def cell_problem(proof: Cell, root: Path) -> str | None:
    """Why a cell doesn't prove its claim, or None: it has to be there once, run, compared, and show every text."""
    for copy in COPIES:
        where = f"{copy}/{proof.lesson}.ipynb"
        try:
            cell = _find(root / copy / f"{proof.lesson}.ipynb", proof)
        except LedgerError as error:
            return str(error)
        if cell.get("execution_count") is None:
            return f"{where}: the cell with {proof.line!r} was never run; build the chapter"
        tags = cell["metadata"].get("tags", [])
        if not NOT_COMPARED.isdisjoint(tags) or IGNORED_BY_COMMENT.search(cell["source"]):
            return f"{where}: the cell with {proof.line!r} is not compared in CI, so it proves nothing; choose another"
        for text in proof.shows:
            if text not in output_of(cell):
                got = output_of(cell).strip()[:300]
                return f"{where}: the cell with {proof.line!r} doesn't show {text!r} any more. It shows:\n{got}"
    return None


# ------------------------------------------------------------------------------------------------------------- tests


def _marks(nodes: Sequence[ast.AST]) -> str:
    return "\n".join(ast.unparse(node) for node in nodes)


def test_problem(proof: Test, root: Path) -> str | None:
    """Why a test doesn't prove its claim, or None: pytest has to collect it, and nothing may skip it or let it fail."""
    path = root / proof.file
    if not re.fullmatch(r"tests/(\w+/)*test_\w+\.py", proof.file) or not path.is_file():
        return f"there is no test file {proof.file}"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == proof.function]
    if not proof.function.startswith("test_") or len(found) != 1:
        return f"{proof.file} has {len(found)} functions {proof.function}, and a proof is one that pytest collects"
    at_module = [n for n in tree.body if not isinstance(n, ast.FunctionDef | ast.ClassDef)]
    pinned = [n for n in at_module if "pytestmark" in ast.unparse(n) or "importorskip" in ast.unparse(n)]
    if NEVER_RUN.search(_marks([*found[0].decorator_list, *pinned])) or re.search(
        r"\b(skip|xfail|importorskip)\(", _marks(found[0].body)
    ):
        return f"{proof.file}::{proof.function} may be skipped or may fail, so it proves nothing; choose another"
    return None


# ----------------------------------------------------------------------------------------------------------- records


def record_problem(proof: Record, root: Path) -> str | None:
    """Why a record doesn't prove its claim, or None: measured on a named GPU, and the value in its range."""
    try:
        value, where = measured(proof, root), hardware(proof, root)
    except LedgerError as error:
        return str(error)
    if not where.startswith("NVIDIA"):
        return f"{proof.file}: {proof.what} was measured on {where!r}, which is no GPU; show it with a cell or a test"
    if not proof.at_least <= value <= proof.at_most:
        return f"{proof.file}: {proof.what} is {value:.6g}, not between {proof.at_least} and {proof.at_most}"
    return None


def problems(claims: Sequence[Claim], root: Path = ROOT) -> list[str]:
    """Every proof that doesn't hold, one sentence each, beginning with its claim."""
    check = {Cell: cell_problem, Test: test_problem, Record: record_problem}
    found = [(claim.id, check[type(proof)](proof, root)) for claim in claims for proof in claim.proofs]
    return [f"{name}: {said}" for name, said in found if said]


# ---------------------------------------------------------------------------------------------------------- the page


@cache
def _lines(path: Path) -> tuple[str, ...]:
    return tuple(path.read_text(encoding="utf-8").splitlines())


def line_of(path: Path, line: str) -> int:
    """The number, from 1, of the line of a file that reads `line`, indentation aside. Raises LedgerError where it is
    not there once."""
    found = [number for number, text in enumerate(_lines(path), 1) if text.strip() == line]
    if len(found) != 1:
        raise LedgerError(f"{path.parent.name}/{path.name} has the line {line!r} {len(found)} times, not once")
    return found[0]


def _definition(proof: Test, root: Path) -> int:
    found = [n for n, text in enumerate(_lines(root / proof.file), 1) if text.startswith(f"def {proof.function}(")]
    if len(found) != 1:
        raise LedgerError(f"{proof.file} has {len(found)} functions {proof.function}")
    return found[0]


def _heading(proof: Cell, number: int, root: Path) -> tuple[str, str]:
    """The heading over a line of a lesson, and its anchor.

    Raises LedgerError where the notebook's cell stands under another heading: then the notebook wasn't built since."""
    above = [
        (text, anchor) for line, text, anchor in headings("\n".join(_lines(_lesson(proof, root)))) if line < number
    ]
    built = _find(root / "notebooks" / f"{proof.lesson}.ipynb", proof)["heading"]
    if not above or above[-1][0] != built:
        raise LedgerError(
            f"notebooks/{proof.lesson}.ipynb has the cell with {proof.line!r} under the heading {built!r}, and "
            f"lessons/{proof.lesson}.md under {above[-1][0] if above else 'none'!r}: build the chapter"
        )
    return above[-1]


def _lesson(proof: Cell, root: Path) -> Path:
    return root / "lessons" / f"{proof.lesson}.md"


def _chapter(lesson: str) -> str:
    return f"chapter {int(lesson[:2])}"


def _show(proof: Cell | Test | Record, root: Path) -> str:
    if isinstance(proof, Cell):
        number = line_of(_lesson(proof, root), proof.line)
        heading, anchor = _heading(proof, number, root)
        link = f"[{_chapter(proof.lesson)}, “{heading}”]({proof.lesson}.md#{anchor})"
        book = f"[notebook](../notebooks/{proof.lesson}.ipynb)"
        texts = "; ".join(_code(text) for text in proof.shows)
        source = f"{proof.lesson}.md?plain=1#L{number}"
        return f"cell: {link} ({book}), the cell with [{_code(_inline(proof.line))}]({source}) shows {texts}"
    if isinstance(proof, Test):
        return f"test: [{proof.file}, `{proof.function}`](../{proof.file}#L{_definition(proof, root)})"
    low, high, value = (number / proof.scale for number in (proof.at_least, proof.at_most, measured(proof, root)))
    unit = f" {proof.unit}" if proof.unit else ""
    return (
        f"GPU record: [{proof.file}](../{proof.file}), {hardware(proof, root)}: {proof.what} {value:.3g}{unit} "
        f"(must lie between {low:.3g} and {high:.3g})"
    )


def _code(text: str) -> str:
    """Text as code on one line of Markdown; with two backticks around it where it holds one."""
    text = text.replace("\n", "\\n")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _inline(code: str) -> str:
    return code if len(code) <= 70 else code[:67] + "..."


INTRODUCTION = " ".join(
    """
The course grew out of one document, *LoRA: Zero to Hero, a comprehensive guide*, which leads from the idea of LoRA to
serving a fine-tuned model. This page holds what it claims, and a little that others claim, against what is true. You
needn't have read it: most of these claims stand in many other places. What was worth checking is here, so the counts
say nothing about the document as a whole.
""".split()
)

PROOFS = """Each claim has a verdict, what is true, and proofs of it. A proof is one of three:

- **a cell** of a lesson. Its output is stored, and every run of the course's tests runs the cell again and compares;
- **a test** that computes the fact, and runs with all others;
- **a GPU record**: a measurement in `assets/measurements`, made once, with its hardware named. A test holds the value
  to its range; the measurement itself isn't repeated."""


def page(claims: Sequence[Claim], traps: Sequence[Claim] = (), root: Path = ROOT) -> str:
    """The text of lessons/claims.md. Raises LedgerError where a proof points nowhere."""
    counts, every = proved_by(claims), proofs([*claims, *traps])
    table = [f"| {verdict} | {count} | {VERDICTS[verdict]} |" for verdict, count in verdicts(claims).items()]
    parts = [
        "<!-- Written by tools/build_claims.py from claims.toml. Don't edit this page. -->",
        "# The claims ledger",
        INTRODUCTION,
        "\n".join([f"| verdict | of {len(claims)} claims | it means |", "|---|---:|---|", *table]),
        PROOFS,
        f"{counts['cell']} of the claims are proved by a cell, {counts['test']} by a test and {counts['record']} by a "
        f"recorded GPU measurement; many by more than one. {len(traps)} traps, which nobody states and everybody may "
        f"fall into, come after them. Together that makes {every['cell']} cells, {every['test']} tests and "
        f"{every['record']} GPU records. A claim without a proof, or with one that doesn't hold any more, fails the "
        "build. Where the evidence is a paper's, the paper is cited, and the proof shows the nearest thing that we can "
        "measure.",
        "## By question",
    ]
    for question, found in by_question([*claims, *traps]).items():
        if found:
            rows = [f"- [{c.id}](#{c.id.lower()}) {c.says} **{_sentence(c.verdict)}**" for c in found]
            parts += [f"### {QUESTIONS[question]}", "\n".join(rows)]
    parts.append("## One by one")
    for claim in claims:
        parts += _entry(claim, root, "A common claim", "In the document: section")
    if traps:
        parts += ["## Traps besides", "Found on the way. Nobody states these, but they are easily assumed."]
    for trap in traps:
        parts += _entry(trap, root, "Easily assumed", "It belongs to the document's section")
    return "\n\n".join(parts) + "\n"


def _sentence(verdict: str) -> str:
    return f"{verdict[0].upper()}{verdict[1:]}."


def _entry(claim: Claim, root: Path, opening: str, place: str) -> list[str]:
    said = f"{opening}: {claim.says}"
    verdict = f"**{_sentence(claim.verdict)}** {claim.truth}"
    sources = ["Source: " + "; ".join(claim.sources)] if claim.sources else []
    shown = "\n".join(f"- {_show(proof, root)}" for proof in claim.proofs)
    where = [f"{place} {claim.section}."] if claim.section else []
    return [f"### {claim.id}", said, verdict, *sources, shown, *where]


def link_problems(text: str, root: Path = ROOT) -> list[str]:
    """Every link of the page that leads nowhere: to no file of the repository, or to no heading or line of it.

    One sentence each. Links to other sites aren't looked at."""
    found = []
    for target in dict.fromkeys(re.findall(r"\]\(([^)\s]+)\)", text)):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = root / PAGE.parent / name.partition("?")[0]
        if name and not path.is_file():
            found.append(f"{PAGE} links to {name}, and there is no such file")
            continue
        linked = path.read_text(encoding="utf-8") if name else text
        if line := re.fullmatch(r"L(\d+)", anchor):
            holds = 1 <= int(line[1]) <= len(linked.splitlines())
        else:
            holds = not anchor or anchor in {a for _, _, a in headings(linked)}
        if not holds:
            found.append(
                f"{PAGE} links to {target}, and {name.partition('?')[0] or 'the page'} has no such heading or line"
            )
    return found


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Check the claims ledger and write lessons/claims.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the page is not up to date")
    options = parser.parse_args(arguments)
    _cells.cache_clear()
    _lines.cache_clear()
    target = root / PAGE
    try:
        ledger = root / "lessons" / "claims.toml"
        claims, traps = read_ledger(ledger), read_traps(ledger)
        errors = problems([*claims, *traps], root)
        text = "" if errors else page(claims, traps, root)
        errors += link_problems(text, root)
    except (LedgerError, FileNotFoundError) as error:
        errors, text = [str(error)], ""
    if not errors and options.check and (not target.exists() or target.read_text(encoding="utf-8") != text):
        errors = [f"{PAGE} is not what the ledger gives. Run: python -m tools.build_claims"]
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if errors:
        return 1
    if not options.check:
        partial = target.with_name(f".{target.name}.partial")
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.replace(partial, target)
    print(f"{len(claims)} claims: {verdicts(claims)}; proved by {proved_by(claims)}")
    print(f"with {len(traps)} traps {proofs([*claims, *traps])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
