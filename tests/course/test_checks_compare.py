"""Results are compared by the rules that a learner reads of, and the first difference is named."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.course.checks.compare import difference


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (1, 1.0),
        (1.0, 1),
        (0.1 + 0.2, 0.3),
        (float("nan"), float("nan")),
        (1e300, 1e300 * (1 + 1e-9)),
        (1 + 2j, 1 + 2j),
        ([1, (2, 3)], (1, [2, 3])),
        (torch.Size([2, 3]), (2, 3)),
        (2.5, np.float32(2.5)),
        (3, np.int64(3)),
        (True, np.bool_(True)),
        (torch.ones(2), torch.ones(2, dtype=torch.float64) * (1 + 1e-5)),
        (torch.ones(2, dtype=torch.bfloat16), torch.ones(2) * 1.004),
        (torch.tensor([1, 2]), torch.tensor([1, 2], dtype=torch.int32)),
        (torch.tensor([float("nan"), float("inf")]), torch.tensor([float("nan"), float("inf")])),
        (torch.ones(2), np.ones(2)),
        (torch.ones(2), torch.nn.Parameter(torch.ones(2))),
        (torch.empty(3, device="meta"), torch.empty(3, device="meta")),
        (torch.float32, torch.float32),
        ({1, 2}, frozenset({2, 1})),
        (b"a", b"a"),
    ],
)
def test_what_counts_as_equal(expected, got):
    assert difference(expected, got) is None


@pytest.mark.parametrize(
    ("expected", "got", "said"),
    [
        (1, True, "expected 1, got True."),
        (True, 1, "expected True, got 1."),
        (None, 0, "expected None, got 0."),
        (1e300, 10**400, f"expected about 1e+300, got {10**400}."),
        (0, None, "expected 0, got None."),
        (10**15, 10**15 + 1, "expected 1000000000000000, got 1000000000000001."),
        (1 / 3, 0.4, "expected about 0.333, got 0.4."),
        (1e-7, 0.0, "expected about 1e-07, got 0."),
        (112_000.4, 8.0, "expected about 112000, got 8."),
        (float("nan"), 1.0, "expected about nan, got 1."),
        ("nf4", "fp4", "expected 'nf4', got 'fp4'."),
        ("8", 8, "expected '8', got 8."),
        (8, "8", "expected a whole number, got '8'."),
        ([1, 2], [1], "expected 2 items, got 1."),
        ([1, 2], [1, 3], "item 1: expected 2, got 3."),
        (["q", "v"], "qv", "expected a list of 2 items, got 'qv'."),
        ({"r": 8}, {"rank": 8}, "the dictionary's keys are not right: 'r' is missing, 'rank' is not wanted."),
        ({"a": [1, 2]}, {"a": [1, 5]}, "under key 'a': item 1: expected 2, got 5."),
        ({"a": 1}, [1], "expected a dictionary, got [1]."),
        ({1}, {2}, "expected {1}, got {2}."),
        (torch.zeros(2, 3), torch.zeros(3, 2), "expected shape (2, 3), got (3, 2)."),
        (torch.zeros(2), torch.tensor([0, 0]), "expected floating-point values such as float32, got int64."),
        (torch.tensor([True]), torch.zeros(1), "expected boolean values such as bool, got float32."),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "expected about 2, got 3 at position 1."),  # noqa: E501
        (torch.tensor(1.0), torch.tensor(2.0), "expected about 1, got 2."),
        (torch.zeros(2), [0.0, 0.0], "expected a float32 tensor of shape (2,), got [0, 0]."),
        ([0.0, 0.0], torch.zeros(2), "expected a list of 2 items, got a float32 tensor of shape (2,)."),
        (
            1.5,
            torch.tensor(1.5),
            "expected a number, got a float32 tensor of shape (): .item() gives the number in it.",
        ),
        (torch.float32, torch.bfloat16, "expected torch.float32, got torch.bfloat16."),
    ],
)  # fmt: skip
def test_the_first_difference_is_named(expected, got, said):
    assert difference(expected, got).removeprefix("the shape is right, but the values are not: ") == said


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
nested = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@settings(deadline=None)
@given(nested)
def test_everything_equals_its_own_copy(value):
    assert difference(value, copy.deepcopy(value)) is None


def same_by_the_rules(a, b):
    """The rules of comparing, said once more: exact but for floats, and a boolean is no number."""
    if isinstance(a, list | dict):
        if type(a) is not type(b) or len(a) != len(b):
            return False
        pairs = zip(a, b, strict=True) if isinstance(a, list) else ((a[k], b.get(k, ...)) for k in a)
        return all(same_by_the_rules(x, y) for x, y in pairs)
    if isinstance(a, float) and type(b) in (int, float):
        return a == b or abs(a - b) <= max(1e-6 * max(abs(a), abs(b)), 1e-12) < float("inf")
    return a == b and isinstance(a, bool) == isinstance(b, bool) and (a is None) == (b is None)


@settings(deadline=None)
@given(st.tuples(nested, nested) | nested.map(lambda value: (value, copy.deepcopy(value))))
def test_values_are_equal_exactly_by_the_rules(pair):
    expected, got = pair
    assert (difference(expected, got) is None) == same_by_the_rules(expected, got)


@settings(deadline=None)
@given(st.integers(), st.integers(min_value=1))
def test_integers_compare_exactly_at_any_size(n, off):
    assert difference(n, n) is None
    assert difference(n, n + off) is not None


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 4), max_size=3),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.integers(0, 2**31),
)
def test_a_tensor_with_one_changed_entry_differs_there(shape, dtype, seed):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    assert difference(tensor, tensor.clone()) is None
    changed = tensor.clone()
    changed.view(-1)[seed % tensor.numel()] += 1
    assert "the values are not" in difference(tensor, changed)


@settings(deadline=None)
@given(st.floats(0.1, 100), st.sampled_from([torch.float32, torch.float64]))
def test_the_tolerance_follows_the_dtype(x, dtype):
    coarse = 1e-2 if dtype == torch.float32 else 1e-5
    fine = 1e-5 if dtype == torch.float32 else 1e-8
    tensor = torch.tensor([x], dtype=dtype)
    assert difference(tensor, tensor * (1 + fine)) is None
    assert difference(tensor, tensor * (1 + coarse)) is not None


class Incomparable:
    """As numpy's and pandas' tables: == has no truth value."""

    def __eq__(self, other):
        raise ValueError("the truth value is ambiguous")


def test_what_cannot_be_compared_equals_itself_alone():
    one = Incomparable()
    assert difference(one, one) is None
    assert difference(one, Incomparable()) == "expected a Incomparable, got a Incomparable."


def test_a_string_of_another_type_is_another_string():
    assert difference("q_proj", type("Name", (str,), {})("q_proj")) is not None
    assert difference(b"q", bytearray(b"q")) is not None
