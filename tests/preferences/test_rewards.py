"""Rewards: what comes back is what the function said, and every way to be useless is named, with its completion."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.preferences.rewards import RewardError, name_of, reward_of

PROMPTS, COMPLETIONS = ["a?", "b?", "c?"], ["one", "two", "three"]


@given(st.lists(st.floats(-1e6, 1e6, width=32), max_size=6))
@settings(deadline=None)
def test_the_numbers_come_back_in_their_order(values):
    found = reward_of(lambda prompts, completions: values, values, values)
    assert found.dtype == torch.float32 and found.tolist() == values


def test_a_reward_gets_strings_and_columns_by_name():
    def told(prompts, completions, answer, **columns):
        assert (prompts, completions, columns) == (PROMPTS, COMPLETIONS, {"level": [1, 2, 3]})
        return [len(text) == size for text, size in zip(completions, answer, strict=True)]

    found = reward_of(told, tuple(PROMPTS), tuple(COMPLETIONS), {"answer": (3, 4, 5), "level": (1, 2, 3)})
    assert found.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "given_back",
    [
        [1, 2.5, True],
        np.array([1, 2.5, 1]),
        torch.tensor([1, 2.5, 1]),
        (1, Fraction(5, 2), np.float32(1)),
        (np.bool_(1), Decimal("2.5"), np.array([1.0])),
        torch.tensor([[1], [2.5], [1]]),
        np.array([[1], [2.5], [1]]),
    ],
)
def test_numbers_of_any_kind_will_do(given_back):
    assert reward_of(lambda **_: given_back, PROMPTS, COMPLETIONS).tolist() == [1, 2.5, 1]


@pytest.mark.parametrize(
    ("given_back", "said"),
    [
        ([0, None, 1], "'score' returned None for completion 1, 'two': does a branch"),
        ([0, 1, math.nan], "'score' returned nan for completion 2, 'three': .* division by zero"),
        ([math.inf, 1, 0], "'score' returned inf for completion 0, 'one'"),
        ([0, 1e300, 0], r"'score' returned a number beyond 1e\+16 for completion 1, 'two': rewards are float32"),
        ([0, 0, -(10**400)], r"returned a number beyond 1e\+16 for completion 2"),
        ([0, Decimal("nan"), 0], "returned nan for completion 1"),
        ([np.array([1, 2]), 0, 0], r"returned array\(\[1, 2\]\) for completion 0"),
        ([np.str_("1"), 0, 0], "returned '1' for completion 0"),
        ([0, "1", 0], "'score' returned '1' for completion 1, 'two': return one number"),
        ([0, 1j, 0], "returned 1j for completion 1"),
        ([0, [1], 0], r"returned \[1\] for completion 1"),
        ([0, 1], "'score' returned 2 rewards for 3 completions"),
        ([], "'score' returned 0 rewards for 3 completions"),
        (None, "'score' returned None: return a list with one number for each of the 3 completions"),
        (0.5, "'score' returned 0.5: return a list"),
        ("abc", "'score' returned 'abc': return a list"),
        ({0: 1, 1: 1, 2: 1}, "returned {0: 1, 1: 1, 2: 1}: return a list"),
        (torch.tensor(1.0), "returned tensor.*: return a list"),
        ({1.0, 2.0, 3.0}, "returned {1.0, 2.0, 3.0}: return a list"),
        (map(float, range(3)), "returned <map object .*: return a list"),
    ],
)
def test_what_a_reward_may_not_return(given_back, said):
    def score(**_):
        return given_back

    with pytest.raises(RewardError, match=said):
        reward_of(score, PROMPTS, COMPLETIONS)


def test_a_reward_that_raises_is_named_with_the_completion_that_made_it():
    def number(prompts, completions, **columns):
        return [float(text) for text in completions]

    with pytest.raises(RewardError, match=r"'number' raised ValueError: could not .*, for completion 1, 'two'\.") as e:
        reward_of(number, PROMPTS, ["1", "two", "3"])
    assert isinstance(e.value, ValueError) and isinstance(e.value.__cause__, ValueError)


def test_a_reward_that_raises_on_all_together_names_none():
    def compares(prompts, completions, **columns):
        return [1 / (len(completions) == 1)] * len(completions)

    with pytest.raises(RewardError, match=r"'compares' raised ZeroDivisionError: \D+\. A model in training"):
        reward_of(compares, PROMPTS, COMPLETIONS)


def test_a_reward_that_doesnt_take_the_columns_is_told_so():
    def strict(prompts, completions):
        return [0.0] * 3

    with pytest.raises(
        RewardError, match=r"'strict' can't be called: .*'answer'.*columns \['answer'\] by.*\*\*columns"
    ):
        reward_of(strict, PROMPTS, COMPLETIONS, {"answer": COMPLETIONS})
    with pytest.raises(
        RewardError,
        match=r"can't be called: missing a required argument: 'answer'.*columns \[\] by .* row .* a column 'answer'",
    ):
        reward_of(lambda prompts, completions, answer: [0, 0, 0], PROMPTS, COMPLETIONS)
    with pytest.raises(RewardError, match="a reward is a function, not 'accuracy'"):
        reward_of("accuracy", PROMPTS, COMPLETIONS)
    with pytest.raises(
        RewardError, match="a reward is a function, not .* one at a time, or add them up in one function"
    ):
        reward_of([strict, strict], PROMPTS, COMPLETIONS)


@pytest.mark.parametrize("completions", ["abc", None, iter("abc")])
def test_completions_are_a_list(completions):
    with pytest.raises(ValueError, match=r"completions (is one text|must be a list|can be gone through only once)"):
        reward_of(lambda **_: [0, 0, 0], PROMPTS, completions)


def test_a_type_error_inside_a_reward_is_its_own():
    def adds(prompts, completions, **columns):
        return [None + 1 for _ in completions]

    with pytest.raises(RewardError, match=r"'adds' raised TypeError: unsupported .*, for completion 0, 'one'\."):
        reward_of(adds, PROMPTS, COMPLETIONS)


def test_an_interrupt_is_no_error_of_the_reward():
    def stopped(**_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reward_of(stopped, PROMPTS, COMPLETIONS)


@pytest.mark.parametrize(
    ("prompts", "columns", "said"),
    [
        (PROMPTS[:2], {}, "3 completions, but 2 entries in prompts"),
        (PROMPTS, {"answer": [1]}, "3 completions, but 1 entries in answer"),
        ("abc", {}, "prompts is one text, 'abc', and would be taken letter by letter"),
        (None, {}, "prompts must be a list of texts, not None"),
        (PROMPTS, {"answer": "abc"}, "the column 'answer' is one text, 'abc'"),
        (PROMPTS, {"answer": None}, "the column 'answer' must be a list of entries, .* not None"),
        (PROMPTS, [1, 2, 3], "columns must be a mapping"),
        (PROMPTS, {3: COMPLETIONS}, "a column is called 3: "),
        (PROMPTS, {"completions": COMPLETIONS}, "called 'completions', like an argument"),
        (PROMPTS, {"prompts": PROMPTS}, "called 'prompts', like an argument"),
    ],
)
def test_what_is_asked_has_one_length_and_its_own_names(prompts, columns, said):
    with pytest.raises(ValueError, match=said):
        reward_of(lambda **_: [0, 0, 0], prompts, COMPLETIONS, columns)


def test_a_long_completion_is_shortened_and_a_class_is_named():
    class Judge:
        def __call__(self, **_):
            return [None]

    assert name_of(Judge()) == "Judge"
    with pytest.raises(RewardError, match="'Judge' returned None") as error:
        reward_of(Judge(), ["?"], ["x" * 5000])
    assert len(str(error.value)) < 400
