"""What a notebook calls: ``check``, ``hint``, ``solution`` and ``progress``.

A notebook says ``answer = check("name", answer)``. The answer passes; or it is not solved yet; or it is wrong, and then
:func:`check` says how. In the last two cases the notebook goes on with the reference answer, which the name then holds:
judged again, it is "not solved yet" again, since the engine knows what it handed out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from utils.course.checks import judge
from utils.course.checks.judge import Result
from utils.course.checks.registry import Exercise, find, registered, twin
from utils.course.checks.worked import source
from utils.course.progress import NOT_RIGHT, NOT_SOLVED, PASSED, course_line, described, record, recorded, strict

HANDED_OUT = "the name holds the reference that the last check handed you. Run the cell with your own answer first."

NOT_YOURS = "this is the course's own reference: write the answer yourself."

USED_BELOW = "The reference solution is used below, so that you can read on."

# So many wrong tries, and the report offers the worked solution.
TRIES_BEFORE_SOLUTION = 3


class ExerciseFailed(AssertionError):
    """Raised by :func:`check` under ``COURSE_STRICT=1`` for an answer that does not pass, with the report."""


@dataclass(eq=False)
class _Kernel:
    """What happened in this process: each exercise's last state, the reference answers that were handed out, how many
    hints are open, and how often an answer was wrong."""

    states: dict[str, str] = field(default_factory=dict)
    handed: dict[str, Any] = field(default_factory=dict)
    hints: dict[str, int] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)


_kernel = _Kernel()


def evaluate(name: str, answer: Any) -> Result:
    """Judge `answer` for the exercise `name`: nothing printed or remembered, nothing raised but for a name that isn't
    registered."""
    return judge.evaluate(find(name), answer)


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
    _kernel.tries[name] = _kernel.tries.get(name, 0) + (result.state == NOT_RIGHT)
    record(name, result.state)
    report = _report(found, result)
    if result.state == PASSED:
        print(report)
        return answer
    if strict():
        raise ExerciseFailed(report)
    print(report)
    _kernel.handed[name] = found.reference if callable(found.reference) else twin(found.reference)
    return _kernel.handed[name]


def require(name: str, answer: Any) -> None:
    """What a grade cell's hidden test calls, on an engine that it has imported afresh: nothing printed or kept.

    Raises `ExerciseFailed` with the report for an answer that doesn't pass and for the course's own reference, and
    `UnknownExercise` for a name that isn't registered.
    """
    result = Result(NOT_RIGHT, NOT_YOURS) if is_reference(answer) else evaluate(name, answer)
    if result.state != PASSED:
        raise ExerciseFailed(f"[{result.state}] {name}" + (f": {result.message}" if result.message else ""))


def is_reference(answer: Any) -> bool:
    """Whether `answer` is a function or class of the references themselves, from whichever import of them."""
    code = getattr(answer, "__code__", None)
    home = getattr(answer, "__module__", None)
    in_folder = code is not None and os.path.dirname(code.co_filename).endswith(os.path.join("checks", "references"))
    return in_folder or str(home).startswith("utils.course.checks.references.")


def hint(name: str) -> None:
    """Print the next hint for the exercise; after the last one, say that there are none left."""
    hints = find(name).hints
    opened = _kernel.hints.get(name, 0)
    if opened < len(hints):
        _kernel.hints[name] = opened + 1
        print(f"Hint {opened + 1} of {len(hints)}: {hints[opened]}")
    elif hints:
        print(f'No hints left for {name} ({len(hints)} of {len(hints)} are open). solution("{name}") shows the answer.')
    else:
        print(f"There are no hints for {name}.")


def solution(name: str) -> None:
    """Print the exercise's worked solution, as the lesson has it, and why it is so."""
    found = find(name)
    print(source(name))
    if found.why:
        print(f"Why: {found.why}")


def progress() -> None:
    """Print the state of every exercise of the chapters from which at least one was tried in this kernel."""
    exercises = registered()
    chapters = {exercises[name].chapter for name in _kernel.states}
    shown = [e for e in exercises.values() if e.chapter in chapters]
    before = recorded()
    if shown:
        _print_table(shown, {e.name: described(_kernel.states.get(e.name), before.get(e.name)) for e in shown})
    else:
        print("No exercise has been checked yet in this session.")
    if before:
        print(f"{course_line(exercises, before)} All chapters: python3 start.py progress")


def _print_table(shown: Sequence[Exercise], state: dict[str, tuple[str, bool]]) -> None:
    """One line for each exercise, from its words and whether it counts as passed; then the sum."""
    width = max(len("exercise"), *(len(e.name) for e in shown))
    column = max(len(NOT_SOLVED), *(len(words) for words, _ in state.values()))
    print(f"{'exercise':<{width}}  {'state':<{column}}  points")
    for e in shown:
        words, passed = state[e.name]
        print(f"{e.name:<{width}}  {words:<{column}}  {e.points * passed}/{e.points}")
    passed = [e for e in shown if state[e.name][1]]
    points = f"{sum(e.points for e in passed)} of {sum(e.points for e in shown)} points"
    print(f"{len(passed)} of {len(shown)} exercises passed, {points}." + (" Well done." * (passed == shown)))


def _report(found: Exercise, result: Result) -> str:
    if result.state == PASSED:
        return f"[{PASSED}] {found.name}"
    lines = [f"[{result.state}] {found.name}" + (f": {result.message}" if result.message else "")]
    aids = [USED_BELOW] * (not strict())
    aids += [f'Stuck? hint("{found.name}")'] * bool(found.hints)
    if _kernel.tries.get(found.name, 0) >= TRIES_BEFORE_SOLUTION:
        aids.append(f'Tried enough? solution("{found.name}") shows and explains it.')
    return "\n".join([*lines, *([f"    {' '.join(aids)}"] if aids else [])])
