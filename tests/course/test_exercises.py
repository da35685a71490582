"""Every exercise keeps the contract: stub, reference, at least three recognised mistakes, hints.

What the notebooks' own check cells say is looked at in test_notebooks.py; here each registered exercise is
judged by itself.
"""

import contextlib
import io
import random
from importlib import import_module

import numpy as np
import pytest
import torch

from utils.course import checks, progress
from utils.course.checks import core, judge
from utils.course.checks.core import ExerciseFailed, check
from utils.course.checks.judge import Result
from utils.course.checks.registry import Mistake, Wrong, exercise, find, registered

EXERCISES = registered()

each = pytest.mark.parametrize("name", EXERCISES)


@pytest.fixture(autouse=True)
def one_thread_no_strictness_and_nothing_handed_out(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(core, "_kernel", core._Kernel())
    monkeypatch.setattr(progress, "STRICT", False)


def unsolved(*arguments, **named):
    """What a learner's stub does."""
    raise NotImplementedError


def test_there_are_exercises():
    """Without this, every test below would pass on an empty course."""
    assert checks.__all__ == ["check", "hint", "progress", "solution"]
    assert len(EXERCISES) >= 4
    assert all(found.chapter.startswith("ch") for found in EXERCISES.values())


@each
def test_what_is_not_solved_is_called_so(name, capsys):
    reference = EXERCISES[name].reference
    answers = [None, ...] + [unsolved] * callable(reference)
    for answer in answers:
        assert handed_out(check(name, answer), reference)
        assert capsys.readouterr().out.startswith(f"[not solved yet] {name}")


@each
def test_the_reference_is_the_lessons_solution(name):
    """What the build generates of the lesson, and no second copy."""
    found = EXERCISES[name]
    home = f"utils.course.checks.references.{found.chapter}"
    assert any(value is found.reference for value in vars(import_module(home)).values())
    assert getattr(found.reference, "__module__", home) == home  # a function's or a class's


@each
def test_the_reference_passes(name, capsys):
    reference = EXERCISES[name].reference
    assert check(name, reference) is reference
    assert capsys.readouterr().out == f"[passed] {name}\n"


@each
def test_six_mistakes_with_messages_of_their_own_hints_and_a_reason(name):
    found = EXERCISES[name]
    texts = [mistake.expected_text for mistake in found.mistakes]
    assert len(texts) >= 6, f"{name} has {len(texts)} mistakes, six are the least: add what learners get wrong"
    assert len(set(texts)) == len(texts)
    assert found.hints and all(hint.strip() for hint in found.hints)
    assert found.why, f"{name} has no why=: the line under its worked solution"


@each
def test_a_function_is_tried_with_calls_that_nobody_listed(name):
    """A class, and a value, have tests of their own instead."""
    found = EXERCISES[name]
    drawn = sum(case.seed > 0 for case in found.cases)
    assert drawn >= 12 or found.tests or not callable(found.reference)


@each
def test_every_mistake_is_told_from_the_others_and_leaves_no_trace(name):
    assert faults(name) == []


@each
def test_unsolved_is_an_error_when_strict(name, monkeypatch):
    monkeypatch.setattr(progress, "STRICT", True)
    with pytest.raises(ExerciseFailed, match="not solved yet"):
        check(name, None)


# ------------------------------------------------------------------------------- what `faults` is there to find


def handed_out(back: object, reference: object) -> bool:
    """Whether `check` gave the reference back: a function itself, a value as an equal one that is another object."""
    return back is reference if callable(reference) else back is not reference and bool(back == reference)


def drawn() -> list[object]:
    """The states of the three generators from which a notebook's cells may draw."""
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]


def lenient_and_strict(name: str, answer: object) -> tuple[list[Result], object, str, str]:
    """`check` twice, the second time strictly: what was found each time, what was handed back, both reports.

    The first report without the sentence that the notebook goes on with the reference: under COURSE_STRICT it doesn't.
    """
    found, printed, evaluate = [], io.StringIO(), core.evaluate
    core._kernel.tries.clear()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(core, "evaluate", lambda *arguments: found.append(evaluate(*arguments)) or found[-1])
        back = check(name, answer)
        patch.setattr(progress, "STRICT", True)
        try:
            check(name, answer)
            raised = "nothing is raised"
        except ExerciseFailed as failure:
            raised = f"{failure}\n"
    report = printed.getvalue().replace(f"    {core.USED_BELOW}\n", "").replace(f"{core.USED_BELOW} ", "")
    return found, back, report, raised


def faults(name: str) -> list[str]:
    """What is wrong with how an exercise's mistakes are judged, each by its number. There should be nothing.

    Each mistake must be recognised as that one and not as another: no message holds another one's text. Its
    report starts with the verdict, has no address (the output would differ from run to run) and is the same
    when it is raised under COURSE_STRICT; the reference comes back. The notebook's random state is left alone.
    """
    exercise_ = find(name)
    said = []
    for index, mistake in enumerate(exercise_.mistakes):
        torch.manual_seed(1), random.seed(1), np.random.seed(1)
        before = drawn()
        results, back, printed, raised = lenient_and_strict(name, mistake.answer)
        others = [other for other in exercise_.mistakes if other is not mistake]
        for fault, there in {
            f"reported as {results[0].state}": any(result.state != progress.NOT_RIGHT for result in results),
            f"the learner reads: {printed}": mistake.expected_text not in results[0].message,
            "recognised as another mistake, add a case that tells them apart": any(
                result.mistake in others for result in results
            ),
            "another mistake's text": any(other.expected_text in results[0].message for other in others),
            "the reference isn't handed back": not handed_out(back, exercise_.reference),
            f"the report begins so: {printed}": not printed.startswith(f"[not right yet] {name}: "),
            f"an address: {printed}": "0x" in printed,
            f"printed: {printed}, raised: {raised}": printed != raised,
            "the random state is changed": drawn() != before,
        }.items():
            said += [f"{name}, mistake {index}: {fault}"] * there
    return said


def double(x):
    return 2 * x


def faults_of(mistakes, **more) -> str:
    exercise("double", reference=double, cases=[(3,), (5,)], mistakes=mistakes, **more)
    return "\n".join(faults("double"))


SQUARE, SAME, THRICE = (
    Mistake(lambda x: x * x, "that is the square"),
    Mistake(lambda x: x, "nothing is doubled"),
    Mistake(lambda x: 3 * x, "one x too many"),
)


def test_sound_mistakes_have_no_faults(own_registry):
    assert faults_of([SQUARE, SAME, THRICE]) == ""


def test_two_mistakes_that_do_the_same_are_a_fault(own_registry):
    assert "mistake 1: recognised as another" in faults_of([SQUARE, Mistake(lambda x: x**2, "a power")])


def test_two_mistakes_with_one_text_are_a_fault(own_registry):
    said = faults_of([SQUARE, Mistake(lambda x: x, "that is the square")])
    assert "mistake 0: another mistake's text" in said and "mistake 1: another mistake's text" in said
    assert "recognised as another" not in said


def test_a_text_within_another_ones_message_is_a_fault(own_registry):
    said = faults_of([SQUARE, Mistake(lambda x: x, "that is the square of nothing")])
    assert said == "double, mistake 1: another mistake's text"


def test_a_mistake_that_is_right_is_a_fault(own_registry):
    said = faults_of([Mistake(lambda x: x + x, "a sum")])
    assert "reported as passed" in said and "isn't handed back" in said and "raised: nothing is raised" in said


def test_a_mistake_that_the_test_tells_in_other_words_is_a_fault(own_registry):
    def test(answer):
        if answer is not double:
            raise Wrong("not the one")

    said = faults_of([Mistake(lambda x: x + x, expect="a sum")], test=test)
    assert said.startswith("double, mistake 0: the learner reads: [not right yet] double: not the one")


def test_a_message_with_an_address_is_a_fault(own_registry):
    assert "mistake 0: an address" in faults_of([Mistake(lambda x: x, f"you gave back {object()}")])


def test_a_report_that_changes_is_a_fault(own_registry):
    calls = []

    def test(answer):
        calls.append(answer)
        raise Wrong(f"not the one, try {len(calls)}")

    assert "mistake 0: printed" in faults_of([Mistake(lambda x: x + x, expect="not the one")], test=test)


def test_checking_that_disturbs_a_random_state_is_a_fault(own_registry, monkeypatch):
    monkeypatch.setattr(judge, "random_state_kept", contextlib.nullcontext)
    assert faults_of([SQUARE]) == "double, mistake 0: the random state is changed"


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), random.random, np.random.rand])
def test_drawing_from_any_generator_is_seen(own_registry, monkeypatch, draw):
    monkeypatch.setattr(core, "_report", lambda *found: draw() and "[not right yet] double: that is the square")
    assert faults_of([SQUARE]) == "double, mistake 0: the random state is changed"
