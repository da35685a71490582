"""Register exercises, and judge a learner's answer by what it does.

A chapter registers its exercises once, with :func:`exercise`. A notebook then says
``answer = check("name", answer)``. The answer passes; or it is not solved yet; or it is wrong, and then
:func:`check` compares what it does with the exercise's typical mistakes (:class:`Mistake`) and says which
one it looks like. In the last two cases the notebook goes on with the reference answer, which the name then holds:
judged again, it is "not solved yet" again, since the engine knows what it handed out. Answers are judged by behaviour:
nothing here reads a learner's source.

Every call gets fresh arguments and the same random seed, so an answer that changes its arguments or draws
random numbers is judged like any other, and the notebook's own random state is left as it was.
"""

from __future__ import annotations

import copy
import difflib
import os
import random
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from utils.course.checks.compare import difference, expected_got
from utils.course.checks.describe import brief, is_learners, raised_text

PASSED = "passed"
NOT_SOLVED = "not solved yet"
NOT_RIGHT = "not right yet"
NOT_TRIED = "not tried"

HANDED_OUT = "the name holds the reference that the last check handed you. Run the cell with your own answer first."

STRICT_VARIABLE = "COURSE_STRICT"


class Wrong(Exception):
    """Raised by an exercise's ``test`` to say, to the learner, what is wrong with the answer."""


class ExerciseFailed(AssertionError):
    """Raised by :func:`check` under ``COURSE_STRICT=1`` for an answer that does not pass, with the report."""


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
class Exercise:
    """One registered exercise; see :func:`exercise` for the fields."""

    name: str
    chapter: str
    reference: Any
    cases: tuple[Any, ...]
    mistakes: tuple[Mistake, ...]
    hints: tuple[str, ...]
    test: Callable[[Any], None] | None
    points: int
    compare: Callable[[Any, Any], bool] | None


@dataclass(frozen=True, eq=False)
class Result:
    """What :func:`evaluate` found: a state, what to say to the learner, the mistake recognised."""

    state: str
    message: str = ""
    mistake: Mistake | None = None


@dataclass(frozen=True, eq=False)
class _Outcome:
    """One call's result, or the exception that it raised."""

    value: Any = None
    raised: Exception | None = None


@dataclass(eq=False)
class _Kernel:
    """What happened in this process: each exercise's last state, the reference answers that were handed out, how many
    hints are open, and what the typical mistakes were seen to do (see :func:`_mistake_does`)."""

    states: dict[str, str] = field(default_factory=dict)
    handed: dict[str, Any] = field(default_factory=dict)
    hints: dict[str, int] = field(default_factory=dict)
    seen: dict[tuple[Any, ...], _Outcome] = field(default_factory=dict)


_registered: dict[str, Exercise] = {}
_kernel = _Kernel()


# ----------------------------------------------------------------------------------------------- registration


def exercise(
    name: str,
    *,
    reference: Any,
    cases: Sequence[Any] = (),
    mistakes: Sequence[Mistake] = (),
    hints: Sequence[str] = (),
    test: Callable[[Any], None] | None = None,
    points: int = 1,
    compare: Callable[[Any, Any], bool] | None = None,
) -> None:
    """Register an exercise under `name`.

    reference: the right answer: a value, or something callable (a function or a class).
    cases: for a callable answer, the calls to compare with the reference's. Each is a tuple of arguments, or
        a function without parameters that makes such a tuple. Tensors, lists and models in a plain tuple are
        copied before each call.
    mistakes: typical wrong answers; at least three, each with its own message (tests/course/test_exercises.py asks).
    hints: sentences that :func:`hint` opens one at a time, the gentlest first.
    test: for what comparing values can't judge: called with the answer after the cases agree, raises `Wrong`
        with the sentence for the learner.
    points: what the exercise counts in :func:`progress` and in nbgrader.
    compare: ``compare(expected, got) -> bool`` instead of the usual comparison of results.

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
    if callable(reference) and not (cases or test):
        raise ValueError(f"exercise {name!r}: a callable answer needs cases or a test, or all would pass")
    if cases and not callable(reference):
        raise ValueError(f"exercise {name!r}: cases are calls, but {reference!r} can't be called")
    if not callable(reference) and _twin(reference) is reference:
        raise ValueError(
            f"exercise {name!r}: handed out, {reference!r} can't be told from a learner's own {reference!r}, and a "
            "second check would pass it: ask for a function, a list or a dictionary"
        )
    for case in cases:
        if not (isinstance(case, tuple) or callable(case)):
            raise ValueError(f"exercise {name!r}: a case is a tuple, or a function making one, not {case!r}")
    _registered[name] = Exercise(
        name, chapter, reference, tuple(cases), tuple(mistakes), tuple(hints), test, points, compare
    )  # fmt: skip


def registered() -> dict[str, Exercise]:
    """All registered exercises by name, in the order of their registration (a copy)."""
    return dict(_registered)


def find(name: str) -> Exercise:
    """The exercise called `name`. Raises KeyError, naming the nearest names, when there is none."""
    if name in _registered:
        return _registered[name]
    near = difflib.get_close_matches(str(name), _registered, n=3, cutoff=0.5)
    known = "; did you mean " + " or ".join(repr(n) for n in near) + "?" if near else ""
    raise UnknownExercise(f"there is no exercise {name!r}{known}")


class UnknownExercise(KeyError):
    """A name under which no exercise is registered."""

    def __str__(self) -> str:  # KeyError would show the message's repr
        return self.args[0]


# --------------------------------------------------------------------------------------- what a learner calls


def check(name: str, answer: Any = None) -> Any:
    """Judge `answer`, print one report, and return the answer if it passes, else the reference.

    So a notebook with open exercises runs on. The reference itself, given back to a second check, is not solved yet.
    Under ``COURSE_STRICT=1`` an answer that does not pass raises `ExerciseFailed` with the same report instead. Raises
    `UnknownExercise` (a KeyError) for a name that isn't registered.
    """
    found = find(name)
    ours = name in _kernel.handed and answer is _kernel.handed[name]
    result = Result(NOT_SOLVED, HANDED_OUT) if ours else evaluate(name, answer)
    _kernel.states[name] = result.state
    report = _report(found, result)
    if result.state == PASSED:
        print(report)
        return answer
    if os.environ.get(STRICT_VARIABLE, "0") not in ("", "0"):
        raise ExerciseFailed(report)
    print(report)
    _kernel.handed[name] = found.reference if callable(found.reference) else _twin(found.reference)
    return _kernel.handed[name]


def _twin(value: Any) -> Any:
    """An equal value that is another object, where Python allows it: not for small numbers, truth values, letters."""
    if isinstance(value, str):
        return "".join(list(value))
    if type(value) in (int, float):
        return type(value)(repr(value))
    if type(value) is tuple:
        return tuple(list(value))
    return copy.deepcopy(value)


def hint(name: str) -> None:
    """Print the next hint for the exercise; after the last one, say that there are none left."""
    hints = find(name).hints
    opened = _kernel.hints.get(name, 0)
    if opened < len(hints):
        _kernel.hints[name] = opened + 1
        print(f"Hint {opened + 1} of {len(hints)}: {hints[opened]}")
    elif hints:
        print(f"No hints left for {name} ({len(hints)} of {len(hints)} are open).")
    else:
        print(f"There are no hints for {name}.")


def progress() -> None:
    """Print the state of every exercise of the chapters from which at least one was tried in this kernel."""
    chapters = {_registered[name].chapter for name in _kernel.states}
    shown = [e for e in _registered.values() if e.chapter in chapters]
    if not shown:
        print("No exercise has been checked yet in this session.")
        return
    state = {e.name: _kernel.states.get(e.name, NOT_TRIED) for e in shown}
    width = max(len("exercise"), *(len(e.name) for e in shown))
    column = max(len(s) for s in (PASSED, NOT_SOLVED, NOT_RIGHT, NOT_TRIED))
    print(f"{'exercise':<{width}}  {'state':<{column}}  points")
    for e in shown:
        won = e.points if state[e.name] == PASSED else 0
        print(f"{e.name:<{width}}  {state[e.name]:<{column}}  {won}/{e.points}")
    passed = [e for e in shown if state[e.name] == PASSED]
    points = f"{sum(e.points for e in passed)} of {sum(e.points for e in shown)} points"
    print(f"{len(passed)} of {len(shown)} exercises passed, {points}." + (" Well done." * (passed == shown)))


def _report(found: Exercise, result: Result) -> str:
    if result.state == PASSED:
        return f"[{PASSED}] {found.name}"
    aid = f' Stuck? hint("{found.name}")' if found.hints else ""
    lines = [f"[{result.state}] {found.name}" + (f": {result.message}" if result.message else "")]
    lines.append(f"    The reference solution is used below, so that you can read on.{aid}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------- judging


def evaluate(name: str, answer: Any) -> Result:
    """Judge `answer` for the exercise `name`: nothing printed or remembered, nothing raised."""
    found = find(name)
    if answer is None or answer is ...:
        return Result(NOT_SOLVED)
    with _random_state_kept():
        return _judge_callable(found, answer) if callable(found.reference) else _judge_value(found, answer)


def _judge_value(found: Exercise, answer: Any) -> Result:
    reason = _difference(found, found.reference, answer, reveal=False)
    if reason is None:
        return _judge_test(found, answer, ())
    for mistake in found.mistakes:
        if mistake.message and _difference(found, mistake.answer, answer) is None:
            return Result(NOT_RIGHT, mistake.message, mistake)
    return Result(NOT_RIGHT, reason)


def _judge_callable(found: Exercise, answer: Any) -> Result:
    if not callable(answer):
        return Result(NOT_RIGHT, f"expected a function (or a class), got {brief(answer)}.")
    expected = _outcomes(found, found.reference)
    got = _outcomes(found, answer)
    for want, have in zip(expected, got, strict=True):
        if _is_stub(have.raised) and not isinstance(want.raised, NotImplementedError):
            return Result(NOT_SOLVED)
    if got and all(h.raised is None and (h.value is None or h.value is ...) for h in got):
        if any(w.raised is not None or w.value is not None for w in expected):
            return Result(NOT_SOLVED, "your function returns nothing: is a return missing?")
    reasons = [_outcome_difference(found, want, have) for want, have in zip(expected, got, strict=True)]
    wrong = next((i for i, reason in enumerate(reasons) if reason is not None), None)
    if wrong is None:
        return _judge_test(found, answer, expected)
    for mistake in found.mistakes:
        if mistake.message and _behaves_alike(found, mistake, got):
            return Result(NOT_RIGHT, mistake.message, mistake)
    case = f"case {wrong + 1} of {len(reasons)}, {_call_text(found, wrong)}"
    return Result(NOT_RIGHT, f"{case}: {reasons[wrong]}")


def _judge_test(found: Exercise, answer: Any, expected: Sequence[_Outcome]) -> Result:
    """The exercise's own test, run after the cases agree with the reference."""
    verdict = _run_test(found, answer)
    if verdict is None:
        return Result(PASSED)
    if _is_stub(verdict):
        return Result(NOT_SOLVED)
    if not isinstance(verdict, Wrong | AssertionError):
        return Result(NOT_RIGHT, raised_text(verdict) + ".")
    said = str(verdict) or "it does not do what the exercise asks for."
    alike = [m for m in found.mistakes if _fails_alike(found, m, expected, said)]
    if len(alike) == 1:
        return Result(NOT_RIGHT, alike[0].message or said, alike[0])
    return Result(NOT_RIGHT, said)


def _fails_alike(found: Exercise, mistake: Mistake, expected: Sequence[_Outcome], said: str) -> bool:
    """Whether a mistaken answer passes the cases and fails the test in the same words as the learner's."""
    if callable(found.reference):
        if not _behaves_alike(found, mistake, expected):
            return False
    elif _difference(found, found.reference, mistake.answer) is not None:
        return False
    verdict = _run_test(found, mistake.answer)
    return isinstance(verdict, Wrong | AssertionError) and str(verdict) == said


def _is_stub(problem: Exception | None) -> bool:
    """Whether an exception is a stub's NotImplementedError, and not torch's for an operation it lacks."""
    if not isinstance(problem, NotImplementedError):
        return False
    frames = traceback.extract_tb(problem.__traceback__)
    last = frames[-1] if frames else None
    return last is None or (
        is_learners(last.filename) and "NotImplementedError" in (last.line or "NotImplementedError")
    )


def _run_test(found: Exercise, answer: Any) -> Exception | None:
    if found.test is None:
        return None
    _seed()
    try:
        found.test(answer)
    except Exception as problem:
        return problem
    return None


def _behaves_alike(found: Exercise, mistake: Mistake, outcomes: Sequence[_Outcome]) -> bool:
    """Whether a mistaken answer does in every case what `outcomes` records; it isn't called beyond a difference."""
    return callable(mistake.answer) and all(
        _same_outcome(found, _mistake_does(found, mistake, case), outcome) for case, outcome in enumerate(outcomes)
    )


def _same_outcome(found: Exercise, one: _Outcome, other: _Outcome) -> bool:
    if one.raised is None and other.raised is None:
        return _difference(found, one.value, other.value) is None
    return repr(one.raised) == repr(other.raised)


def _mistake_does(found: Exercise, mistake: Mistake, case: int) -> _Outcome:
    """What a mistaken answer does in one case: called the first time, remembered from then on.

    Arguments and seed are the same each time, so only what a learner may have set for the whole process can
    change the outcome; that is part of what is remembered.
    """
    key = found, mistake, case, torch.get_default_dtype(), torch.is_grad_enabled()
    if key not in _kernel.seen:
        outcome = _outcome(mistake.answer, found.cases[case])
        if outcome.raised is not None:
            outcome.raised.__traceback__ = None  # it would keep every local of the call
        _kernel.seen[key] = outcome
    return _kernel.seen[key]


def _outcomes(found: Exercise, function: Callable[..., Any]) -> list[_Outcome]:
    return [_outcome(function, case) for case in found.cases]


def _outcome(function: Callable[..., Any], case: Any) -> _Outcome:
    """What `function` does in a case, with fresh arguments and the same seed each time."""
    arguments = _arguments(case)
    _seed()
    try:
        return _Outcome(value=function(*arguments))
    except Exception as problem:
        return _Outcome(raised=problem)


def _arguments(case: Any) -> tuple[Any, ...]:
    if callable(case):
        _seed()
        made = case()
        return made if isinstance(made, tuple) else (made,)
    return tuple(_fresh(a) for a in case)


def _fresh(value: Any) -> Any:
    """A copy that shares no storage with `value`."""
    if isinstance(value, torch.Tensor) and not value.is_leaf:
        return value.detach().clone().requires_grad_(value.requires_grad)
    if type(value) in (list, tuple):
        return type(value)(_fresh(v) for v in value)
    if type(value) is dict:
        return {k: _fresh(v) for k, v in value.items()}
    return copy.deepcopy(value)


def _seed() -> None:
    """Seed every generator with 0.

    Where there is no accelerator, only the processor's: `torch.manual_seed` then writes down the whole stack, for a
    GPU that might be found later, and that takes longer than most exercises do.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(0)
    else:
        torch.default_generator.manual_seed(0)
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    numpy = sys.modules.get("numpy")
    kept = random.getstate(), numpy.random.get_state() if numpy else None
    gradients = torch.is_grad_enabled()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            torch.set_grad_enabled(gradients)
            random.setstate(kept[0])
            if numpy:
                numpy.random.set_state(kept[1])


# -------------------------------------------------------------------------------------------------- comparing


def _outcome_difference(found: Exercise, want: _Outcome, have: _Outcome) -> str | None:
    if want.raised is not None:
        name = type(want.raised).__name__
        if have.raised is None:
            return f"your code should raise {name} here, but it returned {brief(have.value)}."
        if not isinstance(have.raised, type(want.raised)):
            return f"your code should raise {name} here, but {raised_text(have.raised)}."
        return None
    if have.raised is not None:
        return raised_text(have.raised) + "."
    return _difference(found, want.value, have.value)


def _difference(found: Exercise, expected: Any, got: Any, reveal: bool = True) -> str | None:
    """None when `got` is as good as `expected`, else the first difference, as a sentence."""
    if found.compare is not None:
        try:
            same = bool(found.compare(expected, got))
        except Exception:  # an answer of a wrong type may break the comparison: then it is not equal
            same = False
        return None if same else expected_got(expected, got, reveal)
    return difference(expected, got, reveal=reveal)


def _call_text(found: Exercise, index: int) -> str:
    """How case number `index` calls the answer, with the arguments in short."""
    return "called with (" + ", ".join(_argument(a) for a in _arguments(found.cases[index])) + ")"


def _argument(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"tensor {tuple(value.shape)}"
    return brief(value)
