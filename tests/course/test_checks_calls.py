"""Nothing leaks: every call of an answer begins from the same, and leaves the notebook as it was."""

import asyncio
import os
import random
import signal
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.course.delta import NEVER, reference
from utils.course.checks import calls, judge
from utils.course.checks.calls import KEPT, TooLong, changed_argument, outcome
from utils.course.checks.core import evaluate
from utils.course.checks.registry import Case, exercise

pytestmark = pytest.mark.usefixtures("own_registry")


def test_plain_arguments_are_copied_for_every_call():
    tensor, items, module = torch.ones(3), [1, 2], torch.nn.Linear(2, 2)
    weight = module.weight.detach().clone()
    exercise("total", reference=lambda t, i, m: t.sum() + sum(i), cases=[(tensor, items, module)] * 2, mistakes=NEVER)

    def answer(t, i, m):
        total = t.sum() + sum(i)
        t.zero_()
        i.clear()
        torch.nn.init.zeros_(m.weight)
        return total

    assert "your function changes its input" in evaluate("total", answer).message
    assert tensor.tolist() == [1, 1, 1] and items == [1, 2] and torch.equal(module.weight, weight)


def test_copies_keep_requires_grad_and_nesting():
    leaf = torch.ones(2, requires_grad=True)
    made = calls.fresh(({"a": [leaf]}, leaf * 2))
    assert made[0]["a"][0] is not leaf and made[0]["a"][0].requires_grad and made[1].requires_grad
    assert isinstance(made, tuple) and made[1].is_leaf


def test_makers_give_fresh_equal_arguments_to_every_call():
    seen = []
    exercise("draw", reference=lambda x: seen.append(x) or x.sum(), cases=[lambda: torch.randn(3)], mistakes=NEVER)
    assert evaluate("draw", lambda x: seen.append(x) or x.sum()).state == judge.PASSED
    assert seen[0] is not seen[1] and torch.equal(seen[0], seen[1])


def test_random_answers_are_compared_under_one_seed():
    exercise(
        "init",
        reference=lambda n: (torch.randn(n), random.random(), np.random.rand()),
        cases=[(4,), (5,)],
        mistakes=NEVER,
    )
    assert evaluate("init", lambda n: (torch.randn(n), random.random(), np.random.rand())).state == judge.PASSED
    assert evaluate("init", lambda n: (torch.rand(n), random.random(), np.random.rand())).state == judge.NOT_RIGHT


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


def settings():
    return (
        torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(), dict(os.environ), os.getcwd(),
        sys.getrecursionlimit(), list(warnings.filters), sys.stdout, sys.stderr,
    )  # fmt: skip


def test_what_an_answer_sets_for_the_process_is_put_back_after_each_call(delta, tmp_path):
    before, seen = settings(), []

    def answer(A, B, alpha):
        seen.append(settings()[:6])
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_grad_enabled(False)
        os.environ["COURSE_OF_MINE"] = "1"
        os.environ.pop("HOME", None)
        os.chdir(tmp_path)
        sys.setrecursionlimit(5000)
        warnings.simplefilter("error")
        with torch.device("cpu"):
            return reference(A, B, alpha)

    assert evaluate("lora_delta", answer).state == judge.PASSED
    assert settings() == before and len(seen) == 2 and seen[0] == seen[1]


def test_nothing_that_an_answer_prints_reaches_the_notebook(delta, capfd, recwarn):
    def answer(A, B, alpha):
        print("here", A.shape)
        print("there", file=sys.stderr)
        warnings.warn("careful", stacklevel=1)
        return reference(A, B, alpha)

    def spoken(answer_):
        print("in the test")
        answer_(*(torch.ones(2, 2), torch.ones(2, 2), 1.0))

    exercise("spoken", reference=reference, cases=[(torch.ones(2, 2), torch.ones(2, 2), 1.0)], test=spoken)
    for name in ("lora_delta", "spoken"):
        assert evaluate(name, answer).state == judge.PASSED
    assert capfd.readouterr() == ("", "") and not recwarn.list


def test_what_is_displayed_is_kept_out_where_there_is_a_shell(monkeypatch, capfd):
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell.instance()
    try:
        display = __import__("IPython.display", fromlist=["display"]).display
        outcome(lambda: display("shown"), Case(tuple))
        assert capfd.readouterr().out == ""
        display("shown")
        assert "shown" in capfd.readouterr().out
    finally:
        type(shell).clear_instance()


def test_a_result_is_held_as_it_was_when_the_call_ended():
    kept = []

    def answer(n):
        for item in kept:
            item["list"].append(0), item["tensor"].zero_(), item["set"].clear()
        kept.append({"list": [n], "tensor": torch.ones(n), "set": {n}})
        return kept[-1]

    first, second = (outcome(answer, Case(lambda n=n: (n,))) for n in (2, 3))
    assert first.value["list"] == [2] and first.value["set"] == {2} and second.value["list"] == [3]
    assert first.value["tensor"].tolist() == [1, 1]


def test_a_result_that_can_be_trained_through_stays_itself():
    weight = torch.nn.Parameter(torch.ones(2))
    assert outcome(lambda: [weight], Case(tuple)).value[0] is weight
    assert outcome(lambda: weight * 2, Case(tuple)).value.grad_fn is not None


def test_a_result_that_holds_itself_is_no_trouble():
    itself: list = [1]
    itself.append(itself)
    assert outcome(lambda: itself, Case(tuple)).value[0] == 1
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    assert outcome(lambda: deep, Case(tuple)).raised is None


class Own(BaseException):
    """Not an Exception."""


@pytest.mark.parametrize("problem", [SystemExit(3), Own(), GeneratorExit(), RecursionError(), asyncio.CancelledError()])
def test_whatever_is_raised_is_held(problem):
    def answer():
        raise problem

    assert outcome(answer, Case(tuple)).raised is problem


def test_an_interrupt_reaches_the_notebook(delta):
    def answer(A, B, alpha):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate("lora_delta", answer)


def test_a_call_that_nobody_asked_for_is_broken_off():
    def endless():
        while True:
            try:
                random.random()
            except Exception:
                pass

    before = sys.gettrace()
    assert isinstance(outcome(endless, Case(tuple), seconds=0.02).raised, TooLong)
    assert sys.gettrace() is before
    assert outcome(lambda: 7, Case(tuple), seconds=5.0).value == 7


def test_a_coroutine_is_closed_and_nobody_is_warned(recwarn):
    async def answer():
        return 1

    outcome(answer, Case(tuple))
    assert not recwarn.list


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1, [2]], [1, [3]]),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {}),
        ({1}, set()),
        (torch.ones(2), torch.zeros(2)),
        (torch.ones(2), torch.ones(2).double()),
        (torch.ones(2), torch.ones(1, 2)),
        (torch.tensor([1.0, torch.nan]), torch.tensor([2.0, torch.nan])),
        (torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)),
        (torch.nn.ReLU(), torch.nn.ReLU().eval()),
    ],
)
def test_a_changed_argument_is_found(one, other):
    assert changed_argument((0, one), (0, other)) == 1
    assert changed_argument((0, one), (0, calls.fresh(one))) is None


def test_memory_that_a_result_shares_is_seen():
    x, y = torch.ones(4), torch.zeros(3)
    assert outcome(lambda x, y: {"view": [x[1:]]}, Case(lambda: (x, y))).shares == (True, False)
    assert outcome(lambda x, y: x + 1, Case(lambda: (x, y))).shares == (False, False)
    assert outcome(lambda x, y: x.to_sparse(), Case(lambda: (x, y))).shares == (False, False)


def test_a_limit_holds_in_any_thread_and_leaves_no_alarm():
    def endless():
        while True:
            pass

    with ThreadPoolExecutor(1) as other:
        done = other.submit(outcome, endless, Case(tuple), 0.02).result()
    assert isinstance(done.raised, TooLong)
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_REAL, 100)
        assert isinstance(outcome(endless, Case(tuple), 0.02).raised, TooLong)
        assert 99 < signal.setitimer(signal.ITIMER_REAL, 0)[0] <= 100


def test_of_a_flood_of_output_the_beginning_is_kept():
    def loud():
        for _ in range(3):
            print("x" * KEPT)

    assert outcome(loud, Case(tuple)).printed == "x" * KEPT
