"""Values and exceptions said in a few words, the same on every run: no addresses, no long contents.

Attributes:
    LONG: So many characters of a container's contents, of an exception's text or of a line of code are shown at most.
"""

from __future__ import annotations

import inspect
import numbers
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence, Set
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch

import utils

LONG = 160

_ADDRESS = r"\bat 0x[0-9a-fA-F]+"

# A traceback's frames in these folders are not the learner's: the course's library, and Python's own.
_NOT_THE_LEARNERS = tuple(Path(file).resolve().parent for file in (utils.__file__, os.__file__))

_KINDS = (
    (bool, "True or False"),
    (numbers.Integral, "a whole number"),
    (numbers.Number, "a number"),
    (str, "a string"),
    (Mapping, "a dictionary"),
    (Set, "a set"),
)


def number(value: complex | numbers.Number) -> str:
    """A number in a few characters: whole ones in full, others to three significant digits."""
    if isinstance(value, bool | numbers.Integral):
        return str(value) if abs(int(value)) < 10**24 else f"{Decimal(int(value)):.3g}"
    if isinstance(value, numbers.Real):
        value = float(value)
        return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    return f"{value:.3g}"


def apart(one: Any, other: Any) -> tuple[str, str]:
    """Two numbers that differ, with as many digits as it takes to see it: `14.06` and `14.13`, and not twice `14.1`."""
    said = number(one), number(other)
    if said[0] != said[1] or not (isinstance(one, numbers.Real) and isinstance(other, numbers.Real)):
        return said
    if isinstance(one, numbers.Integral) and isinstance(other, numbers.Integral):
        values = Decimal(int(one)), Decimal(int(other))
    else:
        values = float(one), float(other)
    for digits in range(4, 40 if isinstance(values[0], Decimal) else 18):
        said = f"{values[0]:.{digits}g}", f"{values[1]:.{digits}g}"
        if said[0] != said[1]:
            break
    return said


def brief(value: Any) -> str:
    """One short line about a value: `a float32 tensor of shape (2, 3)`, `the function len`, `[1, 2]`, `'nf4'`."""
    return _safe(value, 3)


def _safe(value: Any, depth: int) -> str:
    """`_brief`, whatever a learner's object does when it is looked at. depth: containers are opened so far."""
    try:
        return _brief(value, depth)
    except Exception:
        return a(type(value).__name__)


def a(noun: str) -> str:
    """A noun with its article: `a list`, `an int64`."""
    return f"{'an' if noun[:1] in 'aeioAEIO' else 'a'} {noun}"


def _brief(value: Any, depth: int) -> str:
    if is_tensor_or_array(value):
        kind_ = "tensor" if isinstance(value, torch.Tensor) else "array"
        return f"{a(dtype_name(value))} {kind_} of shape {tuple(value.shape)}"
    if isinstance(value, numbers.Number) and not isinstance(value, bool):
        return number(value)
    if isinstance(value, torch.nn.Module):
        return f"{a(type(value).__name__)} module"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.iscoroutine(value):
        return "a coroutine, as a function has it that begins with async def"
    if callable(value):
        return f"the function {value.__name__}" if hasattr(value, "__name__") else a(type(value).__name__)
    if type(value) in (list, tuple, set, frozenset, dict):
        return _contents(value, depth)
    text = repr(value)
    if re.search(_ADDRESS, text):
        return a(type(value).__name__)
    return text if len(text) <= 80 else text[:60] + "..." + text[-15:]


def _contents(items: list | tuple | set | frozenset | dict, depth: int) -> str:
    """What a container holds, or how many items there are when that makes too long a line."""
    counted = f"{a(type(items).__name__)} of {len(items)} item{'s' * (len(items) != 1)}"
    if len(items) > 24 or not depth:
        return counted
    if isinstance(items, dict):
        text = ", ".join(f"{_safe(key, depth - 1)}: {_safe(value, depth - 1)}" for key, value in items.items())
        text = "{" + text + "}"
    else:
        inside = [_safe(item, depth - 1) for item in items]
        if isinstance(items, list):
            text = f"[{', '.join(inside)}]"
        elif isinstance(items, tuple):
            text = f"({', '.join(inside)}{',' if len(inside) == 1 else ''})"
        else:
            text = "{" + ", ".join(sorted(inside)) + "}" if inside else "an empty set"
    short = len(text) <= (LONG if len(items) <= 4 else 80)
    return text if short else counted


def kind(value: Any) -> str:
    """What sort of thing a value is, in words: `a whole number`, `a list of 3 items`."""
    if value is None:
        return "None"
    if isinstance(value, type(lambda: 0)):
        return "a function"
    if isinstance(value, torch.Tensor):
        return "a tensor"
    for type_, words in _KINDS:
        if isinstance(value, type_):
            return words
    if isinstance(value, Sequence):
        return f"a {'tuple' if isinstance(value, tuple) else 'list'} of {len(value)} items"
    return a(type(value).__name__)


def dtype_name(tensor: Any) -> str:
    """A tensor's or an array's dtype as a learner writes it after `torch.`: `float32`."""
    return str(tensor.dtype).removeprefix("torch.")


def is_tensor_or_array(value: Any) -> bool:
    """Whether a value is a tensor or a numpy array (numpy is not imported for it)."""
    numpy = sys.modules.get("numpy")
    return isinstance(value, torch.Tensor) or (numpy is not None and isinstance(value, numpy.ndarray))


def raised_text(problem: BaseException) -> str:
    """'your code raised TypeError: text (line 3: source)', the line being the learner's innermost one."""
    frames = [frame for frame in traceback.extract_tb(problem.__traceback__) if is_learners(frame.filename)]
    at = f" (line {frames[-1].lineno}: {_cut(frames[-1].line)})" if frames and frames[-1].line else ""
    said = _text_of(problem)
    return f"your code raised {type(problem).__name__}" + (f": {said}" if said else "") + at


def _text_of(problem: BaseException) -> str:
    """The first line of an exception's text, without addresses and the full stop."""
    try:
        lines = str(problem).strip().splitlines()
    except Exception:
        return ""
    return _cut(re.sub(" " + _ADDRESS, "", lines[0]).removesuffix(".")) if lines else ""


def _cut(text: str) -> str:
    return text if len(text) <= LONG else text[:LONG].rstrip() + " ..."


def is_learners(filename: str) -> bool:
    """Whether a traceback's file is the learner's: not the course's library, Python's or an installed one."""
    if re.match(r"<frozen|<__array_function__", filename) or "site-packages" in filename:
        return False
    path = Path(filename).resolve()
    return not any(path.is_relative_to(folder) for folder in _NOT_THE_LEARNERS)
