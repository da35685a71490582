"""From a prompt and its answer to token ids and labels: the one way, for an Example and for any record.

A prompt goes through the tokenizer's chat template, and the loss counts the answer and its end-of-turn token alone:
what the user says is given, not learned. The ids and labels are those of TRL's SFTTrainer for prompt and completion.

Attributes:
    IGNORED: The label that cross-entropy skips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Int
from torch import Tensor

from utils.data.records import BadRecords, Message, Record, check_fields, to_prompt_completion, tools_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100


class Example(NamedTuple):
    """One exercise of a task: what the user writes and the one right answer."""

    prompt: str
    answer: str


def prompt_completion(row: Example | Record) -> dict[str, Any]:
    """The ``prompt`` of an example or a record and the ``completion`` that is learned: lists of messages, or two texts.

    Of a conversation the completion is the last answer that is learned, and its ``tools`` come along. A record that has
    ``prompt`` and ``completion`` keeps them. Raises BadRecords when something that is needed is missing, empty or no
    text.
    """
    if isinstance(row, Example):
        check_fields(row._asdict(), Example._fields)
        return {
            "prompt": [{"role": "user", "content": row.prompt}],
            "completion": [{"role": "assistant", "content": row.answer}],
        }
    if not (isinstance(row, Mapping) and "prompt" in row):
        return to_prompt_completion(row)
    if isinstance(row["prompt"], str) or "completion" not in row:
        check_fields(row, ("prompt", "completion"))
    else:
        check_fields({"messages": [*row["prompt"], *row["completion"]]}, ("messages",))
    return {"prompt": row["prompt"], "completion": row["completion"], **tools_of(row)}


def prompt_completions(rows: Sequence[Example | Record]) -> list[dict[str, Any]]:
    """:func:`prompt_completion` of every row. Raises ValueError when there are none; BadRecords says which is bad."""
    if not len(rows):
        raise ValueError("there are no examples: pass at least one Example(prompt, answer) or record")
    pairs = []
    for number, row in enumerate(rows, 1):
        try:
            pairs.append(prompt_completion(row))
        except BadRecords as error:
            problems = [problem._replace(row=number) for problem in error.problems]
            where = f"number {number} of {len(rows)}: " if len(rows) > 1 else ""
            raise BadRecords(problems, f"{where}{error}. It is {row!r}"[:500]) from None
    return pairs


def check_has_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ValueError when the tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise ValueError(
            "this tokenizer has no chat template, so it can't turn messages into text. Load an instruct model's "
            "tokenizer, or set tokenizer.chat_template"
        )


def applied(tokenizer: PreTrainedTokenizerBase, conversations: Any, **options: Any) -> Any:
    """The tokenizer's ``apply_chat_template``, of one conversation or a list of them.

    Raises ValueError when the tokenizer has no chat template, and for what the template refuses, with its own words.
    """
    from jinja2 import TemplateError

    check_has_template(tokenizer)
    try:
        return tokenizer.apply_chat_template(conversations, **options)
    except (TemplateError, TypeError) as error:
        raise ValueError(f"the base's chat template refuses this conversation: {error}") from None


def render(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message],
    *,
    open_turn: bool = True,
    tools: Sequence[Any] | None = None,
) -> str:
    """The prompt, a user's words or a list of messages, in chat form.

    With `open_turn` up to the place where the assistant's turn begins. `tools` are those that the model may call, as
    JSON schemas. Raises ValueError when the tokenizer has no chat template, and for what the template refuses.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    options: dict[str, Any] = {"tools": list(tools)} if tools else {}
    return cast(str, applied(tokenizer, messages, tokenize=False, add_generation_prompt=open_turn, **options))


def token_id(tokenizer: PreTrainedTokenizerBase, name: Literal["pad", "eos"]) -> int:
    """The id of the tokenizer's pad or EOS token. Raises ValueError when it has none."""
    found = getattr(tokenizer, f"{name}_token_id")
    if found is None:
        raise ValueError(f"this tokenizer has no {name} token: set tokenizer.{name}_token to one of its special tokens")
    return found


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens `a` and `b` share from their beginnings on."""
    shorter = min(len(a), len(b))
    if a[:shorter] == b[:shorter]:
        return shorter
    return next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)


def encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example | Record]) -> list[tuple[list[int], list[int]]]:
    """Token ids of each row in two parts: those of its prompt, and those of its answer with the end-of-turn token.

    Prompts and answers are in chat form. Where a record's ``prompt`` and ``completion`` are plain texts they stay so,
    and the EOS token is put behind the completion unless it is there. The answer begins where the ids of the prompt and
    those of the whole part, so a token that reaches across the boundary is learned. Raises ValueError when there are no
    rows, BadRecords for one that can't be used.
    """
    pairs = prompt_completions(rows)
    texts: list[tuple[str, str]] = []
    for pair in pairs:
        prompt, completion = pair["prompt"], pair["completion"]
        if isinstance(prompt, str):
            end = "" if completion.endswith(tokenizer.eos_token) else tokenizer.eos_token
            texts.append((prompt, prompt + completion + end))
        else:
            tools = pair.get("tools")
            whole = render(tokenizer, [*prompt, *completion], open_turn=False, tools=tools)
            texts.append((render(tokenizer, prompt, tools=tools), whole))
    found: list[tuple[list[int], list[int]]] = [([], [])] * len(pairs)
    for plain in (True, False):  # a plain text begins with the tokenizer's special tokens; a template writes its own
        places = [i for i, pair in enumerate(pairs) if isinstance(pair["prompt"], str) == plain]
        if places:
            both = [text for i in places for text in texts[i]]
            ids = tokenizer(both, add_special_tokens=plain, verbose=False).input_ids
            for i, prompt, whole in zip(places, ids[::2], ids[1::2], strict=True):
                begin = common_prefix(prompt, whole)
                found[i] = whole[:begin], whole[begin:]
    return found


def padded(rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int) -> dict[str, Int[Tensor, "batch length"]]:
    """Pad rows of ids and labels on the right into `input_ids`, `attention_mask` and `labels`.

    The padding's labels are :data:`IGNORED`.
    """
    length = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), length), pad_id)
    labels = torch.full((len(rows), length), IGNORED)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    for row, (own, learned) in enumerate(rows):
        ids[row, : len(own)] = torch.tensor(own)
        labels[row, : len(own)] = torch.tensor(learned)
        mask[row, : len(own)] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def collate(encoded: Sequence[tuple[list[int], list[int]]], pad_id: int) -> dict[str, Int[Tensor, "batch length"]]:
    """Pad encoded examples on the right into `input_ids`, `attention_mask` and `labels`.

    Labels are the ids of the answer; the prompt and the padding are :data:`IGNORED`.
    """
    return padded([(prompt + answer, [IGNORED] * len(prompt) + answer) for prompt, answer in encoded], pad_id)
