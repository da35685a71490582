"""The claims ledger: what is commonly claimed, what is true, and what proves it. Read from lessons/claims.toml.

A proof is one of three things: a :class:`Cell` of a notebook whose stored output shows a text, a :class:`Test` that
exists, or a :class:`Record` of a measurement whose value lies in a range. This module only reads the ledger and the
records; ``tools/build_claims.py`` holds the proofs against the notebooks and tests and writes lessons/claims.md.

Attributes:
    Step: One step of a path into a record: a key of an object, or what the wanted row of a list holds.
    VERDICTS: The five verdicts, each with what it means.
    QUESTIONS: The questions that claims answer, by the short name that the ledger uses.
"""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.models.device import ROOT

LEDGER = ROOT / "lessons" / "claims.toml"
_CELL_OUTPUT_AT_LEAST = 4
_FIELDS = {"id", "question", "section", "says", "verdict", "truth", "sources", "proof"}

Step = str | Mapping[str, Any]

VERDICTS = {
    "right": "true as it stands",
    "right under conditions": "true in a setting that the claim leaves out",
    "outdated": "was true, or the best that was known, and isn't any more",
    "wrong": "not true, or not true in general and misleading",
    "not settled": "what was measured, here and elsewhere, points both ways",
}

QUESTIONS = {
    "fit": "Will it fit, and what does LoRA save?",
    "layer": "How does a LoRA layer compute, start and learn?",
    "targets": "Which layers, and what rank?",
    "rate": "Which learning rate, and which alpha?",
    "full": "Is it as good as full fine-tuning?",
    "forget": "What does the model forget?",
    "speed": "Is training with LoRA faster?",
    "qlora": "What does a 4-bit base (QLoRA) save, and is it as good?",
    "data": "What must the data and the template look like?",
    "trainer": "What do the trainer and its arguments do today?",
    "files": "What is in an adapter's file, and how is it loaded?",
    "merge": "Does merging change the answers, or the speed?",
    "serve": "How do I serve it, or several adapters at once?",
    "variant": "Which variant of LoRA?",
    "reward": "Preferences, rewards, a teacher: what do they need?",
    "install": "What has to be installed?",
}


class LedgerError(ValueError):
    """The ledger can't be read or a proof doesn't hold; the text says which claim, and what to do."""


@dataclass(frozen=True)
class Cell:
    """A notebook's cell that prints the fact.

    lesson: the lesson's name without ending. line: a line of the cell's source that no other cell of the lesson has.
    shows: texts that its stored output contains.
    """

    lesson: str
    line: str
    shows: tuple[str, ...]


@dataclass(frozen=True)
class Test:
    """A test that computes the fact: `file`, relative to the repository, and `function`."""

    __test__ = False  # not for pytest to collect

    file: str
    function: str


@dataclass(frozen=True)
class Record:
    """A value in a recorded measurement.

    file: relative to the repository. path: the steps to the value; over: those to a value that it is divided by.
    at_least, at_most: the range. what: the value in words; scale, unit: what it is divided by to be shown, and in what.
    """

    file: str
    path: tuple[Step, ...]
    at_least: float
    at_most: float
    what: str
    over: tuple[Step, ...] = ()
    scale: float = 1.0
    unit: str = ""


Proof = Cell | Test | Record
PROOF_KINDS = {"cell": Cell, "test": Test, "record": Record}


@dataclass(frozen=True)
class Claim:
    """One row of the ledger.

    questions: keys of :data:`QUESTIONS`. verdict: one of :data:`VERDICTS`. sources: citations in Markdown, where papers
    are the evidence. section: where the document that the course grew out of says so; "" where it doesn't.
    """

    id: str
    questions: tuple[str, ...]
    says: str
    verdict: str
    truth: str
    proofs: tuple[Proof, ...]
    sources: tuple[str, ...] = ()
    section: str = ""


# ---------------------------------------------------------------------------------------------------------- reading


def read_ledger(path: Path = LEDGER) -> list[Claim]:
    """The claims in order.

    Raises LedgerError for a field or a proof that is missing, unknown or empty, for a verdict or a question that isn't
    one of the known, for a claim without a proof, and where the ids don't count from C01 on, each once and in order.
    """
    return _read(path, "claim", "C")


def read_traps(path: Path = LEDGER) -> list[Claim]:
    """The traps, T01 and so on, in the form of claims: what nobody states and is easily assumed.

    Raises LedgerError as :func:`read_ledger` does."""
    return _read(path, "trap", "T")


def _read(path: Path, table: str, letter: str) -> list[Claim]:
    try:
        ledger = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise LedgerError(f"{path.name} is not valid TOML: {error}") from None
    if unknown := sorted(set(ledger) - {"claim", "trap"}):
        raise LedgerError(f"{path.name} has an unknown table {unknown[0]!r}; known are claim and trap")
    claims = [_claim(row) for row in ledger.get(table, [])]
    ids = [claim.id for claim in claims]
    wanted = [f"{letter}{number:02d}" for number in range(1, len(ids) + 1)]
    if not ids:
        raise LedgerError(f'{path.name} has no {table}s: the first is [[{table}]] with id = "{letter}01"')
    if ids != wanted:
        missing = [name for name in wanted if name not in ids]
        twice = sorted(name for name, count in Counter(ids).items() if count > 1)
        unknown = [name for name in ids if name not in wanted]
        said = [
            f"{w} {', '.join(n)}" for w, n in (("missing:", missing), ("twice:", twice), ("unknown:", unknown)) if n
        ]
        raise LedgerError(
            f"{path.name} has not the {table}s {wanted[0]} to {wanted[-1]} in order; "
            f"{'; '.join(said) or 'they are shuffled'}"
        )
    return claims


def _claim(row: Mapping[str, Any]) -> Claim:
    name = row.get("id", "a claim without id")
    if unknown := sorted(set(row) - _FIELDS):
        raise LedgerError(f"{name}: unknown field {unknown[0]!r}; known are {', '.join(sorted(_FIELDS))}")
    for field in ("id", "says", "verdict", "truth"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise LedgerError(f"{name}: {field} is missing or empty")
    if not row.get("proof"):
        raise LedgerError(
            f"{name} has no proof: add a [[claim.proof]] with a cell, a test or a record that shows it, or take the "
            "claim's text back to what can be shown"
        )
    proofs = tuple(_proof(name, proof) for proof in row["proof"])
    if row["verdict"] not in VERDICTS:
        raise LedgerError(f"{name}: {row['verdict']!r} is no verdict; the five are {', '.join(VERDICTS)}")
    questions = row.get("question")
    if not isinstance(questions, list) or not questions:
        raise LedgerError(f"{name}: question is missing or no list; it names one or more of {', '.join(QUESTIONS)}")
    for question in questions:
        if question not in tuple(QUESTIONS) or questions.count(question) > 1:
            raise LedgerError(f"{name}: {question!r} is no question, or twice there; known are {', '.join(QUESTIONS)}")
    texts = {field: " ".join(row[field].split()) for field in ("id", "says", "verdict", "truth")}
    rest = {"sources": tuple(row.get("sources", ())), "section": row.get("section", "")}
    return Claim(**texts, questions=tuple(questions), proofs=proofs, **rest)


def _proof(name: str, row: Mapping[str, Any]) -> Proof:
    kinds = [kind for kind in ("cell", "test", "record") if kind in row]
    if len(kinds) != 1:
        raise LedgerError(
            f"{name}: a proof names one of cell, test, record; this one has {', '.join(row) or 'nothing'}"
        )
    try:
        if kinds == ["cell"]:
            lesson, line, shows = _fields(row, "cell", "line", "shows")
            if not shows or any(len(text.strip()) < _CELL_OUTPUT_AT_LEAST for text in shows):
                raise LedgerError(f"{name}: shows needs texts of {_CELL_OUTPUT_AT_LEAST} characters or more, so that "
                                  "another result would not hold them as well")  # fmt: skip
            return Cell(lesson, line.strip(), tuple(shows))
        if kinds == ["test"]:
            file, separator, function = _fields(row, "test")[0].partition("::")
            if not separator:
                raise LedgerError(f"{name}: a test is written file::function, not {row['test']!r}")
            return Test(file, function)
        file, path, low, high, what = _fields(row, "record", "path", "at_least", "at_most", "what", optional=3)
        if not low <= high:
            raise LedgerError(f"{name}: no value lies between {low} and {high}")
        extra = {key: row[key] for key in ("scale", "unit") if key in row}
        return Record(file, tuple(path), low, high, what, over=tuple(row.get("over", ())), **extra)
    except KeyError as error:
        raise LedgerError(f"{name}: a {kinds[0]} proof needs {error.args[0]}") from None


def _fields(row: Mapping[str, Any], *needed: str, optional: int = 0) -> list[Any]:
    known = {*needed, *(("over", "scale", "unit") if optional else ())}
    if unknown := sorted(set(row) - known):
        raise LedgerError(f"a {needed[0]} proof knows no {unknown[0]!r}; it has {', '.join(sorted(known))}")
    return [row[field] for field in needed]


# ---------------------------------------------------------------------------------------------------------- records


def follow(record: Any, path: Sequence[Step], where: str = "the record") -> Any:
    """The value at the end of `path`. Raises LedgerError, naming `where`, when a step leads nowhere or to several."""
    for step in path:
        if isinstance(step, Mapping):
            rows = (
                [r for r in record if all(r.get(k) == v for k, v in step.items())] if isinstance(record, list) else []
            )
            if len(rows) != 1:
                raise LedgerError(f"{where} has {len(rows)} rows with {dict(step)}, not one")
            record = rows[0]
        elif isinstance(record, Mapping) and step in record:
            record = record[step]
        else:
            raise LedgerError(f"{where} has no {step!r} where the path leads")
    return record


def measured(proof: Record, root: Path = ROOT) -> float:
    """The value that a record's proof speaks of. Raises LedgerError when the file or the value isn't there."""
    record = _load(proof, root)
    values = [follow(record, path, proof.file) for path in (proof.path, proof.over) if path]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise LedgerError(f"{proof.file}: {proof.what} is {value!r}, no number")
    return values[0] / values[1] if len(values) == 2 else float(values[0])


def hardware(proof: Record, root: Path = ROOT) -> str:
    """What the value was measured on: `hardware` or `gpu` of the nearest object that holds it.

    Raises LedgerError where the record doesn't say.
    """
    record, found = _load(proof, root), None
    for step in (None, *proof.path):
        record = record if step is None else follow(record, [step], proof.file)
        if isinstance(record, Mapping):
            named = [record[key] for key in ("hardware", "gpu") if isinstance(record.get(key), str)]
            found = named[0] if named else found
    if found is None:
        raise LedgerError(f"{proof.file} doesn't name the hardware that {proof.what} was measured on")
    return found


def _load(proof: Record, root: Path) -> Any:
    try:
        return json.loads((root / proof.file).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise LedgerError(f"there is no record {proof.file}, or it is damaged ({type(error).__name__})") from None


# ----------------------------------------------------------------------------------------------------------- counts


def proofs(claims: Sequence[Claim]) -> dict[str, int]:
    """How many proofs of each kind there are in all, by "cell", "test" and "record"."""
    every = [proof for claim in claims for proof in claim.proofs]
    return {name: sum(isinstance(proof, kind) for proof in every) for name, kind in PROOF_KINDS.items()}


def proved_by(claims: Sequence[Claim]) -> dict[str, int]:
    """How many claims have at least one proof of each kind, by "cell", "test" and "record"."""
    return {name: sum(any(isinstance(p, kind) for p in c.proofs) for c in claims) for name, kind in PROOF_KINDS.items()}


def verdicts(claims: Sequence[Claim]) -> dict[str, int]:
    """How many claims got each of the five verdicts, in the order of :data:`VERDICTS`."""
    found = Counter(claim.verdict for claim in claims)
    return {verdict: found[verdict] for verdict in VERDICTS}


def by_question(claims: Sequence[Claim]) -> dict[str, list[Claim]]:
    """The claims that answer each of :data:`QUESTIONS`, by its short name. A claim may answer several."""
    return {question: [claim for claim in claims if question in claim.questions] for question in QUESTIONS}
