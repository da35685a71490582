"""Answers are judged by behaviour: passed, not solved yet, or not right yet, and then with what is wrong."""

import re
import time
from functools import partial

import pytest
import torch

from tests.course.delta import NEVER, reference
from tests.course.test_checks_compare import ODD
from utils.course.checks import judge
from utils.course.checks.core import check, evaluate
from utils.course.checks.registry import Mistake, Wrong, exercise, find

pytestmark = pytest.mark.usefixtures("own_registry")


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
    assert result.state == judge.NOT_RIGHT and result.mistake is None


def test_another_exception_than_the_mistakes_is_not_that_mistake(delta):
    def answer(A, B, alpha):
        raise KeyError("weights")

    result = evaluate("lora_delta", answer)
    assert result.mistake is None and "KeyError: 'weights'" in result.message


def test_an_unknown_wrong_answer_gets_case_arguments_and_values(delta):
    result = evaluate("lora_delta", lambda A, B, alpha: reference(A, B, alpha).roll(1, 0))
    assert result.message.startswith("case 1 of 2, called with A=tensor (4, 10), B=tensor (6, 4), alpha=8: ")
    assert re.search(
        r"expected about -?[\d.]+, got -?[\d.]+ at position \(0, 0\) \(60 of 60 differ, by up to [\d.]+\)",
        result.message,
    )


def test_the_first_differing_case_is_named(delta):
    result = evaluate("lora_delta", lambda A, B, alpha: reference(A, B, alpha).cumsum(0) if alpha == 1 else 2 * B @ A)
    assert result.message.startswith("case 2 of 2, called with A=tensor (2, 3), B=tensor (5, 2), alpha=1: ")


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


@pytest.mark.parametrize(
    ("answer", "takes"),
    [(lambda A: A, "(A)"), (lambda: 0, "()"), (lambda A, B, *, alpha: 0, "(A, B, *, alpha)"), (lambda **n: 0, "(**n)")],
)
def test_a_wrong_number_of_parameters_is_told(delta, answer, takes):
    said = f"your function takes {takes}, and the task calls it with (A, B, alpha)."
    assert evaluate("lora_delta", answer).message == said


def test_torchs_own_not_implemented_error_is_not_a_stub(delta):
    def answer(A, B, alpha):
        return torch.nn.Module()(A)  # raises NotImplementedError: no forward

    result = evaluate("lora_delta", answer)
    assert result.state == judge.NOT_RIGHT and "NotImplementedError" in result.message


def test_a_value_instead_of_a_function(delta):
    assert evaluate("lora_delta", 3).message == (
        "expected a function (or a class), got 3: give the function itself, without calling it."
    )


def test_a_function_that_a_library_calls_is_called_by_name():
    exercise("share", reference=lambda part, whole: part / whole, cases=[(1, 4), (6, 2)], by_name=True, mistakes=NEVER)
    for right in (
        lambda part, whole: part / whole,
        lambda whole, part: part / whole,
        lambda part, **more: part / more["whole"],
    ):
        assert evaluate("share", right).state == judge.PASSED
    for wrong in (lambda p, w: p / w, lambda part, whole, /: part / whole, lambda *both: both[0] / both[1]):
        result = evaluate("share", wrong)
        assert result.state == judge.NOT_RIGHT and result.named
        assert "is called by name, with (part=..., whole=...): keep these names." in result.message
    assert "case 1 of 2, called with part=1, whole=4" in evaluate("share", lambda part, whole: 7.0).message


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
    exercise("square", reference=lambda x: x * x, cases=[(2,)], mistakes=find("square").mistakes)
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
    (outcome,) = [o for (found, mistake, *_), o in judge._seen.items() if found is find("crash") and mistake]
    assert isinstance(outcome.raised, IndexError) and outcome.raised.__traceback__ is None


# ------------------------------------------------------------------------- values, tests, references


def test_a_value_is_compared_and_not_given_away(count):
    assert evaluate("count", 2048).state == judge.PASSED
    assert evaluate("count", 2048.0).message == (
        "2048.0 has the right value, but what is counted is a whole number: use // or int(...)."
    )
    assert evaluate("count", 4096).message == "each factor counts once"
    assert evaluate("count", 2049).message == "2049 is too large."
    assert evaluate("count", 3).message == "3 is too small."
    assert evaluate("count", True).message == "expected a whole number, got True."
    assert evaluate("count", "2048").message == (
        "'2048' is a string, and a whole number is asked for: leave the quotes and str(...) out."
    )
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
    assert result.state == judge.NOT_RIGHT
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
    assert evaluate("freeze", torch.nn.Linear(3, 3).requires_grad_(False)).state == judge.PASSED
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
    assert evaluate("layer", Right).state == judge.PASSED
    assert evaluate("layer", Stub).state == judge.NOT_SOLVED
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


def test_a_mistake_that_fails_the_cases_is_not_the_one_that_changes_its_input():
    wrong_twice, in_place = (
        Mistake(lambda x: x.append(1) or 0, "zero"),
        Mistake(lambda x: x.append(1) or len(x) - 1, expect="changes its input"),
    )
    exercise("size", reference=len, cases=[([1],)], mistakes=[wrong_twice, in_place])
    assert evaluate("size", lambda x: x.append(1) or len(x) - 1).mistake is in_place


def test_a_mistake_that_fails_the_cases_is_not_the_one_that_fails_the_test():
    def with_defaults(answer):
        if not answer.__defaults__:
            raise Wrong("give x a default")

    wrong_twice, without = Mistake(lambda x: 0, expect="a default"), Mistake(lambda x: len(x), expect="default")
    exercise("size", reference=len, cases=[([1],)], test=with_defaults, mistakes=[wrong_twice, without])
    assert evaluate("size", lambda x: len(x) + 0).mistake is without


def test_a_reference_that_raises_wants_the_same_exception():
    def root(x):
        if x < 0:
            raise ValueError("negative")
        return x**0.5

    exercise("root", reference=root, cases=[(4.0,), (-1.0,)], mistakes=[Mistake(abs, "that is abs")])
    assert evaluate("root", lambda x: root(x)).state == judge.PASSED
    missing = evaluate("root", lambda x: root(abs(x))).message
    assert missing == "case 2 of 2, called with x=-1: your code should raise ValueError here, but it returned 1."
    other = evaluate("root", lambda x: root(x) if x > 0 else {}[x]).message
    assert "should raise ValueError here, but your code raised KeyError" in other


def test_in_which_words_an_answer_raises_what_the_task_wants_is_its_own_matter():
    def root(x, words="negative"):
        if x < 0:
            raise ValueError(words)
        return x**0.5

    halved = Mistake(lambda x: root(x, "no root") / 2, "that is half of it")
    odd = Mistake(lambda x: {}[x], "a dictionary has no such key")
    never = Mistake(lambda x: root(-1.0), "that is always refused")
    exercise("root", reference=root, cases=[(4.0,), (-1.0,)], mistakes=[halved, odd, never])
    assert evaluate("root", lambda x: root(-1.0, "I refuse")).mistake is never
    assert evaluate("root", lambda x: root(x, "below zero") / 2).mistake is halved
    assert evaluate("root", lambda x: {}[x]).mistake is odd
    assert (
        evaluate("root", lambda x: {}[str(x)]).mistake is None
    )  # no exception that the task asks for: the words count


def test_a_functions_rightful_none_passes():
    exercise("nothing", reference=lambda x: None, cases=[(1,)], mistakes=[Mistake(lambda x: x, "return nothing")])
    assert evaluate("nothing", lambda x: None).state == judge.PASSED
    assert evaluate("nothing", lambda x: 1).message == "return nothing"


def test_compare_replaces_the_comparison_also_for_mistakes():
    exercise(
        "direction",
        reference=lambda v: v,
        cases=[(torch.tensor([3.0, 4.0]),)],
        compare=lambda a, b: torch.allclose(a / a.norm(), b / b.norm()),
        mistakes=[Mistake(lambda v: -v, "the sign")],
    )
    assert evaluate("direction", lambda v: 5 * v).state == judge.PASSED
    assert evaluate("direction", lambda v: -7 * v).message == "the sign"
    assert evaluate("direction", lambda v: "v").state == judge.NOT_RIGHT  # comparing raises


def test_a_tensor_of_one_number_is_reported_as_that_number():
    exercise(
        "one_number",
        reference=lambda x: x.mean(),
        cases=[lambda: (torch.tensor([1.0, 2.0]),)],
        compare=lambda expected, got: bool((expected == got).all()),
    )
    assert "expected about 1.5, got 3." in evaluate("one_number", lambda x: x.sum()).message
    assert "expected shape (), got (2,)." in evaluate("one_number", lambda x: x).message


# ------------------------------------------------------------------------------------------ whatever comes back


class Unseen:
    """Raises even when asked for its class."""

    def __getattribute__(self, name):
        raise RuntimeError("unseen")


@pytest.mark.parametrize("odd", [*ODD, "unseen"])
@pytest.mark.parametrize(
    "right", [2.5, 3, "a", [1, 2], (1, 2.0), {"a": 1}, {1}, torch.ones(2, 2), torch.float16, None], ids=repr
)
def test_whatever_an_answer_returns_it_is_wrong_and_no_more(right, odd):
    value = ODD.get(odd, Unseen)
    value = value() if value is Unseen else value
    exercise("odd", reference=lambda x: right, cases=[(1,), (2,)], drawn=lambda numbers: (numbers.random(),), draws=4)
    exercise("value", reference=[right, "here"])
    for name, answer in (("odd", lambda x: value), ("odd", lambda x: [right, value]), ("value", [right, value])):
        result = evaluate(name, answer)
        assert result.state == judge.NOT_RIGHT and result.message
        assert "0x" not in result.message and len(result.message) < 700


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("async", "your function begins with async def, so a call of it gives no result yet: begin it with def."),
        ("yield", "your function has a yield in it, so a call of it gives a generator: return the result instead."),
    ],
)
def test_a_function_of_another_kind_is_named(delta, answer, said):
    async def begins(A, B, alpha):
        return B @ A

    def yields(A, B, alpha):
        yield B @ A

    assert evaluate("lora_delta", begins if answer == "async" else yields).message == said


def test_all_that_can_be_called_is_an_answer(delta):
    class Delta:
        def __call__(self, A, B, alpha):
            return reference(A, B, alpha)

        method = __call__
        static = staticmethod(reference)

    for answer in (Delta(), Delta().method, Delta.static, partial(lambda n, *given: reference(*given), 0)):
        assert evaluate("lora_delta", answer).state == judge.PASSED
    assert "takes (self, A, B, alpha)" in evaluate("lora_delta", Delta.method).message
    assert evaluate("lora_delta", max).state == judge.NOT_RIGHT  # Python doesn't know its parameters


def test_what_an_answer_printed_is_shown_with_the_case_that_differs(delta):
    def answer(A, B, alpha):
        print("scale", alpha / 3)
        print("second line")
        return alpha / 3 * (B @ A).cumsum(0)

    assert evaluate("lora_delta", answer).message.endswith(" There it printed: scale 2.6666666666666665 ...")


def test_a_print_for_a_return_is_named(delta):
    assert evaluate("lora_delta", lambda A, B, alpha: print(alpha)).message == (
        "your function prints (8.0) and returns nothing: return it instead."
    )


def test_a_changed_argument_is_named(delta):
    result = evaluate("lora_delta", lambda A, B, alpha: B.mul_(alpha / A.shape[0]) @ A)
    assert result.named and result.message == (
        "the result is right, but your function changes its input: `B` is another after the call, and whoever called "
        "it still needs it. Work on a copy."
    )


def test_an_argument_that_is_to_be_changed_is_named_where_it_isn_t():
    def append(items, item):
        items.append(item)
        return len(items)

    exercise("append", reference=append, cases=[([1], 2)])
    result = evaluate("append", lambda items, item: len([*items, item]))
    assert result.message == "the result is right, but `items` is not left as the task asks for."


def test_a_result_that_is_the_argument_is_refused_where_a_new_one_is_asked_for():
    fields = {"reference": lambda x: x + 0, "cases": [(torch.ones(3),)]}
    exercise("new", **fields, new_result=True)
    exercise("any", **fields)
    assert "shares its memory" in evaluate("new", lambda x: x.view(3)).message
    assert evaluate("new", lambda x: x.clone()).state == evaluate("any", lambda x: x).state == judge.PASSED


def test_an_exception_that_can_not_be_told_is_no_trouble(delta):
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

        __repr__ = __str__

    def answer(A, B, alpha):
        raise Mute

    assert "your code raised Mute (line" in evaluate("lora_delta", answer).message


def test_a_verdict_takes_a_moment():
    """Thirty cases of small tensors, and no property that holds."""

    def drawn(numbers):
        n, m = numbers.randint(1, 6), numbers.randint(1, 6)
        return torch.randn(n, m), torch.randn(m, n), numbers.random(), [numbers.random()] * n

    exercise("quick", reference=lambda x, y, s, items: x @ y * s + sum(items), cases=[], drawn=drawn, draws=30)
    begin = time.process_time()
    assert not evaluate("quick", lambda x, y, s, items: (x @ y).sin() + s * len(items)).named
    assert time.process_time() - begin < 0.3
