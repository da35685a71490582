"""Results are compared by the rules that a learner reads of, and the first difference is named."""

import copy
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.course.checks.compare import difference


@pytest.mark.parametrize(
    ("expected", "got"),
    [
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
        (torch.ones(2), torch.ones(2) * (1 + 1e-5)),
        (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16) * 1.008),
        (torch.tensor([float("nan"), float("inf")]), torch.tensor([float("nan"), float("inf")])),
        (np.ones(2), np.ones(2)),
        (np.ones(2), torch.ones(2, dtype=torch.float64)),
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
        (1, True, "True counts as 1, but a number is asked for: int(...) makes it one."),
        (True, 1, "1 counts as True, but True or False is asked for: bool(...) makes it one."),
        (None, 0, "expected None, got 0."),
        (1e300, 10**400, "expected about 1e+300, got 1.00e+400."),
        (0, None, "expected 0, got None: is a return missing?"),
        ([1], None, "expected [1], got None: is a return missing?"),
        (10**15, 10**15 + 1, "expected 1000000000000000, got 1000000000000001."),
        (1 / 3, 0.4, "expected about 0.333, got 0.4."),
        (1e-7, 0.0, "expected about 1e-07, got 0."),
        (112_000.4, 8.0, "expected about 112000, got 8."),
        (float("nan"), 1.0, "expected about nan, got 1."),
        ("nf4", "fp4", "expected 'nf4', got 'fp4'."),
        ("8", 8, "expected '8', got 8."),
        (
            ["q"], {"q"},
            "expected a list of 1 items, got {'q'}: a set has no order, and here the order counts: build a list.",
        ),
        (8, "8", "'8' is a string, and a whole number is asked for: leave the quotes and str(...) out."),
        (8, "nf4", "expected a whole number, got 'nf4'."),
        ([1, 2], [1], "expected 2 items, got 1."),
        ([1, 2], [1, 3], "item 1: expected 2, got 3."),
        (["q", "v"], "qv", "expected a list of 2 items, got 'qv'."),
        ({"r": 8}, {"rank": 8}, "the dictionary's keys are not right: 'r' is missing, 'rank' is not wanted."),
        ({"a": [1, 2]}, {"a": [1, 5]}, "under key 'a': item 1: expected 2, got 5."),
        ({"a": 1}, [1], "expected a dictionary, got [1]."),
        ({1}, {2}, "expected {1}, got {2}."),
        (torch.zeros(2, 3), torch.ones(3, 2), "expected shape (2, 3), got (3, 2)."),
        (
            torch.arange(6).view(2, 3),
            torch.arange(6).view(2, 3).T,
            "your result is the transpose of the right one: expected shape (2, 3), got (3, 2).",
        ),
        (torch.ones(3), torch.ones(1, 3), "the values are right, but not the shape: expected shape (3,), got (1, 3)."),
        (torch.ones(2), torch.tensor([0, 0]), "expected floating-point values such as float32, got int64."),
        (torch.tensor([True]), torch.zeros(1), "expected boolean values such as bool, got float32."),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "expected about 2, got 3 at position 1 (1 of 2 differ, by up to 1)."),  # noqa: E501
        (torch.tensor(1.0), torch.tensor(2.0), "expected about 1, got 2."),
        (torch.zeros(2), [0.0, 1.0], "expected a float32 tensor of shape (2,), got [0, 1]."),
        ([0.0, 1.0], torch.zeros(2), "expected a list of 2 items, got a float32 tensor of shape (2,)."),
        (torch.float32, torch.bfloat16, "expected torch.float32, got torch.bfloat16."),
    ],
)  # fmt: skip
def test_the_first_difference_is_named(expected, got, said):
    assert difference(expected, got).removeprefix("the shape is right, but the values are not: ") == said


@pytest.mark.parametrize(
    ("expected", "got", "said"),
    [
        (7, 7.0, "7.0 has the right value, but what is counted is a whole number: use // or int(...)."),
        (7, np.float64(7), "7.0 has the right value, but what is counted is a whole number: use // or int(...)."),
        (7, Fraction(7), "7 is a Fraction, and a whole number of Python is asked for: int(...) makes one of it."),
        (0.5, Fraction(1, 2), "1/2 is a Fraction, and a number of Python is asked for: float(...) makes one of it."),
        (0.5, Decimal("0.5"), "0.5 is a Decimal, and a number of Python is asked for: float(...) makes one of it."),
        (1.5, torch.tensor(1.5), "it is a tensor, and a number is asked for: .item() gives the number in it."),
        (0.1, torch.tensor(0.1), "it is a tensor, and a number is asked for: .item() gives the number in it."),
        (3, torch.tensor(3.0), "it is a tensor, and a whole number is asked for: .item() gives the number in it."),
        (3, torch.tensor([[3]]), "it is a tensor of shape (1, 1), and a whole number is asked for: .item() gives"),
        (1.5, np.array(1.5), "it is an array, and a number is asked for: .item() gives the number in it."),
        ([1, 2], torch.tensor([1, 2]), "it is a tensor, and a list is asked for: .tolist() makes one of it."),
        (torch.ones(2), [1.0, 1.0], "it is a list of 2 items, and a tensor is asked for: torch.tensor(...) makes"),
        (torch.tensor(2), 2, "it is a whole number, and a tensor is asked for: torch.tensor(...) makes one of it."),
        (torch.ones(2), np.ones(2), "it is a numpy array, and a tensor is asked for: torch.from_numpy(...) makes"),
        (torch.ones(2), torch.ones(2, dtype=torch.float64), "dtype: expected float32, got float64."),
        (torch.ones(2), torch.ones(2, dtype=torch.bfloat16), "dtype: expected float32, got bfloat16."),
        (torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.int32), "dtype: expected int64, got int32."),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int64), "floating-point values such as float32, got int64."),
        (torch.ones(2, dtype=torch.bool), torch.ones(2), "dtype: expected boolean values such as bool, got float32."),
    ],
)  # fmt: skip
def test_a_right_value_of_another_kind_is_refused_by_a_sentence(expected, got, said):
    assert said in difference(expected, got)
    assert difference(expected, got, "item 2: ").startswith("item 2: ")


@pytest.mark.parametrize(
    ("expected", "got"), [(1.5, torch.tensor(2.5)), (1, torch.tensor(2)), (0.1, torch.tensor(0.2))]
)
def test_a_wrong_value_of_another_kind_is_not_called_right(expected, got):
    assert difference(expected, got) == f"expected {'about ' * (expected != 1)}{expected}, got {got.item():.3g}."


def test_dtypes_of_one_kind_count_as_the_same_where_the_task_says_so():
    assert difference(torch.ones(2), torch.ones(2, dtype=torch.bfloat16), any_dtype=True) is None
    assert difference([torch.ones(2)], [torch.ones(2, dtype=torch.float64)], any_dtype=True) is None
    assert difference(torch.ones(2), torch.ones(2, dtype=torch.int64), any_dtype=True) is not None


@pytest.mark.parametrize(
    ("expected", "got", "said"),
    [
        (14.06, 14.13, "expected about 14.06, got 14.13."),
        (1000.1, 1000.4, "expected about 1000.1, got 1000.4."),
        (0.3, 0.3 * (1 + 1e-5), "expected about 0.3, got 0.300003."),
        (torch.tensor([14.06]), torch.tensor([14.13]), "expected about 14.06, got 14.13 at position 0."),
        (10**30, 10**30 + 1, "expected 1000000000000000000000000000000, got 1000000000000000000000000000001."),
        (10**300, 10**300 + 1, "1.00e+300 is not it: the two differ far behind the first digits."),
    ],
    ids=range(6),
)
def test_numbers_are_told_with_digits_until_they_differ(expected, got, said):
    assert difference(expected, got).removeprefix("the shape is right, but the values are not: ") == said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x[1, 2].add_(0.5), "got 5.5 at position (1, 2) (1 of 12 differ, by up to 0.5)."),
        (lambda x: x[1].sub_(3), "expected about 3, got 0 at position (1, 0) (3 of 12 differ, by up to 3)."),
        (lambda x: x[3, 2].fill_(torch.inf), "got inf at position (3, 2) (1 of 12 differ, by up to inf)."),
        (lambda x: x[0, 1].fill_(torch.nan), "there is nan at position (0, 1): was zero divided by zero,"),
    ],
)
def test_how_many_entries_differ_and_by_how_much(change, said):
    got = torch.arange(12.0).view(4, 3)
    change(got)
    assert said in difference(torch.arange(12.0).view(4, 3), got)


@pytest.mark.parametrize(
    ("got", "said"),
    [
        (torch.ones(2, 2).to_sparse(), "got a sparse tensor: .to_dense() makes a usual one of it."),
        (torch.empty(2, 2, device="meta"), "expected a tensor on the cpu device, got one on meta."),
        (torch.ones(2, 2, dtype=torch.complex64), "expected floating-point values such as float32, got complex64."),
        (np.array([["a", "b"]] * 2), "got a <U1 array of shape (2, 2)."),
        (np.array([[object()] * 2] * 2), "got an object array of shape (2, 2)."),
        ([torch.ones(2), torch.ones(2)], "torch.tensor(...) makes one of it."),
        ([torch.ones(2), torch.ones(3)], "got [a float32 tensor of shape (2,), a float32 tensor of shape (3,)]."),
        (torch.empty(0), "expected shape (2, 2), got (0,)."),
    ],
)  # fmt: skip
def test_unusual_tensors_are_told_apart(got, said):
    assert said in str(difference(torch.ones(2, 2), got))


class Broken:
    """Raises whatever is asked of it."""

    def __eq__(self, other):
        raise RuntimeError("broken")

    __hash__ = __repr__ = __len__ = __iter__ = __bool__ = __float__ = __eq__


class BrokenNumber(float):
    __eq__ = __float__ = __format__ = __repr__ = Broken.__eq__
    __hash__ = float.__hash__


class BrokenDict(dict):
    __getitem__ = Broken.__eq__


class BrokenList(list):
    __len__ = __iter__ = Broken.__eq__


ITSELF: list = [1]
ITSELF.append(ITSELF)
ODD = {
    "broken": Broken(),
    "broken number": BrokenNumber(2.5),
    "broken dictionary": BrokenDict(a=1),
    "broken list": BrokenList([1]),
    "Decimal nan": Decimal("sNaN"),
    "complex": 2 + 1j,
    "generator": (n for n in range(2)),
    "itself": ITSELF,
    "keys of all kinds": {1: 2, "a": 3, None: 4, (1, 2): 5},
    "huge": 10**5000,
    "minus huge": -(10**400),
    "sparse": torch.ones(2, 2).to_sparse(),
    "meta": torch.ones((), device="meta"),
    "no number": np.array(["a"]),
    "date": np.datetime64("2020-01-01"),
    "nan": float("nan"),
    "empty": torch.empty(0),
}


@pytest.mark.parametrize("got", ODD.values(), ids=ODD)
@pytest.mark.parametrize(
    "expected", [2.5, 3, "a", [1, 2], (1, 2), {"a": 1}, {1}, True, torch.ones(2, 2), torch.tensor(1), torch.float16]
)
@pytest.mark.parametrize("reveal", [True, False])
def test_whatever_is_given_gets_a_short_sentence(expected, got, reveal):
    said = difference(expected, got, reveal=reveal)
    assert said.endswith((".", "?", "it")) and len(said) < 300 and "0x" not in said


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
    """The rules of comparing, said once more: exact but for floats, which are no counts, and a boolean is no number."""
    if isinstance(a, list | dict):
        if type(a) is not type(b) or len(a) != len(b):
            return False
        pairs = zip(a, b, strict=True) if isinstance(a, list) else ((a[k], b.get(k, ...)) for k in a)
        return all(same_by_the_rules(x, y) for x, y in pairs)
    if isinstance(a, float) and type(b) in (int, float):
        return a == b or abs(a - b) <= max(1e-6 * max(abs(a), abs(b)), 1e-12) < float("inf")
    counted = isinstance(a, int) and isinstance(b, float)
    return a == b and not counted and isinstance(a, bool) == isinstance(b, bool) and (a is None) == (b is None)


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
    assert "expected about" in difference(tensor, changed)


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
    assert difference(one, Incomparable()) == "an Incomparable is not it."


def test_a_string_of_another_type_is_another_string():
    assert difference("q_proj", type("Name", (str,), {})("q_proj")) is not None
    assert difference(b"q", bytearray(b"q")) is not None
