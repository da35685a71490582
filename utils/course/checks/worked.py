"""An exercise's worked solution: the cell that its lesson solves it with."""

from __future__ import annotations

import inspect
import re
from importlib import import_module

from utils.course.checks.registry import find


def source(name: str) -> str:
    """The solution cell of the exercise `name`, as the lesson shows it, without the solution's markers.

    Raises KeyError, naming the nearest names, for a name that isn't registered.
    """
    module = import_module(f"utils.course.checks.references.{find(name).chapter}")
    cell = re.search(rf"^# -------- {name}\n(.*?)\n*(?=^# -------- |\Z)", inspect.getsource(module), re.M | re.S)
    if cell is None:
        raise LookupError(f"{module.__name__} has no cell of {name!r}: `make notebooks` writes it from the lesson")
    return cell[1]
