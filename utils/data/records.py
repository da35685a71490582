"""Training records: looked over, and brought into the forms that trainers take.

A record is a dictionary. Two shapes occur: *instruction* records hold ``instruction``, perhaps ``input``, and
``output``; *conversations* hold ``messages``, a list of turns with ``role`` and ``content``, and perhaps ``tools``. An
assistant's message with ``"weight": 0`` is read by the model and not learned. :mod:`utils.data.formats` reads them from
files.

Attributes:
    INSTRUCTION_FIELDS: What an instruction record can't do without; ``input`` may be missing or empty.
    ROLES: Who may speak in a conversation. Whether the base's chat template knows all of them is another question
        (:mod:`utils.data.template`).
    SPOKEN: Fields of a message beside its content that a model reads or says, if its chat template knows them.
    SHOWN: So many problems the text of :class:`BadRecords` lists; the rest it counts.
    PLACES: So many lines it names of those that have the same problem.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Record = Mapping[str, Any]
Message = dict[str, Any]

INSTRUCTION_FIELDS = ("instruction", "output")
ROLES = ("system", "user", "assistant", "tool")
SPOKEN = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
SHOWN = 10
PLACES = 4


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
    def of_file(
        cls, problems: Sequence[Problem], name: str, unit: str = "line", so: str = "nothing was read"
    ) -> BadRecords:
        """The problems found in a file; `unit` says what their rows count, "line" or "record", `so` what follows."""
        places: dict[str, list[int]] = {}
        for problem in problems:
            places.setdefault(_sentence(problem), []).append(problem.row)
        listed = list(places.items())[:SHOWN]
        shown = [f"  {_places(rows, unit)}: {sentence}" for sentence, rows in listed]
        if rest := len(problems) - sum(len(rows) for _, rows in listed):
            shown.append(f"  and {rest} more")
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        head = f"{count} in {name}, so {so}. Mend these records or take them out:"
        return cls(problems, "\n".join([head, *shown]))

    @classmethod
    def of_record(cls, problems: Sequence[Problem]) -> BadRecords:
        """The problems of the one record that somebody wants to use."""
        return cls(problems, f"this record can't be used: {'; '.join(map(_sentence, problems))}")


def _sentence(problem: Problem) -> str:
    colon = ":" if problem.reason.startswith(("message ", "the ")) else ""
    return f"{problem.field}{colon} {problem.reason}" if problem.field else problem.reason


def _places(rows: Sequence[int], unit: str) -> str:
    named = ", ".join(map(str, rows[:PLACES]))
    more = f" and {len(rows) - PLACES} more" if len(rows) > PLACES else ""
    return f"{unit}{'s' if len(rows) > 1 else ''} {named}{more}"


# ----------------------------------------------------------------------------------------------------- looking over


def kind_of(value: Any) -> str:
    """What a value of JSON or Parquet is called in a sentence: "a list", "a number", "null"."""
    if isinstance(value, float) and math.isnan(value):
        return "NaN (pandas' missing value; write null)"
    names = {dict: "an object", list: "a list", bool: "a truth value", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def text_problem(value: Any, *, empty: bool = False) -> str | None:
    """What keeps `value` from being a text that a tokenizer takes, or None; `empty`: whether it may have no words."""
    if isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
        return "is a number, not text (in JSON put it in quotation marks)"
    if not isinstance(value, str):
        return f"is {kind_of(value)}, not text"
    if not empty and not value.strip():
        return "is empty"
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = value[error.start].encode("unicode_escape").decode()
            return f"holds {half}, half of a character (an emoji that was cut in two?): mend it or take it out"
    return None


def is_learned(message: Mapping[str, Any]) -> bool:
    """Whether the loss counts this message: an assistant's, unless its ``weight`` is 0."""
    return message["role"] == "assistant" and message.get("weight") in (None, 1)


def _content_problem(message: Mapping[str, Any]) -> str | None:
    content = message.get("content")
    if any(message.get(field) for field in SPOKEN) and content in (None, ""):
        return None  # it says something else
    if isinstance(content, list):
        parts = {str(part.get("type", "?")) if isinstance(part, Mapping) else kind_of(part) for part in content}
        return f"is a list with parts of the type {', '.join(sorted(parts))}: a text or text parts can be trained on"
    return text_problem(content) if "content" in message else "is missing"


def _inner_problem(value: Any) -> str | None:
    """What keeps the texts inside of a value from being tokenized, or None."""
    return text_problem(json.dumps(value, ensure_ascii=False, default=str), empty=True)


def message_problem(messages: Any) -> str | None:
    """The first thing wrong with a conversation, or None."""
    if not isinstance(messages, list | tuple):
        return f"is {kind_of(messages)}, not a list of messages"
    if not messages:
        return "is empty"
    for turn, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            return f"message {turn} is {kind_of(message)}, not an object with role and content"
        if message.get("role") not in ROLES:
            return f"message {turn} has the role {message.get('role')!r}; known are {', '.join(ROLES)}"
        if problem := _content_problem(message):
            return f"the content of message {turn} ({message['role']}) {problem}"
        for field in message.keys() - {"role", "content", "weight"}:
            if problem := _inner_problem(message[field]):
                return f"the {field} of message {turn} {problem}"
        if message.get("weight") not in (None, 0, 1):
            return f"the weight of message {turn} is {message['weight']!r}; known are 0, which isn't trained on, and 1"
    answers = [turn for turn, message in enumerate(messages, 1) if message["role"] == "assistant"]
    if not answers:
        return "has no message by assistant: there is no answer to train on"
    if (last := answers[-1]) < len(messages):
        behind = "message" if last + 1 == len(messages) else "messages"
        return (
            f"ends with {messages[-1]['role']}, and what follows the last answer can't be trained on: cut the "
            f"{behind} behind it off (messages[:{last}])"
        )
    learned = [turn for turn, message in enumerate(messages) if is_learned(message)]
    if not learned:
        return "has weight 0 on every answer: there is nothing to train on"
    return None if learned[-1] else "holds an answer and no prompt"


def problems_of(row: int, record: Any, required: Sequence[str]) -> list[Problem]:
    """What :func:`find_problems` finds in one record, which is the file's or the list's number `row`."""
    if not isinstance(record, Mapping):
        return [Problem(row, None, f"is {kind_of(record)}, not an object with the fields {', '.join(required)}")]
    found = []
    for field in required:
        if field not in record:
            has = ", ".join(map(str, record)) or "no fields at all"
            found.append(Problem(row, field, f"is missing; the record has {has}"))
            continue
        judge = message_problem if field == "messages" else text_problem
        if problem := judge(record[field]):
            found.append(Problem(row, field, problem))
    extra = record.get("input")
    if "input" not in required and extra is not None and (problem := text_problem(extra, empty=True)):
        found.append(Problem(row, "input", problem))
    return found


def find_problems(records: Iterable[Any], required: Sequence[str] = INSTRUCTION_FIELDS) -> list[Problem]:
    """Everything that keeps `records` from being trained on; an empty list when all is well.

    A `required` field must be there and hold text other than white space; ``messages`` must hold a conversation whose
    last turn is the assistant's. ``input`` may be missing, null or empty, but not another type. Rows count from 1.
    """
    return [p for row, record in enumerate(records, 1) for p in problems_of(row, record, required)]


# ------------------------------------------------------------------------------------------------- from form to form


def check_fields(record: Any, required: Sequence[str]) -> None:
    """Raises BadRecords when `record` lacks something that :func:`find_problems` asks for."""
    if problems := problems_of(1, record, required):
        raise BadRecords.of_record(problems)


def user_text(record: Record) -> str:
    """What the user says in an instruction record: the instruction and, one space behind it, the input if there is one.

    >>> user_text({"instruction": "Say it like a pirate:", "input": "Zoe was shy.", "output": "..."})
    'Say it like a pirate: Zoe was shy.'
    """
    extra = record.get("input") or ""
    return f"{record['instruction']} {extra}" if extra.strip() else record["instruction"]


def to_messages(record: Record) -> dict[str, Any]:
    """A record as one conversation, ``{"messages": [...]}``. A record that has messages keeps them, and its ``tools``.

    Of each message every field stays that isn't null. Raises BadRecords when a field that is needed is missing, empty
    or no text.
    """
    if isinstance(record, Mapping) and "messages" in record:
        check_fields(record, ("messages",))
        return {"messages": [_filled(message) for message in record["messages"]], **tools_of(record)}
    check_fields(record, INSTRUCTION_FIELDS)
    user = {"role": "user", "content": user_text(record)}
    return {"messages": [user, {"role": "assistant", "content": record["output"]}]}


def tools_of(record: Record) -> dict[str, list[Any]]:
    """The tools that the model may call in this record as ``{"tools": [...]}``, empty where there are none.

    TRL takes them as JSON too, since a column of Arrow wants one type. Raises BadRecords for anything but a list.
    """
    tools = record.get("tools")
    if isinstance(tools, str) and tools:
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise BadRecords.of_record([Problem(1, "tools", f"is no JSON ({error})")]) from None
    wrong = f"is {kind_of(tools)}, not a list of tools" if tools and not isinstance(tools, list) else None
    if wrong := wrong or _inner_problem(tools):
        raise BadRecords.of_record([Problem(1, "tools", wrong)])
    return {"tools": tools} if tools else {}


def _filled(message: Mapping[str, Any]) -> Message:
    fields = {field: value for field, value in message.items() if value is not None}
    return {"role": fields["role"], "content": fields.get("content", ""), **fields}


def loose(contents: Iterable[str]) -> tuple[str, ...]:
    """What the turns of two prompts have in common that are the same, case and white space aside."""
    return tuple(" ".join(content.casefold().split()) for content in contents)


def to_prompt_completion(record: Record) -> dict[str, Any]:
    """A record in TRL's conversational prompt/completion form, ``tools`` too where it has some.

    The completion is the last answer that is learned (:func:`is_learned`), the prompt every turn before it. Raises
    BadRecords when a field that is needed is missing, empty or no text, or there is no turn before the answer.
    """
    whole = to_messages(record)
    messages = whole.pop("messages")
    last = max(turn for turn, message in enumerate(messages) if is_learned(message))
    return {"prompt": messages[:last], "completion": [messages[last]], **whole}
