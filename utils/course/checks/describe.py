"""Values and exceptions said in a few words, the same on every run: no addresses, no long contents."""

from __future__ import annotations

import numbers
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch

import utils

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
        return str(value)
    if isinstance(value, numbers.Real):
        value = float(value)
        return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    return f"{value:.3g}"


def apart(one: Any, other: Any) -> tuple[str, str]:
    """Two numbers that differ, with as many digits as it takes to see it: `14.06` and `14.13`, and not twice `14.1`."""
    said = number(one), number(other)
    real = isinstance(one, numbers.Real) and isinstance(other, numbers.Real)
    if said[0] != said[1] or not real:
        return said
    for digits in range(4, 18):
        said = f"{float(one):.{digits}g}", f"{float(other):.{digits}g}"
        if said[0] != said[1]:
            break
    return said


def brief(value: Any) -> str:
    """One short line about a value: `a float32 tensor of shape (2, 3)`, `the function len`, `[1, 2]`, `'nf4'`."""
    try:
        return _brief(value)
    except Exception:  # whatever a learner's object does when it is looked at
        return f"a {type(value).__name__}"


def _brief(value: Any) -> str:
    if is_tensor_or_array(value):
        tensor = torch.as_tensor(value)
        kind_ = "tensor" if isinstance(value, torch.Tensor) else "array"
        name = dtype_name(tensor)
        return f"{'an' if name[0] in 'aeiou' else 'a'} {name} {kind_} of shape {tuple(tensor.shape)}"
    if isinstance(value, numbers.Number) and not isinstance(value, bool):
        return number(value)
    if isinstance(value, torch.nn.Module):
        return f"a {type(value).__name__} module"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if callable(value):
        return f"the function {value.__name__}" if hasattr(value, "__name__") else f"a {type(value).__name__}"
    if type(value) in (list, tuple, set, frozenset, dict):
        return _contents(value)
    text = repr(value)
    if re.search(r"\bat 0x[0-9a-f]+", text):
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:60] + "..." + text[-15:]


def _contents(items: list | tuple | set | frozenset | dict) -> str:
    """What a container holds, or how many items there are when that makes too long a line."""
    if len(items) > 24:
        return f"a {type(items).__name__} of {len(items)} items"
    if isinstance(items, dict):
        text = "{" + ", ".join(f"{key!r}: {brief(value)}" for key, value in items.items()) + "}"
    else:
        inside = [brief(item) for item in items]
        if isinstance(items, list):
            text = f"[{', '.join(inside)}]"
        elif isinstance(items, tuple):
            text = f"({', '.join(inside)}{',' if len(inside) == 1 else ''})"
        else:
            text = "{" + ", ".join(sorted(inside)) + "}" if inside else "an empty set"
    short = len(text) <= (200 if len(items) <= 4 else 80)
    return text if short else f"a {type(items).__name__} of {len(items)} items"


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
    return f"a {type(value).__name__}"


def dtype_name(tensor: torch.Tensor) -> str:
    """A tensor's dtype as a learner writes it after `torch.`: `float32`."""
    return str(tensor.dtype).removeprefix("torch.")


def is_tensor_or_array(value: Any) -> bool:
    """Whether a value is a tensor or a numpy array (numpy is not imported for it)."""
    numpy = sys.modules.get("numpy")
    return isinstance(value, torch.Tensor) or (numpy is not None and isinstance(value, numpy.ndarray))


def raised_text(problem: Exception) -> str:
    """'your code raised TypeError: text (line 3: source)', the line being the learner's innermost one."""
    frames = [frame for frame in traceback.extract_tb(problem.__traceback__) if is_learners(frame.filename)]
    at = f" (line {frames[-1].lineno}: {frames[-1].line})" if frames and frames[-1].line else ""
    said = str(problem).strip().splitlines()
    return f"your code raised {type(problem).__name__}" + (f": {said[0]}" if said else "") + at


def is_learners(filename: str) -> bool:
    """Whether a traceback's file is the learner's: not the course's library, Python's or an installed one."""
    if re.match(r"<frozen|<__array_function__", filename) or "site-packages" in filename:
        return False
    path = Path(filename).resolve()
    return not any(path.is_relative_to(folder) for folder in _NOT_THE_LEARNERS)
