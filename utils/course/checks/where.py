"""Say where an answer is wrong: the one simple predicate on a call that tells the failing cases from the passing ones.

"Right in 20 of 24 cases, and wrong in exactly those where `items` is empty" leads to the line that is wrong. It is
said only where the predicate separates the cases without an exception, so it is true of all of them.

Attributes:
    FEWEST: Among fewer cases than these many a predicate separates them by chance.
    LARGE: The contents of larger tensors are not looked into.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from utils.course.checks.tried import Tried, count, named

FEWEST = 6
LARGE = 100_000


def where_wrong(tried: Sequence[Tried], names: Sequence[str]) -> str | None:
    """A sentence on which cases are wrong; None when none or all are, or when no predicate separates them."""
    right = [one.right for one in tried]
    wrong = [not good for good in right]
    total, passing = len(tried), sum(right)
    if total < FEWEST or passing in (0, total):
        return None
    only = "only " * (2 * passing <= total)
    said = [
        (wrong, f"your function is right in {passing} of {total} cases, and wrong in exactly "),
        (right, f"your function is right in {only}{passing} of {total} cases, exactly "),
    ]
    for features in (_of_single_arguments, _of_pairs, _of_results):
        columns = features(tried, names)
        for target, words in sorted(said, key=lambda one: sum(one[0])):  # the few are what is worth a name
            if fit := [of_call for of_call, values in columns if values == target]:
                cases = "the one" if sum(target) == 1 else "those"
                return f"{words}{cases} where {' and '.join(fit)}." if len(fit) <= 2 else None
    return None


Feature = tuple[str, list[bool]]


def _of_single_arguments(tried: Sequence[Tried], names: Sequence[str]) -> list[Feature]:
    """The features of each argument: of those of one argument that hold in the same cases the first."""
    found = []
    for place in range(count(tried)):
        values = [one.arguments[place] for one in tried]
        seen: list[list[bool]] = []
        for words, holds in _features(values):
            column = [_safely(holds, value) for value in values]
            if column not in seen:
                seen.append(column)
                found.append((words.format(named(names, place)), column))
    return found


def _safely(holds: Callable[..., Any], *values: Any) -> bool:
    try:
        return bool(holds(*values))
    except Exception:
        return False


def _features(values: Sequence[Any]) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    yield "{} is None", lambda value: value is None
    present = [value for value in values if value is not None]
    if not present:
        return
    for types, features in _FEATURES:
        if all(isinstance(value, types) for value in present):
            yield from features
            break
    if all(isinstance(value, str) for value in present) and len(set(present)) <= 6:
        yield from ((f"{{}} is {text!r}", lambda value, text=text: value == text) for text in dict.fromkeys(present))
    if all(isinstance(value, Tensor) for value in present):
        yield from _tensor_forms([value for value in present if isinstance(value, Tensor)])


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


_NUMBER = (
    ("{} is 0", lambda x: x == 0),
    ("{} is 1", lambda x: x == 1),
    ("{} is negative", lambda x: x < 0),
    ("{} is positive", lambda x: x > 0),
    ("{} is less than 1", lambda x: 0 <= x < 1),
    ("{} is not a whole number", lambda x: x != int(x)),
    ("{} is a whole number", lambda x: x == int(x)),
    ("{} is odd", lambda x: x % 2 == 1),
    ("{} is even", lambda x: x % 2 == 0),
)

_TEXT = (
    ("{} is empty", lambda text: not text),
    ("{} has capital letters", lambda text: text != text.lower()),
    ("{} has spaces at its beginning or end", lambda text: text != text.strip()),
    ("{} has more than one line", lambda text: "\n" in text),
    ("{} has a full stop in it", lambda text: "." in text),
    ("{} has letters beyond a to z", lambda text: not text.isascii()),
    ("{} has a digit in it", lambda text: any(letter.isdigit() for letter in text)),
)

_LIST = (
    ("{} is empty", lambda items: not items),
    ("{} has one item", lambda items: len(items) == 1),
    ("{} has two items", lambda items: len(items) == 2),
    ("{} has repeated items", lambda items: any(item in items[:at] for at, item in enumerate(items))),
    ("{} is not sorted", lambda items: any(one > other for one, other in zip(items, items[1:], strict=False))),
    ("the items of {} are all the same", lambda items: len(items) > 1 and all(item == items[0] for item in items)),
    ("{} has a negative number in it", lambda items: any(_is_number(item) and item < 0 for item in items)),
    ("{} has a 0 in it", lambda items: any(_is_number(item) and item == 0 for item in items)),
    ("{} has None in it", lambda items: any(item is None for item in items)),
    ("{} has an empty item", lambda items: any(isinstance(i, str | list | tuple) and not i for i in items)),
    ("the items of {} have different lengths", lambda items: len({len(item) for item in items}) > 1),
    ("{} has an odd number of items", lambda items: len(items) % 2 == 1),
)

_MAPPING = (
    ("{} is empty", lambda mapping: not mapping),
    ("{} has one key", lambda mapping: len(mapping) == 1),
)

_MODULE = (
    ("{} is in train mode", lambda module: module.training),
    ("{} is in eval mode", lambda module: not module.training),
)

_FEATURES: tuple[tuple[Any, tuple[tuple[str, Callable[[Any], Any]], ...]], ...] = (
    (bool, (("{} is True", lambda value: value is True), ("{} is False", lambda value: value is False))),
    (numbers.Real, _NUMBER),
    (str, _TEXT),
    (list | tuple, _LIST),
    (Mapping, _MAPPING),
    (torch.nn.Module, _MODULE),
)


def _tensor_forms(tensors: Sequence[Tensor]) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """What may set a tensor apart: its dimensions, its dtype, then what is in it."""
    yield "{} is empty", lambda x: not x.numel()
    if len({x.ndim for x in tensors}) > 1:
        yield "{} has more than two dimensions", lambda x: x.ndim > 2
        yield from ((f"{{}} has {n} dimensions", lambda x, n=n: x.ndim == n) for n in range(5) if n != 1)
        yield "{} has 1 dimension", lambda x: x.ndim == 1
    elif tensors[0].ndim == 2:
        yield "{} has one row", lambda x: x.shape[0] == 1
        yield "{} has more columns than rows", lambda x: x.shape[1] > x.shape[0]
        yield "{} has more rows than columns", lambda x: x.shape[0] > x.shape[1]
        yield "{} is square", lambda x: x.shape[0] == x.shape[1]
    elif tensors[0].ndim == 1:
        yield "{} has one entry", lambda x: x.numel() == 1
    if len(dtypes := {x.dtype for x in tensors}) > 1:
        for dtype in sorted(dtypes, key=str):
            yield f"{{}} is {str(dtype).removeprefix('torch.')}", lambda x, dtype=dtype: x.dtype == dtype
    if all(x.numel() <= LARGE and not x.is_meta and x.layout == torch.strided for x in tensors):
        yield from _TENSOR


_TENSOR: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("{} has only zeros", lambda x: not x.any()),
    ("the entries of {} are all the same", lambda x: x.numel() > 1 and (x == x.flatten()[0]).all()),
    ("{} has a nan in it", lambda x: x.isnan().any()),
    ("{} has an infinite entry", lambda x: x.isinf().any()),
    ("{} has a negative entry", lambda x: (x < 0).any()),
    ("{} has a 0 in it", lambda x: (x == 0).any()),
    ("{} has repeated entries", lambda x: x.unique().numel() < x.numel()),
    ("{} has a row of zeros", lambda x: x.ndim > 1 and (~x.any(-1)).any()),
)


# ---------------------------------------------------------------------------------------------- pairs of arguments


def _of_pairs(tried: Sequence[Tried], names: Sequence[str]) -> list[Feature]:
    found = []
    for one in range(count(tried)):
        for other in range(count(tried)):
            pairs = [(case.arguments[one], case.arguments[other]) for case in tried]
            for ordered, types, features in _PAIRS:
                if one == other or (one > other and not ordered):
                    continue
                if any(isinstance(value, bool) for pair in pairs for value in pair):
                    continue  # to Python True is 1, and no number of the learner's
                if all(isinstance(a, types[0]) and isinstance(b, types[1]) for a, b in pairs):
                    for words, holds in features:
                        said = words.format(named(names, one), named(names, other))
                        found.append((said, [_safely(holds, a, b) for a, b in pairs]))
    return found


# Whether the order matters, the types of the two arguments, and what they may be to each other.
_PAIRS: tuple[tuple[bool, tuple[Any, Any], tuple[tuple[str, Callable[[Any, Any], Any]], ...]], ...] = (
    (
        False,
        (numbers.Real, numbers.Real),
        (
            ("{} and {} are equal", lambda a, b: a == b),
            ("{} is larger than {}", lambda a, b: a > b),
            ("{} is smaller than {}", lambda a, b: a < b),
            ("{} is at most {}", lambda a, b: a <= b),
            ("{} is at least {}", lambda a, b: a >= b),
        ),
    ),
    (True, (numbers.Real, numbers.Real), (("{} is not a multiple of {}", lambda a, b: b and a % b),)),
    (
        False,
        (list | tuple | str, list | tuple | str),
        (
            ("{} and {} have the same length", lambda a, b: len(a) == len(b)),
            ("{} is longer than {}", lambda a, b: len(a) > len(b)),
            ("{} is shorter than {}", lambda a, b: len(a) < len(b)),
            ("{} and {} are equal", lambda a, b: a == b),
        ),
    ),
    (
        True,
        (list | tuple | str, numbers.Real),
        (
            ("{} has as many items as {}", lambda a, b: len(a) == b),
            ("{} has more items than {}", lambda a, b: len(a) > b),
            ("{} has fewer items than {}", lambda a, b: len(a) < b),
            ("the length of {} is not a multiple of {}", lambda a, b: b and len(a) % b),
        ),
    ),
    (
        True,
        (list | tuple, numbers.Real | str),
        (
            ("{} holds {}", lambda a, b: b in a),
            ("{} doesn't hold {}", lambda a, b: b not in a),
        ),
    ),
    (
        True,
        (Mapping, str | numbers.Real),
        (
            ("{} has no key {}", lambda a, b: b not in a),
            ("{} has the key {}", lambda a, b: b in a),
        ),
    ),
    (
        False,
        (Tensor, Tensor),
        (
            ("{} and {} have the same shape", lambda a, b: a.shape == b.shape),
            ("{} and {} have different shapes", lambda a, b: a.shape != b.shape),
            ("{} and {} have different dtypes", lambda a, b: a.dtype != b.dtype),
        ),
    ),
)


# ---------------------------------------------------------------------------------------------- the right result


def _of_results(tried: Sequence[Tried], names: Sequence[str]) -> list[Feature]:
    """What the right result is, where the arguments alone don't tell: the border of what the task describes."""
    found: list[Feature] = []
    for words, holds in _RESULTS:
        column = [_safely(holds, one.want) for one in tried]
        if column not in [values for _, values in found]:
            found.append((words, column))
    return found


_RESULTS: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("an exception should be raised", lambda want: isinstance(want, BaseException)),
    ("the right result is None", lambda want: want is None),
    ("the right result is True", lambda want: want is True),
    ("the right result is False", lambda want: want is False),
    ("the right result is 0", lambda want: _is_number(want) and want == 0),
    ("the right result is 1", lambda want: _is_number(want) and want == 1),
    ("the right result is negative", lambda want: _is_number(want) and want < 0),
    ("the right result is empty", lambda want: isinstance(want, str | list | tuple | Mapping) and not want),
    ("the right result has one item", lambda want: isinstance(want, list | tuple | Mapping) and len(want) == 1),
)
