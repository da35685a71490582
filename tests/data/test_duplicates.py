"""Texts that are nearly the same: which are, which aren't, and that many of them take no time."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.data.duplicates import near_duplicates

WORDS = [f"{a}{b}{c}" for a in "bdfgkl" for b in "aeiou" for c in ("n", "rt", "st", "mble", "ft")]


def text(seed: int, words: int = 40) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(words))


@pytest.mark.parametrize(
    "a, b, near",
    [
        ("Who was shy?", "who was shy", True),
        ("What is “this”?!", 'What is "this"', True),
        ("3 + 4 = ?", "3 - 4 = ?", False),
        ("3.5 or 3.6?", "3.5 or 3.7?", False),
        (text(0), text(0) + " and more", True),
        (text(0).replace(text(0).split()[9], "other", 1), text(0), True),
        (text(0), text(1), False),
        (text(0), text(0)[: len(text(0)) // 2], False),
        ("狐は湖へ行った。" * 2 + "そして魚を見つけた。", "狐は湖へ行った。" * 2 + "そして魚を見つけた！", True),
        ("", "", True),
        ("?", "!", False),
    ],
)
def test_two_texts(a, b, near):
    assert near_duplicates([a, b]) == ([0, 0] if near else [0, 1])


def test_likeness_is_passed_on_and_the_first_gives_its_place():
    base = text(3, 100)
    chain = [base, base + " one", base + " one two three", text(4)]
    assert near_duplicates([text(5), *chain]) == [0, 1, 1, 1, 4]


def test_what_all_texts_have_says_nothing():
    """A long instruction before short inputs makes no twins; the same with nearly the same input does."""
    long = "Read the sentence below with care, think about what it says of the person, and answer in one word only: "
    texts = [long + text(n, 12) for n in range(60)]
    assert near_duplicates(texts) == list(range(60))
    assert near_duplicates([*texts, texts[7] + "."])[-1] == 7


@given(st.lists(st.text(max_size=30), max_size=12))
def test_every_place_is_the_first_of_its_group(texts):
    first = near_duplicates(texts)
    assert all(place <= own and first[place] == place for own, place in enumerate(first))
    assert all(first[texts.index(one)] == place for one, place in zip(texts, first, strict=True)), (
        "the same stay together"
    )


def test_long_texts_are_sampled_alike():
    book = text(6, 4000)
    assert near_duplicates([book, book.replace("bamble", "humble", 2), text(7, 4000)]) == [0, 0, 2]


def test_twins_among_many_texts_of_the_same_words_are_found():
    """Every shingle of these has been seen in another text before; the rarest ones lead to the twin."""
    texts = [text(n, 30) for n in range(2000)]
    twins = [one + " once more" for one in texts[::20]]
    assert near_duplicates([*texts, *twins])[2000:] == list(range(0, 2000, 20))


def test_five_thousand_take_a_second():
    texts = [text(n, 30) for n in range(5000)]
    begin = time.process_time()
    assert near_duplicates(texts) == list(range(5000))
    assert time.process_time() - begin < 3


def test_what_is_no_text_is_named_by_its_place():
    with pytest.raises(TypeError, match="text 1 is None, not a text"):
        near_duplicates(["a", None])
