"""Requests that are rewarded: splits that share no wording and no word, rewards that count, gold that is rewarded."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.preferences.grpo import sample_groups
from utils.tinyworld import rewarded
from utils.tinyworld.rewarded import (
    LIMIT,
    MENTIONS,
    REQUESTS,
    all_told,
    distinct,
    gold_examples,
    mentions,
    request_rows,
    spoken,
    words_told,
)

SPLITS = ("train", "dev", "test")
COLORS = {color.en for color in rewarded.COLORS}
FOUR = ["fox", "red", "kite", "lake"]


def score(reward, text, words=FOUR):
    (value,) = reward(["a prompt"], [text], words=[words])
    return value


@pytest.mark.parametrize("request_kind", REQUESTS)
def test_the_splits_share_no_prompt_no_wording_and_no_word_but_colors(request_kind):
    rows = {split: request_rows(request_kind, split, 60) for split in SPLITS}
    prompts = [row["prompt"] for part in rows.values() for row in part]
    assert len(prompts) == len(set(prompts)) == 180
    said = {split: {word for row in part for word in row["words"]} - COLORS for split, part in rows.items()}
    assert not (said["train"] & said["dev"] or said["train"] & said["test"] or said["dev"] & said["test"])
    wordings = [wording for part in rewarded._WORDINGS.values() for wording in part]
    assert len(wordings) == len(set(wordings))


@pytest.mark.parametrize("kind", rewarded._WORDS)
def test_every_word_belongs_to_one_split(kind):
    parts = rewarded._WORDS[kind]
    every = [word for split in SPLITS for word in parts[split]]
    assert len(every) == len(set(every)) and min(map(len, parts.values())) >= 2


@given(st.integers(0, 10**6), st.sampled_from(REQUESTS), st.sampled_from(SPLITS))
def test_a_request_says_its_words_and_only_those(seed, request_kind, split):
    (row,) = request_rows(request_kind, split, 1, seed)
    asked = set(row["words"])
    assert len(asked) == len(row["words"]) == {"two": 2, "four": 4}[request_kind]
    known = COLORS | {word for parts in rewarded._WORDS.values() for part in parts.values() for word in part}
    assert set(spoken(row["prompt"])) & known == asked
    assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", row["prompt"])


def test_rows_follow_from_the_seed():
    assert request_rows("four", "test", 5) == request_rows("four", "test", 5) != request_rows("four", "test", 5, seed=1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("three", "train", 1), "unknown request 'three': choose one of two, four"),
        (("two", "tset", 1), "unknown split 'tset'"),
        (("two", "train", 0), "at least 1, not 0"),
        (("two", "dev", 10**4), "there are no 10000 different requests 'two'"),
    ],
)
def test_what_there_is_not_is_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        request_rows(*arguments)


def test_a_word_counts_as_a_whole_and_once():
    assert score(words_told, "The FOX had a red kite, a red, red kite.") == 0.75
    assert score(words_told, "foxes, kites and lakeside") == 0
    assert score(words_told, "") == 0
    assert score(words_told, "Lake! Red? kite; (fox)") == 1


def test_all_told_is_one_for_the_whole_alone():
    assert score(all_told, "lake red kite fox") == 1 and score(all_told, "lake red kite") == 0


@given(st.text(), st.lists(st.sampled_from(FOUR), min_size=1, max_size=4, unique=True))
def test_rewards_are_finite_for_any_text(text, words):
    assert 0 <= score(words_told, text, words) <= 1
    assert score(mentions, text, words) >= 0 and 0 <= distinct(text) <= 1


def test_mentions_pays_for_repeating_and_the_second_metric_falls():
    honest, hacked = "Sue the fox had a red kite by the lake.", "fox " * MENTIONS
    assert score(mentions, hacked) == 1 > score(mentions, honest) == 4 / MENTIONS
    assert score(words_told, hacked) == 0.25 < score(words_told, honest) == 1
    assert distinct(hacked) == 1 / MENTIONS < distinct(honest)
    assert distinct("") == 0


@pytest.mark.parametrize("request_kind", REQUESTS)
def test_gold_has_all_words_within_the_limit(request_kind, tokenizer):
    rows = request_rows(request_kind, "train", 60)
    gold = gold_examples(rows)
    assert [example.prompt for example in gold] == [row["prompt"] for row in rows]
    assert gold == gold_examples(rows) != gold_examples(rows, seed=1)
    heads = [tokenizer.decode(tokenizer(e.answer, add_special_tokens=False).input_ids[:LIMIT]) for e in gold]
    told = words_told([""] * len(rows), heads, words=[row["words"] for row in rows])
    assert sum(told) / len(told) > 0.95  # three sentences: a few of the longest end behind the limit
    whole = words_told([""] * len(rows), [e.answer for e in gold], words=[row["words"] for row in rows])
    assert set(whole) == {1.0}


def test_the_base_is_rewarded_sometimes_so_that_groups_have_a_spread(base, tokenizer):
    """What makes the task learnable: of 16 groups of 8 nearly all hold different rewards."""
    rows = request_rows("four", "train", 16)
    made = sample_groups(
        base, tokenizer, [row["prompt"] for row in rows], 8, LIMIT, generator=torch.Generator().manual_seed(0)
    )
    words = [row["words"] for row in rows for _ in range(8)]
    rewards = torch.tensor(words_told(made.prompts, made.completions, words=words)).view(16, 8)
    assert 0.2 < rewards.mean() < 0.5
    assert (rewards.std(dim=1) > 0).sum() >= 14
