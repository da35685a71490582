"""Training records: read from a file, looked over, and brought into the forms that trainers take.

A record is a dictionary. Two shapes occur: *instruction* records hold ``instruction``, perhaps ``input``, and
``output``; *conversations* hold ``messages``, a list of turns with ``role`` and ``content``. A file is read whole or
not at all: if one record is bad, :class:`BadRecords` says which and why, and nothing is dropped silently.

Attributes:
    INSTRUCTION_FIELDS: What an instruction record can't do without; ``input`` may be missing or empty.
    SHOWN: So many problems the text of :class:`BadRecords` lists; the rest it counts.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Record = Mapping[str, Any]
Message = dict[str, str]

INSTRUCTION_FIELDS = ("instruction", "output")
ROLES = ("system", "user", "assistant")
SHOWN = 10


class Problem(NamedTuple):
    """What is wrong with one record. `row` counts from 1: the line in a JSONL or CSV file, the place in a list."""

    row: int
    field: str | None
    reason: str


class BadRecords(ValueError):
    """Some records can't be trained on. `problems` holds all of them; the text shows the first ten, then a count."""

    def __init__(self, problems: Sequence[Problem], text: str) -> None:
        super().__init__(text)
        self.problems = list(problems)

    @classmethod
    def of_file(cls, problems: Sequence[Problem], name: str, unit: str = "line") -> BadRecords:
        """The problems found in a file; `unit` says what their rows count, "line" or "record"."""
        shown = [f"  {unit} {p.row}: {_sentence(p)}" for p in problems[:SHOWN]]
        if len(problems) > SHOWN:
            shown.append(f"  and {len(problems) - SHOWN} more")
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        head = f"{count} in {name}, so nothing was read. Mend these records or take them out:"
        return cls(problems, "\n".join([head, *shown]))

    @classmethod
    def of_record(cls, problems: Sequence[Problem], hint: str = "") -> BadRecords:
        """The problems of the one record that somebody wants to use."""
        return cls(problems, f"this record can't be used: {'; '.join(map(_sentence, problems))}{hint}")


def _sentence(problem: Problem) -> str:
    return f"{problem.field} {problem.reason}" if problem.field else problem.reason


# ----------------------------------------------------------------------------------------------------- looking over


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a truth value", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def _text_problem(value: Any) -> str | None:
    if isinstance(value, str):
        return None if value.strip() else "is empty"
    return f"is {_kind(value)}, not text"


def _message_problem(messages: Any) -> str | None:
    """The first thing wrong with a conversation, or None."""
    if not isinstance(messages, list | tuple):
        return f"is {_kind(messages)}, not a list of messages"
    if not messages:
        return "is empty"
    for turn, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            return f"message {turn} is {_kind(message)}, not an object with role and content"
        if message.get("role") not in ROLES:
            return f"message {turn} has the role {message.get('role')!r}; known are {', '.join(ROLES)}"
        problem = _text_problem(message.get("content")) if "content" in message else "is missing"
        if problem:
            return f"the content of message {turn} ({message['role']}) {problem}"
    if messages[-1]["role"] != "assistant":
        return f"the last message is by {messages[-1]['role']}: there is no answer to learn"
    return None


def _problems_of(row: int, record: Any, required: Sequence[str]) -> list[Problem]:
    if not isinstance(record, Mapping):
        return [Problem(row, None, f"is {_kind(record)}, not an object with the fields {', '.join(required)}")]
    found = []
    for field in required:
        if field not in record:
            has = ", ".join(map(str, record)) or "no fields at all"
            found.append(Problem(row, field, f"is missing; the record has {has}"))
            continue
        judge = _message_problem if field == "messages" else _text_problem
        if problem := judge(record[field]):
            found.append(Problem(row, field, problem))
    extra = record.get("input")
    if "input" not in required and extra is not None and not isinstance(extra, str):
        found.append(Problem(row, "input", f"is {_kind(extra)}, not text"))
    return found


def find_problems(records: Iterable[Any], required: Sequence[str] = INSTRUCTION_FIELDS) -> list[Problem]:
    """Everything that keeps `records` from being trained on; an empty list when all is well.

    A `required` field must be there and hold text other than white space; ``messages`` must hold a conversation whose
    last turn is the assistant's. ``input`` may be missing, null or empty, but not another type. Rows count from 1.
    """
    return [p for row, record in enumerate(records, 1) for p in _problems_of(row, record, required)]


# ---------------------------------------------------------------------------------------------------------- reading


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"names the field {twice[0]!r} twice")
    return dict(pairs)


def _parse(text: str) -> Any:
    """JSON's value. Raises ValueError with the reason, in words that fit behind a line's number."""
    try:
        return json.loads(text, object_pairs_hook=_no_repeats)
    except json.JSONDecodeError as error:
        cut = "; was it cut off?" if error.pos >= len(text.rstrip()) or "Unterminated" in error.msg else ""
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"is not valid JSON ({error.msg} at {place}){cut}") from None


def _read_json(text: str) -> tuple[list[tuple[int, Any]], list[Problem]]:
    try:
        value = _parse(text)
    except ValueError as error:
        hint = "; one object a line is JSONL: name the file .jsonl" if "Extra data" in str(error) else ""
        raise ValueError(f"{error}{hint}") from None
    if not isinstance(value, list):
        raise ValueError(f"holds {_kind(value)}; a .json file of records is one list of objects: [{{...}}, ...]")
    return list(enumerate(value, 1)), []


def _read_jsonl(text: str) -> tuple[list[tuple[int, Any]], list[Problem]]:
    rows, problems = [], []
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            rows.append((line, _parse(content)))
        except ValueError as error:
            problems.append(Problem(line, None, str(error)))
    return rows, problems


def _read_csv(text: str) -> tuple[list[tuple[int, Any]], list[Problem]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    rows, problems, line = [], [], 1
    try:
        for values in reader:
            if not header:
                header = [value.strip() for value in values]
                if twice := sorted({column for column in header if header.count(column) > 1}):
                    raise ValueError(f"has two columns named {twice[0]!r}: rename one")
            elif values and len(values) != len(header):
                reason = f"has {len(values)} values for {len(header)} columns; is a comma or a quote missing?"
                problems.append(Problem(line, None, reason))
            elif values:
                rows.append((line, dict(zip(header, values, strict=True))))
            line = reader.line_num + 1
    except csv.Error as error:
        problems.append(Problem(line, None, f"is not valid CSV ({error}); is a quote not closed?"))
    return rows, problems


READERS = {".json": _read_json, ".jsonl": _read_jsonl, ".csv": _read_csv}


def read_records(path: str | Path, required: Sequence[str] = INSTRUCTION_FIELDS) -> list[dict[str, Any]]:
    """The records of a .json (one list), .jsonl (one object a line) or .csv file (a header, then rows), all or none.

    Records come as they are in the file; CSV's values are text. Blank lines are passed over. `required` is what
    :func:`find_problems` asks for; take ``("messages",)`` for conversations. Raises BadRecords (a ValueError) that
    lists the line, or in a .json file the record, and the reason for each bad one, or says why the file as a whole
    can't be read; ValueError for another ending; FileNotFoundError when there is no such file.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in READERS:
        raise ValueError(f"{path.name}: the ending says how to read a file; known are {', '.join(READERS)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        reason = f"holds the byte 0x{error.object[error.start]:02x}, which is no UTF-8; save the file as UTF-8"
        raise BadRecords.of_file([Problem(line, None, reason)], path.name) from None
    try:
        rows, problems = READERS[kind](text) if text.strip() else ([], [])
    except ValueError as error:
        raise BadRecords([Problem(1, None, str(error))], f"{path.name} {error}") from None
    problems += [p for row, record in rows for p in _problems_of(row, record, required)]
    if problems:
        problems.sort(key=lambda p: p.row)
        raise BadRecords.of_file(problems, path.name, "record" if kind == ".json" else "line")
    if not rows:
        raise BadRecords([], f"{path.name} holds no records")
    return [dict(record) for _, record in rows]


# ------------------------------------------------------------------------------------------------- from form to form


def check_fields(record: Any, required: Sequence[str], hint: str = "") -> None:
    """Raises BadRecords when `record` lacks something that :func:`find_problems` asks for; `hint` ends its text."""
    if problems := _problems_of(1, record, required):
        raise BadRecords.of_record(problems, hint)


def user_text(record: Record) -> str:
    """What the user says in an instruction record: the instruction and, one space behind it, the input if there is one.

    >>> user_text({"instruction": "Say it like a pirate:", "input": "Zoe was shy.", "output": "..."})
    'Say it like a pirate: Zoe was shy.'
    """
    extra = record.get("input") or ""
    return f"{record['instruction']} {extra}" if extra.strip() else record["instruction"]


def to_messages(record: Record) -> dict[str, list[Message]]:
    """A record as one conversation, ``{"messages": [...]}``. A record that has messages keeps them.

    Raises BadRecords when a field that is needed is missing, empty or no text.
    """
    if isinstance(record, Mapping) and "messages" in record:
        check_fields(record, ("messages",))
        return {"messages": [{"role": m["role"], "content": m["content"]} for m in record["messages"]]}
    check_fields(record, INSTRUCTION_FIELDS)
    user = {"role": "user", "content": user_text(record)}
    return {"messages": [user, {"role": "assistant", "content": record["output"]}]}


def to_prompt_completion(record: Record) -> dict[str, list[Message]]:
    """A record in TRL's conversational prompt/completion form: the completion is the last turn, the prompt the rest.

    Raises BadRecords when a field that is needed is missing, empty or no text, and when there is no turn before the
    answer.
    """
    messages = to_messages(record)["messages"]
    if len(messages) == 1:
        raise BadRecords.of_record([Problem(1, "messages", "holds an answer and no prompt")])
    return {"prompt": messages[:-1], "completion": messages[-1:]}


def from_dolly(record: Record) -> dict[str, str]:
    """A record of databricks-dolly-15k, whose fields are instruction, context and response, as an instruction record.

    Raises BadRecords when one of the three is missing (``context`` may be empty), or instruction or response is empty:
    a template that takes ``record.get("output", "")`` would render an empty answer instead.
    """
    hint = ". Dolly's fields are instruction, context, response and category"
    check_fields(record, ("instruction", "response"), hint)
    problem = (
        None if isinstance(record.get("context", 0), str | None) else f"is {_kind(record.get('context'))}, not text"
    )
    if "context" not in record:
        problem = f"is missing; the record has {', '.join(record)}"
    if problem:
        raise BadRecords.of_record([Problem(1, "context", problem)], hint)
    return {"instruction": record["instruction"], "input": record["context"] or "", "output": record["response"]}
