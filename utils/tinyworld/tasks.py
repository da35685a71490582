"""The four tasks that LoRA teaches the tiny model, and what of them no training sees.

Attributes:
    UNSEEN: So many words of each list of feelings and events are kept out of sentiment's examples, for the lexical
        hold-out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Literal, get_args

from utils.data.chat import Example
from utils.tinyworld.corpus import (
    BAD_EVENTS,
    GLAD,
    GOOD_EVENTS,
    MORALS,
    NAMES,
    OPENINGS,
    PIRATE,
    SORRY,
    Split,
    middle,
    new_cast,
    opening,
    sentence_pair,
    split_of,
)
from utils.tinyworld.drawn import all_different

Task = Literal["sentiment", "translation", "summarization", "style"]


TASKS: tuple[Task, ...] = get_args(Task)

UNSEEN = 3


def _sentiment(rng: random.Random, unseen: bool = False) -> Example:
    good, cast = rng.random() < 0.5, new_cast(rng)
    part = slice(-UNSEEN, None) if unseen else slice(None, -UNSEEN)
    feeling = rng.choice((GLAD if good else SORRY)[part])
    event = rng.choice((GOOD_EVENTS if good else BAD_EVENTS)[part]).format(**cast)
    text = rng.choice(
        (
            "{name} {event}.",
            "{name} the {animal} {event} today.",
            "{name} was {feeling}.",
            "{Where}, {name} felt {feeling}.",
            "{name} {event} and was {feeling}.",
            "The {animal} felt {feeling} when {name} {event}.",
        )
    )
    return Example(
        f"Is this good or bad? {text.format(**cast, feeling=feeling, event=event)}", "good" if good else "bad"
    )


def _translation(rng: random.Random) -> Example:
    english, french = sentence_pair(rng)
    return Example(f"Say it in French: {english}", french)


def _summarization(rng: random.Random) -> Example:
    cast = new_cast(rng)
    first = rng.choice(OPENINGS[0]).format(**cast)
    return Example(f"Moral: {' '.join([first, *middle(rng, cast, feelings=False)])}", MORALS[cast["plot"]])


def pirate(sentence: str) -> str:
    """The sentence as a pirate says it: word for word by :data:`PIRATE`, behind "Arr!".

    >>> pirate("Zoe went to the lake.")
    "Arr! Zoe sailed t' th' lake."
    """
    spoken = []
    for word in sentence.split():
        core = word.rstrip(".,")
        spoken.append(PIRATE.get(core, core) + word[len(core) :])
    return "Arr! " + " ".join(spoken)


def _style(rng: random.Random) -> Example:
    sentence = rng.choice(opening(rng, new_cast(rng)))
    return Example(f"Say it like a pirate: {sentence}", pirate(sentence))


_MAKERS: dict[str, Callable[[random.Random], Example]] = {
    "sentiment": _sentiment,
    "translation": _translation,
    "summarization": _summarization,
    "style": _style,
}


def _prompt(example: Example) -> str:
    return example.prompt


def task_examples(task: Task, split: Split, n: int, seed: int = 0) -> list[Example]:
    """`n` different examples of a task from one split, the same for the same seed.

    The splits share no prompt, because a prompt's split follows from its text. Raises ValueError for an unknown task or
    split, an `n` below 1, and an `n` larger than the task's world.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: the tiny world has {', '.join(TASKS)}")
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(get_args(Split))}")

    def make(rng: random.Random) -> Example:
        while True:
            example = _MAKERS[task](rng)
            if split_of(example.prompt) == split:
                return example

    return all_different(make, _prompt, n, f"{task}/{split}/{seed}", f"examples of {task} ({split})")


def moral_and_hero(split: Split, n: int) -> dict[str, list[Example]]:
    """Two questions that stay unsaid, about the same `n` stories: "moral" and "hero", whose prompts are the stories.

    For adapters that share a prompt (chapter 11). The stories are summarization's; the hero is the first name in one.
    """
    rows = task_examples("summarization", split, n)
    stories = [row.prompt.removeprefix("Moral: ") for row in rows]
    heroes = [next(word for word in re.findall(r"\w+", story) if word in NAMES) for story in stories]
    return {
        "moral": [Example(story, row.answer) for story, row in zip(stories, rows, strict=True)],
        "hero": [Example(story, hero) for story, hero in zip(stories, heroes, strict=True)],
    }


def unseen_word_examples(n: int, seed: int = 0) -> list[Example]:
    """Sentiment with feelings and events that :func:`task_examples` never uses, in any split: the lexical hold-out.

    High scores on the ordinary held-out prompts flatter, since they are made of the same words in another order.
    """
    return all_different(
        lambda rng: _sentiment(rng, unseen=True), _prompt, n, f"unseen/{seed}", "examples of unseen words"
    )
