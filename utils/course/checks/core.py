"""Register exercises, and judge a learner's answer by what it does.

A chapter registers its exercises once, with :func:`exercise`. A notebook then says
``answer = check("name", answer)``. The answer passes; or it is not solved yet; or it is wrong, and then
:func:`check` compares what it does with the exercise's typical mistakes (:class:`Mistake`) and says which
one it looks like. In the last two cases the notebook goes on with the reference answer. Answers are judged
by behaviour: nothing here reads a learner's source.

Every call gets fresh arguments and the same random seed, so an answer that changes its arguments or draws
random numbers is judged like any other, and the notebook's own random state is left as it was.
"""

from __future__ import annotations

import copy
import difflib
import math
import numbers
import os
import random
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

PASSED = "passed"
NOT_SOLVED = "not solved yet"
NOT_RIGHT = "not right yet"
NOT_TRIED = "not tried"

STRICT_VARIABLE = "COURSE_STRICT"

_HERE = str(Path(__file__).resolve())


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


@dataclass(eq=False)
class _Kernel:
    """What happened in this process: each exercise's last state, and how many hints are open."""

    states: dict[str, str] = field(default_factory=dict)
    hints: dict[str, int] = field(default_factory=dict)


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
    callable reference with neither cases nor test, for a case that is neither a tuple nor callable, and for
    points below 1.
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

    So a notebook with open exercises runs on. Under ``COURSE_STRICT=1`` an answer that does not pass raises
    `ExerciseFailed` with the same report instead. Raises `UnknownExercise` (a KeyError) for a name that isn't
    registered.
    """
    found = find(name)
    result = evaluate(name, answer)
    _kernel.states[name] = result.state
    report = _report(found, result)
    if result.state == PASSED:
        print(report)
        return answer
    if os.environ.get(STRICT_VARIABLE, "0") not in ("", "0"):
        raise ExerciseFailed(report)
    print(report)
    return found.reference


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


@dataclass(frozen=True, eq=False)
class _Outcome:
    """One call's result, or the exception that it raised."""

    value: Any = None
    raised: Exception | None = None


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
        return Result(NOT_RIGHT, f"expected a function (or a class), got {_brief(answer)}.")
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
        if mistake.message and _behaves_alike(found, mistake.answer, got):
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
        return Result(NOT_RIGHT, _raised_text(verdict) + ".")
    said = str(verdict) or "it does not do what the exercise asks for."
    alike = [m for m in found.mistakes if _fails_alike(found, m.answer, expected, said)]
    if len(alike) == 1:
        return Result(NOT_RIGHT, alike[0].message or said, alike[0])
    return Result(NOT_RIGHT, said)


def _fails_alike(found: Exercise, mistaken: Any, expected: Sequence[_Outcome], said: str) -> bool:
    """Whether a mistaken answer passes the cases and fails the test in the same words as the learner's."""
    if callable(found.reference):
        if not callable(mistaken) or not _behaves_alike(found, mistaken, expected):
            return False
    elif _difference(found, found.reference, mistaken) is not None:
        return False
    verdict = _run_test(found, mistaken)
    return isinstance(verdict, Wrong | AssertionError) and str(verdict) == said


def _is_stub(problem: Exception | None) -> bool:
    """Whether an exception is a stub's NotImplementedError, and not torch's for an operation it lacks."""
    if not isinstance(problem, NotImplementedError):
        return False
    frames = traceback.extract_tb(problem.__traceback__)
    last = frames[-1] if frames else None
    return last is None or (
        _is_learners(last.filename) and "NotImplementedError" in (last.line or "NotImplementedError")
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


def _behaves_alike(found: Exercise, mistaken: Any, outcomes: Sequence[_Outcome]) -> bool:
    """Whether `mistaken`, called on every case, does what `outcomes` records."""
    if not callable(mistaken):
        return False
    theirs = _outcomes(found, mistaken)
    for mine, other in zip(theirs, outcomes, strict=True):
        if (mine.raised is None) != (other.raised is None):
            return False
        if mine.raised is not None and repr(mine.raised) != repr(other.raised):
            return False
        if mine.raised is None and _difference(found, mine.value, other.value) is not None:
            return False
    return True


def _outcomes(found: Exercise, function: Callable[..., Any]) -> list[_Outcome]:
    """`function` on every case, each time with fresh arguments and the same seed."""
    outcomes = []
    for case in found.cases:
        arguments = _arguments(case)
        _seed()
        try:
            outcomes.append(_Outcome(value=function(*arguments)))
        except Exception as problem:
            outcomes.append(_Outcome(raised=problem))
    return outcomes


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
    torch.manual_seed(0)
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
            return f"your code should raise {name} here, but it returned {_brief(have.value)}."
        if not isinstance(have.raised, type(want.raised)):
            return f"your code should raise {name} here, but {_raised_text(have.raised)}."
        return None
    if have.raised is not None:
        return _raised_text(have.raised) + "."
    return _difference(found, want.value, have.value)


def _difference(found: Exercise, expected: Any, got: Any, reveal: bool = True) -> str | None:
    """None when `got` is as good as `expected`, else the first difference, as a sentence."""
    if found.compare is not None:
        try:
            same = bool(found.compare(expected, got))
        except Exception:  # an answer of a wrong type may break the comparison: then it is not equal
            same = False
        return None if same else _expected_got(expected, got, reveal)
    return difference(expected, got, reveal=reveal)


def difference(expected: Any, got: Any, where: str = "", reveal: bool = True) -> str | None:
    """The first way in which `got` differs from `expected`, as a sentence to a learner, or None.

    Tensors must agree in shape, in kind of dtype (floating, integer, boolean, complex) and, within the
    tolerance of the coarser dtype, in value. Whole numbers are compared exactly, other numbers within a
    relative 1e-6; a boolean is not a number. Lists and tuples may stand for each other. `where` is put
    before the sentence; `reveal` False keeps the expected values out of it.
    """
    expected, got = _plain(expected), _plain(got)
    if isinstance(expected, torch.Tensor) or _is_array(expected):
        return _tensor_difference(expected, got, where, reveal)
    if isinstance(got, torch.Tensor) or _is_array(got):
        aid = ": .item() gives the number in it" if torch.as_tensor(got).numel() == 1 else ""
        return f"{where}expected {_kind(expected)}, got {_brief(got)}{aid}."
    if expected is None or got is None or isinstance(expected, bool) or isinstance(got, bool):
        return None if expected is got else _expected_got(expected, got, reveal, where)
    if isinstance(expected, numbers.Number):
        return _number_difference(expected, got, where, reveal)
    if isinstance(expected, str | bytes):
        same = type(expected) is type(got) and expected == got
        return None if same else _expected_got(expected, got, reveal, where)
    if isinstance(expected, Mapping):
        return _mapping_difference(expected, got, where, reveal)
    if isinstance(expected, Sequence):
        return _sequence_difference(expected, got, where, reveal)
    if isinstance(expected, Set) and isinstance(got, Set):
        return None if expected == got else _expected_got(expected, got, reveal, where)
    try:
        same = expected is got or bool(expected == got)
    except Exception:
        same = False
    return None if same else _expected_got(expected, got, reveal, where)


def _tensor_difference(expected: Any, got: Any, where: str, reveal: bool) -> str | None:
    if not (isinstance(got, torch.Tensor) or _is_array(got)):
        return f"{where}expected {_brief(expected)}, got {_brief(got)}."
    want, have = (torch.as_tensor(t).detach() for t in (expected, got))
    if want.shape != have.shape:
        return f"{where}expected shape {tuple(want.shape)}, got {tuple(have.shape)}."
    if _family(want) != _family(have):
        return f"{where}expected {_family(want)} values such as {_dtype(want)}, got {_dtype(have)}."
    if have.is_meta != want.is_meta:
        return f"{where}expected a tensor on the {want.device} device, got one on {have.device}."
    if want.is_meta:
        return None
    want, have = want.cpu(), have.cpu()
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
    about = f"expected about {_number(want[at].item())}, " if reveal else ""
    return f"{where}the shape is right, but the values are not: {about}got {_number(have[at].item())}{place}."


def _number_difference(expected: Any, got: Any, where: str, reveal: bool) -> str | None:
    if not isinstance(got, numbers.Number):
        return f"{where}expected {_kind(expected)}, got {_brief(got)}."
    if isinstance(expected, numbers.Integral):
        same = got == expected
    elif isinstance(expected, numbers.Real) and isinstance(got, numbers.Real):
        same = got == expected or _close(float(expected), got)
    else:
        same = got == expected or abs(got - expected) <= 1e-6 * abs(expected)
    if same:
        return None
    if reveal:
        about = "" if isinstance(expected, numbers.Integral) else "about "
        return f"{where}expected {about}{_number(expected)}, got {_number(got)}."
    if isinstance(got, numbers.Real) and isinstance(expected, numbers.Real) and not math.isnan(got):
        return f"{where}{_number(got)} is too {'small' if got < expected else 'large'}."
    return f"{where}{_number(got)} is not it."


def _close(expected: float, got: Any) -> bool:
    try:
        got = float(got)
    except OverflowError:  # a whole number beyond any float
        return False
    both_nan = math.isnan(expected) and math.isnan(got)
    return both_nan or math.isclose(got, expected, rel_tol=1e-6, abs_tol=1e-12)


def _mapping_difference(expected: Mapping, got: Any, where: str, reveal: bool) -> str | None:
    if not isinstance(got, Mapping):
        return f"{where}expected a dictionary, got {_brief(got)}."
    missing = [k for k in expected if k not in got]
    extra = [k for k in got if k not in expected]
    if missing or extra:
        said = [f"{k!r} is missing" for k in missing[:3]]
        said += [f"{k!r} is not wanted" for k in extra[:3]]
        return f"{where}the dictionary's keys are not right: {', '.join(said)}."
    for key, value in expected.items():
        reason = difference(value, got[key], f"{where}under key {key!r}: ", reveal)
        if reason:
            return reason
    return None


def _sequence_difference(expected: Sequence, got: Any, where: str, reveal: bool) -> str | None:
    if not isinstance(got, Sequence) or isinstance(got, str | bytes):
        return f"{where}expected {_kind(expected)}, got {_brief(got)}."
    if len(expected) != len(got):
        return f"{where}expected {len(expected)} items, got {len(got)}."
    for i, (want, have) in enumerate(zip(expected, got, strict=True)):
        reason = difference(want, have, f"{where}item {i}: ", reveal)
        if reason:
            return reason
    return None


def _expected_got(expected: Any, got: Any, reveal: bool, where: str = "") -> str:
    if reveal:
        return f"{where}expected {_shown(expected)}, got {_shown(got)}."
    if type(expected) is not type(got) and _kind(expected) != _kind(got):
        return f"{where}expected {_kind(expected)}, got {_shown(got)}."
    return f"{where}{_shown(got)} is not it."


def _shown(value: Any) -> str:
    """As :func:`_brief`, but a tensor of one number is shown as that number: its shape says nothing."""
    if isinstance(value, torch.Tensor) and not value.ndim and not value.is_meta:
        return _number(value.item())
    return _brief(value)


def _family(tensor: torch.Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "boolean"
    return "floating-point" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "integer"


def _tolerance(tensor: torch.Tensor) -> tuple[float, float]:
    """Relative and absolute tolerance for a floating-point dtype."""
    if tensor.dtype in (torch.float64, torch.complex128):
        return 1e-7, 1e-9
    return (1e-4, 1e-5) if tensor.dtype in (torch.float32, torch.complex64) else (2e-2, 1e-2)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _plain(value: Any) -> Any:
    """A numpy scalar as the Python number that it holds; anything else as it is."""
    numpy = sys.modules.get("numpy")
    return value.item() if numpy is not None and isinstance(value, numpy.generic) else value


# ------------------------------------------------------------------------------------------------- describing


def _number(value: Any) -> str:
    """A number in a few characters: whole ones in full, others to three significant digits."""
    if isinstance(value, bool | numbers.Integral):
        return str(value)
    if isinstance(value, numbers.Real):
        value = float(value)
        return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    return f"{value:.3g}"


def _brief(value: Any) -> str:
    """One short line about a value, the same on every run: no addresses, no long contents."""
    if isinstance(value, torch.Tensor) or _is_array(value):
        tensor = torch.as_tensor(value)
        kind = "tensor" if isinstance(value, torch.Tensor) else "array"
        return f"a {_dtype(tensor)} {kind} of shape {tuple(tensor.shape)}"
    if isinstance(value, numbers.Number) and not isinstance(value, bool):
        return _number(value)
    if isinstance(value, torch.nn.Module):
        return f"a {type(value).__name__} module"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if callable(value):
        return f"the function {value.__name__}" if hasattr(value, "__name__") else f"a {type(value).__name__}"
    if type(value) in (list, tuple, set, frozenset, dict) and len(value) > 4:
        return f"a {type(value).__name__} of {len(value)} items"
    if type(value) in (list, tuple):
        inside = ", ".join(_brief(v) for v in value)
        return f"[{inside}]" if type(value) is list else f"({inside}{',' if len(value) == 1 else ''})"
    if type(value) is dict:
        return "{" + ", ".join(f"{k!r}: {_brief(v)}" for k, v in value.items()) + "}"
    if type(value) in (set, frozenset):
        return "{" + ", ".join(sorted(_brief(v) for v in value)) + "}" if value else "an empty set"
    text = repr(value)
    if re.search(r"\bat 0x[0-9a-f]+", text):
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:60] + "..." + text[-15:]


def _kind(value: Any) -> str:
    """What sort of thing a value is, in words."""
    if value is None:
        return "None"
    if isinstance(value, torch.Tensor):
        return "a tensor"
    for kind, words in (
        (bool, "True or False"),
        (numbers.Integral, "a whole number"),
        (numbers.Number, "a number"),
        (str, "a string"),
        (Mapping, "a dictionary"),
        (Set, "a set"),
    ):
        if isinstance(value, kind):
            return words
    if isinstance(value, Sequence):
        return f"a {'tuple' if isinstance(value, tuple) else 'list'} of {len(value)} items"
    return f"a {type(value).__name__}"


def _call_text(found: Exercise, index: int) -> str:
    """How case number `index` calls the answer, with the arguments in short."""
    return "called with (" + ", ".join(_argument(a) for a in _arguments(found.cases[index])) + ")"


def _argument(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"tensor {tuple(value.shape)}"
    return _brief(value)


def _raised_text(problem: Exception) -> str:
    """'your code raised TypeError: text (line 3: source)', the line being the learner's innermost one."""
    frames = [f for f in traceback.extract_tb(problem.__traceback__) if _is_learners(f.filename)]
    at = f" (line {frames[-1].lineno}: {frames[-1].line})" if frames and frames[-1].line else ""
    said = str(problem).strip().splitlines()
    return f"your code raised {type(problem).__name__}" + (f": {said[0]}" if said else "") + at


def _is_learners(filename: str) -> bool:
    """Whether a traceback's file is the learner's: not this package's, the library's or an installed one."""
    if re.match(r"<frozen|<__array_function__", filename) or "site-packages" in filename:
        return False
    path = str(Path(filename).resolve())
    return not path.startswith((str(Path(_HERE).parents[1]), str(Path(os.__file__).resolve().parent)))
