"""Exercises are registered once, under names that can be told apart, and what can't be judged is refused."""

import pytest
import torch

from utils.course.checks import judge, registry
from utils.course.checks.core import evaluate
from utils.course.checks.registry import Mistake, exercise, find, registered, twin

pytestmark = pytest.mark.usefixtures("own_registry")


def register_in(chapter, name, points=1):
    """Register as a module utils.course.checks.<chapter> would."""
    scope = {"__name__": f"utils.course.checks.{chapter}", "exercise": exercise}
    exec(f"exercise({name!r}, reference='one', points={points})", scope)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("LoraDelta", {"reference": 1}, "lower-case identifier"),
        ("lora-delta", {"reference": 1}, "lower-case identifier"),
        ("f", {"reference": len}, "needs cases or a test"),
        ("f", {"reference": 1, "cases": [(1,)]}, "can't be called"),
        ("f", {"reference": 2048, "drawn": lambda numbers: (1,)}, "can't be called"),
        ("f", {"reference": len, "cases": [[1]]}, "a case is a tuple"),
        ("f", {"reference": 1, "points": 0}, "points must be at least 1"),
        ("f", {"reference": 1, "hints": "count"}, "not one string"),
        ("f", {"reference": 4}, "a learner's own 4, and a second check would pass it"),
        ("f", {"reference": True}, "a learner's own True, and a second check would pass it"),
    ],
)
def test_faulty_registrations_are_refused(name, arguments, said):
    with pytest.raises(ValueError, match=said):
        exercise(name, **arguments)
    assert registered() == {}


def test_a_mistake_says_something():
    with pytest.raises(ValueError, match="message"):
        Mistake(1)


def test_a_name_belongs_to_one_chapter_which_may_register_it_again():
    register_in("ch01", "same")
    register_in("ch01", "same", points=4)
    assert find("same").points == 4
    with pytest.raises(ValueError, match="already registered by ch01"):
        register_in("ch02", "same")


def test_drawn_cases_come_after_the_listed_and_are_the_same_every_time():
    exercise("draw", reference=len, cases=[([],)], drawn=lambda numbers: ([0] * numbers.randint(0, 99),), draws=5)
    sizes = [len(case.make()[0]) for case in find("draw").cases]
    assert sizes[0] == 0 and len(sizes) == 6 and len(set(sizes)) > 3
    assert sizes == [len(case.make()[0]) for case in find("draw").cases]
    assert [case.seed for case in find("draw").cases] == [0, 1, 2, 3, 4, 5]


def test_one_argument_needs_no_tuple():
    exercise("one", reference=len, cases=[lambda: "abc"], drawn=lambda numbers: "r" * numbers.randint(1, 3))
    assert [type(case.make()) for case in find("one").cases] == [tuple] * 25
    assert evaluate("one", lambda text: len(text)).state == judge.PASSED


def test_tests_may_be_one_or_several():
    exercise("none", reference=1.5)
    exercise("single", reference=1.5, test=len)
    exercise("several", reference=1.5, test=[len, repr])
    assert [len(found.tests) for found in registered().values()] == [0, 1, 2]


@pytest.mark.parametrize("value", ["q_proj", "", 2048, -0.5, (1, 2), ["a"], {"r": 8}, torch.ones(2)])
def test_a_twin_is_equal_and_another_object(value):
    again = twin(value)
    assert type(again) is type(value) and (again is not value or value == "")
    assert torch.equal(again, value) if isinstance(value, torch.Tensor) else again == value


def test_the_list_of_exercises_is_a_copy():
    exercise("one", reference=1.5)
    registered().clear()
    assert list(registered()) == ["one"]


def test_an_unknown_name_is_told_with_the_nearest_ones():
    exercise("lora_delta", reference=1.5)
    said = r"^there is no exercise 'lora_dleta'; did you mean 'lora_delta'\?$"
    with pytest.raises(registry.UnknownExercise, match=said):
        find("lora_dleta")
