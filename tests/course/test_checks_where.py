"""Where an answer is wrong is told by a predicate that separates the cases without an exception."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.course.tried_cases import tried
from utils.course.checks.where import FEWEST, where_wrong

NUMBERS = (5, 0, 2, -3, 1, 8, 7, 0.5)
LISTS = ([1, 2], [], [3, 1], [4], [2, 2], [1, 2, 3], [0, 5], [-100, 4])
TEXTS = ("q_proj", "", "Nf4 base", "a\nb", " padded ", "straße", "model.layers", "v")
TENSORS = (
    torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [2.0]]),
    torch.zeros(2, 2), torch.tensor([[2.0, 2.0], [2.0, 3.0]]), torch.tensor([[-1.0, 2.0], [4.0, 3.0]]),
    torch.tensor([[1.0, torch.nan], [3.0, 7.0]]), torch.empty(0, 3),
)  # fmt: skip


def wrong_where(values, holds):
    """A case for each value (several make the arguments); wrong in those where `holds`."""
    calls = [value if isinstance(value, tuple) else (value,) for value in values]
    return tried(*((call, 10 + at, 99 if holds(*call) else 10 + at) for at, call in enumerate(calls)))


@pytest.mark.parametrize(
    ("values", "holds", "said"),
    [
        (NUMBERS, lambda x: x == 0, "the one where `x` is 0."),
        (NUMBERS, lambda x: x < 0, "the one where `x` is negative."),
        (NUMBERS, lambda x: x == 1, "the one where `x` is 1."),
        (NUMBERS, lambda x: x % 2 == 1, "those where `x` is odd."),
        (NUMBERS, lambda x: x != int(x), "the one where `x` is not a whole number."),
        (LISTS, lambda x: not x, "the one where `x` is empty."),
        (LISTS, lambda x: len(x) == 1, "the one where `x` has one item."),
        (LISTS, lambda x: x == [2, 2], "the one where `x` has repeated items."),
        (LISTS, lambda x: x == [3, 1], "the one where `x` is not sorted."),
        (LISTS, lambda x: x[:1] == [0], "the one where `x` has a 0 in it."),
        (LISTS, lambda x: x[:1] == [-100], "the one where `x` has a negative number in it."),
        (TEXTS, lambda x: not x, "the one where `x` is empty."),
        (TEXTS, lambda x: x != x.lower(), "the one where `x` has capital letters."),
        (TEXTS, lambda x: "\n" in x, "the one where `x` has more than one line."),
        (TEXTS, lambda x: "." in x, "the one where `x` has a full stop in it."),
        (("adam", "sgd") * 3, lambda x: x == "sgd", "those where `x` is 'sgd'."),
        ((True, False) * 3, lambda x: x, "those where `x` is True."),
        ((3, None, 4, 5, None, 6), lambda x: x is None, "those where `x` is None."),
        (TENSORS, lambda x: len(x) == 1, "the one where `x` has one row."),
        (TENSORS, lambda x: not x.numel(), "the one where `x` is empty."),
        (TENSORS, lambda x: x.isnan().any(), "the one where `x` has a nan in it."),
        (TENSORS, lambda x: (x < 0).any(), "the one where `x` has a negative entry."),
        ([torch.ones(2, 3), torch.ones(4, 2, 3)] * 3, lambda x: x.ndim > 2, "those where `x` has more than two dim"),
        ([torch.ones(2), torch.ones(2).half()] * 3, lambda x: x.dtype == torch.float16, "those where `x` is float16."),
        ([torch.nn.ReLU(), torch.nn.ReLU().eval()] * 3, lambda x: not x.training, "those where `x` is in eval mode."),
    ],
)  # fmt: skip
def test_what_sets_the_wrong_cases_apart_is_named(values, holds, said):
    told = where_wrong(wrong_where(values, holds), ["x"])
    right = len(values) - sum(bool(holds(value)) for value in values)
    assert told.startswith(f"your function is right in {right} of {len(values)} cases, and wrong in exactly {said}")


PAIRS = ((2, 3), (4, 4), (6, 2), (3, 5), (9, 3), (5, 5), (7, 2), (2, 7))


@pytest.mark.parametrize(
    ("values", "holds", "said"),
    [
        (PAIRS, lambda x, y: x == y, "those where `x` and `y` are equal."),
        (PAIRS, lambda x, y: x > y, "those where `x` is larger than `y`."),
        ((*PAIRS, (8, 1), (9, 2), (9, 4)), lambda x, y: x <= y, "those where `x` is at most `y`."),
        (PAIRS, lambda x, y: x % y, "those where `x` is not a multiple of `y`."),
        ([([1] * x, y) for x, y in PAIRS], lambda x, y: len(x) < y, "those where `x` has fewer items than `y`."),
        ([([1] * x, [2] * y) for x, y in PAIRS], lambda x, y: len(x) == len(y), "those where `x` and `y` have the"),
        ([({"q": 1, "v": 2}, k) for k in "qvkqvo"], lambda x, y: y not in x, "those where `x` has no key `y`."),
        ([([2, 3, 4], y) for _, y in PAIRS], lambda x, y: y not in x, "those where `x` doesn't hold `y`."),
        (
            [(torch.ones(x), torch.ones(y)) for x, y in PAIRS], lambda x, y: x.shape == y.shape,
            "those where `x` and `y` have the same shape.",
        ),
    ],
)  # fmt: skip
def test_what_two_arguments_are_to_each_other_is_named(values, holds, said):
    told = where_wrong(wrong_where(values, holds), ["x", "y"])
    assert f"wrong in exactly {said}" in told


def test_a_flag_is_no_number_that_another_divides():
    """A cube root for a root is right of r = 1, so the flag alone doesn't separate the cases."""
    calls = [(r, flag) for r in (1, 4, 9, 16) for flag in (False, True)]
    tried = wrong_where(calls, lambda r, flag: flag and r > 1)
    assert where_wrong(tried, ["r", "flag"]) is None


def test_the_cases_that_are_right_are_named_where_few_are():
    told = where_wrong(wrong_where(PAIRS, lambda x, y: x != y), ["x", "y"])
    assert told == "your function is right in only 2 of 8 cases, exactly those where `x` and `y` are equal."


def test_the_border_of_the_results_is_named():
    wants = (3, 0, 5, 0, 2, 9, 4)
    cases = tried(*(((at + 10.5,), want, want or -1) for at, want in enumerate(wants)))
    assert where_wrong(cases, ["x"]).endswith("wrong in exactly those where the right result is 0.")
    cases = tried(*(((at + 10.5,), ValueError("no") if want == 0 else want, want) for at, want in enumerate(wants)))
    assert where_wrong(cases, ["x"]).endswith("wrong in exactly those where an exception should be raised.")


@pytest.mark.parametrize("holds", [lambda x: x in (5, 0), lambda x: x == 5, lambda x: False, lambda x: True])
def test_nothing_is_said_where_no_predicate_separates_the_cases(holds):
    assert where_wrong(wrong_where((5, 0, 9, 7, 8, 3, 2, 15), holds), ["x"]) is None


def test_few_cases_separate_by_chance():
    cases = wrong_where(NUMBERS, lambda x: x == 0)
    assert where_wrong(cases[: FEWEST - 1], ["x"]) is None and where_wrong(cases[:FEWEST], ["x"])


def test_one_exception_to_the_predicate_is_too_many():
    assert where_wrong(wrong_where([*LISTS, []], lambda x: not x), ["x"])
    cases = wrong_where([*LISTS, []], lambda x: not x)
    assert where_wrong([*cases[:-1], cases[-1]._replace(right=True)], ["x"]) is None


def test_two_that_separate_alike_are_both_named_and_three_are_none():
    calls = [(x, [0] * x) for x in (3, 0, 2, 5, 1, 4)]
    told = where_wrong(wrong_where(calls, lambda x, y: not x), ["x", "y"])
    assert told.endswith("wrong in exactly the one where `x` is 0 and `y` is empty.")
    calls = [(x, [0] * x, "r" * x) for x in (3, 0, 2, 5, 1, 4)]
    assert where_wrong(wrong_where(calls, lambda x, y, z: not x), ["x", "y", "z"]) is None


MEANS = {
    "`x` is 0": lambda x, y: x == 0,
    "`x` is 1": lambda x, y: x == 1,
    "`x` is negative": lambda x, y: x < 0,
    "`x` is positive": lambda x, y: x > 0,
    "`x` is odd": lambda x, y: x % 2 == 1,
    "`x` is even": lambda x, y: x % 2 == 0,
    "`y` is empty": lambda x, y: not y,
    "`y` has one item": lambda x, y: len(y) == 1,
    "`y` has two items": lambda x, y: len(y) == 2,
    "`y` has repeated items": lambda x, y: len(set(y)) < len(y),
    "`y` is not sorted": lambda x, y: sorted(y) != y,
    "the items of `y` are all the same": lambda x, y: len(y) > 1 and len(set(y)) == 1,
    "`y` has a negative number in it": lambda x, y: min(y, default=0) < 0,
    "`y` has a 0 in it": lambda x, y: 0 in y,
    "`y` has an odd number of items": lambda x, y: len(y) % 2 == 1,
    "`y` has as many items as `x`": lambda x, y: len(y) == x,
    "`y` has more items than `x`": lambda x, y: len(y) > x,
    "`y` has fewer items than `x`": lambda x, y: len(y) < x,
    "the length of `y` is not a multiple of `x`": lambda x, y: x and len(y) % x,
    "`y` holds `x`": lambda x, y: x in y,
    "`y` doesn't hold `x`": lambda x, y: x not in y,
    "the right result is 0": None,
    "the right result is 1": None,
    "the right result is negative": None,
}


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(st.integers(-2, 3), st.lists(st.integers(-1, 2), max_size=3)), min_size=FEWEST, max_size=9),
    st.sampled_from([holds for holds in MEANS.values() if holds]),
    st.integers(0, 20),
)
def test_what_is_told_is_so_in_every_case(calls, holds, odd_one):
    wrong = [bool(holds(*call)) ^ (at == odd_one) for at, call in enumerate(calls)]
    cases = tried(*((call, 10, 99 if bad else 10) for call, bad in zip(calls, wrong, strict=True)))
    told = where_wrong(cases, ["x", "y"])
    if told is None:
        return
    predicates = told.removesuffix(".").split(" where ", 1)[1]
    for words in [predicates] if predicates in MEANS else predicates.split(" and "):
        means = [bool(MEANS[words](*call)) for call in calls]
        assert means == ([not bad for bad in wrong] if "cases, exactly" in told else wrong), told
