"""From records to token ids and labels: what the model reads, and what the loss counts.

Labels are as long as the ids; a label is the token's own id where the loss counts it, and IGNORED (-100) elsewhere.
Nothing is shifted: the models of transformers do that. Of a conversation every answer is learned, but those with
``"weight": 0``; of any other record its one answer.

Attributes:
    CHUNK: So many records go to the tokenizer at once.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import TYPE_CHECKING, Any

from jaxtyping import Int
from torch import Tensor

from utils.data.chat import IGNORED, Example, applied, common_prefix, encode, padded, render, token_id
from utils.data.records import BadRecords, Message, Problem, Record, is_learned, to_messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 500


def has_tags(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template marks the assistant's words by ``{% generation %}``."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", str(tokenizer.chat_template)) is not None


def assistant_labels(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[Any] | None = None
) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation of which every turn of the assistant is learnt, and nothing else.

    Where the chat template has ``{% generation %}`` tags, they say what the assistant's words are, as they do for
    TRL's ``assistant_only_loss``. Where it has none, the conversation is rendered twice for each answer: up to the
    place where it begins, and up to its end; what lies between is learnt, the end mark included. Turns with the weight
    0 are left out. Raises BadRecords when `messages` is no conversation that ends with an answer, or begins with one
    that can't be told from the mark before it, for want of tags; ValueError when the tokenizer has no chat template, or
    one that refuses the conversation, or has no tags and writes earlier turns otherwise once later ones follow:
    comparing would mark wrong tokens.
    """
    return _conversations(tokenizer, [{"messages": messages, "tools": tools}])[0]


def _conversations(tokenizer: PreTrainedTokenizerBase, records: Sequence[Record]) -> list[tuple[list[int], list[int]]]:
    """:func:`assistant_labels` of many conversations, which go to the tokenizer together."""
    talks = [to_messages(record) for record in records]
    found = (_tagged if has_tags(tokenizer) else _compared)(tokenizer, talks)
    return [(ids, [i if yes else IGNORED for i, yes in zip(ids, mask, strict=True)]) for ids, mask in found]


def _tagged(
    tokenizer: PreTrainedTokenizerBase, talks: Sequence[Mapping[str, Any]]
) -> list[tuple[list[int], list[bool]]]:
    """Ids, and which of them the chat template tags as the assistant's."""
    options = {"return_dict": True, "return_assistant_tokens_mask": True, "tokenizer_kwargs": {"verbose": False}}
    plain = [talk["messages"] for talk in talks if "tools" not in talk]
    together = applied(tokenizer, plain, **options) if plain else {"input_ids": [], "assistant_masks": []}
    drawn = zip(together["input_ids"], together["assistant_masks"], strict=True)
    rows = []
    for talk in talks:
        if "tools" in talk:
            alone = applied(tokenizer, talk["messages"], tools=talk["tools"], **options)
            ids, mask = alone["input_ids"], alone["assistant_masks"]
        else:
            ids, mask = next(drawn)
        rows.append((ids, _weighed([bool(mark) for mark in mask], talk["messages"])))
    return rows


def _weighed(mask: list[bool], messages: Sequence[Message]) -> list[bool]:
    """The mask without the turns that have the weight 0. A turn is a run of marks."""
    answers = [message for message in messages if message["role"] == "assistant"]
    if all(map(is_learned, answers)):
        return mask
    runs = [0]
    for before, mark in zip([False, *mask], mask, strict=False):
        runs.append(runs[-1] + (mark and not before))
    if runs[-1] != len(answers):
        raise ValueError(
            f"the chat template tags {runs[-1]} stretches for {len(answers)} answers, so those with the weight 0 can't "
            "be told from the others. Cut the conversation in two, each with one answer"
        )
    return [mark and is_learned(answers[run - 1]) for mark, run in zip(mask, runs[1:], strict=True)]


def _compared(
    tokenizer: PreTrainedTokenizerBase, talks: Sequence[Mapping[str, Any]]
) -> list[tuple[list[int], list[bool]]]:
    """Ids, and which of them come with the assistant's turns, found by rendering the conversations in parts."""
    texts: list[str] = []
    parts: list[list[int]] = []  # of each conversation the turns that are learned
    for talk in talks:
        messages, tools = talk["messages"], talk.get("tools")
        learned = [turn for turn, message in enumerate(messages) if is_learned(message)]
        if 0 in learned:
            reason = (
                "begin with the assistant, and the base's chat template has no {% generation %} tags to tell its first "
                "words from the mark before them. Put a message of the user in front, or take the first one out"
            )
            raise BadRecords.of_record([Problem(1, "messages", reason)])
        texts.append(render(tokenizer, messages, open_turn=False, tools=tools))
        for turn in learned:
            texts.append(render(tokenizer, messages[:turn], tools=tools))
            if turn + 1 < len(messages):
                texts.append(render(tokenizer, messages[: turn + 1], open_turn=False, tools=tools))
        parts.append(learned)
    drawn = iter(tokenizer(texts, add_special_tokens=False, verbose=False).input_ids)
    rows = []
    for talk, learned in zip(talks, parts, strict=True):
        ids = next(drawn)
        mask = [False] * len(ids)
        for turn in learned:
            before = next(drawn)
            through = next(drawn) if turn + 1 < len(talk["messages"]) else ids
            if common_prefix(before, ids) < len(before) or common_prefix(through, ids) < len(through):
                raise ValueError(
                    f"the chat template writes message {turn + 1} otherwise when the whole conversation is rendered, "
                    "so its tokens can't be found by comparing. Train on prompt/completion pairs of one answer each"
                )
            mask[len(before) : len(through)] = [True] * (len(through) - len(before))
        rows.append((ids, mask))
    return rows


def prompt_completion_labels(
    tokenizer: PreTrainedTokenizerBase, record: Example | Record
) -> tuple[list[int], list[int]]:
    """Ids and labels of a record of which the last answer alone is learnt, as TRL's SFTTrainer makes them.

    They are those of :func:`utils.data.chat.encode`, in the form of this module. `record` is an instruction record, a
    conversation, or has ``prompt`` and ``completion``: two lists of messages, or two texts. Raises BadRecords for a
    record that can't be used.
    """
    ((prompt, answer),) = encode(tokenizer, [record])
    return prompt + answer, [IGNORED] * len(prompt) + answer


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, records: Iterable[Example | Record]
) -> Iterator[tuple[list[int], list[int]]]:
    """Ids and labels of each record in turn: of a conversation all answers are learnt, of other records their one.

    A row that holds ``input_ids`` and ``labels`` already is taken as it is. Nothing is cut. Raises, when it comes to
    that record, what :func:`assistant_labels` and :func:`utils.data.chat.encode` raise, with its number.
    """
    rest, done = iter(records), 0
    while chunk := list(islice(rest, CHUNK)):
        try:
            yield from _chunk(tokenizer, chunk)
        except ValueError:
            for number, record in enumerate(chunk, done + 1):  # which one is it?
                where = f"number {number} of {len(records)}" if isinstance(records, Sized) else f"number {number}"
                try:
                    _chunk(tokenizer, [record])
                except BadRecords as error:
                    problems = [problem._replace(row=number) for problem in error.problems]
                    raise BadRecords(problems, f"{where}: {error}") from None
                except ValueError as error:
                    raise ValueError(f"{where}: {error}") from None
            raise
        done += len(chunk)


def _chunk(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example | Record]) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of rows of any form: those of one form go to the tokenizer together."""
    talks: dict[int, Record] = {}
    others: dict[int, Example | Record] = {}
    found: list[tuple[list[int], list[int]]] = [([], [])] * len(rows)
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping):
            others[place] = row
        elif "input_ids" in row:
            found[place] = list(row["input_ids"]), list(row.get("labels", row["input_ids"]))
        else:
            (talks if "messages" in row else others)[place] = row
    if talks:
        for place, pair in zip(talks, _conversations(tokenizer, list(talks.values())), strict=True):
            found[place] = pair
    if others:
        for place, (prompt, answer) in zip(others, encode(tokenizer, list(others.values())), strict=True):
            found[place] = prompt + answer, [IGNORED] * len(prompt) + answer
    return found


def encode_record(tokenizer: PreTrainedTokenizerBase, record: Example | Record) -> tuple[list[int], list[int]]:
    """:func:`encode_rows` of one record."""
    return _chunk(tokenizer, [record])[0]


def batches(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example | Record], *, steps: int, batch_size: int, seed: int
) -> Iterator[dict[str, Int[Tensor, "batch length"]]]:
    """`steps` batches drawn by `seed`: each holds `batch_size` different rows, or all of them where there are fewer.

    Raises ValueError when there are no rows or `batch_size` is below 1, and what :func:`encode_rows` raises.
    """
    if not len(rows):
        raise ValueError("there are no examples: pass at least one Example(prompt, answer) or record")
    if batch_size < 1:
        raise ValueError(f"a batch has at least one example, not {batch_size}")
    encoded = list(encode_rows(tokenizer, rows))
    rng = random.Random(seed)
    for _ in range(steps):
        yield padded(rng.sample(encoded, min(batch_size, len(encoded))), token_id(tokenizer, "pad"))


def check_completions_survive(
    records: Iterable[Example | Record], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> int:
    """How many records lose their whole completion when they are cut to their first `max_length` tokens.

    Such a record teaches nothing, and TRL drops it without a word. `records` is a list or a datasets.Dataset, of any
    kind that :func:`encode_rows` takes; None cuts nothing. Raises ValueError when there are no records, `max_length`
    isn't positive, or not one record keeps a token of its completion: there would be nothing left to train on. The
    text says which length is needed.
    """
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length is a number of tokens, at least 1, or None for no cut; not {max_length}")
    firsts, lengths = [], []
    for ids, labels in encode_rows(tokenizer, records):
        lengths.append(len(ids))
        firsts.append(first_learned(labels))
    return lost_at(max_length, firsts, lengths)


def first_learned(labels: Sequence[int]) -> int | None:
    """The place of the first label that the loss counts, or None."""
    return next((i for i, label in enumerate(labels) if label != IGNORED), None)


def lost_at(max_length: int | None, firsts: Sequence[int | None], lengths: Sequence[int]) -> int:
    """How many records have no label left below `max_length`, by the places of their first labels.

    Raises ValueError when that is all of them, or there are none.
    """
    if not lengths:
        raise ValueError("there are no records: pass at least one")
    begins = [first for first in firsts if first is not None]
    if not begins:
        raise ValueError(f"none of the {len(lengths)} records has a label to learn, whatever max_length is")
    lost = sum(first is None or (max_length is not None and first >= max_length) for first in firsts)
    if lost == len(lengths):
        raise ValueError(
            f"max_length={max_length} cuts away the completion of every one of the {len(lengths)} records: nothing "
            f"would be left to train on. Completions begin after {min(begins)} to {max(begins)} tokens, so above "
            f"{max(begins)} every record keeps part of its own; {max(lengths)} keeps all of them whole"
        )
    return lost
