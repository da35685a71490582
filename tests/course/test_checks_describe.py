"""Values and exceptions are said in a few words, the same on every run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import utils
from utils.course.checks.describe import apart, brief, is_learners, raised_text


def test_descriptions_never_show_addresses():
    class Plain:
        pass

    for value in (
        Plain(),
        Plain,
        lambda: 0,
        torch.nn.Linear(1, 1),
        [Plain()],
        object(),
        torch.ones(9),
        list(range(99)),
    ):
        assert "0x" not in brief(value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([1, 2.5, "a"], "[1, 2.5, 'a']"),
        ((1,), "(1,)"),
        ((), "()"),
        ({"r": [8, 16]}, "{'r': [8, 16]}"),
        ({2, 1}, "{1, 2}"),
        (frozenset(), "an empty set"),
        (list(range(5)), "[0, 1, 2, 3, 4]"),
        (list(range(25)), "a list of 25 items"),
        (["q_proj"] * 10, "a list of 10 items"),
        (["q_proj" * 9] * 4, "a list of 4 items"),
        (dict.fromkeys(range(5)), "{0: None, 1: None, 2: None, 3: None, 4: None}"),
        (dict.fromkeys(range(25)), "a dict of 25 items"),
        ([[[[1]]]], "[[[a list of 1 item]]]"),
        (-(10**400), "-1.00e+400"),
        (np.array(["a"]), "a <U1 array of shape (1,)"),
        (torch.ones(2, dtype=torch.int64), "an int64 tensor of shape (2,)"),
        (torch.ones(2, dtype=torch.uint8), "a uint8 tensor of shape (2,)"),
        (torch.Size([2, 3]), "torch.Size([2, 3])"),
        ("x" * 90, "'" + "x" * 59 + "..." + "x" * 14 + "'"),
        (True, "True"),
        (1234567.0, "1.23e+06"),
    ],
)
def test_a_value_in_brief(value, said):
    assert brief(value) == said


def test_the_library_and_installed_packages_are_not_the_learners():
    house = Path(utils.__file__).parent
    for path in (house / "lora.py", house / "deep" / "down.py", torch.__file__, json.__file__, "<frozen importlib>"):
        assert not is_learners(str(path))
    for path in ("/tmp/ipykernel_7/123.py", house.parent / "utils_of_mine.py", "<stdin>"):
        assert is_learners(str(path))


def test_an_exception_is_told_with_the_innermost_line_that_is_the_learners():
    with pytest.raises(ValueError) as caught:
        json.loads("{")
    said = raised_text(caught.value)
    assert said.startswith("your code raised JSONDecodeError: Expecting property name")
    assert said.endswith('json.loads("{"))')
    assert raised_text(KeyError()) == "your code raised KeyError"


def test_an_exceptions_text_is_cut_and_has_no_addresses():
    assert raised_text(KeyError(object())) == "your code raised KeyError: <object object>"
    assert raised_text(ValueError("x" * 5000)) == f"your code raised ValueError: {'x' * 160} ..."
    assert raised_text(ValueError("one\ntwo")) == "your code raised ValueError: one"


def test_an_exception_that_can_not_be_told_is_named():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

    assert raised_text(Mute()) == "your code raised Mute"


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (1, 2, ("1", "2")),
        (14.06, 14.13, ("14.06", "14.13")),
        (0.1, 0.1 + 1e-12, ("0.1", "0.100000000001")),
        (2.0, 2.0, ("2", "2")),
        (10**30, 10**30 + 1, (str(10**30), str(10**30 + 1))),
        (1 + 1j, 2 + 1j, ("1+1j", "2+1j")),
    ],
)
def test_two_numbers_get_digits_until_they_differ(one, other, said):
    assert apart(one, other) == said
