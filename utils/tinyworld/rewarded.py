"""Requests without answers, and what rewards an answer: a story is asked for that holds certain words.

Any story with the words is right, so an answer can be checked and none is given. A request of the kind "two" names two
of an animal, a thing and a place; one of the kind "four" an animal, a thing with its color, and a place. The splits
share no wording of a request, and no animal, thing or place: only colors come back. So a model that has learnt the
training requests by heart is found out.

A reward has TRL's signature, ``reward(prompts, completions, **columns) -> list[float]``, one number for each
completion; the column that these need is `words`, what each request asked for.

Attributes:
    LIMIT: So many new tokens hold the first three sentences of the tiny model's stories, in which it names its hero, a
        place and a toy.
    MENTIONS: What :func:`mentions` divides by: about the number of words in LIMIT tokens.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any, Literal, TypedDict, get_args

from utils.data.chat import Example
from utils.tinyworld.corpus import ANIMALS, COLORS, PLACES, THINGS, Split, new_cast, story, with_article
from utils.tinyworld.drawn import all_different

Request = Literal["two", "four"]
REQUESTS: tuple[Request, ...] = get_args(Request)

LIMIT, MENTIONS = 36, 24

_WORDINGS: dict[str, tuple[str, ...]] = {
    "train": (
        "Tell me a story about {these}.", "Write a story about {these}.", "Please tell me a story about {these}.",
        "Write a short story about {these}.", "Tell me a story with {these}.", "Tell me about {these}.",
        "Write me a story about {these}.", "Tell a story with {these}.",
    ),
    "dev": (
        "Write a story with {these}.", "Tell me a short story about {these}.", "Tell a story about {these}.",
    ),
    "test": (
        "Please write a story about {these}.", "Tell us a story about {these}.", "I want a story about {these}.",
        "Tell me a story of {these}.",
    ),
}  # fmt: skip


def _parts(words: Sequence[str]) -> dict[Split, Sequence[str]]:
    """Six tenths of the words for train, and two each for dev and test."""
    train, dev = len(words) * 6 // 10, len(words) * 8 // 10
    return {"train": words[:train], "dev": words[train:dev], "test": words[dev:]}


_WORDS = {
    "animal": _parts([noun.en for noun in ANIMALS]),
    "thing": _parts([noun.en for noun in THINGS]),
    "place": _parts([place.name for place in PLACES]),
}


class Row(TypedDict):
    """A request: its prompt and the words that are to be in the story."""

    prompt: str
    words: list[str]


def _joined(phrases: Sequence[str]) -> str:
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _row(request: Request, split: Split, rng: random.Random) -> Row:
    animal, thing, place = (rng.choice(_WORDS[kind][split]) for kind in ("animal", "thing", "place"))
    color = rng.choice(COLORS).en
    if request == "four":
        asked = [(with_article(animal), [animal]), (with_article(f"{color} {thing}"), [color, thing])]
        asked.append((f"the {place}", [place]))
    else:
        asked = [(with_article(animal), [animal]), (with_article(thing), [thing]), (f"the {place}", [place])]
        del asked[rng.randrange(3)]
    rng.shuffle(asked)
    prompt = rng.choice(_WORDINGS[split]).format(these=_joined([phrase for phrase, _ in asked]))
    return {"prompt": prompt, "words": [word for _, words in asked for word in words]}


def request_rows(request: Request, split: Split, n: int, seed: int = 0) -> list[Row]:
    """`n` different requests of one split, the same for the same seed.

    >>> request_rows("two", "test", 1)[0]["words"]
    ['castle', 'squirrel']

    Raises ValueError for an unknown kind of request or split, an `n` below 1, and an `n` larger than what there is.
    """
    if request not in REQUESTS:
        raise ValueError(f"unknown request {request!r}: choose one of {', '.join(REQUESTS)}")
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(get_args(Split))}")
    what, seed_of = f"requests {request!r} ({split})", f"{request}/{split}/{seed}"
    return all_different(lambda rng: _row(request, split, rng), lambda row: row["prompt"], n, seed_of, what)


def gold_examples(rows: Sequence[Row], seed: int = 0) -> list[Example]:
    """A right answer to each request, for supervised fine-tuning as a control: a story of the tiny world whose first
    three sentences, as many as LIMIT tokens hold, have all the words. The same for the same seed.
    """
    rng = random.Random(f"gold/{seed}")
    return [Example(row["prompt"], _gold(row["words"], rng)) for row in rows]


def _gold(words: Sequence[str], rng: random.Random) -> str:
    while True:
        told = story(rng, _cast(words, rng))
        opening = " ".join(re.split(r"(?<=[.!?]) ", told)[:3])
        if words_told([""], [opening], words=[words]) == [1.0]:
            return told


def _cast(words: Sequence[str], rng: random.Random) -> dict[str, str]:
    """A cast with the words in it."""
    cast = new_cast(rng)
    for place in PLACES:
        if place.name in words:
            cast |= {"place": place.name, "where": place.where, "Where": place.where[0].upper() + place.where[1:]}
    for key, known in (("animal", ANIMALS), ("thing", THINGS), ("color", COLORS)):
        cast[key] = next((noun.en for noun in known if noun.en in words), cast[key])
    return cast | {"a_color": with_article(cast["color"])}


# ------------------------------------------------------------------------------------------------------- the rewards


def spoken(text: str) -> list[str]:
    """The words of a text in lower case, without what stands between them."""
    return re.findall(r"[^\W\d_]+", text.lower())


def words_told(
    prompts: Sequence[str], completions: Sequence[str], *, words: Sequence[Sequence[str]], **columns: Any
) -> list[float]:
    """The share of the words asked for that each completion holds, from 0 to 1, however often.

    >>> words_told(["..."], ["The fox had a red kite."], words=[["fox", "red", "kite", "lake"]])
    [0.75]
    """
    return [len({*asked} & {*spoken(text)}) / len({*asked}) for text, asked in zip(completions, words, strict=True)]


def all_told(
    prompts: Sequence[str], completions: Sequence[str], *, words: Sequence[Sequence[str]], **columns: Any
) -> list[float]:
    """1 for a completion that holds every word asked for, else 0: at most one bit each, and at first hardly that."""
    return [float(share == 1) for share in words_told(prompts, completions, words=words)]


def mentions(
    prompts: Sequence[str], completions: Sequence[str], *, words: Sequence[Sequence[str]], **columns: Any
) -> list[float]:
    """A reward that can be hacked: how often a completion says words that were asked for, over :data:`MENTIONS`.

    It looks like :func:`words_told`, and rises with it as long as a story is told; a model that repeats one word has
    more. :func:`distinct` shows it, and :func:`words_told`, which counts a word once, is the cure.

    >>> mentions(["..."], ["Fox fox fox."], words=[["fox", "lake"]])
    [0.125]
    """
    return [
        sum(word in asked for word in spoken(text)) / MENTIONS for text, asked in zip(completions, words, strict=True)
    ]


def distinct(text: str) -> float:
    """The share of a text's words that it hasn't said before; 0 for a text without words.

    >>> distinct("Fox fox fox.")
    0.3333333333333333
    """
    said = spoken(text)
    return len({*said}) / len(said) if said else 0.0
