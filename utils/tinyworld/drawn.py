"""Things that are made at random until enough of them differ: how every generated set of the course is drawn."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def all_different(
    make: Callable[[random.Random], T], prompt_of: Callable[[T], str], n: int, seed: str, what: str
) -> list[T]:
    """`n` of what ``make(rng)`` makes, no two with the same prompt, the first of each kept; the same for the same seed.

    what: says what they are, for the errors. Raises ValueError for an `n` below 1 and for one that isn't reached in
    100 tries for each and 1,000 more.
    """
    if n < 1:
        raise ValueError(f"n is the number of {what.partition(' ')[0]} and must be at least 1, not {n}")
    rng, found = random.Random(seed), dict[str, T]()
    for _ in range(100 * n + 1000):
        made = make(rng)
        found.setdefault(prompt_of(made), made)
        if len(found) == n:
            return list(found.values())
    raise ValueError(f"there are no {n} different {what}: ask for fewer (it gave {len(found)})")
