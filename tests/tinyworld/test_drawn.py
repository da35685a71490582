"""Things drawn until enough of them differ."""

import random

import pytest

from utils.tinyworld.drawn import all_different


def letters(rng: random.Random) -> tuple[str, int]:
    return rng.choice("abcde"), rng.randint(0, 9)


def test_no_two_have_a_prompt_and_the_first_is_kept():
    found = all_different(letters, lambda made: made[0], 5, "seed", "letters")
    rng = random.Random("seed")
    first: dict[str, tuple[str, int]] = {}
    while len(first) < 5:
        made = letters(rng)
        first.setdefault(made[0], made)
    assert found == list(first.values()) == all_different(letters, lambda made: made[0], 5, "seed", "letters")
    assert all_different(letters, lambda made: made[0], 3, "seed", "letters") == found[:3], "more are the same and more"


@pytest.mark.parametrize(
    ("n", "says"),
    [(0, "n is the number of letters and must be at least 1, not 0"), (6, "no 6 different letters.*gave 5")],
)
def test_too_few_and_too_many_are_refused(n, says):
    with pytest.raises(ValueError, match=says):
        all_different(letters, lambda made: made[0], n, "seed", "letters of the alphabet")
