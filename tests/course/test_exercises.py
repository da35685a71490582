"""Every exercise keeps the contract: stub, reference, at least three recognised mistakes, hints.

What the notebooks' own check cells say is looked at in test_notebooks.py; here each registered exercise is
judged by itself.
"""

import pytest
import torch

from utils.course import checks
from utils.course.checks import core
from utils.course.checks.core import ExerciseFailed, check, evaluate

EXERCISES = core.registered()

each = pytest.mark.parametrize("name", EXERCISES)
each_mistake = pytest.mark.parametrize(
    ("name", "index"), [(name, i) for name, found in EXERCISES.items() for i in range(len(found.mistakes))]
)


@pytest.fixture(autouse=True)
def one_thread_and_no_strictness(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.delenv("COURSE_STRICT", raising=False)


def unsolved(*arguments, **named):
    """What a learner's stub does."""
    raise NotImplementedError


def test_there_are_exercises():
    """Without this, every test below would pass on an empty course."""
    assert checks.__all__ == ["check", "hint", "progress"]
    assert len(EXERCISES) >= 4
    assert all(found.chapter.startswith("ch") for found in EXERCISES.values())


@each
def test_what_is_not_solved_is_called_so(name, capsys):
    reference = EXERCISES[name].reference
    answers = [None, ...] + [unsolved] * callable(reference)
    for answer in answers:
        assert check(name, answer) is reference
        assert capsys.readouterr().out.startswith(f"[not solved yet] {name}")


@each
def test_the_reference_passes(name, capsys):
    reference = EXERCISES[name].reference
    assert check(name, reference) is reference
    assert capsys.readouterr().out == f"[passed] {name}\n"


@each
def test_three_mistakes_with_messages_of_their_own_and_a_hint(name):
    found = EXERCISES[name]
    texts = [mistake.expected_text for mistake in found.mistakes]
    assert len(texts) >= 3
    assert len(set(texts)) == len(texts)
    assert found.hints and all(hint.strip() for hint in found.hints)


@each_mistake
def test_a_mistake_is_recognised_as_that_one(name, index):
    """And not as another: no two mistakes of an exercise are caught by one message."""
    mistake = EXERCISES[name].mistakes[index]
    result = evaluate(name, mistake.answer)
    assert result.state == core.NOT_RIGHT, f"reported as {result.state}"
    assert mistake.expected_text in result.message, f"the learner reads: {result.message}"
    others = [other for i, other in enumerate(EXERCISES[name].mistakes) if i != index]
    assert result.mistake not in others
    assert not [other.expected_text for other in others if other.expected_text in result.message]


@each_mistake
def test_a_mistake_hands_back_the_reference_and_is_an_error_when_strict(name, index, monkeypatch, capsys):
    found = EXERCISES[name]
    assert check(name, found.mistakes[index].answer) is found.reference
    printed = capsys.readouterr().out
    assert printed.startswith(f"[not right yet] {name}: ")
    assert "0x" not in printed, "an address makes the output differ from run to run"
    monkeypatch.setenv("COURSE_STRICT", "1")
    with pytest.raises(ExerciseFailed) as failure:
        check(name, found.mistakes[index].answer)
    assert f"{failure.value}\n" == printed, "the report is not the same each time"


@each
def test_unsolved_is_an_error_when_strict(name, monkeypatch):
    monkeypatch.setenv("COURSE_STRICT", "1")
    with pytest.raises(ExerciseFailed, match="not solved yet"):
        check(name, None)


@each
def test_checking_leaves_the_random_state_alone(name):
    torch.manual_seed(1)
    undisturbed = torch.rand(3)
    torch.manual_seed(1)
    for mistake in EXERCISES[name].mistakes:
        evaluate(name, mistake.answer)
    assert torch.equal(torch.rand(3), undisturbed)
