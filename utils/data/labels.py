"""From records to token ids and labels: what the model reads, and what the loss counts.

Labels are as long as the ids; a label is the token's own id where the loss counts it, and IGNORED (-100) elsewhere.
Nothing is shifted: the models of transformers do that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from utils.data.chat import IGNORED, Example, common_prefix, encode, render
from utils.data.records import Message, Record, to_messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, open_turn: bool = False) -> list[int]:
    """The conversation's ids; `open_turn` also opens the assistant's turn, as one does before generating."""
    return tokenizer(render(tokenizer, messages, open_turn=open_turn), add_special_tokens=False).input_ids


def assistant_labels(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation of which every turn of the assistant is learnt, and nothing else.

    Where the chat template has ``{% generation %}`` tags, they say what the assistant's words are, as they do for
    TRL's ``assistant_only_loss``. Where it has none, the conversation is rendered twice for each answer: up to the
    place where it begins, and up to its end; what lies between is learnt, the end mark included. Raises BadRecords
    when `messages` is no conversation that ends with an answer, ValueError when the tokenizer has no chat template, or
    one that has no tags and writes earlier turns otherwise once later ones follow: comparing would mark wrong tokens.
    """
    messages = to_messages({"messages": messages})["messages"]
    ids = _ids(tokenizer, messages)
    learnt = _tagged(tokenizer, messages) or _compared(tokenizer, messages, ids)
    return ids, [i if yes else IGNORED for i, yes in zip(ids, learnt, strict=True)]


def _tagged(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[bool] | None:
    """Which tokens the chat template tags as the assistant's, or None where it has no tags."""
    if not re.search(r"\{%-?\s*generation\s*-?%\}", str(tokenizer.chat_template)):
        return None
    rendered = tokenizer.apply_chat_template(list(messages), return_dict=True, return_assistant_tokens_mask=True)
    return [bool(mark) for mark in rendered["assistant_masks"]]


def _compared(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], ids: list[int]) -> list[bool]:
    """Which tokens of `ids` come with the assistant's turns, found by rendering the conversation in parts."""
    learnt = [False] * len(ids)
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _ids(tokenizer, messages[:turn], open_turn=True)
        through = _ids(tokenizer, messages[: turn + 1])
        if common_prefix(before, ids) < len(before) or common_prefix(through, ids) < len(through):
            raise ValueError(
                f"the chat template writes message {turn + 1} otherwise when the whole conversation is rendered, so "
                "its tokens can't be found by comparing. Train on prompt/completion pairs of one answer each"
            )
        learnt[len(before) : len(through)] = [True] * (len(through) - len(before))
    return learnt


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


def encode_record(tokenizer: PreTrainedTokenizerBase, record: Example | Record) -> tuple[list[int], list[int]]:
    """Ids and labels of any record: of a conversation all answers are learnt, of other records their completion.

    A row that holds ``input_ids`` and ``labels`` already is taken as it is.
    """
    if isinstance(record, Mapping) and "input_ids" in record:
        return list(record["input_ids"]), list(record.get("labels", record["input_ids"]))
    if isinstance(record, Mapping) and "messages" in record:
        return assistant_labels(tokenizer, record["messages"])
    return prompt_completion_labels(tokenizer, record)


def check_completions_survive(
    records: Iterable[Example | Record], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> int:
    """How many records lose their whole completion when they are cut to their first `max_length` tokens.

    Such a record teaches nothing, and TRL drops it without a word. `records` is a list or a datasets.Dataset, of any
    kind that :func:`encode_record` takes; None cuts nothing. Raises ValueError when there are no records, `max_length`
    isn't positive, or not one record keeps a token of its completion: there would be nothing left to train on. The
    text says which length is needed.
    """
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length is a number of tokens, at least 1, or None for no cut; not {max_length}")
    firsts, lengths = [], []
    for record in records:
        ids, labels = encode_record(tokenizer, record)
        lengths.append(len(ids))
        firsts.append(next((i for i, label in enumerate(labels) if label != IGNORED), None))
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
