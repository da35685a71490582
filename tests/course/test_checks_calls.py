"""Nothing leaks: every call of an answer begins from the same, and leaves the notebook as it was."""

import random

import numpy as np
import pytest
import torch

from tests.course.delta import NEVER, reference
from utils.course.checks import calls, judge
from utils.course.checks.core import evaluate
from utils.course.checks.registry import exercise

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
