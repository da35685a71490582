"""Judge a learner's answer by what it does.

A value is compared with the reference; a function or class is called in every case of the exercise, and what it
returns, raises and does to its arguments is compared with what the reference does. A wrong answer is held against the
exercise's typical mistakes, then against the properties in :mod:`utils.course.checks.recognise`; the rest is told by
the first case that differs. Nothing here reads a learner's source, and nothing that an answer does makes it raise.

Attributes:
    SECONDS: So long one call of an answer may take, and one of an exercise's tests. The slowest of the right answers
        takes less than a second, so a call that is broken off is most likely a loop without an end.
    NEVER_ENDS: What is said of one.
    RIGHT_BUT: How :mod:`utils.course.checks.compare` begins where a value is right and its kind, shape or dtype isn't.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch

from utils.course.checks.calls import (
    Outcome,
    TooLong,
    arguments_of,
    changed_argument,
    limit,
    outcome,
    quiet,
    random_state_kept,
    seed,
)
from utils.course.checks.compare import difference, expected_got
from utils.course.checks.describe import brief, is_learners, number, raised_text
from utils.course.checks.recognise import recognised
from utils.course.checks.registry import Exercise, Mistake, Wrong
from utils.course.checks.tried import named, parameters
from utils.course.progress import NOT_RIGHT, NOT_SOLVED, PASSED

SECONDS = 5.0
NEVER_ENDS = f"your code had not come back after {SECONDS:.0f} s. Is there a loop in it that never ends?"
RIGHT_BUT = ("the value is right", "the values are right")


@dataclass(frozen=True, eq=False)
class Result:
    """What :func:`evaluate` found: a state, what to say to the learner, the mistake recognised, and whether the
    sentence names what is wrong (a mistake, a property, a test's) or only shows a case."""

    state: str
    message: str = ""
    mistake: Mistake | None = None
    named: bool = False


# What references and mistakes were seen to do: they are called once a case.
_seen: dict[tuple[Any, ...], Outcome] = {}


def evaluate(found: Exercise, answer: Any) -> Result:
    """Judge `answer` for an exercise: nothing printed or remembered, nothing raised."""
    if answer is None or answer is ...:
        return Result(NOT_SOLVED)
    with random_state_kept(), quiet():
        try:
            return _judge_callable(found, answer) if callable(found.reference) else _judge_value(found, answer)
        except KeyboardInterrupt:
            raise
        except BaseException as problem:  # what an answer returns can raise whenever it is looked at
            return Result(NOT_RIGHT, f"what your code gives can't be looked at: {raised_text(problem)}.")


def _judge_value(found: Exercise, answer: Any) -> Result:
    reason = _difference(found, found.reference, answer, reveal=False)
    if reason is None:
        return _judge_tests(found, answer, ())
    for mistake in found.mistakes:
        if mistake.message and _difference(found, mistake.answer, answer) is None:
            return Result(NOT_RIGHT, mistake.message, mistake, True)
    return Result(NOT_RIGHT, reason)


def _judge_callable(found: Exercise, answer: Any) -> Result:
    if not callable(answer):
        return Result(NOT_RIGHT, f"expected a function (or a class), got {brief(answer)}{_called_already(answer)}.")
    if said := _call_fails(found, answer):
        return Result(NOT_RIGHT, said, named=True)
    if found.by_name:
        answer = _by_name(answer, parameters(found.reference))
    expected = [_remembered(found, None, case) for case in range(len(found.cases))]
    got: list[Outcome] = []
    for index, case in enumerate(found.cases):
        got.append(outcome(answer, case, SECONDS))
        if isinstance(got[-1].raised, TooLong):
            told = f"case {index + 1} of {len(found.cases)}, {_call_text(found, index)}: {NEVER_ENDS}"
            return Result(NOT_RIGHT, told, named=True)
    if early := _unfinished(expected, got):
        return early
    reasons = [_outcome_difference(found, want, have) for want, have in zip(expected, got, strict=True)]
    wrong = next((i for i, reason in enumerate(reasons) if reason is not None), None)
    if wrong is None:
        return _judge_side_effects(found, expected, got) or _judge_tests(found, answer, expected)
    for mistake in found.mistakes:
        if mistake.message and _behaves_alike(found, mistake, got):
            return Result(NOT_RIGHT, mistake.message, mistake, True)
    same = partial(_same_value, found)
    told = f"case {wrong + 1} of {len(reasons)}, {_call_text(found, wrong)}: {reasons[wrong]}{_print_of(got[wrong])}"
    if said := recognised(found, answer, expected, got, [reason is None for reason in reasons], same):
        return Result(NOT_RIGHT, f"{said} For example: {told}", named=True)
    return Result(NOT_RIGHT, told, named=(reasons[wrong] or "").startswith(RIGHT_BUT))


def _print_of(done: Outcome) -> str:
    """What the answer printed in a case: the learner's own way to see what happens there."""
    lines = done.printed.strip().splitlines()
    return (
        f" There it printed: {lines[0][:60]}{' ...' if len(lines) > 1 or len(lines[0]) > 60 else ''}" if lines else ""
    )


def _call_fails(found: Exercise, answer: Any) -> str:
    """Why a call of the answer as the task makes it can't give a result, or nothing."""
    if inspect.iscoroutinefunction(answer):
        return "your function begins with async def, so a call of it gives no result yet: begin it with def."
    if inspect.isgeneratorfunction(answer) and not inspect.isgeneratorfunction(found.reference):
        return "your function has a yield in it, so a call of it gives a generator: return the result instead."
    if not found.cases:
        return ""
    given = len(arguments_of(found.cases[0]))
    wanted = parameters(found.reference)[:given]
    try:
        signature = inspect.signature(answer)
    except (TypeError, ValueError):  # Python doesn't know the parameters of some built-in functions
        return ""
    try:
        signature.bind(**dict.fromkeys(wanted)) if found.by_name else signature.bind(*[None] * given)
    except TypeError:
        bare = [p.replace(annotation=p.empty, default=p.empty) for p in signature.parameters.values()]
        takes = inspect.Signature(bare)
        if found.by_name:
            named_so = ", ".join(f"{name}=..." for name in wanted)
            return f"your function takes {takes}, and is called by name, with ({named_so}): keep these names."
        return f"your function takes {takes}, and the task calls it with ({', '.join(wanted)})."
    return ""


def _by_name(answer: Any, names: Sequence[str]) -> Any:
    """The answer, called with its arguments' names."""

    @wraps(answer)
    def called(*arguments: Any, **more: Any) -> Any:
        return answer(**dict(zip(names, arguments, strict=False)), **more)

    return called


def _called_already(answer: Any) -> str:
    plain = isinstance(answer, int | float | str | list | tuple | dict | torch.Tensor)
    return ": give the function itself, without calling it" if plain else ""


def _unfinished(expected: Sequence[Outcome], got: Sequence[Outcome]) -> Result | None:
    """A stub that raises, or a function that returns nothing at all."""
    for want, have in zip(expected, got, strict=True):
        if _is_stub(have.raised) and not isinstance(want.raised, NotImplementedError):
            return Result(NOT_SOLVED)
    nothing = got and all(h.raised is None and (h.value is None or h.value is ...) for h in got)
    if not nothing or all(want.raised is None and want.value is None for want in expected):
        return None
    shown = next((have.printed.strip() for have in got if have.printed.strip()), "")
    if shown:
        first = shown.splitlines()[0][:60]
        return Result(NOT_SOLVED, f"your function prints ({first}) and returns nothing: return it instead.")
    return Result(NOT_SOLVED, "your function returns nothing: is a return missing?")


def _judge_side_effects(found: Exercise, expected: Sequence[Outcome], got: Sequence[Outcome]) -> Result | None:
    """Right results, but an argument is changed that the reference leaves alone, or returned as it came in."""
    names = parameters(found.reference)
    for index, (want, have) in enumerate(zip(expected, got, strict=True)):
        said = ""
        place = changed_argument(want.after, have.after)
        if place is not None:
            name = named(names, place)
            ours = changed_argument(arguments_of(found.cases[index]), want.after) is None
            said = (
                f"the result is right, but your function changes its input: {name} is another after the call, and "
                "whoever called it still needs it. Work on a copy."
                if ours
                else f"the result is right, but {name} is not left as the task asks for."
            )
        elif found.new_result and any(h > w for w, h in zip(want.shares, have.shares, strict=False)):
            said = "the values are right, but your result is the argument itself, or shares its memory: make a new one."
        if said:
            return _side_effect(found, said, got)
    return None


def _side_effect(found: Exercise, said: str, got: Sequence[Outcome]) -> Result:
    """A side effect, in a listed mistake's words, or in the engine's own, which a mistake may be listed to expect."""
    alike = [mistake for mistake in found.mistakes if _behaves_alike(found, mistake, got, effects=True)]
    if spoken := [mistake for mistake in alike if mistake.message]:
        return Result(NOT_RIGHT, spoken[0].message or said, spoken[0], True)
    expected = [mistake for mistake in alike if mistake.expect and mistake.expect in said]
    return Result(NOT_RIGHT, said, expected[0] if len(expected) == 1 else None, True)


def _judge_tests(found: Exercise, answer: Any, expected: Sequence[Outcome]) -> Result:
    """The exercise's own tests, run after the cases agree with the reference."""
    verdict = _run_tests(found, answer)
    if verdict is None:
        return Result(PASSED)
    if _is_stub(verdict):
        return Result(NOT_SOLVED)
    if isinstance(verdict, TooLong):
        return Result(NOT_RIGHT, NEVER_ENDS, named=True)
    if not isinstance(verdict, Wrong | AssertionError):
        return Result(NOT_RIGHT, raised_text(verdict) + ".")
    said = str(verdict) or "it does not do what the exercise asks for."
    alike = [m for m in found.mistakes if _fails_alike(found, m, expected, said)]
    if len(alike) == 1:
        return Result(NOT_RIGHT, alike[0].message or said, alike[0], True)
    return Result(NOT_RIGHT, said, named=True)


def _fails_alike(found: Exercise, mistake: Mistake, expected: Sequence[Outcome], said: str) -> bool:
    """Whether a mistaken answer passes the cases and fails the tests in the same words as the learner's."""
    if callable(found.reference):
        if not _behaves_alike(found, mistake, expected):
            return False
    elif _difference(found, found.reference, mistake.answer) is not None:
        return False
    verdict = _run_tests(found, mistake.answer)
    return isinstance(verdict, Wrong | AssertionError) and str(verdict) == said


def _is_stub(problem: BaseException | None) -> bool:
    """Whether an exception is a stub's NotImplementedError, and not torch's for an operation it lacks."""
    if not isinstance(problem, NotImplementedError):
        return False
    frames = traceback.extract_tb(problem.__traceback__)
    last = frames[-1] if frames else None
    return last is None or (
        is_learners(last.filename) and "NotImplementedError" in (last.line or "NotImplementedError")
    )


def _run_tests(found: Exercise, answer: Any) -> BaseException | None:
    for test in found.tests:
        seed()
        try:
            with quiet(), limit(SECONDS), torch.enable_grad():
                test(answer)
        except KeyboardInterrupt:
            raise
        except BaseException as problem:
            return problem
    return None


# --------------------------------------------------------------------------------------------------- comparing


def _behaves_alike(found: Exercise, mistake: Mistake, outcomes: Sequence[Outcome], effects: bool = False) -> bool:
    """Whether a mistaken answer does in every case what `outcomes` records; it isn't called beyond a difference.

    effects: whether it also leaves its arguments in the same state.
    """
    if not callable(mistake.answer):
        return False
    for case, done in enumerate(outcomes):
        does = _remembered(found, mistake, case)
        if not _same_outcome(found, does, done):
            return False
        if effects and (changed_argument(does.after, done.after) is not None or does.shares != done.shares):
            return False
    return True


def _same_outcome(found: Exercise, one: Outcome, other: Outcome) -> bool:
    if one.raised is None and other.raised is None:
        return _same_value(found, one.value, other.value)
    if any(isinstance(one.raised, kind) and isinstance(other.raised, kind) for kind in _asked_for(found)):
        return True
    return _same_exception(one.raised, other.raised)


def _asked_for(found: Exercise) -> set[type[BaseException]]:
    """The exceptions that the task lets an answer raise: in which words is left to each."""
    outcomes = (_remembered(found, None, case) for case in range(len(found.cases)))
    return {type(done.raised) for done in outcomes if done.raised is not None}


def _same_exception(one: BaseException | None, other: BaseException | None) -> bool:
    try:
        return repr(one) == repr(other)
    except Exception:  # a learner's own class
        return one is other


def _same_value(found: Exercise, one: Any, other: Any) -> bool:
    return _difference(found, one, other) is None


def _remembered(found: Exercise, mistake: Mistake | None, case: int) -> Outcome:
    """What the reference or a mistaken answer does in one case: called the first time, remembered from then on.

    Arguments and seed are the same each time, so only what a learner may have set for the whole process can
    change the outcome; that is part of what is remembered.
    """
    key = found, mistake, case, torch.get_default_dtype()
    if key not in _seen:
        done = outcome(found.reference if mistake is None else mistake.answer, found.cases[case])
        if done.raised is not None:
            done.raised.__traceback__ = None  # it would keep every local of the call
        _seen[key] = done
    return _seen[key]


def _outcome_difference(found: Exercise, want: Outcome, have: Outcome) -> str | None:
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
    if found.compare is None:
        return difference(expected, got, reveal=reveal, any_dtype=found.any_dtype)
    try:
        verdict = found.compare(expected, got)
        same = verdict if isinstance(verdict, str) else bool(verdict)
    except Exception:  # an answer of a wrong type may break the comparison: then it is not equal
        same = False
    if same is True:
        return None
    said = same if isinstance(same, str) else difference(expected, got, reveal=reveal)
    return said or expected_got(expected, got, reveal)


# ------------------------------------------------------------------------------------------------ a call in words


def _call_text(found: Exercise, index: int) -> str:
    """How case number `index` calls the answer, with the arguments in short."""
    names = parameters(found.reference)
    said = [
        f"{names[place]}={_argument(value)}" if place < len(names) else _argument(value)
        for place, value in enumerate(arguments_of(found.cases[index]))
    ]
    return "called with " + ", ".join(said)


def _argument(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return brief(value)
    short = value.ndim == 1 and value.numel() <= 8 and not value.is_meta
    return f"tensor [{', '.join(map(number, value.tolist()))}]" if short else f"tensor {tuple(value.shape)}"
