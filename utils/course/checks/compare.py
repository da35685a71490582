"""Compare a result with the expected one, and say the first difference to a learner."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from utils.course.checks.describe import brief, dtype_name, is_tensor_or_array, kind, number


def difference(expected: Any, got: Any, where: str = "", reveal: bool = True) -> str | None:
    """The first way in which `got` differs from `expected`, as a sentence to a learner, or None.

    Tensors must agree in shape, in kind of dtype (floating, integer, boolean, complex) and, within the
    tolerance of the coarser dtype, in value. Whole numbers are compared exactly, other numbers within a
    relative 1e-6; a boolean is not a number. Lists and tuples may stand for each other. `where` is put
    before the sentence; `reveal` False keeps the expected values out of it.
    """
    reason = _reason(_plain(expected), _plain(got), reveal)
    return None if reason is None else where + reason


def expected_got(expected: Any, got: Any, reveal: bool) -> str:
    """The sentence on two values that differ, for when there is nothing to say on how."""
    if reveal:
        return f"expected {_shown(expected)}, got {_shown(got)}."
    if type(expected) is not type(got) and kind(expected) != kind(got):
        return f"expected {kind(expected)}, got {_shown(got)}."
    return f"{_shown(got)} is not it."


def _reason(expected: Any, got: Any, reveal: bool) -> str | None:
    if is_tensor_or_array(expected):
        return _tensors(expected, got, reveal)
    if is_tensor_or_array(got):
        aid = ": .item() gives the number in it" if torch.as_tensor(got).numel() == 1 else ""
        return f"expected {kind(expected)}, got {brief(got)}{aid}."
    if expected is None or got is None or isinstance(expected, bool) or isinstance(got, bool):
        same = expected is got
    elif isinstance(expected, str | bytes):
        same = type(expected) is type(got) and expected == got
    elif isinstance(expected, numbers.Number):
        return _numbers(expected, got, reveal)
    elif isinstance(expected, Mapping):
        return _mappings(expected, got, reveal)
    elif isinstance(expected, Sequence):
        return _sequences(expected, got, reveal)
    else:
        same = expected is got or _equal(expected, got)
    return None if same else expected_got(expected, got, reveal)


def _equal(expected: Any, got: Any) -> bool:
    try:
        return bool(expected == got)
    except Exception:  # objects that can't be compared, or an == that has no truth value
        return False


def _tensors(expected: Any, got: Any, reveal: bool) -> str | None:
    if not is_tensor_or_array(got):
        return f"expected {brief(expected)}, got {brief(got)}."
    want, have = (torch.as_tensor(tensor).detach() for tensor in (expected, got))
    if want.shape != have.shape:
        return f"expected shape {tuple(want.shape)}, got {tuple(have.shape)}."
    if _family(want) != _family(have):
        return f"expected {_family(want)} values such as {dtype_name(want)}, got {dtype_name(have)}."
    if have.is_meta != want.is_meta:
        return f"expected a tensor on the {want.device} device, got one on {have.device}."
    return None if want.is_meta else _entries(want.cpu(), have.cpu(), reveal)


def _entries(want: torch.Tensor, have: torch.Tensor, reveal: bool) -> str | None:
    """The first entry that differs, of two tensors of one shape and one family of dtypes on the processor."""
    if _family(want) in ("integer", "boolean"):
        same = want.to(torch.int64) == have.to(torch.int64)
    else:
        rtol, atol = max(_tolerance(want), _tolerance(have))
        wide = torch.complex128 if want.is_complex() else torch.float64
        want, have = want.to(wide), have.to(wide)
        same = torch.isclose(have, want, rtol=rtol, atol=atol, equal_nan=True)
    if bool(same.all()):
        return None
    at = tuple((~same).nonzero()[0].tolist())
    place = f" at position {at if len(at) != 1 else at[0]}" if at else ""
    about = f"expected about {number(want[at].item())}, " if reveal else ""
    return f"the shape is right, but the values are not: {about}got {number(have[at].item())}{place}."


def _numbers(expected: Any, got: Any, reveal: bool) -> str | None:
    if not isinstance(got, numbers.Number):
        return f"expected {kind(expected)}, got {brief(got)}."
    if isinstance(expected, numbers.Integral):
        same = got == expected
    elif isinstance(expected, numbers.Real) and isinstance(got, numbers.Real):
        same = got == expected or _close(float(expected), got)
    else:
        same = got == expected or _near(expected, got)
    if same:
        return None
    if reveal:
        about = "" if isinstance(expected, numbers.Integral) else "about "
        return f"expected {about}{number(expected)}, got {number(got)}."
    if isinstance(got, numbers.Real) and isinstance(expected, numbers.Real) and not math.isnan(got):
        return f"{number(got)} is too {'small' if got < expected else 'large'}."
    return f"{number(got)} is not it."


def _close(expected: float, got: numbers.Real) -> bool:
    try:
        value = float(got)
    except OverflowError:  # a whole number beyond any float
        return False
    both_nan = math.isnan(expected) and math.isnan(value)
    return both_nan or math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-12)


def _near(expected: Any, got: Any) -> bool:
    return abs(got - expected) <= 1e-6 * abs(expected)


def _mappings(expected: Mapping, got: Any, reveal: bool) -> str | None:
    if not isinstance(got, Mapping):
        return f"expected a dictionary, got {brief(got)}."
    missing = [key for key in expected if key not in got]
    extra = [key for key in got if key not in expected]
    if missing or extra:
        said = [f"{key!r} is missing" for key in missing[:3]]
        said += [f"{key!r} is not wanted" for key in extra[:3]]
        return f"the dictionary's keys are not right: {', '.join(said)}."
    reasons = (difference(value, got[key], f"under key {key!r}: ", reveal) for key, value in expected.items())
    return next(filter(None, reasons), None)


def _sequences(expected: Sequence, got: Any, reveal: bool) -> str | None:
    if not isinstance(got, Sequence) or isinstance(got, str | bytes):
        return f"expected {kind(expected)}, got {brief(got)}."
    if len(expected) != len(got):
        return f"expected {len(expected)} items, got {len(got)}."
    pairs = enumerate(zip(expected, got, strict=True))
    return next(filter(None, (difference(*pair, f"item {i}: ", reveal) for i, pair in pairs)), None)


def _shown(value: Any) -> str:
    """As `brief`, but a tensor of one number is shown as that number: its shape says nothing."""
    if isinstance(value, torch.Tensor) and not value.ndim and not value.is_meta:
        return number(value.item())
    return brief(value)


def _family(tensor: torch.Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "boolean"
    return "floating-point" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "integer"


def _tolerance(tensor: torch.Tensor) -> tuple[float, float]:
    """Relative and absolute tolerance for a floating-point dtype."""
    if tensor.dtype in (torch.float64, torch.complex128):
        return 1e-7, 1e-9
    return (1e-4, 1e-5) if tensor.dtype in (torch.float32, torch.complex64) else (2e-2, 1e-2)


def _plain(value: Any) -> Any:
    """A numpy scalar as the Python number that it holds; anything else as it is."""
    numpy = sys.modules.get("numpy")
    return value.item() if numpy is not None and isinstance(value, numpy.generic) else value
