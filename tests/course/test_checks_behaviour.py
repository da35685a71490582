"""What comparing results can't judge: gradients that pass, and what a task forbids."""

import numpy as np
import pytest
import torch

from utils.course.checks.behaviour import (
    float32_will_do,
    same_gradients,
    same_loss,
    without_autograd,
    without_loop,
    without_matrix,
)
from utils.course.checks.registry import Wrong


def forward(x, A, B, s):
    return x @ A.T @ B.T * s


def layer(n=3):
    return torch.randn(n, 5), torch.randn(2, 5), torch.randn(4, 2), 0.5


NAMES = ("x", "A", "B", "s")


def said(test, answer):
    """What a test tells the learner, or nothing."""
    try:
        test(answer)
    except Wrong as wrong:
        return str(wrong)
    return ""


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (forward, ""),
        (lambda x, A, B, s: torch.einsum("ni,ri,or->no", x, A, B) * s, ""),
        (lambda x, A, B, s: forward(x, A, B, s).detach(), "no gradient passes through your result"),
        (lambda x, A, B, s: torch.tensor(forward(x, A, B, s).tolist()), "no gradient passes through your result"),
        (lambda x, A, B, s: forward(x, A.detach(), B, s), "no gradient reaches A through your result"),
        (lambda x, A, B, s: forward(x, A, B, s) + (A - A.detach()).sum(), "the gradient of A through it is not"),
    ],
)
def test_a_result_that_is_trained_through(answer, told):
    test = same_gradients(forward, layer, NAMES)
    assert told in said(test, answer) and bool(told) == bool(said(test, answer))


def test_a_plain_no_grad_is_found():
    def answer(x, A, B, s):
        with torch.no_grad():
            return forward(x, A, B, s)

    assert "torch.no_grad()" in said(same_gradients(forward, layer, NAMES), answer)


def test_a_modules_parameters_are_compared():
    def make():
        return torch.nn.Linear(3, 2), torch.randn(4, 3)

    test = same_gradients(lambda module, x: module(x), make, ("module", "x"))
    assert said(test, lambda module, x: x @ module.weight.T + module.bias) == ""
    assert "reaches module" in said(test, lambda module, x: x @ module.weight.detach().T + module.bias)


def test_a_frozen_argument_may_be_cut_off_and_no_other():
    test = same_gradients(forward, layer, NAMES, frozen=("x",))
    assert said(test, lambda x, A, B, s: forward(x.detach(), A, B, s)) == ""
    assert "reaches A" in said(test, lambda x, A, B, s: forward(x, A.detach(), B, s))


def test_gradients_through_a_float32_result_have_its_digits():
    def make():
        return tuple(torch.randn(5, dtype=torch.float64) for _ in range(2))

    test = same_gradients(lambda x, w: (x * w.exp()).sum(), make, ("x", "w"))
    assert said(test, lambda x, w: (x.float() * w.float().exp()).sum()) == ""
    assert "through it is not" in said(test, lambda x, w: (x.float() * w.float()).sum())


THIRD = torch.tensor(1 / 3, dtype=torch.float64)


def test_a_float32_result_is_right_within_float32s_tolerance():
    assert float32_will_do(THIRD, THIRD.float()) is True
    assert "expected about" in float32_will_do(THIRD, THIRD.float() * 1.001)
    assert "not their dtype" in float32_will_do(THIRD, THIRD.half())


@pytest.mark.parametrize(
    ("got", "told"),
    [
        (1 / 3, "a Python number, which has no gradient, and a loss is trained through: keep it a tensor"),
        (np.float64(1 / 3), "a numpy number, which has no gradient"),
        (np.array(1 / 3), "a numpy array, which has no gradient, and a loss is trained through: compute it in torch"),
        (0.5, "got"),
        (True, "got"),
        ("0.33", "got"),
        (None, "got None"),
    ],
)
def test_a_loss_that_is_no_tensor_is_told_to_stay_one(got, told):
    message = same_loss(THIRD, got)
    assert isinstance(message, str) and told in message and "torch.tensor(" not in message
    assert same_loss(THIRD, THIRD.clone()) is True


def test_a_matrix_that_is_made_is_found():
    test = without_matrix(layer, (4, 5), "the (out, in) matrix B @ A")
    assert said(test, forward) == ""
    assert said(test, lambda x, A, B, s: x @ (B @ A).T * s).startswith(
        "you make the (out, in) matrix B @ A, a tensor of"
    )
    assert "shape (5, 4)" in said(test, lambda x, A, B, s: x @ (A.T @ B.T) * s)
    views = without_matrix(layer, (5, 2), "A's transpose")
    assert said(views, lambda x, A, B, s: A.T) == ""


def test_a_loop_is_found():
    test = without_loop(layer, lambda: layer(9), "the rows")
    assert said(test, forward) == ""
    rows = said(test, lambda x, A, B, s: torch.stack([forward(row, A, B, s) for row in x]))
    assert "goes through the rows one by one" in rows


def test_autograd_is_found():
    def by_autograd(x, A, B, s):
        A.requires_grad_()
        forward(x, A, B, s).sum().backward()
        return A.grad

    test = without_autograd(layer)
    assert said(test, by_autograd).startswith("you let autograd do it")
    assert said(test, lambda x, A, B, s: torch.autograd.grad(forward(x, A.requires_grad_(), B, s).sum(), A)).startswith(
        "you let"
    )
    assert said(test, lambda x, A, B, s: s * (torch.ones(len(x), 4) @ B).T @ x) == ""
