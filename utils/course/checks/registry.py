"""Register exercises: what is asked, how it is tried, the mistakes that are known, and what is said about them.

A chapter's module registers each of its exercises once, with :func:`exercise`; :func:`find` gives it back by name.
What is done with an answer is in :mod:`utils.course.checks.judge`.
"""

from __future__ import annotations

import copy
import difflib
import random
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


class Wrong(Exception):
    """Raised by an exercise's ``test`` to say, to the learner, what is wrong with the answer."""


class UnknownExercise(KeyError):
    """A name under which no exercise is registered."""

    def __str__(self) -> str:  # KeyError would show the message's repr
        return self.args[0]


@dataclass(frozen=True, eq=False)
class Mistake:
    """A typical wrong answer, and what to say to whoever gives it.

    answer: the wrong answer itself: a value, or a function that makes the mistake. If it raises, a learner's
        answer is recognised by the same exception with the same text.
    message: the sentence shown to a learner whose answer does the same. May be left out when the exercise's
        ``test`` raises a `Wrong` that says it already.
    expect: a piece of text that must be in what the learner reads (the contract tests look for it).
        Default: `message`.

    Raises ValueError when there is neither a message nor an expected text.
    """

    answer: Any
    message: str | None = None
    expect: str | None = None

    def __post_init__(self) -> None:
        if not (self.message or self.expect):
            raise ValueError("a Mistake needs a message, or expect=... with words of the exercise's test")

    @property
    def expected_text(self) -> str:
        """The text that must appear in the report on this mistake."""
        return self.expect or self.message or ""


@dataclass(frozen=True, eq=False)
class Case:
    """One call that an answer is tried with. make: gives the arguments, anew each time. seed: of the random numbers."""

    make: Callable[[], tuple[Any, ...]]
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Exercise:
    """One registered exercise; see :func:`exercise` for the fields. `cases` has the listed calls, then the drawn."""

    name: str
    chapter: str
    reference: Any
    cases: tuple[Case, ...]
    mistakes: tuple[Mistake, ...]
    hints: tuple[str, ...]
    why: str
    tests: tuple[Callable[[Any], None], ...]
    points: int
    compare: Callable[[Any, Any], bool | str] | None
    any_dtype: bool
    new_result: bool
    by_name: bool


_registered: dict[str, Exercise] = {}


def exercise(
    name: str,
    *,
    reference: Any,
    cases: Sequence[Any] = (),
    drawn: Callable[[random.Random], tuple[Any, ...]] | None = None,
    draws: int = 24,
    mistakes: Sequence[Mistake] = (),
    hints: Sequence[str] = (),
    why: str = "",
    test: Callable[[Any], None] | Sequence[Callable[[Any], None]] = (),
    points: int = 1,
    compare: Callable[[Any, Any], bool | str] | None = None,
    any_dtype: bool = False,
    new_result: bool = False,
    by_name: bool = False,
) -> None:
    """Register an exercise under `name`.

    reference: the right answer: a value, or something callable (a function or a class); the lesson's own solution,
        from :mod:`utils.course.checks.references`.
    cases: for a callable answer, the calls to compare with the reference's, chosen so that their messages speak. Each
        is a tuple of arguments, or a function without parameters that makes such a tuple. Tensors, lists and models in
        a plain tuple are copied before each call.
    drawn: makes one more call's arguments from a generator of random numbers; torch's is seeded too, so
        ``torch.randn`` may be used. Called `draws` times, with seeds of its own that never change. What varies belongs
        here: all sizes different, batch dimensions, values at a border, empty, repeated, unsorted.
    mistakes: typical wrong answers, each with its own message.
    hints: sentences that :func:`~utils.course.checks.core.hint` opens one at a time, the gentlest first.
    why: one or two sentences, shown under the worked solution: why it is so.
    test: for what comparing results can't judge, one or several: called with the answer after the cases agree, raises
        `Wrong` with the sentence for the learner. :mod:`utils.course.checks.behaviour` makes the usual ones.
    points: what the exercise counts in :func:`~utils.course.checks.core.progress` and in nbgrader.
    compare: ``compare(expected, got)`` instead of the usual comparison of results: True where they are as good as
        each other, False or a sentence where not.
    any_dtype: tensors may have another dtype of the same kind (floating, integer) than the reference's.
    new_result: a tensor that shares its memory with an argument is refused.
    by_name: the answer is called with keyword arguments, by the names of the reference's parameters, as a library
        calls a function that it is given.

    Raises ValueError for a name that isn't a lower-case identifier or that another module has taken, for a
    callable reference with neither cases nor test, for a case that is neither a tuple nor callable, for points below
    1, and for a value that Python keeps once, such as 2 or True: handed out, it would be the learner's own answer.
    """
    chapter = sys._getframe(1).f_globals.get("__name__", "?").rpartition(".")[2]
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"an exercise's name is a lower-case identifier such as 'lora_delta', not {name!r}")
    if name in _registered and _registered[name].chapter != chapter:
        owner = _registered[name].chapter
        raise ValueError(f"exercise {name!r} is already registered by {owner}; choose another name")
    if points < 1:
        raise ValueError(f"exercise {name!r}: points must be at least 1, not {points}")
    if isinstance(hints, str):
        raise ValueError(f"exercise {name!r}: hints is a sequence of sentences, not one string")
    tests = (test,) if callable(test) else tuple(test)
    if callable(reference) and not (cases or drawn or tests):
        raise ValueError(f"exercise {name!r}: a callable answer needs cases or a test, or all would pass")
    if (cases or drawn) and not callable(reference):
        raise ValueError(f"exercise {name!r}: cases are calls, but {reference!r} can't be called")
    if not callable(reference) and twin(reference) is reference:
        raise ValueError(
            f"exercise {name!r}: handed out, {reference!r} can't be told from a learner's own {reference!r}, and a "
            "second check would pass it: ask for a function, a list or a dictionary"
        )
    for case in cases:
        if not (isinstance(case, tuple) or callable(case)):
            raise ValueError(f"exercise {name!r}: a case is a tuple, or a function making one, not {case!r}")
    made = [Case(_maker(case)) for case in cases]
    made += [Case(_maker(_drawer(drawn, seed)), seed) for seed in range(1, draws + 1) if drawn]
    _registered[name] = Exercise(
        name, chapter, reference, tuple(made), tuple(mistakes), tuple(hints), why, tests, points, compare,
        any_dtype, new_result, by_name,
    )  # fmt: skip


def registered() -> dict[str, Exercise]:
    """All registered exercises by name, in the order of their registration (a copy)."""
    return dict(_registered)


def find(name: str) -> Exercise:
    """The exercise called `name`. Raises UnknownExercise, naming the nearest names, when there is none."""
    if name in _registered:
        return _registered[name]
    near = difflib.get_close_matches(str(name), _registered, n=3, cutoff=0.5)
    known = "; did you mean " + " or ".join(repr(n) for n in near) + "?" if near else ""
    raise UnknownExercise(f"there is no exercise {name!r}{known}")


def twin(value: Any) -> Any:
    """An equal value that is another object, where Python allows it: not for small numbers, truth values, letters."""
    if isinstance(value, str):
        return "".join(list(value))
    if type(value) in (int, float):
        return type(value)(repr(value))
    if type(value) is tuple:
        return tuple(list(value))
    return copy.deepcopy(value)


def _maker(case: Any) -> Callable[[], tuple[Any, ...]]:
    if not callable(case):
        return lambda: case
    return lambda: made if isinstance(made := case(), tuple) else (made,)


def _drawer(drawn: Callable[[random.Random], Any], seed: int) -> Callable[[], Any]:
    return lambda: drawn(random.Random(seed))
