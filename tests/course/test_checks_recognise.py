"""An answer that no listed mistake matches is told by what holds of all its wrong results, and by nothing else."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.course.checks.core import evaluate
from utils.course.checks.registry import exercise

pytestmark = pytest.mark.usefixtures("own_registry")


def judged(reference, answer, calls, **more):
    """What the learner reads before the example, or the example alone."""
    exercise("it", reference=reference, cases=calls, **more)
    result = evaluate("it", answer)
    assert result.state == "not right yet"
    said, example, _ = result.message.partition(" For example: case ")
    assert result.named == bool(example)
    return said if example else ""


LISTS = [([3, 1, 2],), (["q", "k", "v", "o"],), ([5, 6, 7, 8],)]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda items: items[::-1], "the items are right, but in the reverse order."),
        (lambda items: items[1:] + items[:1], "the items are right, but in another order."),
        (lambda items: items[:-1], "the last item is missing."),
        (lambda items: items[1:], "the first item is missing."),
        (lambda items: [*items, 0], "there is one item too many, at the end."),
        (lambda items: [0, *items], "there is one item too many, at the beginning."),
        (lambda items: [0, *items[:-1]], "the items are shifted by one place, towards the end."),
        (lambda items: [*items[1:], 0], "the items are shifted by one place, towards the beginning."),
        (lambda items: items + items, "the items are right, but some are there too often."),
        (lambda x: [*x, "x", "y"], "nothing is missing, but there are items that don't belong there, such as 'x'."),
        (lambda items: items[1:-1], "what is there belongs there, but items are missing, such as 3."),
        (lambda items: [], "your function returns the same every time, []: does it use its arguments?"),
        (lambda items: tuple(items[::-1]), "the items are right, but in the reverse order."),
        (lambda items: [0, *items[1:]], "where your result is wrong, it is only the first item; the rest is right."),
        (lambda items: [*items[:-1], 0], "where your result is wrong, it is only the last item; the rest is right."),
        (lambda items: [*items[1:-1], 0, 1], ""),
        (lambda items: [object()] * len(items), ""),
    ],
)  # fmt: skip
def test_lists(answer, said):
    assert judged(lambda items: list(items), answer, LISTS) == said


def test_one_value_in_the_place_of_another():
    calls = [([1, 0, 2, 0],), ([0, 5],), ([7, 7],)]
    wrong = judged(lambda x: [n or -100 for n in x], lambda x: [n or -1 for n in x], calls)
    assert wrong == "wherever -100 belongs, you have -1; the rest is right."
    some = judged(
        lambda x: [n or -100 for n in x], lambda x: [n or -1 for n in x[:-1]] + [x[-1] or -100], [*calls, ([0, 0],)]
    )
    assert some == "what is wrong is always -1 in the place of -100, which elsewhere is in its place."
    two = judged(lambda x: [n or -100 for n in x], lambda x: [n or -len(x) for n in x], calls)
    assert two == ""


def test_what_belongs_there_several_times_is_told_by_how_often():
    calls = [([1, 1, 2],), ([3, 3],), ([4, 5],)]
    told = judged(lambda x: list(x), lambda x: sorted(set(x)), calls)
    assert told == "the items are right, but some are there too seldom."
    exchanged = judged(lambda x: list(x), lambda x: [x[0]] + [x[-1]] * 3, [([1, 1, 2],), ([3, 3, 4],)])
    assert "too" not in exchanged


def test_vectors_are_told_as_lists_are():
    calls = [(torch.tensor([1.0, 2, 5]),), (torch.tensor([4.0, 3, 9, 8]),)]
    assert judged(lambda x: x * 2, lambda x: x.flip(0) * 2, calls) == "the items are right, but in the reverse order."


def test_the_right_items_in_another_kind_of_container_are_in_their_order():
    tensors = [(torch.tensor([3, 1, 2]),), (torch.tensor([7, 5, 6]),), (torch.tensor([1, 9, 4]),)]
    for exact, other, calls, kind in (
        (lambda x: [n + 1 for n in x], lambda x: torch.tensor(x) + 1, [([3, 1, 2],), ([7, 5],), ([1, 9],)], "a list"),
        (lambda x: x + 1, lambda x: (x + 1).tolist(), tensors, "a tensor"),
    ):
        exercise("it", reference=exact, cases=calls)
        said = evaluate("it", other).message
        assert f"and {kind} is asked for" in said and "order" not in said


def test_an_argument_that_comes_back_is_named():
    calls = [([1, 2],), ([3],), ([],)]
    assert judged(lambda x: [2 * n for n in x], lambda x: x, calls) == "your function returns `x` as it came in."
    assert "as it came in" not in judged(lambda x: [2 * n for n in x], lambda x: x if len(x) == 1 else [9], calls)


TEXTS = [("Nf4 base",), ("Q Proj",)]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (str.lower, "the words are right, but not their capital and small letters."),
        (lambda text: text.replace(" ", "\n"), "the words are right, but not the spaces and line ends between them."),
        (lambda text: text[:-2], "the end is missing: 'se'."),
        (lambda text: text[2:], "the beginning is missing: 'Nf'."),
        (lambda text: text + "!", "there is something too much at the end: '!'."),
        (lambda text: "> " + text, "there is something too much at the beginning: '> '."),
        (lambda text: text.replace("N", "n").replace("P", "o"), ""),
    ],
)
def test_strings(answer, said):
    assert judged(lambda text: str(text), answer, TEXTS) == said


def test_several_results():
    calls = [(3, 4), (5, 7), (9, 2)]
    both = lambda a, b: (a + b, a * b)  # noqa: E731
    swapped = judged(both, lambda a, b: (a * b, a + b), calls)
    assert swapped == "the 2 results are right, but in another order than the task asks for."
    halves = lambda a, b: (torch.full((2,), a * 1.0).half(), torch.full((3,), b * 1.0).half())  # noqa: E731
    in_place = judged(halves, lambda a, b: tuple(x.float() for x in halves(a, b)), calls)
    assert "order" not in in_place  # of another dtype, and each in its place
    assert judged(both, lambda a, b: a * b, calls) == "that is result 2 of 2 alone: return all of them."
    assert judged(both, lambda a, b: (a + b, a * b + a % 4), calls) == (
        "only result 2 of 2 is wrong; the rest is right in every case."
    )
    named = judged(lambda a, b: {"sum": a + b, "product": a * b}, lambda a, b: {"sum": a, "product": a * b}, calls)
    assert named == "only the value under 'sum' is wrong; the rest is right in every case."
    assert judged(both, lambda a, b: (a * b, a + b) if a < 9 else (0, 1), calls) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x[0].zero_(), "it is only the first row"),
        (lambda x: x[-1].zero_(), "it is only the last row"),
        (lambda x: x[:, 0].zero_(), "it is only the first column"),
        (lambda x: x[:, -1].zero_(), "it is only the last column"),
        (lambda x: x.diagonal().zero_(), "it is only the diagonal"),
        (lambda x: x[1].zero_(), ""),
    ],
)
def test_the_place_that_is_wrong_in_a_matrix(change, said):
    def answer(x):
        change(y := x * 3)
        return y

    calls = [lambda n=n: (torch.rand(n, n + 1) + 1,) for n in (3, 4, 5)]
    assert said in judged(lambda x: x * 3, answer, calls)
    assert bool(said) == bool(judged(lambda x: x * 3, answer, calls))


# ------------------------------------------------------------------------------------------------- arguments


def test_arguments_taken_for_each_other():
    calls = [(3, 4), (5, 7), (9, 2), (4, 4)]
    assert judged(lambda a, b: a * 2 + b, lambda a, b: b * 2 + a, calls) == "`a` and `b` are taken for each other."
    told = judged(lambda a, b: a * 2 + b, lambda a, b: b * 2 + a if a != 9 else 1, calls)
    assert "taken for each other" not in told


def test_parameters_in_another_order():
    told = judged(lambda a, b: a * 2 + b, lambda b, a: a * 2 + b, [(3, 4), (5, 7)])
    assert told == "your parameters are in the order (b, a), and the task wants (a, b)."
    assert "order" not in judged(lambda a, b: a * 2 + b, lambda b, a: a * 3 + b * b, [(3, 4), (5, 7)])


def test_an_argument_that_is_not_used():
    calls = [(3, 4), (5, 7), (9, 2)]
    assert judged(lambda a, b: a * a + b, lambda a, b: a * a + 1, calls) == (
        "your result doesn't change when `b` does: is it used?"
    )
    three = judged(lambda a, b, c: a + b * c, lambda a, b, c: a + 1, [(*call, n) for n, call in enumerate(calls, 3)])
    assert three == "your result doesn't change when `b` or `c` do: are they used?"
    assert "is it used" not in judged(lambda a, b: a * a + b, lambda a, b: a * a + 1 + b // 7, calls)


def test_the_same_every_time():
    told = judged(lambda n: n * n, lambda n: 9, [(3,), (4,), (5,)])
    assert told == "your function returns the same every time, 9: does it use its arguments?"
    assert judged(lambda n: 9, lambda n: 8, [(3,), (4,)]) != told


def test_a_function_that_remembers_earlier_calls():
    def answer(x, items=[]):  # noqa: B006
        items.append(x)
        return items

    assert "does it keep something from one call to the next" in judged(lambda x: [x], answer, [(1,), (2,)])
    seen = judged(lambda x: [x], lambda x: [x, random.random()], [(1,), (2,)])
    assert "keep something" not in seen  # the same seed each time


@pytest.mark.parametrize(
    "value", [lambda: object(), lambda: torch.nn.Linear(1, 1), lambda: (n for n in "a"), lambda: float("nan")]
)
def test_what_can_not_be_compared_is_not_called_remembered(value):
    assert "keep something" not in judged(lambda x: x, lambda x: value(), [(1,), (2,)])


# --------------------------------------------------------------------------------------------- some cases only


DRAWN = {"drawn": lambda numbers: (numbers.randint(-3, 9), numbers.randint(1, 5)), "draws": 20}


def test_where_it_is_wrong_and_what_holds_there():
    told = judged(lambda a, b: a * b, lambda a, b: a * b if a >= 0 else 2 * a * b, [(2, 3), (0, 4)], **DRAWN)
    assert told.startswith("your function is right in ") and "wrong in exactly those where `a` is negative." in told
    assert told.endswith("There every result is twice the right one.")


def test_an_exception_is_told_with_where_it_is_raised():
    told = judged(lambda a, b: a + b, lambda a, b: a + b + 0 // (a - b), [(2, 3), (4, 4)], **DRAWN)
    assert told.endswith("where `a` and `b` are equal.")


def test_what_holds_of_some_is_not_said_of_every_result():
    told = judged(lambda a, b: a * b * b, lambda a, b: a * b * b + (a % 5 in (1, 3)), [(2, 3), (3, 3)], **DRAWN)
    assert told.startswith("your function is right in ") and "In the others every result is too large by 1" in told


def test_a_way_without_return_is_told():
    told = judged(lambda a, b: a + b, lambda a, b: a + b if a > 0 else None, [(2, 3), (0, 3)], **DRAWN)
    assert "There your function returns nothing: does every way through it end in a return?" in told


def test_a_loop_without_end_that_nobody_asked_for_is_broken_off():
    """With one argument of the next call, the steps go past the end."""

    def answer(start, end, step):
        items = []
        while start != end:
            items.append(start)
            start += step
        return [*items, 1, 1]

    calls = [(0, 6, 3), (1, 9, 4), (0, 10, 5), (9, 1, -2)]
    assert judged(lambda start, end, step: list(range(start, end, step)), answer, calls)


# ------------------------------------------------------------------------------------------ held to what it says

items = st.lists(st.integers(0, 3), max_size=5)
changes = st.sampled_from(
    [
        lambda x: x[::-1], lambda x: x[:-1], lambda x: x[1:], lambda x: [*x, 0], lambda x: [0, *x], sorted,
        lambda x: list(dict.fromkeys(x)), lambda x: x + x[-1:], lambda x: [n or 9 for n in x], lambda x: x[1:] + [7],
        lambda x: x if len(x) > 2 else x[:1], lambda x: [3] + x[:-1],
    ]
)  # fmt: skip

MEANS = {
    "in the reverse order": lambda w, h: h == w[::-1],
    "in another order": lambda w, h: sorted(h) == sorted(w),
    "the last item is missing": lambda w, h: h == w[:-1],
    "the first item is missing": lambda w, h: h == w[1:],
    "too many, at the end": lambda w, h: h[:-1] == w,
    "too many, at the beginning": lambda w, h: h[1:] == w,
    "towards the end": lambda w, h: h[1:] == w[:-1],
    "towards the beginning": lambda w, h: h[:-1] == w[1:],
    "too often": lambda w, h: set(w) == set(h) and all(h.count(n) >= w.count(n) for n in w),
    "too seldom": lambda w, h: set(w) == set(h) and all(h.count(n) <= w.count(n) for n in w),
    "nothing is missing": lambda w, h: all(h.count(n) >= w.count(n) for n in w),
    "what is there belongs": lambda w, h: all(h.count(n) <= w.count(n) for n in h),
    "always empty": lambda w, h: h == [],
    "only the first item": lambda w, h: h[1:] == w[1:],
    "only the last item": lambda w, h: h[:-1] == w[:-1],
    "wherever": lambda w, h: len(w) == len(h),
    "in the place of": lambda w, h: len(w) == len(h),
}


@settings(deadline=None, max_examples=200)
@given(st.lists(items, min_size=1, max_size=8, unique_by=str), changes, changes, st.integers(0, 3))
def test_what_is_told_of_lists_is_so(wants, change, other, bound):
    answer = lambda x: change(list(x)) if len(x) >= bound else other(list(x))  # noqa: E731
    exercise("it", reference=lambda x: list(x), cases=[(want,) for want in wants])
    result = evaluate("it", answer)
    wrong = [(want, answer(want)) for want in wants if answer(want) != want]
    told = result.message.partition(" For example: case ")[0]
    for words, holds in MEANS.items():
        if result.named and words in told:
            assert all(holds(w, h) for w, h in wrong), told
            if "right in" not in told and "where your result is wrong" not in told:
                assert all(holds(w, h) or w == h for w, h in ((want, answer(want)) for want in wants)), told
