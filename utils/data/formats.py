"""What people call the fields of a record: recognised, said in a sentence, and brought into the course's two forms.

The course's forms are instruction records and conversations (:mod:`utils.data.records`). :func:`read_own` takes the
forms that are common elsewhere too; :func:`read_records` takes a file whose fields have the required names already.

Attributes:
    QUESTIONS: Names for what is asked, the ones that count first; letter case doesn't matter.
    ANSWERS: Names for what is answered.
    CONTEXTS: Names for what belongs to the question.
    CONVERSATIONS: Names for a list of turns.
    ROLE_NAMES: ShareGPT's names for roles, and others', each with ours.
    KNOWN: The forms, for a refusal.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.data.records import (
    INSTRUCTION_FIELDS,
    BadRecords,
    Problem,
    kind_of,
    message_problem,
    problems_of,
    text_problem,
    tools_of,
    user_text,
)
from utils.data.rows import SILENT, Rows, read_rows

QUESTIONS = ("instruction", "prompt", "question", "query", "problem", "user", "human", "input")
ANSWERS = ("output", "completion", "response", "answer", "assistant", "solution", "target")
CONTEXTS = ("input", "context")
CONVERSATIONS = ("messages", "conversations", "conversation")
ROLE_NAMES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
KNOWN = (
    "messages (role, content); conversations (from, value); instruction, perhaps input or context, and output; prompt "
    "and completion; question and answer; query and response; beside each of them perhaps system"
)


class Reading(NamedTuple):
    """A file that was read. Printing it says what the file seems to be, and what of it is used.

    records: instruction records or conversations, with nothing that isn't used; sentence: the form and the mapping;
    notes: a sentence for each thing that one should know; lines: of each record its place in the file, which `unit`
    counts; name: the file's.
    """

    records: list[dict[str, Any]]
    sentence: str
    notes: list[str]
    lines: list[int]
    unit: str
    name: str

    def __str__(self) -> str:
        return "\n".join([self.sentence, *self.notes])


class _Form(NamedTuple):
    """How the rows of a file become records. convert: of a row with small names the record, or what is wrong."""

    name: str
    mapping: str
    used: tuple[str, ...]
    convert: Callable[[Mapping[str, Any]], dict[str, Any] | list[tuple[str, str]]]


def read_own(path: str | Path) -> Reading:
    """The records of a file of one's own, in whichever of the common forms, and a sentence that says which.

    Files: what :func:`utils.data.rows.read_rows` takes. Forms: :data:`KNOWN`, by the names of the fields, whatever
    their letter case. A ``system`` column becomes the conversation's first message; of prompt and completion that are
    lists of messages the completion alone is trained on; parts of a content that are texts are joined. Fields that
    nothing is made of are named in `notes`. Raises what :func:`read_rows` raises, and BadRecords: one sentence when no
    record has a question and an answer, else every bad record with its line. Then nothing is read.
    """
    path = Path(path)
    found = read_rows(path)
    if not found.rows and not found.problems:
        raise BadRecords([], f"{path.name} holds no records")
    spelled = _spelled(found)
    rows = [(line, _small(row) if isinstance(row, Mapping) else row) for line, row in found.rows]
    form = _recognised([row for _, row in rows if isinstance(row, Mapping)], spelled, path.name, found)
    from tqdm.auto import tqdm

    records, lines, problems = [], [], list(found.problems)
    unused: Counter[str] = Counter()
    for line, row in tqdm(rows, desc="records", delay=SILENT, leave=False):
        if not isinstance(row, Mapping):
            problems.append(Problem(line, None, f"is {kind_of(row)}, not an object with fields"))
            continue
        if row is _TWICE:
            problems.append(Problem(line, None, _TWICE_WHY))
            continue
        made = form.convert(row)
        if isinstance(made, list):
            has = ", ".join(spelled.get(key, key) for key in row) or "no fields at all"
            problems += [
                Problem(line, spelled.get(field, field), f"is missing; the record has {has}" if why == MISSING else why)
                for field, why in made
            ]
            continue
        unused.update(key for key, value in row.items() if key not in form.used and value not in (None, "", [], {}))
        records.append(made)
        lines.append(line)
    if problems:
        problems.sort(key=lambda problem: problem.row)
        raise BadRecords.of_file(problems, path.name, found.unit)
    count = "1 record" if len(records) == 1 else f"{len(records):,} records"
    sentence = f"{path.name} read as {form.name}: {form.mapping}; {count}, {found.kind}"
    return Reading(records, sentence, _notes(records, unused, spelled), lines, found.unit, path.name)


def read_records(path: str | Path, required: Sequence[str] = INSTRUCTION_FIELDS) -> list[dict[str, Any]]:
    """The records of a file as they are in it, all or none; every field is kept under its own name.

    Files: what :func:`utils.data.rows.read_rows` takes; CSV's values are text. `required` is what
    :func:`utils.data.records.find_problems` asks for; take ``("messages",)`` for conversations. Raises what
    :func:`read_rows` raises, and BadRecords (a ValueError) that names the line, or in a .json file the record, and the
    reason for each bad one.
    """
    path = Path(path)
    found = read_rows(path)
    problems = found.problems + [p for row, record in found.rows for p in problems_of(row, record, required)]
    if problems:
        problems.sort(key=lambda p: p.row)
        raise BadRecords.of_file(problems, path.name, found.unit)
    if not found.rows:
        raise BadRecords([], f"{path.name} holds no records")
    return [dict(record) for _, record in found.rows]


# ------------------------------------------------------------------------------------------------------ recognising

MISSING = "is missing"
_TWICE: dict[str, Any] = {}  # what a row becomes whose names can't be told apart
_TWICE_WHY = "has two fields whose names differ in upper and lower case alone"


def _spelled(found: Rows) -> dict[str, str]:
    """The names of all fields in small letters, each with the way in which the file writes it first."""
    spelled: dict[str, str] = {}
    for _, row in found.rows:
        if isinstance(row, Mapping):
            for key in row:
                spelled.setdefault(key.strip().casefold(), key)
    return spelled


def _small(row: Mapping[str, Any]) -> dict[str, Any]:
    small = {key.strip().casefold(): value for key, value in row.items()}
    return small if len(small) == len(row) else _TWICE


def _listed(value: Any) -> Any:
    """A list of turns that a CSV file holds as JSON, as the list; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _best(names: Sequence[str], rows: Sequence[Mapping[str, Any]], but: str = "") -> str:
    """The first of `names` that rows have a value under, those left out that a more frequent one outnumbers by two."""
    counts = Counter(name for row in rows for name in names if name != but and row.get(name) is not None)
    return next(name for name in names if 2 * counts[name] >= max(counts.values())) if counts else ""


def _recognised(rows: Sequence[Mapping[str, Any]], spelled: Mapping[str, str], name: str, found: Rows) -> _Form:
    turns = _best(CONVERSATIONS, rows)
    question = _best(QUESTIONS, rows)
    answer = _best(ANSWERS, rows)
    talks = sum(isinstance(_listed(row.get(turns)), list) for row in rows)
    pairs = sum(row.get(question) is not None and row.get(answer) is not None for row in rows)
    system = "system" if any(row.get("system") not in (None, "") for row in rows) else ""
    if turns and talks >= pairs:
        return _conversations(turns, system, rows, spelled)
    if pairs:
        context = _best(CONTEXTS, rows, but=question)
        lists = any(isinstance(_listed(row.get(field)), list) for row in rows for field in (question, answer))
        return _pairs(question, answer, context, system, spelled, lists)
    if not rows and found.problems:
        raise BadRecords.of_file(found.problems, name, found.unit)
    raise BadRecords([], _refusal(spelled, rows, name, found))


def _refusal(spelled: Mapping[str, str], rows: Sequence[Mapping[str, Any]], name: str, found: Rows) -> str:
    if not rows:
        return f"{name} holds no objects: {kind_of(found.rows[0][1])} comes first. Known are {KNOWN}"
    has = ", ".join(list(spelled.values())[:12]) + (", ..." if len(spelled) > 12 else "")
    if all(row is _TWICE for row in rows):
        return f"{name}: every record {_TWICE_WHY}: rename one of the two ({has})"
    asked, answered, turns = (
        next((spelled[field] for field in names if field in spelled), "")
        for names in (QUESTIONS, ANSWERS, CONVERSATIONS)
    )
    if turns or asked and answered:
        under = turns or f"both {asked} and {answered}"
        return f"{name}: no record has a value under {under}; look for null"
    hint = ""
    if {"chosen", "rejected"} <= set(spelled):
        hint = " These are preference pairs, which DPO takes (chapter 18); here each record has one answer to learn."
    elif len(spelled) == 1 and set(spelled) <= {"text", "content", "document"}:
        hint = " A text alone has no answer to learn: cut each into instruction and output where the answer begins."
    elif "CSV" in found.kind or "tabs" in found.kind:
        hint = " Is the first line a header with the columns' names?"
    return (
        f"{name}: no record has a question and an answer under names that the course knows; yours have {has}.{hint} "
        f"Rename the fields. Known are {KNOWN}"
    )


def _notes(records: Sequence[Mapping[str, Any]], unused: Counter[str], spelled: Mapping[str, str]) -> list[str]:
    notes = []
    if unused:
        named = ", ".join(f"{spelled.get(key, key)} (in {count:,})" for key, count in unused.most_common())
        notes.append(f"not used: {named}")
    extras = Counter(
        field for r in records for m in r.get("messages", ()) for field in m if field not in ("role", "content")
    )
    silent = sum(m.get("weight") == 0 for r in records for m in r.get("messages", ()))
    if silent:
        notes.append(f"weight 0: {silent:,} answers are read and not trained on")
    if others := [field for field in extras if field != "weight"]:
        notes.append(f"fields of messages beside role and content, kept for the chat template: {', '.join(others)}")
    return notes


# -------------------------------------------------------------------------------------------------------- converting


def _turn(message: Any) -> Any:
    """A message under our names for its fields and its role; what is none stays as it is."""
    if not isinstance(message, Mapping):
        return message
    fields = {key: value for key, value in message.items() if value is not None}
    role = fields.pop("role", fields.pop("from", None))
    role = role.strip().casefold() if isinstance(role, str) else role
    if "content" not in message and "value" in message:
        fields["content"] = fields.pop("value", None)
    content = fields.pop("content", message.get("content"))
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        content = "".join(part if isinstance(part, str) else part["text"] for part in content)
    said = {"content": content} if "content" in message or "value" in message else {}
    return {"role": ROLE_NAMES.get(role, role) if isinstance(role, str) else role, **said, **fields}


def _is_text_part(part: Any) -> bool:
    return isinstance(part, str) or (
        isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def _turns(value: Any) -> Any:
    value = _listed(value)
    return [_turn(message) for message in value] if isinstance(value, list) else value


def _conversation(messages: Any, row: Mapping[str, Any], field: str, system: str) -> Any:
    """A record of `messages`, or what is wrong with them."""
    if system and (problem := _extra_problem(row, system)):
        return [problem]
    if system and isinstance(messages, list) and (row.get(system) or "").strip():
        if any(isinstance(message, Mapping) and message.get("role") == "system" for message in messages):
            return [(system, "is there, and a system message too: leave one of them")]
        messages = [{"role": "system", "content": row[system]}, *messages]
    if problem := message_problem(messages):
        return [(field, problem)]
    try:
        return {"messages": messages, **tools_of(row)}
    except BadRecords as error:
        return [("tools", error.problems[0].reason)]


def _extra_problem(row: Mapping[str, Any], field: str) -> tuple[str, str] | None:
    value = row.get(field)
    problem = None if value is None else text_problem(value, empty=True)
    return (field, problem) if problem else None


def _conversations(
    field: str, system: str, rows: Sequence[Mapping[str, Any]], spelled: Mapping[str, str]
) -> _Form:  # fmt: skip
    def convert(row: Mapping[str, Any]) -> Any:
        if row.get(field) is None and field not in row:
            return [(field, MISSING)]
        return _conversation(_turns(row[field]), row, field, system)

    first = next((t[0] for row in rows if isinstance(t := _listed(row.get(field)), list) and t), None)
    sharegpt = isinstance(first, Mapping) and "from" in first
    name, keys = ("ShareGPT", "from/value") if sharegpt else ("conversations", "role/content")
    mapping = f"{spelled[field]}[].{keys} -> messages, every answer can be trained on"
    if system:
        mapping = f"{spelled[system]} -> a system message, {mapping}"
    return _Form(name, mapping, (field, "tools", *([system] if system else [])), convert)


def _pairs(
    question: str, answer: str, context: str, system: str, spelled: Mapping[str, str], lists: bool
) -> _Form:  # fmt: skip
    extras = [field for field in (context, system) if field]

    def convert(row: Mapping[str, Any]) -> Any:
        missing = [(field, MISSING) for field in (question, answer) if field not in row]
        if missing:
            return missing
        asked, said = _turns(row[question]), _turns(row[answer])
        if isinstance(asked, list) or isinstance(said, list):
            before = asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
            after = said if isinstance(said, list) else [{"role": "assistant", "content": said}]
            given = [
                {**m, "weight": 0} if isinstance(m, Mapping) and m.get("role") == "assistant" else m for m in before
            ]
            return _conversation([*given, *after], row, answer, system)
        problems = [(field, p) for field in (question, answer) if (p := text_problem(row[field]))]
        if (answer, "is empty") in problems:
            problems[-1] = (answer, "is empty: write out what should be trained on, or take the record out")
        problems += [p for field in extras if (p := _extra_problem(row, field))]
        if problems:
            return problems
        record = {"instruction": asked, "input": row.get(context) or "", "output": said}
        if not context:
            del record["input"]
        if not system and not row.get("tools"):
            return record
        from_record = [
            {"role": "user", "content": user_text(record)},
            {"role": "assistant", "content": said},
        ]
        return _conversation(from_record, row, answer, system)

    asked = " + ".join(spelled[field] for field in (question, context) if field)
    name = "instruction records" if question == "instruction" else f"{question} and {answer}"
    mapping = f"{asked} -> the user's words, {spelled[answer]} -> the answer that is trained on"
    if lists:
        mapping = f"{asked} and {spelled[answer]}, lists of turns -> messages, of which {spelled[answer]} is trained on"
    if system:
        mapping = f"{spelled[system]} -> a system message, {mapping}"
    return _Form(name, mapping, (question, answer, "tools", *extras), convert)
