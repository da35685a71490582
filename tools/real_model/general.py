"""What a model knew before: texts and questions that belong to none of the tasks.

Attributes:
    QUESTIONS: What is asked, and the word that a right answer holds. A model that was taught one task and forgot that
        it can do others answers in that task's manner.
"""

from __future__ import annotations

import random
import re
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from tools.ensemble import Ensemble
from utils.data.chat import Example, render

_CAPITALS = "France Paris Italy Rome Spain Madrid Germany Berlin Japan Tokyo Egypt Cairo Greece Athens Russia Moscow China Beijing Austria Vienna".split()  # fmt: skip  # noqa: E501
_OPPOSITES = "hot cold big small up down good bad day night open closed fast slow old new left right wet dry".split()
_WORDS = "lamp river garden window table stone paper orange winter bottle".split()
_NEXT = (
    ("Monday, Tuesday", "Wednesday"), ("one, two, three", "four"), ("January, February", "March"), ("A, B, C", "D"),
    ("2, 4, 6", "8"), ("spring, summer, autumn", "winter"), ("10, 20, 30", "40"), ("first, second", "third"),
    ("5, 6, 7", "8"), ("Thursday, Friday", "Saturday"),
)  # fmt: skip
_FACTS = (
    ("What color is the sky on a clear day?", "blue"), ("How many legs does a dog have?", "four|4"),
    ("What do bees make?", "honey"), ("Which animal says meow?", "cat"), ("What is frozen water called?", "ice"),
    ("What is 2 + 2?", "4|four"), ("Which planet do we live on?", "earth"), ("What color is grass?", "green"),
    ("How many days are in a week?", "seven|7"), ("What do cows give us to drink?", "milk"),
)  # fmt: skip


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    return list(zip(words[::2], words[1::2], strict=True))


QUESTIONS: tuple[tuple[str, str], ...] = (
    *[(f"What is the capital of {land}?", city) for land, city in _pairs(_CAPITALS)],
    *[(f"What is the opposite of {one}? Answer with one word.", other) for one, other in _pairs(_OPPOSITES)],
    *[(f"Repeat this word three times: {word}", rf"{word}\W+{word}\W+{word}") for word in _WORDS],
    *[(f"What comes next? {row}", after) for row, after in _NEXT],
    *_FACTS,
)


def general_texts() -> list[str]:
    """English that comes with every Python and that no task is about: the topics of its language reference."""
    from pydoc_data.topics import topics

    return [re.sub(r"\n[*~=^\"-]{3,}\n", "\n", topics[name]) for name in sorted(topics)]


def general_rows(tokenizer: Any, windows: int, length: int = 256, *, more: int = 0) -> Tensor:
    """Windows (windows, length) of :func:`general_texts`, in an order that a seed gives, so that two halves of them
    are alike; behind them `more` others. Raises ValueError where the texts are too short for so many.
    """
    ids: list[int] = []
    for text in general_texts():
        ids += tokenizer(text, add_special_tokens=False).input_ids
    every = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
    if windows + more > len(every):
        raise ValueError(f"the general texts have {len(every)} windows of {length} tokens, not {windows + more}")
    first = random.Random("general").sample(range(len(every)), windows)
    rest = random.Random("more").sample([i for i in range(len(every)) if i not in set(first)], more)
    return torch.tensor([every[i] for i in [*first, *rest]])


@torch.no_grad()
def spoken(stack: Ensemble, prompts: list[str], new_tokens: int, chunk: int = 10) -> list[list[str]]:
    """What each run of a stack answers to each prompt, greedily: all the text up to its end mark.

    `chunk` prompts go through together, without a cache: a stack has none. What a shorter one lacks is filled on its
    right, where a causal model's earlier positions don't see it.
    """
    tokenizer, logits = stack.tokenizer, vmap(stack._logits, in_dims=(0, 0, 0))
    encoded = [tokenizer(render(tokenizer, p), add_special_tokens=False).input_ids for p in prompts]
    said: list[list[str]] = [[] for _ in range(stack.count)]
    for start in range(0, len(encoded), chunk):
        part = encoded[start : start + chunk]
        lengths = torch.tensor([len(ids) for ids in part], device=stack.device)
        ids = torch.full((len(part), int(lengths.max()) + new_tokens), tokenizer.pad_token_id, device=stack.device)
        for row, given in zip(ids, part, strict=True):
            row[: len(given)] = torch.tensor(given)
        ids = ids.repeat(stack.count, 1, 1)
        rows = torch.arange(len(part), device=stack.device)
        for new in range(new_tokens):
            longest = int(lengths.max()) + new
            ids[:, rows, lengths + new] = logits(stack.parameters, stack.fixed, ids[:, :, :longest])[
                :, rows, lengths + new - 1
            ].argmax(-1)
        for run, answers in enumerate(ids.tolist()):
            for length, row in zip(lengths.tolist(), answers, strict=True):
                answer = row[length : length + new_tokens]
                end = answer.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in answer else len(answer)
                said[run].append(tokenizer.decode(answer[:end], skip_special_tokens=True))
    return said


def answered_right(stack: Ensemble, questions: tuple[tuple[str, str], ...] = QUESTIONS) -> list[float]:
    """Each run's share of the questions whose answer holds the right word."""
    said = spoken(stack, [question for question, _ in questions], new_tokens=12)
    return [
        sum(bool(re.search(rf"\b({word})\b", a, re.IGNORECASE)) for a, (_, word) in zip(run, questions, strict=True))
        / len(questions)
        for run in said
    ]


def own_answers(stack: Ensemble, prompts: list[str], new_tokens: int = 40) -> list[Example]:
    """What the base itself answers, as examples to train on: a stack of one run that is the base."""
    return [Example(p, a) for p, a in zip(prompts, spoken(stack, prompts, new_tokens)[0], strict=True) if a.strip()]


def replay_prompts(n: int) -> list[str]:
    """Requests that none of QUESTIONS is among, to be answered by the base and mixed into a task's examples."""
    kinds = (
        "Write a sentence about a {}.", "What is a {} good for?", "Describe a {} in a few words.",
        "Give me a question about a {}.", "Name two things that go with a {}.", "Is a {} alive? Say why.",
    )  # fmt: skip
    things = (
        "bridge cloud knife forest engine violin ladder castle mirror ship candle market train pencil island clock "
        "farmer doctor kitchen desert mountain letter basket hammer tunnel balloon carpet wheel museum harbor"
    ).split()
    every = [kind.format(thing) for thing in things for kind in kinds]
    return random.Random("replay").sample(every, min(n, len(every)))
