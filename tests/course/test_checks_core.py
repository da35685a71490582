"""The checks framework judges answers by behaviour, says what is wrong, and leaves nothing half-changed."""

import pickle
import random
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from utils.course.checks import core
from utils.course.checks.core import (
    ExerciseFailed,
    Mistake,
    Wrong,
    check,
    evaluate,
    exercise,
    hint,
    progress,
)

NEVER = (Mistake("no answer gives this", "never shown"),)


@pytest.fixture(autouse=True)
def empty_registry(monkeypatch):
    """Each test registers its own exercises, in a kernel in which nothing has been tried."""
    monkeypatch.setattr(core, "_registered", {})
    monkeypatch.setattr(core, "_kernel", core._Kernel())
    monkeypatch.delenv("COURSE_STRICT", raising=False)
    torch.set_num_threads(1)


def reference(A, B, alpha):
    return alpha / A.shape[0] * (B @ A)


def factors():
    return torch.randn(4, 10), torch.randn(6, 4), 8.0


@pytest.fixture
def delta():
    exercise(
        "lora_delta",
        reference=reference,
        cases=[factors, lambda: (torch.randn(2, 3), torch.randn(5, 2), 1.0)],
        mistakes=[
            Mistake(lambda A, B, alpha: B @ A, "alpha has no effect yet"),
            Mistake(lambda A, B, alpha: alpha * (B @ A), "divide by the rank as well"),
            Mistake(lambda A, B, alpha: A @ B, "the order is B @ A"),
        ],
        hints=["The rank is A.shape[0].", "The update has the shape (out, in)."],
        points=2,
    )


# -------------------------------------------------------------------------------- the three verdicts


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
    monkeypatch.setenv("COURSE_STRICT", "1")
    with pytest.raises(ExerciseFailed, match="not solved yet"):
        check("lora_delta", handed)


def test_the_reference_that_nobody_handed_out_is_an_answer(delta, capsys):
    check("lora_delta", reference)
    assert capsys.readouterr().out == "[passed] lora_delta\n"


def test_a_forgotten_return_is_named(delta, capsys):
    def answer(A, B, alpha):
        B @ A  # noqa: B018

    check("lora_delta", answer)
    assert "is a return missing?" in capsys.readouterr().out


def test_no_answer_at_all_is_not_solved(delta, capsys):
    assert check("lora_delta") is reference
    assert "[not solved yet]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda A, B, alpha: (A.T @ B.T).T, "alpha has no effect yet"),
        (lambda A, B, alpha: B @ (alpha * A), "divide by the rank as well"),
        (lambda A, B, alpha: torch.matmul(A, B) * alpha, "the order is B @ A"),
    ],
)
def test_a_typical_mistake_is_recognised_by_what_it_does(delta, capsys, answer, said):
    assert check("lora_delta", answer) is reference
    out = capsys.readouterr().out
    assert out.startswith("[not right yet] lora_delta: ") and said in out


def test_a_mistake_must_agree_on_every_case(delta):
    """Like the first mistake in the first case only."""
    result = evaluate("lora_delta", lambda A, B, alpha: B @ A if alpha == 8.0 else 7 * (B @ A))
    assert result.state == core.NOT_RIGHT and result.mistake is None


def test_another_exception_than_the_mistakes_is_not_that_mistake(delta):
    def answer(A, B, alpha):
        raise KeyError("weights")

    result = evaluate("lora_delta", answer)
    assert result.mistake is None and "KeyError: 'weights'" in result.message


def test_an_unknown_wrong_answer_gets_case_arguments_and_values(delta):
    result = evaluate("lora_delta", lambda A, B, alpha: reference(A, B, alpha) + 1)
    assert result.message.startswith("case 1 of 2, called with (tensor (4, 10), tensor (6, 4), 8): ")
    assert re.search(r"expected about -?[\d.]+, got -?[\d.]+ at position \(0, 0\)", result.message)


def test_the_first_differing_case_is_named(delta):
    result = evaluate("lora_delta", lambda A, B, alpha: 2 * (B @ A))
    assert result.message.startswith("case 2 of 2, called with (tensor (2, 3)")


def test_a_crash_is_told_with_the_learners_line(delta):
    def answer(A, B, alpha):
        scale = alpha
        return scale + "rank"

    message = evaluate("lora_delta", answer).message
    assert "your code raised TypeError: unsupported operand" in message
    assert re.search(r'\(line \d+: return scale \+ "rank"\)', message)


def test_a_crash_inside_torch_points_to_the_learners_line(delta):
    def answer(A, B, alpha):
        return torch.nn.functional.linear(A, B)

    assert "linear(A, B))" in evaluate("lora_delta", answer).message


def test_a_wrong_number_of_parameters_is_told(delta):
    assert "positional argument" in evaluate("lora_delta", lambda A: A).message


def test_torchs_own_not_implemented_error_is_not_a_stub(delta):
    def answer(A, B, alpha):
        return torch.nn.Module()(A)  # raises NotImplementedError: no forward

    result = evaluate("lora_delta", answer)
    assert result.state == core.NOT_RIGHT and "NotImplementedError" in result.message


def test_a_value_instead_of_a_function(delta):
    assert "expected a function (or a class), got 3." in evaluate("lora_delta", 3).message


def test_strict_raises_the_same_report(delta, capsys, monkeypatch):
    check("lora_delta", lambda A, B, alpha: B @ A)
    printed = capsys.readouterr().out
    monkeypatch.setenv("COURSE_STRICT", "1")
    with pytest.raises(ExerciseFailed) as failure:
        check("lora_delta", lambda A, B, alpha: B @ A)
    assert str(failure.value) + "\n" == printed
    assert capsys.readouterr().out == ""
    with pytest.raises(ExerciseFailed, match="not solved yet"):
        check("lora_delta", None)

    def right(A, B, alpha):
        return reference(A, B, alpha)

    assert check("lora_delta", right) is right


@pytest.mark.parametrize("off", ["", "0"])
def test_strict_can_be_switched_off(delta, monkeypatch, off):
    monkeypatch.setenv("COURSE_STRICT", off)
    assert check("lora_delta", None) is reference


def test_an_unknown_name_gets_the_nearest_ones(delta):
    with pytest.raises(KeyError, match=r"^there is no exercise 'lora_dleta'; did you mean 'lora_delta'\?$"):
        check("lora_dleta", 1)
    with pytest.raises(KeyError, match=r"^there is no exercise 'zzz'$"):
        hint("zzz")


# ------------------------------------------------------------------------------------- nothing leaks


def test_plain_arguments_are_copied_for_every_call():
    tensor, items, module = torch.ones(3), [1, 2], torch.nn.Linear(2, 2)
    weight = module.weight.detach().clone()
    exercise(
        "total",
        reference=lambda t, i, m: t.sum() + sum(i),
        cases=[(tensor, items, module)] * 2,
        mistakes=NEVER,
    )

    def answer(t, i, m):
        total = t.sum() + sum(i)
        t.zero_()
        i.clear()
        torch.nn.init.zeros_(m.weight)
        return total

    assert evaluate("total", answer).state == core.PASSED
    assert tensor.tolist() == [1, 1, 1] and items == [1, 2] and torch.equal(module.weight, weight)


def test_copies_keep_requires_grad_and_nesting():
    leaf = torch.ones(2, requires_grad=True)
    made = core._fresh(({"a": [leaf]}, leaf * 2))
    assert made[0]["a"][0] is not leaf and made[0]["a"][0].requires_grad and made[1].requires_grad
    assert isinstance(made, tuple) and made[1].is_leaf


def test_makers_give_fresh_equal_arguments_to_every_call():
    seen = []
    exercise("draw", reference=lambda x: seen.append(x) or x.sum(), cases=[lambda: torch.randn(3)], mistakes=NEVER)
    assert evaluate("draw", lambda x: seen.append(x) or x.sum()).state == core.PASSED
    assert seen[0] is not seen[1] and torch.equal(seen[0], seen[1])


def test_random_answers_are_compared_under_one_seed():
    exercise(
        "init",
        reference=lambda n: (torch.randn(n), random.random(), np.random.rand()),
        cases=[(4,), (5,)],
        mistakes=NEVER,
    )
    assert evaluate("init", lambda n: (torch.randn(n), random.random(), np.random.rand())).state == core.PASSED
    assert evaluate("init", lambda n: (torch.rand(n), random.random(), np.random.rand())).state == core.NOT_RIGHT


@pytest.mark.parametrize("accelerator", [True, False])
def test_an_accelerators_generators_are_seeded_where_there_is_one(delta, monkeypatch, accelerator):
    seeds = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    evaluate("lora_delta", reference)
    assert set(seeds) == ({0} if accelerator else set())


def test_the_notebooks_own_state_is_left_alone(delta):
    def following():
        return torch.rand(2).tolist(), random.random(), np.random.rand()

    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    undisturbed = following()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)

    def answer(A, B, alpha):
        torch.rand(100)
        torch.set_grad_enabled(False)
        return B

    evaluate("lora_delta", answer)
    assert following() == undisturbed
    assert torch.is_grad_enabled()


# ------------------------------------------------------------------------------- mistakes are remembered


def tell(calls, function):
    """`function`, writing each call's arguments into `calls`."""
    return lambda x: calls.append(x) or function(x)


@pytest.fixture
def calls():
    """What a mistake was called with: right in the first of three cases, wrong in the others."""
    seen = []
    exercise(
        "square",
        reference=lambda x: x * x,
        cases=[(1,), (3,), (4,)],
        mistakes=[Mistake(tell(seen, lambda x: x), "squaring has no effect")],
    )
    return seen


def test_a_mistake_is_called_once_a_case_and_not_beyond_a_difference(calls):
    assert evaluate("square", lambda x: 2 * x).mistake is None
    assert calls == [1]
    assert evaluate("square", lambda x: x).message == "squaring has no effect"
    assert calls == [1, 3, 4]
    for _ in range(3):
        assert evaluate("square", lambda x: x).message == "squaring has no effect"
        assert evaluate("square", lambda x: x + (x > 1)).mistake is None
    assert calls == [1, 3, 4]


def test_registering_again_forgets(calls):
    evaluate("square", lambda x: x)
    exercise("square", reference=lambda x: x * x, cases=[(2,)], mistakes=core.find("square").mistakes)
    assert evaluate("square", lambda x: x).message == "squaring has no effect"
    assert calls == [1, 3, 4, 2]


def test_what_a_learner_sets_for_the_whole_process_is_part_of_the_memory():
    exercise(
        "ramp",
        reference=lambda n: torch.ones(n).cumsum(0).requires_grad_(),
        cases=[(3,)],
        compare=lambda a, b: a.dtype == b.dtype and a.requires_grad == b.requires_grad and torch.equal(a, b),
        mistakes=[Mistake(lambda n: torch.ones(n, requires_grad=True) * 1, "all the same")],
    )

    def answer(n):
        return torch.ones(n, requires_grad=True) + 0

    try:
        for dtype in (torch.float32, torch.float64, torch.float32):
            torch.set_default_dtype(dtype)
            assert evaluate("ramp", answer).message == "all the same"
            with torch.no_grad():
                assert evaluate("ramp", answer).message == "all the same"
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_mistake_that_changes_its_arguments_is_remembered_as_it_was():
    exercise(
        "emptied",
        reference=sum,
        cases=[([1, 2],), (lambda: ([3, 4],))],
        mistakes=[Mistake(lambda items: items.clear() or items, "it is empty now")],
    )
    for _ in range(3):
        assert evaluate("emptied", lambda items: []).message == "it is empty now"
        assert evaluate("emptied", lambda items: items.clear() or items).message == "it is empty now"
        assert evaluate("emptied", lambda items: items).mistake is None


def test_a_remembered_exception_keeps_no_frames():
    exercise("crash", reference=len, cases=[([],)], mistakes=[Mistake(lambda x: x[0], "there is no first")])
    for _ in range(2):
        assert evaluate("crash", lambda x: x[0]).message == "there is no first"
    (outcome,) = core._kernel.seen.values()
    assert isinstance(outcome.raised, IndexError) and outcome.raised.__traceback__ is None


# ------------------------------------------------------------------------- values, tests, references


@pytest.fixture
def count():
    exercise("count", reference=2048, mistakes=[Mistake(4096, "each factor counts once")])


def test_a_value_is_compared_and_not_given_away(count):
    assert evaluate("count", 2048).state == core.PASSED
    assert evaluate("count", 2048.0).state == core.PASSED
    assert evaluate("count", 4096).message == "each factor counts once"
    assert evaluate("count", 2049).message == "2049 is too large."
    assert evaluate("count", 3).message == "3 is too small."
    assert evaluate("count", True).message == "expected a whole number, got True."
    assert evaluate("count", "2048").message == "expected a whole number, got '2048'."
    assert ".item() gives the number in it" in evaluate("count", torch.tensor(2048)).message
    assert "the function len" in evaluate("count", len).message


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (0.123456, 0.2),
        ("rank", "alpha"),
        ([1, 2], [1, 3]),
        ({"lora_A": 7.5}, {"lora_A": 8.5}),
        ({1.5, 2.5}, {1.5}),
        (torch.tensor([0.123456]), torch.tensor([9.0])),
    ],
)
def test_no_report_on_a_value_shows_the_right_one(right, wrong):
    exercise("value", reference=right, mistakes=NEVER)
    result = evaluate("value", wrong)
    assert result.state == core.NOT_RIGHT
    for secret in ("0.123", "'rank'", "7.5", "2.5", "[1, 2]"):
        assert secret not in result.message


def test_an_exercises_own_test_speaks():
    def frozen(model):
        if model.weight.requires_grad:
            raise Wrong("the weight still trains")
        if model.bias is None:
            raise AssertionError("keep the bias")

    exercise(
        "freeze",
        reference=torch.nn.Linear(2, 2).requires_grad_(False),
        test=frozen,
        mistakes=[Mistake(torch.nn.Linear(2, 2), expect="still trains")],
    )
    assert evaluate("freeze", torch.nn.Linear(3, 3).requires_grad_(False)).state == core.PASSED
    result = evaluate("freeze", torch.nn.Linear(3, 3))
    assert result.message == "the weight still trains" and result.mistake is not None
    assert evaluate("freeze", torch.nn.Linear(2, 2, bias=False).requires_grad_(False)).message == "keep the bias"
    assert "your code raised AttributeError" in evaluate("freeze", torch.nn.ReLU()).message


def test_a_class_as_an_answer():
    class Right(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scaling = 2.0

    class Stub(torch.nn.Module):
        def __init__(self):
            raise NotImplementedError

    def scaled(cls):
        if cls().scaling != 2.0:
            raise Wrong("scaling is alpha / r")

    exercise("layer", reference=Right, test=scaled, mistakes=[Mistake(Right, expect="scaling")])
    assert evaluate("layer", Right).state == core.PASSED
    assert evaluate("layer", Stub).state == core.NOT_SOLVED
    unscaled = type("Unscaled", (Right,), {"scaling": property(lambda self: 1.0, lambda self, value: None)})
    assert evaluate("layer", unscaled).message == "scaling is alpha / r"


def test_the_test_runs_only_when_the_cases_agree():
    calls = []
    exercise("twice", reference=lambda x: 2 * x, cases=[(1,)], test=calls.append, mistakes=NEVER)
    evaluate("twice", lambda x: x)
    assert calls == []
    evaluate("twice", lambda x: x + x)
    assert len(calls) == 1


def test_two_mistakes_with_the_same_words_are_not_told_apart():
    def even(x):
        if x % 2:
            raise Wrong("it is odd")

    exercise("even", reference=2048, compare=lambda a, b: True, test=even, mistakes=[Mistake(n, "no") for n in (1, 3)])
    assert evaluate("even", 5).mistake is None
    assert evaluate("even", 5).message == "it is odd"


def test_a_mistake_that_fails_the_cases_is_not_the_one_that_fails_the_test():
    def unchanged(answer):
        items = [1]
        answer(items)
        if items != [1]:
            raise Wrong("your function changes the list")

    wrong_twice, in_place = (
        Mistake(lambda x: x.append(1) or 0, "zero"),
        Mistake(lambda x: x.append(1) or 1, expect="ch"),
    )
    exercise("size", reference=len, cases=[([1],)], test=unchanged, mistakes=[wrong_twice, in_place])
    assert evaluate("size", lambda x: x.append(1) or len(x) - 1).mistake is in_place


def test_a_reference_that_raises_wants_the_same_exception():
    def root(x):
        if x < 0:
            raise ValueError("negative")
        return x**0.5

    exercise("root", reference=root, cases=[(4.0,), (-1.0,)], mistakes=[Mistake(abs, "that is abs")])
    assert evaluate("root", lambda x: root(x)).state == core.PASSED
    missing = evaluate("root", lambda x: root(abs(x))).message
    assert missing == "case 2 of 2, called with (-1): your code should raise ValueError here, but it returned 1."
    other = evaluate("root", lambda x: root(x) if x > 0 else {}[x]).message
    assert "should raise ValueError here, but your code raised KeyError" in other


def test_a_functions_rightful_none_passes():
    exercise("nothing", reference=lambda x: None, cases=[(1,)], mistakes=[Mistake(lambda x: x, "return nothing")])
    assert evaluate("nothing", lambda x: None).state == core.PASSED
    assert evaluate("nothing", lambda x: 1).message == "return nothing"


def test_compare_replaces_the_comparison_also_for_mistakes():
    exercise(
        "direction",
        reference=lambda v: v,
        cases=[(torch.tensor([3.0, 4.0]),)],
        compare=lambda a, b: torch.allclose(a / a.norm(), b / b.norm()),
        mistakes=[Mistake(lambda v: -v, "the sign")],
    )
    assert evaluate("direction", lambda v: 5 * v).state == core.PASSED
    assert evaluate("direction", lambda v: -7 * v).message == "the sign"
    assert evaluate("direction", lambda v: "v").state == core.NOT_RIGHT  # comparing raises


# -------------------------------------------------------------------------------- hints and progress


def test_hints_open_one_at_a_time_and_end(delta, capsys):
    for _ in range(4):
        hint("lora_delta")
    assert capsys.readouterr().out.splitlines() == [
        "Hint 1 of 2: The rank is A.shape[0].",
        "Hint 2 of 2: The update has the shape (out, in).",
        "No hints left for lora_delta (2 of 2 are open).",
        "No hints left for lora_delta (2 of 2 are open).",
    ]


def test_an_exercise_without_hints_offers_none(count, capsys):
    hint("count")
    check("count", 1)
    out = capsys.readouterr().out
    assert "There are no hints for count." in out and "Stuck?" not in out


def register_in(chapter, name, points=1):
    """Register as a module utils.course.checks.<chapter> would."""
    scope = {"__name__": f"utils.course.checks.{chapter}", "exercise": exercise}
    exec(f"exercise({name!r}, reference='one', points={points})", scope)


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


# -------------------------------------------------------------------------------------- registration


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("LoraDelta", {"reference": 1}, "lower-case identifier"),
        ("lora-delta", {"reference": 1}, "lower-case identifier"),
        ("f", {"reference": len}, "needs cases or a test"),
        ("f", {"reference": 1, "cases": [(1,)]}, "can't be called"),
        ("f", {"reference": len, "cases": [[1]]}, "a case is a tuple"),
        ("f", {"reference": 1, "points": 0}, "points must be at least 1"),
        ("f", {"reference": 1, "hints": "count"}, "not one string"),
        ("f", {"reference": 4}, "a learner's own 4, and a second check would pass it"),
        ("f", {"reference": True}, "a learner's own True, and a second check would pass it"),
    ],
)
def test_faulty_registrations_are_refused(name, arguments, said):
    with pytest.raises(ValueError, match=said):
        exercise(name, **arguments)
    assert core.registered() == {}


def test_a_mistake_says_something():
    with pytest.raises(ValueError, match="message"):
        Mistake(1)


def test_a_name_belongs_to_one_chapter_which_may_register_it_again():
    register_in("ch01", "same")
    register_in("ch01", "same", points=4)
    assert core.find("same").points == 4
    with pytest.raises(ValueError, match="already registered by ch01"):
        register_in("ch02", "same")


@pytest.mark.slow
def test_importing_the_checks_is_light():
    """A notebook's first cell imports them: transformers and peft must not come along."""
    heavy = ("transformers", "peft", "trl", "datasets", "matplotlib")
    code = f"import sys, utils.course.checks; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_tensor_of_one_number_is_reported_as_that_number():
    exercise(
        "one_number",
        reference=lambda x: x.mean(),
        cases=[lambda: (torch.tensor([1.0, 2.0]),)],
        compare=lambda expected, got: bool((expected == got).all()),
    )
    assert "expected 1.5, got 3." in evaluate("one_number", lambda x: x.sum()).message
    assert "got a float32 tensor of shape (2,)" in evaluate("one_number", lambda x: x).message
