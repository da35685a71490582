"""Values and exceptions are said in a few words, the same on every run."""

import json
from pathlib import Path

import pytest
import torch

import utils
from utils.course.checks.describe import brief, is_learners, raised_text


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
        (list(range(5)), "a list of 5 items"),
        (dict.fromkeys(range(5)), "a dict of 5 items"),
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
