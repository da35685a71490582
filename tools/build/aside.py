"""Inside a notebook's kernel: a learner's cells, run aside in the solved notebook, which doesn't notice them.

:mod:`tools.build.one_run` says which cells and when; it sends :func:`call` s to the kernel. Between ``enter`` and
``leave`` a cell sees what it would see in the learner's copy: checks are not strict, and :func:`progress` knows
the learner's outcomes. ``leave`` puts back names, outcomes, hints, strictness and random numbers.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from typing import Any

# Each exercise's last state in the learner's copy.
_learners_outcomes: dict[str, str] = {}
# What ``leave`` calls.
_put_back: list[Callable[[], Any]] = []


def call(function: str, *arguments: Any) -> str:
    """An expression that calls one of the functions below in a kernel and leaves no name behind there."""
    said = ", ".join(map(repr, arguments))
    return f"__import__('tools.build.aside', fromlist=['']).{function}(get_ipython().user_ns, {said})"


def enter(namespace: dict[str, Any], names: Sequence[str]) -> None:
    """The learner's cells are next; they, or the solution after them, bind `names`."""
    from utils.course import progress
    from utils.course.checks import core

    values = {name: namespace[name] for name in names if name in namespace}
    kernel, strict = core._kernel, progress.STRICT
    states, hints, handed = kernel.states, dict(kernel.hints), dict(kernel.handed)
    numpy, torch = sys.modules.get("numpy"), sys.modules["torch"]
    python_random, torch_random, numpy_random = (
        random.getstate(),
        torch.get_rng_state(),
        numpy and numpy.random.get_state(),
    )
    kernel.states, progress.STRICT = _learners_outcomes, False

    def put_back() -> None:
        kernel.states, kernel.hints, kernel.handed = states, hints, handed
        random.setstate(python_random)
        torch.set_rng_state(torch_random)
        if numpy:
            numpy.random.set_state(numpy_random)
        progress.STRICT = strict
        withhold(namespace, names)
        namespace.update(values)

    _put_back[:] = [put_back]


def leave(namespace: dict[str, Any]) -> None:
    """The learner's cells have run: everything is as it was before them, but what they said is remembered."""
    _put_back.pop()()


def withhold(namespace: dict[str, Any], names: Sequence[str]) -> None:
    """Remove `names`: a cell that reads what only the solution binds is to fail, since no learner has it."""
    for name in names:
        namespace.pop(name, None)
