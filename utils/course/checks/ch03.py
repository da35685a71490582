"""Chapter 3's exercises: forward, gradients, and the scale and the step."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from utils.course.checks.behaviour import same_gradients, without_autograd, without_loop, without_matrix
from utils.course.checks.references import ch03 as lesson
from utils.course.checks.registry import Mistake, exercise

# -------------------------------------------------------------------------------------- forward and backward


def _layer(n: int, d_in: int, d_out: int, r: int, s: float):
    def make() -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
        draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
        return draw(n, d_in), draw(d_out, d_in), draw(r, d_in), draw(d_out, r), s

    return make


# The last is square all over, so that a product in the wrong order gives wrong numbers and no error.
_SHAPES = ((3, 5, 4, 2, 2.0), (2, 4, 6, 3, 0.5), (3, 3, 3, 3, 4.0))
_SCALES = (0.25, 0.5, 1.0, 1.5, 2.0, 16.0)


def _drawn_layer(draw: random.Random) -> tuple[Any, ...]:
    """Four different sizes, in either precision; x has up to two dimensions in front of its rows."""
    n, d_in, d_out, r = draw.sample(range(2, 10), 4)
    rows = draw.choice(((n,), (n,), (1,), (2, n), (n, 3), (2, 1, n)))
    dtype = draw.choice((torch.float32, torch.float64))
    shapes = (*rows, d_in), (d_out, d_in), (r, d_in), (d_out, r)
    return *(torch.randn(shape, dtype=dtype) for shape in shapes), draw.choice(_SCALES)


def _trained_through(answer: Callable[..., Tensor]) -> None:
    """Gradients reach x, A and B. W0 is frozen, so whoever cuts it off may."""
    W0 = torch.randn(5, 6, dtype=torch.float64)
    run = [
        lambda x, A, B, forward=forward: forward(x, W0.clone(), A, B, 1.5) for forward in (lesson.lora_forward, answer)
    ]
    same_gradients(run[0], _without_w0, ("x", "A", "B"))(run[1])


def _without_w0() -> tuple[Tensor, Tensor, Tensor]:
    x, _, A, B, _ = _layer(7, 6, 5, 3, 1.5)()
    return x.reshape(1, 7, 6), A, B


@torch.no_grad()
def _no_gradients(x: Tensor, W0: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    return lesson.lora_forward(x, W0, A, B, s)


exercise(
    "lora_forward",
    reference=lesson.lora_forward,
    cases=[_layer(*sizes) for sizes in _SHAPES],
    drawn=_drawn_layer,
    test=(_trained_through, without_matrix(_layer(7, 6, 5, 3, 1.5), (5, 6), "B @ A, or another matrix of W0's size")),
    mistakes=[
        Mistake(
            lambda x, W0, A, B, s: x @ W0.T + x @ A.T @ B.T,
            "the scale s is missing: the update is multiplied by alpha / r.",
        ),
        Mistake(
            lambda x, W0, A, B, s: s * (x @ W0.T + x @ A.T @ B.T),
            "you scaled the frozen weight's answer as well: s belongs to the update alone.",
        ),
        Mistake(
            lambda x, W0, A, B, s: s * (x @ A.T @ B.T),
            "that is the update's part alone: the frozen weight's answer, x @ W0.T, is missing.",
        ),
        Mistake(
            lambda x, W0, A, B, s: x @ W0.T + s * (x @ B.T @ A.T),
            "A and B are swapped: x has d_in columns and meets A (r, d_in) first.",
        ),
        Mistake(
            lambda x, W0, A, B, s: x @ W0.T + s * (x @ A @ B),
            "the transposes are missing: on rows, a weight W of shape (out, in) acts as x @ W.T.",
        ),
        Mistake(
            lambda x, W0, A, B, s: W0 @ x + s * (B @ (A @ x)),
            "that is the form on paper, for a column: here x has a row for each token, and W0 acts as x @ W0.T.",
        ),
        Mistake(
            lambda x, W0, A, B, s: x @ W0 + s * (x @ A.T @ B.T),
            "W0 needs its transpose, as in nn.Linear: x @ W0.T.",
        ),
        Mistake(
            lambda x, W0, A, B, s: x @ W0.T + s * s * (x @ A.T @ B.T),
            "the scale is there twice: it multiplies the update once.",
        ),
        Mistake(
            lambda x, W0, A, B, s: x @ W0.T + x @ A.T @ B.T / s,
            "the scale multiplies the update; you divided by it.",
        ),
        Mistake(
            lambda x, W0, A, B, s: x @ W0.T - s * (x @ A.T @ B.T),
            "the update is added, and you subtracted it.",
        ),
        Mistake(
            lambda x, W0, A, B, s: s * x @ W0.T + x @ A.T @ B.T,
            "you scaled the frozen weight's part, and s belongs to the other one.",
        ),
        Mistake(
            lambda x, W0, A, B, s: torch.mm(x, W0.T) + s * torch.mm(torch.mm(x, A.T), B.T),
            "torch.mm takes matrices alone; @ and F.linear take a batch of them, (batch, n, d_in), too.",
        ),
        Mistake(
            lambda x, W0, A, B, s: torch.einsum("ni,oi->no", x, W0) + s * torch.einsum("ni,ri,or->no", x, A, B),
            "einsum's letters stand for two dimensions of x; an ellipsis, as in ...i, takes those in front as well.",
        ),
        Mistake(lambda x, W0, A, B, s: x @ (W0 + s * B @ A).T, expect="you make B @ A"),
        Mistake(_no_gradients, expect="no gradient passes through your result"),
    ],
    hints=[
        "A linear layer with weight W of shape (out, in) computes x @ W.T.",
        "The side path is two linear layers, one after the other: A takes d_in to r, B takes r to d_out.",
    ],
    why="The brackets decide what is made: (x @ A.T) has r numbers for each row, and no matrix of W0's size appears.",
)


def _backward(n: int, d_in: int, d_out: int, r: int, s: float):
    def make() -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
        x, _, A, B, _ = _layer(n, d_in, d_out, r, s)()
        return x, torch.randn(n, d_out, dtype=torch.float64), A, B, s

    return make


def _drawn_backward(draw: random.Random) -> tuple[Any, ...]:
    n, d_in, d_out, r = draw.sample(range(1, 10), 4)
    dtype = draw.choice((torch.float32, torch.float64))
    shapes = (n, d_in), (n, d_out), (r, d_in), (d_out, r)
    return *(torch.randn(shape, dtype=dtype) for shape in shapes), draw.choice(_SCALES)


def _without_scale(x: Tensor, g: Tensor, A: Tensor, B: Tensor, s: float) -> tuple[Tensor, Tensor]:
    return lesson.lora_gradients(x, g, A, B, 1.0)


def _scale_squared(x: Tensor, g: Tensor, A: Tensor, B: Tensor, s: float) -> tuple[Tensor, Tensor]:
    return lesson.lora_gradients(x, g, A, B, s * s)


def _order_swapped(x: Tensor, g: Tensor, A: Tensor, B: Tensor, s: float) -> tuple[Tensor, Tensor]:
    dA, dB = lesson.lora_gradients(x, g, A, B, s)
    return dB, dA


def _transposed(x: Tensor, g: Tensor, A: Tensor, B: Tensor, s: float) -> tuple[Tensor, Tensor]:
    dA, dB = lesson.lora_gradients(x, g, A, B, s)
    return dA.T, dB.T


def _averaged(x: Tensor, g: Tensor, A: Tensor, B: Tensor, s: float) -> tuple[Tensor, Tensor]:
    return lesson.lora_gradients(x, g, A, B, s / len(x))


def _a_without_b(x: Tensor, g: Tensor, A: Tensor, B: Tensor, s: float) -> tuple[Tensor, Tensor]:
    return s * g.T @ x, s * g.T @ (x @ A.T)


def _b_without_a(x: Tensor, g: Tensor, A: Tensor, B: Tensor, s: float) -> tuple[Tensor, Tensor]:
    return s * (g @ B).T @ x, s * g.T @ x


def _scale_on_one(x: Tensor, g: Tensor, A: Tensor, B: Tensor, s: float) -> tuple[Tensor, Tensor]:
    return lesson.lora_gradients(x, g, A, B, 1.0)[0], lesson.lora_gradients(x, g, A, B, s)[1]


def _scale_on_other(x: Tensor, g: Tensor, A: Tensor, B: Tensor, s: float) -> tuple[Tensor, Tensor]:
    return lesson.lora_gradients(x, g, A, B, s)[0], lesson.lora_gradients(x, g, A, B, 1.0)[1]


def _mean_gradient(x: Tensor, g: Tensor, A: Tensor, B: Tensor, s: float) -> tuple[Tensor, Tensor]:
    return lesson.lora_gradients(x.mean(0, keepdim=True), g.sum(0, keepdim=True), A, B, s)


def _by_autograd(x: Tensor, g: Tensor, A: Tensor, B: Tensor, s: float) -> tuple[Tensor, ...]:
    A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
    return torch.autograd.grad(s * (x @ A.T) @ B.T, (A, B), g)


def _token_by_token(x: Tensor, g: Tensor, A: Tensor, B: Tensor, s: float) -> tuple[Tensor, Tensor]:
    dA, dB = torch.zeros_like(A), torch.zeros_like(B)
    for token, error in zip(x, g, strict=True):
        dA += s * torch.outer(B.T @ error, token)
        dB += s * torch.outer(error, A @ token)
    return dA, dB


exercise(
    "lora_gradients",
    reference=lesson.lora_gradients,
    cases=[_backward(*sizes) for sizes in _SHAPES],
    drawn=_drawn_backward,
    test=(
        without_autograd(_backward(4, 6, 5, 3, 1.5)),
        without_loop(_backward(4, 6, 5, 3, 1.5), _backward(16, 7, 8, 5, 1.5), "tokens or ranks"),
    ),
    mistakes=[
        Mistake(
            lambda x, g, A, B, s: (s * (B.T @ g) @ x.T, s * g @ (A @ x).T),
            "those are one token's formulas, for columns: here x and g have a row for each token: g @ B, x @ A.T.",
        ),
        Mistake(
            _without_scale,
            "the scale s is missing: h depends on A and B through s * B @ A, so both gradients carry it.",
        ),
        Mistake(_scale_on_one, "dB is right; dA lacks the scale s."),
        Mistake(_scale_on_other, "dA is right; dB lacks the scale s."),
        Mistake(
            _scale_squared,
            "s appears twice: once is enough, since g is the gradient at the layer's output already.",
        ),
        Mistake(
            lambda *given: (lesson.lora_gradients(*given)[0], lesson.lora_gradients(*given)[1] * given[-1]),
            "dA is right; dB carries the scale twice.",
        ),
        Mistake(
            lambda *given: (lesson.lora_gradients(*given)[0] * given[-1], lesson.lora_gradients(*given)[1]),
            "dB is right; dA carries the scale twice.",
        ),
        Mistake(_order_swapped, "both are right, in the wrong order: return dA first, then dB."),
        Mistake(_transposed, "both are transposed: dA has A's shape (r, d_in), dB has B's shape (d_out, r)."),
        Mistake(
            _averaged,
            "you averaged over the rows. Sum them: if the loss is a mean, g holds that factor already.",
        ),
        Mistake(_a_without_b, "dA lacks B: the error g reaches A only through B."),
        Mistake(_b_without_a, "dB lacks A: what B is multiplied with is A x, and not x."),
        Mistake(
            lambda x, g, A, B, s: tuple(-d for d in lesson.lora_gradients(x, g, A, B, s)),
            "both have the wrong sign: a gradient points uphill, and the minus is the optimizer's.",
        ),
        Mistake(
            _mean_gradient,
            "you took the average of the rows first: each token's error belongs to that token's own input.",
        ),
        Mistake(
            lambda x, g, A, B, s: tuple(d.float() for d in lesson.lora_gradients(x, g, A, B, s)),
            "the gradients are rounded to float32: keep the dtype of the inputs, which may be float64.",
        ),
        Mistake(_by_autograd, expect="you let autograd do it"),
        Mistake(_token_by_token, expect="one by one"),
    ],
    hints=[
        "Let the shapes lead: dB has B's shape (d_out, r). g is (n, d_out), x @ A.T is (n, r).",
        "For one token dB = s g (A x)^T. Over a batch it is a product that sums over n.",
        "For dA, send g back through B first: g @ B is (n, r). Then do with x what you did for dB.",
    ],
    why="Each gradient is an outer product of what arrives on the two sides of its matrix, and the inner side n of the "
    "product sums over the tokens.",
    points=3,
)

# --------------------------------------------------------------------------------------- what the scale does


def _drawn_rate(draw: random.Random) -> tuple[float, float, float, str]:
    s_old, s_new = draw.sample((0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 8.0, 11.3), 2)
    return draw.choice((1e-4, 2e-4, 5e-3, 0.02, 0.3)), s_old, s_new, draw.choice(("adam", "sgd"))


exercise(
    "equivalent_b_rate",
    reference=lesson.equivalent_b_rate,
    cases=[
        (1e-3, 2.0, 8.0, "adam"),
        (1e-3, 2.0, 8.0, "sgd"),
        (0.1, 4.0, 1.0, "adam"),
        (0.1, 4.0, 1.0, "sgd"),
    ],
    drawn=_drawn_rate,
    mistakes=[
        Mistake(
            lambda lr, s_old, s_new, optimizer: lr * s_new / s_old,
            'right for Adam, and yours does the same for "sgd": there the gradient of B carries the scale a second '
            "time.",
        ),
        Mistake(
            lambda lr, s_old, s_new, optimizer: lr * (s_new / s_old) ** 2,
            'right for SGD, and yours does the same for "adam": is the name in small letters? Adam divides the '
            "gradient's size away, so one of the two factors goes.",
        ),
        Mistake(
            lambda lr, s_old, s_new, optimizer: lesson.equivalent_b_rate(lr, s_new, s_old, optimizer),
            "upside down: a larger new scale takes larger steps, so B's rate has to grow with it.",
        ),
        Mistake(
            lambda lr, s_old, s_new, optimizer: lr * (s_new if optimizer == "adam" else s_new**2),
            "that would be right if the old scale were 1: what counts is the ratio of the two.",
        ),
        Mistake(
            lambda lr, s_old, s_new, optimizer: lr * (s_new / s_old) ** (2 if optimizer == "adam" else 1),
            "the two optimizers are swapped: think of which of them sees the gradient's size.",
        ),
        Mistake(
            lambda lr, s_old, s_new, optimizer: (s_new / s_old) ** (1 if optimizer == "adam" else 2),
            "that is the factor; multiply the old learning rate by it.",
        ),
        Mistake(
            lambda lr, s_old, s_new, optimizer: lr * (s_new / s_old) ** (1 if optimizer == "adam" else 0.5),
            "Adam is right; under SGD the factor enters twice, as a square, not as a root.",
        ),
        Mistake(
            lambda lr, s_old, s_new, optimizer: lr * (1 if optimizer == "adam" else s_new / s_old),
            "one factor too few for both: s B moves with s, and SGD's step in B with s once more.",
        ),
        Mistake(
            lambda lr, s_old, s_new, optimizer: lr * (2 if optimizer == "sgd" else 1) * s_new / s_old,
            "under SGD the ratio enters twice, which is its square, not its double.",
        ),
        Mistake(
            lambda lr, s_old, s_new, optimizer: lr + (s_new - s_old),
            "scale and learning rate multiply each other, so what counts is the ratio of the scales.",
        ),
        Mistake(
            lambda lr, s_old, s_new, optimizer: lr,
            "then nothing would have changed, but a larger scale does take larger steps.",
        ),
    ],
    hints=[
        "Call the ratio c = s_new / s_old.",
        "B's gradient carries a factor c; so does a step of B, seen in s B A. Which does Adam keep?",
    ],
    why="The model sees s B A alone. The scale enters when B's gradient is made and when B is used; Adam divides the "
    "first away.",
)
