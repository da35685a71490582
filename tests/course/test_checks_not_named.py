"""Where the recognition of wrong answers has to keep silent: it would say what isn't so, or never come back."""

import decimal

import numpy as np
import pytest
import torch

from utils.course.checks import judge, registry
from utils.course.checks.calls import TooLong, outcome


@pytest.fixture
def judged(monkeypatch):
    """`judged(reference, drawn, answer)`: the message on an answer that isn't right yet, and whether it is named."""
    monkeypatch.setattr(registry, "_registered", {})

    def message(reference, drawn, answer, cases=()):
        registry.exercise("trial", reference=reference, drawn=drawn, cases=cases)
        result = judge.evaluate(registry.find("trial"), answer)
        assert result.state == judge.NOT_RIGHT
        return result.message, result.named

    return message


def count(items):
    return len(items)


def some(draw):
    return (list(range(draw.randint(1, 9))),)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda items: float(len(items)), "has the right value, but what is counted is a whole number"),
        (lambda items: torch.tensor(len(items)), "the value is right, but it is a tensor"),
        (
            lambda items: decimal.Decimal(len(items)),
            "a Decimal, and a whole number of Python is asked for: int(...) makes one of it.",
        ),
    ],
)
def test_the_right_number_of_another_kind_is_told_by_its_kind_alone(judged, answer, said):
    message, named = judged(count, some, answer)
    assert said in message and message.startswith("case 1 of") and named == message.endswith("the number in it.")


def test_a_result_in_a_coarser_dtype_is_not_1_times_the_right_one(judged):
    message, _ = judged(lambda x: x / 3, lambda draw: (torch.randn(4, dtype=torch.float64),), lambda x: x.float() / 3)
    assert "the values are right, but not their dtype" in message and "times" not in message


def test_results_in_the_right_order_are_not_told_to_be_in_another(judged):
    drawn = lambda draw: (torch.randn(4), torch.randn(3))  # noqa: E731
    message, _ = judged(lambda a, b: (a + 1, b * 2), drawn, lambda a, b: ((a + 1).numpy(), (b * 2).numpy()))
    assert "numpy array" in message and "order" not in message


def test_a_list_of_arrays_is_no_tensor_and_no_warning(judged, recwarn):
    message, _ = judged(lambda x: x + 1, lambda draw: (torch.randn(2, 3),), lambda x: [np.ones(3), np.ones(3)])
    assert "expected a float32 tensor of shape (2, 3)" in message and not recwarn.list


def test_where_nothing_comes_back_no_argument_is_called_unused(judged):
    answer = lambda size, way: size * 2.0 if way == "double" else None  # noqa: E731
    cases = [(size, way) for size in (5, 3, 7, 4) for way in ("double", "square")]
    right = lambda size, way: size * 2.0 if way == "double" else size**2.0  # noqa: E731
    message, _ = judged(right, None, answer, cases)
    assert "is a return missing?" in message and "used" not in message


def test_a_share_that_an_order_of_entries_cannot_change_still_uses_its_tensor(judged):
    first = lambda x, r: (x[:r].sum() / x.sum()).item()  # noqa: E731
    largest = lambda x, r: (x.sort(descending=True).values[:r].sum() / x.sum()).item()  # noqa: E731
    message, _ = judged(first, lambda draw: (torch.rand(9), draw.randint(1, 5)), largest)
    assert "doesn't change" not in message


def test_a_loop_that_never_ends_for_arguments_of_two_cases_is_given_up(judged):
    """`_unused` mixes the arguments of two cases, and the upper end may then lie below the lower."""

    def counted(low, high):
        steps = 0
        while low != high:
            low, steps = low + 1, steps + 1
        return 3 * steps + 1

    drawn = lambda draw: ((low := draw.randint(0, 99)), low + draw.randint(1, 9))  # noqa: E731
    message, named = judged(lambda low, high: high - low, drawn, counted)
    assert message.startswith("case 1 of 24") and not named


def test_only_a_call_with_a_limit_is_given_up():
    def spin(turns):
        while turns:
            turns -= 1
        return "done"

    assert outcome(spin, registry.Case(lambda: (1000,))).value == "done"
    assert isinstance(outcome(spin, registry.Case(lambda: (-1,)), seconds=0.02).raised, TooLong)
