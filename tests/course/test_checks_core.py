"""What a notebook calls: one report on each answer, hints one at a time, and the state of all exercises."""

import pickle
import subprocess
import sys
import textwrap

import pytest
import torch

from tests.course.delta import NEVER, factors, reference
from tests.course.test_checks_registry import register_in
from utils.course import progress as record
from utils.course.checks import judge
from utils.course.checks.core import ExerciseFailed, check, hint, progress
from utils.course.checks.registry import Wrong, exercise

pytestmark = pytest.mark.usefixtures("own_registry")


def test_a_right_answer_comes_back_itself(delta, capsys):
    def answer(A, B, alpha):
        return B @ A * (alpha / len(A))

    assert check("lora_delta", answer) is answer
    assert capsys.readouterr().out == "[passed] lora_delta\n"


def stub(A, B, alpha):
    raise NotImplementedError


@pytest.mark.parametrize("answer", [None, ..., stub, lambda A, B, alpha: None, lambda A, B, alpha: ...])
def test_an_open_exercise_hands_back_the_reference(delta, capsys, answer):
    assert check("lora_delta", answer) is reference
    out = capsys.readouterr().out
    assert out.startswith("[not solved yet] lora_delta")
    assert 'reference solution is used below, so that you can read on. Stuck? hint("lora_delta")' in out


class Layer(torch.nn.Module):
    """A right answer that is a class."""


def is_module(answer):
    if not issubclass(answer, torch.nn.Module):
        raise Wrong("it is no module")


HANDED = {
    "function": ({"reference": reference, "cases": [factors]}, lambda A, B, alpha: A @ B),
    "class": ({"reference": Layer, "test": is_module}, dict),
    "number": ({"reference": 2048}, 4096),
    "fraction": ({"reference": 0.25}, 4.0),
    "text": ({"reference": "q_proj"}, "v_proj"),
    "pair": ({"reference": (1, 2)}, (2, 1)),
    "list": ({"reference": ["q_proj"]}, []),
    "dictionary": ({"reference": {"r": 8}}, {"r": 16}),
    "tensor": ({"reference": torch.ones(2)}, torch.zeros(2)),
}


@pytest.mark.parametrize("kind", HANDED)
@pytest.mark.parametrize("first", [None, "wrong"])
def test_what_was_handed_out_passes_no_second_check(capsys, kind, first):
    """`answer = check("name", answer)` run again, without the answer's cell, or with a syntax error in it."""
    fields, wrong = HANDED[kind]
    exercise("name", mistakes=NEVER, **fields)
    answer = check("name", first and wrong)
    for _ in range(2):
        answer = check("name", answer)
        out = capsys.readouterr().out.splitlines()[-2]
        assert out.startswith("[not solved yet] name: the name holds the reference that the last check handed you.")
    progress()
    assert "0 of 1 exercises passed" in capsys.readouterr().out
    check("name", right_again(fields["reference"]))
    assert capsys.readouterr().out == "[passed] name\n"


def right_again(value):
    """The right answer as a learner writes it, after the reference was seen."""
    if isinstance(value, type):
        return type("Mine", (torch.nn.Module,), {})
    return (lambda A, B, alpha: value(A, B, alpha)) if callable(value) else pickle.loads(pickle.dumps(value))


def test_what_was_handed_out_fails_a_strict_check(delta, monkeypatch):
    handed = check("lora_delta", None)
    monkeypatch.setattr(record, "STRICT", True)
    with pytest.raises(ExerciseFailed, match="not solved yet"):
        check("lora_delta", handed)


def test_the_reference_that_nobody_handed_out_is_an_answer(delta, capsys):
    check("lora_delta", reference)
    assert capsys.readouterr().out == "[passed] lora_delta\n"


def test_no_answer_at_all_is_not_solved(delta, capsys):
    assert check("lora_delta") is reference
    assert "[not solved yet]" in capsys.readouterr().out


def test_a_forgotten_return_is_named(delta, capsys):
    def answer(A, B, alpha):
        B @ A  # noqa: B018

    check("lora_delta", answer)
    assert "is a return missing?" in capsys.readouterr().out


def test_strict_raises_the_report_without_what_a_notebook_reads_on_with(delta, capsys, monkeypatch):
    check("lora_delta", lambda A, B, alpha: B @ A)
    printed = capsys.readouterr().out
    monkeypatch.setattr(record, "STRICT", True)
    with pytest.raises(ExerciseFailed) as failure:
        check("lora_delta", lambda A, B, alpha: B @ A)
    used = "The reference solution is used below, so that you can read on. "
    assert used in printed and str(failure.value) + "\n" == printed.replace(used, "")
    assert capsys.readouterr().out == ""
    with pytest.raises(ExerciseFailed, match="not solved yet"):
        check("lora_delta", None)

    def right(A, B, alpha):
        return reference(A, B, alpha)

    assert check("lora_delta", right) is right


@pytest.mark.parametrize(
    ("variables", "strict"),
    [
        ({}, False),
        ({"COURSE_STRICT": "1"}, True),
        ({"COURSE_STRICT": "0"}, False),
        ({"COURSE_STRICT": ""}, False),
        ({"NBGRADER_EXECUTION": "autograde"}, True),
        ({"NBGRADER_EXECUTION": "validate"}, True),
        ({"NBGRADER_EXECUTION": ""}, False),
        ({"COURSE_STRICT": "0", "NBGRADER_EXECUTION": "autograde"}, True),
    ],
)
def test_what_makes_checks_strict(variables, strict):
    assert record.asks_for_strict(variables) is strict


@pytest.mark.parametrize("was", [True, False])
def test_a_cell_that_sets_the_variables_changes_nothing(delta, monkeypatch, was):
    """They are read when the course is imported."""
    monkeypatch.setattr(record, "STRICT", was)
    monkeypatch.setenv("COURSE_STRICT", "0" if was else "1")
    monkeypatch.delenv("NBGRADER_EXECUTION", raising=False)
    if was:
        with pytest.raises(ExerciseFailed):
            check("lora_delta", None)
    else:
        assert check("lora_delta", None) is reference


def test_an_unknown_name_gets_the_nearest_ones(delta):
    with pytest.raises(KeyError, match=r"^there is no exercise 'lora_dleta'; did you mean 'lora_delta'\?$"):
        check("lora_dleta", 1)
    with pytest.raises(KeyError, match=r"^there is no exercise 'zzz'$"):
        hint("zzz")


# -------------------------------------------------------------------------------- hints and progress


def test_hints_open_one_at_a_time_and_end(delta, capsys):
    for _ in range(4):
        hint("lora_delta")
    assert capsys.readouterr().out.splitlines() == [
        "Hint 1 of 2: The rank is A.shape[0].",
        "Hint 2 of 2: The update has the shape (out, in).",
        'No hints left for lora_delta (2 of 2 are open). solution("lora_delta") shows the answer.',
        'No hints left for lora_delta (2 of 2 are open). solution("lora_delta") shows the answer.',
    ]


def test_an_exercise_without_hints_offers_none(count, capsys):
    hint("count")
    check("count", 1)
    out = capsys.readouterr().out
    assert "There are no hints for count." in out and "Stuck?" not in out


def test_after_three_wrong_tries_the_solution_is_offered(delta, capsys):
    offer = 'Tried enough? solution("lora_delta") shows and explains it.'
    for wrong in (1, 2, 3, 4):
        check("lora_delta", None)
        check("lora_delta", lambda A, B, alpha: B @ A)
        assert (offer in capsys.readouterr().out.splitlines()[-1]) == (wrong >= 3)


def test_progress_shows_the_chapters_that_were_tried(capsys):
    for chapter, name, points in (("ch01", "one", 1), ("ch01", "second_one", 3), ("ch02", "other", 1)):
        register_in(chapter, name, points)
    progress()
    assert capsys.readouterr().out == "No exercise has been checked yet in this session.\n"
    check("second_one", "one")
    capsys.readouterr()
    progress()
    assert capsys.readouterr().out == textwrap.dedent("""\
        exercise    state           points
        one         not tried       0/1
        second_one  passed          3/3
        1 of 2 exercises passed, 3 of 4 points.
        """)
    check("one", "two")
    check("other", None)
    capsys.readouterr()
    progress()
    table = capsys.readouterr().out
    assert "one         not right yet   0/1" in table and "other       not solved yet  0/1" in table
    check("one", "one"), check("other", "one")
    capsys.readouterr()
    progress()
    assert capsys.readouterr().out.endswith("3 of 3 exercises passed, 5 of 5 points. Well done.\n")


def test_the_last_try_counts(count, capsys):
    check("count", 2048)
    check("count", 1)
    progress()
    assert "0 of 1 exercises passed" in capsys.readouterr().out


@pytest.mark.slow
def test_importing_the_checks_is_light():
    """A notebook's first cell imports them: transformers and peft must not come along."""
    heavy = ("transformers", "peft", "trl", "datasets", "matplotlib")
    code = f"import sys, utils.course.checks; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -------------------------------------------------------------------------------- loops without an end


def test_a_call_that_loops_is_broken_off_once(delta, capsys, monkeypatch):
    calls = []

    def endless(A, B, alpha):
        calls.append(alpha)
        while True:
            pass

    monkeypatch.setattr(judge, "SECONDS", 0.02)
    assert check("lora_delta", endless) is reference
    assert "[not right yet] lora_delta: case 1 of 2, called with" in (said := capsys.readouterr().out)
    assert judge.NEVER_ENDS in said and len(calls) == 1


def test_a_test_that_loops_is_broken_off(capsys, monkeypatch):
    def endless(answer):
        while answer is Layer:
            pass

    exercise("name", reference=Layer, test=endless, mistakes=NEVER)
    monkeypatch.setattr(judge, "SECONDS", 0.02)
    check("name", Layer)
    assert judge.NEVER_ENDS in capsys.readouterr().out
