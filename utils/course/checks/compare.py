"""Compare a result with the expected one, and say the first difference to a learner."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import torch

from utils.course.checks.describe import a, apart, brief, dtype_name, is_tensor_or_array, kind, number


def difference(expected: Any, got: Any, where: str = "", reveal: bool = True, any_dtype: bool = False) -> str | None:
    """The first way in which `got` differs from `expected`, as a sentence to a learner, or None.

    What is expected decides the kind, since a lesson's next cells go on with it: a tensor for a tensor, with its dtype
    (`any_dtype`: another of the same kind will do), a whole number for a count, a Python number and not a tensor that
    holds one. An equal value of another kind gets a sentence that says so. Tensors must agree in shape and, within the
    tolerance of the coarser dtype, in value. Whole numbers are compared exactly, other numbers within a relative 1e-6;
    a boolean is not a number. Lists and tuples may stand for each other. `where` is put before the sentence; `reveal`
    False keeps the expected values out of it.
    """
    try:
        reason = _reason(_plain(expected), _plain(got), Rules(reveal, any_dtype))
    except Exception as problem:  # whatever a learner's object does when it is looked at
        shown = f"expected {_shown(expected)}" if reveal else f"expected {kind(expected)}"
        reason = f"{shown}, got {a(type(got).__name__)} that can't be compared with it ({type(problem).__name__})."
    return None if reason is None else where + reason


class Rules(NamedTuple):
    """How a difference is told (`reveal`: with the expected value) and which dtypes count as the same."""

    reveal: bool = True
    any_dtype: bool = False


def expected_got(expected: Any, got: Any, reveal: bool = True) -> str:
    """The sentence on two values that differ, for when there is nothing to say on how."""
    want, have = _shown(expected), _shown(got)
    if reveal and want != have:
        return f"expected {want}, got {have}."
    if type(expected) is not type(got) and kind(expected) != kind(got):
        return f"expected {kind(expected)}, got {have}."
    return f"{have} is not it."


def _reason(expected: Any, got: Any, rules: Rules) -> str | None:
    if is_tensor_or_array(expected):
        return _tensors(expected, got, rules)
    if got is None and expected is not None:
        return f"expected {_shown(expected) if rules.reveal else kind(expected)}, got None: is a return missing?"
    if is_tensor_or_array(got):
        return _tensor_for_another_kind(expected, got, rules)
    if expected is None or isinstance(expected, bool) or isinstance(got, bool):
        return _truth(expected, got, rules)
    if isinstance(expected, str | bytes):
        same = type(expected) is type(got) and expected == got
    elif isinstance(expected, numbers.Number):
        return _numbers(expected, got, rules)
    elif isinstance(expected, Mapping):
        return _mappings(expected, got, rules)
    elif isinstance(expected, Sequence):
        return _sequences(expected, got, rules)
    else:
        same = expected is got or _equal(expected, got)
    return None if same else expected_got(expected, got, rules.reveal)


def _truth(expected: Any, got: Any, rules: Rules) -> str | None:
    if expected is got:
        return None
    if isinstance(expected, bool) and isinstance(got, numbers.Number) and got == expected:
        return f"{number(got)} counts as {expected}, but True or False is asked for: bool(...) makes it one."
    if isinstance(got, bool) and isinstance(expected, numbers.Number) and got == expected:
        return f"{got} counts as {number(expected)}, but a number is asked for: int(...) makes it one."
    return expected_got(expected, got, rules.reveal)


def _equal(expected: Any, got: Any) -> bool:
    try:
        return bool(expected == got)
    except Exception:  # objects that can't be compared, or an == that has no truth value
        return False


# ------------------------------------------------------------------------------------------------------- tensors

# The value is right and its kind isn't: what makes the right kind of it.
_KIND_IS_WRONG = "the value is right, but {is_}, and {asked} is asked for: {how}."


def _tensor_for_another_kind(expected: Any, got: Any, rules: Rules) -> str:
    name = "tensor" if isinstance(got, torch.Tensor) else "array"
    tensor = _as_tensor(got)
    if tensor is None or tensor.is_meta or _unusual(tensor):
        return f"expected {kind(expected)}, got {brief(got)}."
    value = tensor.detach().tolist()
    if isinstance(expected, numbers.Number) and tensor.numel() == 1:
        while isinstance(value, list):
            value = value[0]
        close = isinstance(value, numbers.Number) and difference(_rounded_as(tensor, expected), value) is None
        if close or _whole(expected, value):
            shape = "" if not tensor.ndim else f" of shape {tuple(tensor.shape)}"
            how = ".item() gives the number in it"
            return _KIND_IS_WRONG.format(is_=f"it is {a(name)}{shape}", asked=kind(expected), how=how)
        return _reason(expected, value, rules) or f"expected {kind(expected)}, got {brief(got)}."
    if isinstance(expected, Sequence) and not isinstance(expected, str | bytes) and tensor.ndim:
        if difference(expected, value) is None:
            how = ".tolist() makes one of it"
            return _KIND_IS_WRONG.format(is_=f"it is {a(name)}", asked="a list", how=how)
    return f"expected {kind(expected)}, got {brief(got)}."


def _rounded_as(tensor: torch.Tensor, expected: Any) -> Any:
    """The expected number in the tensor's dtype: a float32 tensor has no more digits than these."""
    if isinstance(expected, bool) or not tensor.is_floating_point():
        return expected
    return torch.tensor(float(expected)).to(tensor.dtype).item()


def _as_tensor(value: Any) -> torch.Tensor | None:
    """A tensor of a tensor, an array, a number or a list; None of what can't be made one."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, list | tuple) and any(is_tensor_or_array(item) for item in value):
        parts = [_as_tensor(item) for item in value]
        alike = all(part is not None and part.shape == parts[0].shape for part in parts if parts[0] is not None)
        return torch.stack([part for part in parts if part is not None]) if alike and None not in parts else None
    try:
        return torch.as_tensor(value)
    except Exception:
        return None


def _unusual(tensor: torch.Tensor) -> str:
    """How a tensor's numbers are kept, where that isn't one after the other: in words, or nothing."""
    if tensor.is_quantized:
        return "a quantized tensor: .dequantize() makes a usual one of it"
    return "" if tensor.layout == torch.strided else "a sparse tensor: .to_dense() makes a usual one of it"


def _whole(expected: Any, value: Any) -> bool:
    return isinstance(expected, numbers.Integral) and isinstance(value, float) and value == expected


def _tensors(expected: Any, got: Any, rules: Rules) -> str | None:
    if isinstance(expected, torch.Tensor) and not isinstance(got, torch.Tensor):
        return _no_tensor(expected, got, rules)
    if not is_tensor_or_array(got):
        return f"expected {brief(expected)}, got {brief(got)}."
    want, have = (_as_tensor(tensor) for tensor in (expected, got))
    if want is None or have is None:
        return f"expected {brief(expected)}, got {brief(got)}."
    if _unusual(have) and not _unusual(want):
        return f"expected {brief(expected)}, got {_unusual(have)}."
    want, have = want.detach(), have.detach()
    if want.shape != have.shape:
        return _shapes(want, have)
    if have.is_meta != want.is_meta:
        return f"expected a tensor on the {want.device} device, got one on {have.device}."
    if _family(want) != _family(have):
        right = (
            not (want.is_meta or have.is_complex()) and _entries(want.cpu(), have.cpu().to(want.dtype), True) is None
        )
        told = "the values are right, but not their dtype: " if right else ""
        return f"{told}expected {_family(want)} values such as {dtype_name(want)}, got {dtype_name(have)}."
    values = None if want.is_meta else _entries(want.cpu(), have.cpu(), rules.reveal)
    if values is None and want.dtype != have.dtype and not rules.any_dtype:
        names = dtype_name(want), dtype_name(have)
        return f"the values are right, but not their dtype: expected {names[0]}, got {names[1]}."
    return values


def _no_tensor(expected: torch.Tensor, got: Any, rules: Rules) -> str:
    plain = f"expected {brief(expected)}, got {brief(got)}."
    if expected.is_meta or not (isinstance(got, numbers.Number | list | tuple) or is_tensor_or_array(got)):
        return plain
    tensor = _as_tensor(got)
    if tensor is None or tensor.shape != expected.shape or tensor.is_meta or tensor.is_complex():
        return plain
    if _entries(expected.detach().cpu(), tensor.detach().to(expected.dtype), True):
        return plain
    array = is_tensor_or_array(got)
    is_ = "it is a numpy array" if array else f"it is {kind(got)}"
    how = "torch.from_numpy(...) makes one of it" if array else "torch.tensor(...) makes one of it"
    return _KIND_IS_WRONG.format(is_=is_, asked="a tensor", how=how)


def _shapes(want: torch.Tensor, have: torch.Tensor) -> str:
    said = f"expected shape {tuple(want.shape)}, got {tuple(have.shape)}"
    if want.numel() == have.numel() and not (want.is_meta or have.is_meta) and _family(want) == _family(have):
        if want.squeeze().shape == have.squeeze().shape:
            if _entries(want.squeeze().cpu(), have.squeeze().cpu(), True) is None:
                return f"the values are right, but not the shape: {said}."
        elif want.ndim == 2 and want.mT.shape == have.shape and _entries(want.cpu(), have.mT.cpu(), True) is None:
            return f"your result is the transpose of the right one: {said}."
    return said + "."


def _entries(want: torch.Tensor, have: torch.Tensor, reveal: bool) -> str | None:
    """How two tensors of one shape and one family of dtypes on the processor differ: the first entry that does, how
    many do, and by how much."""
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
    expected, got = want[at].item(), have[at].item()
    if got != got:
        said = "the shape is right, but there is nan" if want.ndim else "your result is nan"
        return f"{said}{place}: was zero divided by zero, or infinity taken from itself?"
    told = apart(expected, got)
    about = f"expected about {told[0]}, " if reveal else ""
    if not want.ndim:
        return f"{about}got {told[1]}."
    return f"the shape is right, but the values are not: {about}got {told[1]}{place}{_spread(want, have, same)}."


def _spread(want: torch.Tensor, have: torch.Tensor, same: torch.Tensor) -> str:
    """How many entries differ, and by how much at most; nothing for a tensor of one number."""
    if want.numel() == 1:
        return ""
    wrong = int((~same).sum())
    size = "" if want.dtype == torch.bool else f", by up to {number(_largest(want, have, same))}"
    return f" ({wrong} of {want.numel()} differ{size})"


def _largest(want: torch.Tensor, have: torch.Tensor, same: torch.Tensor) -> float:
    return float((want - have).abs()[~same].nan_to_num(nan=math.inf, posinf=math.inf).max())


# ------------------------------------------------------------------------------------------------------- numbers


def _numbers(expected: Any, got: Any, rules: Rules) -> str | None:
    if isinstance(got, str) and _text_of(expected, got):
        return f"{got!r} is a string, and {kind(expected)} is asked for: leave the quotes and str(...) out."
    if not isinstance(got, numbers.Number):
        return f"expected {kind(expected)}, got {brief(got)}."
    if isinstance(got, Decimal | Fraction) and isinstance(expected, numbers.Real):
        how = "int" if isinstance(expected, numbers.Integral) else "float"
        named = a(type(got).__name__)
        return f"{got} is {named}, and {kind(expected)} of Python is asked for: {how}(...) makes one of it."
    if isinstance(expected, numbers.Real) and not isinstance(got, numbers.Real):
        return f"expected {kind(expected)}, got {brief(got)}."
    if isinstance(expected, numbers.Integral):
        if got == expected and not isinstance(got, numbers.Integral):
            return f"{got} has the right value, but what is counted is a whole number: use // or int(...)."
        same = got == expected
    elif isinstance(expected, numbers.Real):
        same = got == expected or _close(float(expected), got)
    else:
        same = got == expected or _near(expected, got)
    if same:
        return None
    want, have = apart(expected, got)
    if want == have:
        return f"{number(got)} is not it: the two differ far behind the first digits."
    if rules.reveal:
        about = "" if isinstance(expected, numbers.Integral) else "about "
        return f"expected {about}{want}, got {have}."
    if isinstance(got, numbers.Real) and isinstance(expected, numbers.Real) and got == got:
        return f"{number(got)} is too {'small' if got < expected else 'large'}."
    return f"{number(got)} is not it."


def _text_of(expected: Any, got: str) -> bool:
    try:
        return math.isclose(float(got), float(expected), rel_tol=1e-3)
    except (ValueError, TypeError, OverflowError):
        return False


def _close(expected: float, got: Any) -> bool:
    try:
        value = float(got)
    except OverflowError:  # a whole number beyond any float
        return False
    both_nan = math.isnan(expected) and math.isnan(value)
    return both_nan or math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-12)


def _near(expected: Any, got: Any) -> bool:
    return abs(got - expected) <= abs(expected) / 10**6  # a Decimal doesn't multiply with a float


# ---------------------------------------------------------------------------------------------------- containers


def _mappings(expected: Mapping, got: Any, rules: Rules) -> str | None:
    if not isinstance(got, Mapping):
        return f"expected a dictionary, got {brief(got)}."
    missing = [key for key in expected if key not in got]
    extra = [key for key in got if key not in expected]
    if missing or extra:
        said = [f"{brief(key)} is missing" for key in missing[:3]]
        said += [f"{brief(key)} is not wanted" for key in extra[:3]]
        return f"the dictionary's keys are not right: {', '.join(said)}."
    reasons = (difference(value, got[key], f"under key {brief(key)}: ", *rules) for key, value in expected.items())
    return next(filter(None, reasons), None)


def _sequences(expected: Sequence, got: Any, rules: Rules) -> str | None:
    if not isinstance(got, Sequence) or isinstance(got, str | bytes):
        return f"expected {kind(expected)}, got {brief(got)}{_as_list(got)}."
    if len(expected) != len(got):
        return f"expected {len(expected)} items, got {len(got)}."
    pairs = enumerate(zip(expected, got, strict=True))
    return next(filter(None, (difference(*pair, f"item {i}: ", *rules) for i, pair in pairs)), None)


def _as_list(got: Any) -> str:
    """The advice for what goes through one by one and is no list: a set, a dictionary's keys, a generator."""
    if isinstance(got, Iterable) and not isinstance(got, Mapping | str | bytes):
        no_order = ": a set has no order, and here the order counts: build a list"
        return no_order if isinstance(got, Set) else ": list(...) makes a list of it"
    return ""


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
