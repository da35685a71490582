"""What an answer did in the cases of its exercise, as the properties of wrong answers look at it."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from utils.course.checks.compare import difference
from utils.course.checks.registry import Case


class Tried(NamedTuple):
    """One case: its arguments, what the reference did, what the answer did, and whether that is right.

    raised: whether either of the two raised: then there are no two results to compare, and `want` or `have` is the
    exception.
    """

    case: Case
    arguments: tuple[Any, ...]
    want: Any
    have: Any
    right: bool
    raised: bool = False


def parameters(function: Any) -> list[str]:
    """The names of a function's parameters; none where Python doesn't know them."""
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


def named(names: Sequence[str], place: int) -> str:
    """An argument as a sentence names it."""
    return f"`{names[place]}`" if place < len(names) else f"argument {place + 1}"


def equal(one: Any, other: Any) -> bool:
    """Whether two results are equal, their dtypes aside."""
    return difference(one, other, any_dtype=True) is None


_KINDS: tuple[Any, ...] = (bool, numbers.Number, str, list | tuple, dict, torch.Tensor)


def same_kind(one: Any, other: Any) -> bool:
    """Whether two results are data of one kind: numbers, strings, lists, dictionaries, tensors."""
    kind = next((kind for kind in _KINDS if isinstance(one, kind)), None)
    return kind is not None and isinstance(other, kind) and (kind is bool or not isinstance(other, bool))


def count(tried: Sequence[Tried]) -> int:
    """How many arguments each of the calls has, at least."""
    return min(len(one.arguments) for one in tried)


Property = Callable[[Sequence[Tried], Sequence[str]], str | None]
