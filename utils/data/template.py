"""Whether a base's chat template takes the records: roles, orders and fields, found before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from utils.data.chat import IGNORED, check_has_template, render
from utils.data.formats import Reading
from utils.data.labels import encode_record
from utils.data.records import SPOKEN, BadRecords, Problem, Record, to_messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_template(reading: Reading, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises BadRecords, with lines and reasons, for records of a file that can't be trained on with this tokenizer.

    They are what :func:`template_problems` finds. Raises ValueError when the tokenizer has no chat template.
    """
    problems = template_problems(reading.records, tokenizer)
    if problems:
        there = [problem._replace(row=reading.lines[problem.row - 1]) for problem in problems]
        raise BadRecords.of_file(there, reading.name, reading.unit, "it can't be trained on with this base")


def template_problems(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> list[Problem]:
    """What of `records` the tokenizer's chat template refuses or leaves out. Rows count from 1.

    A template looks at roles, their order and the fields that are there, hardly ever at the words. So the first record
    of each shape is tried, with the labels that training would give it, and speaks for the others. Raises ValueError
    when the tokenizer has no chat template.
    """
    check_has_template(tokenizer)
    tried: dict[Any, str | None] = {}
    problems = []
    for row, record in enumerate(records, 1):
        talk = to_messages(record)
        shape = (tuple((m["role"], tuple(m), m.get("weight")) for m in talk["messages"]), "tools" in talk)
        if shape not in tried:
            tried[shape] = _problem(talk, tokenizer)
        if reason := tried[shape]:
            problems.append(Problem(row, None, reason))
    return problems


def _problem(talk: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What the template refuses of one conversation, or leaves out, or None."""
    messages, tools = talk["messages"], talk.get("tools")
    roles = ", ".join(message["role"] for message in messages[:4]) + (", ..." if len(messages) > 4 else "")
    try:
        _, labels = encode_record(tokenizer, talk)
        whole = render(tokenizer, messages, open_turn=False, tools=tools)
    except BadRecords as error:
        return error.problems[0].reason.replace("begin with", "begins with", 1)
    except ValueError as error:
        advice = ""
        if any(message["role"] == "system" for message in messages):
            advice = ". A system text can stand in front of the user's first words instead"
        return f"has the roles {roles}, and {error}{advice}"
    if all(label == IGNORED for label in labels):
        return f"has the roles {roles}, and the base's chat template marks nothing of it as the assistant's words"
    return _left_out(messages, tools, whole, tokenizer)


def _left_out(messages: list[Any], tools: Any, whole: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What the model would never see: a turn, or a field, that can go without changing the text."""
    for turn, message in enumerate(messages):
        words = [*messages[:turn], {**message, "content": f"{message['content']}~"}, *messages[turn + 1 :]]
        if message["content"] and render(tokenizer, words, open_turn=False, tools=tools) == whole:
            return f"loses message {turn + 1} ({message['role']}): the base's chat template leaves it out"
    for field in SPOKEN:
        if any(field in message for message in messages):
            without = [{key: value for key, value in message.items() if key != field} for message in messages]
            if render(tokenizer, without, open_turn=False, tools=tools) == whole:
                return f"loses {field}: the base's chat template leaves it out, so the model would never see it"
    if tools and render(tokenizer, messages, open_turn=False) == whole:
        return "loses tools: the base's chat template leaves them out, so the model would never see them"
    return None
