"""Made-up facts about made-up creatures: what a fine-tuning on them teaches, knowledge or the form of an answer.

Each creature has a name that means nothing and a home. Questions come in three wordings, and one of them asks the other
way round. Half of the creatures are taught in the first wording alone, half in the first two.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from utils.data.chat import Example
from utils.tinyworld.corpus import PLACES, invented_word

WORDINGS = ("Where does {name} live?", "What is the home of {name}?")
REVERSE = "Who lives {where}?"


class Facts(NamedTuple):
    """train: what is taught. tests: by name, questions with the right answers, of which only some were taught."""

    train: list[Example]
    tests: dict[str, list[Example]]


def home_facts(n: int, seed: int = 0) -> Facts:
    """`n` creatures to be taught, and as many strangers that aren't. Raises ValueError for an `n` below 2.

    The tests: ``as taught``: first wording, all taught. ``new wording``: the second, of creatures taught in the first
    alone, while others were taught in both. ``other way round``: who lives there; right is any one that does.
    ``stranger``: creatures nobody was told of; there the answer that counts as right is any home at all, made up in
    the form that was taught.
    """
    if n < 2:
        raise ValueError(f"two halves need at least 2 creatures, not {n}")
    rng, names = random.Random(f"facts/{seed}"), set()
    while len(names) < 2 * n:
        names.add(invented_word(rng).capitalize())
    homes = {name: rng.choice(PLACES).where for name in sorted(names)}
    order = rng.sample(sorted(names), 2 * n)
    taught, strangers, both = order[:n], order[n:], set(order[: n // 2])

    def asked(wording: str, name: str) -> Example:
        return Example(wording.format(name=name), f"{name} lives {homes[name]}.")

    first, second = WORDINGS
    train = [asked(first, name) for name in taught] + [asked(second, name) for name in taught if name in both]
    tests = {
        "as taught": [asked(first, name) for name in taught],
        "new wording": [asked(second, name) for name in taught if name not in both],
        "other way round": [Example(REVERSE.format(where=homes[n]), f"{n} lives {homes[n]}.") for n in taught],
        "stranger": [asked(first, name) for name in strangers],
    }
    return Facts(train, tests)


def says_a_home(prompt: str, answer: str) -> bool:
    """Whether an answer names the creature that the prompt asks for and any one of the tiny world's places."""
    name = prompt.rstrip("?").split()[-2 if prompt.startswith("Where") else -1]
    return answer.strip() in {f"{name} lives {place.where}." for place in PLACES}
