"""Chapter 2's exercises: rank, energy, parameters, forward, gradients, and the scale and the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from utils.course.checks.references import ch02 as lesson
from utils.course.checks.registry import Mistake, exercise

# --------------------------------------------------------------------------------- best rank-r approximation


def _matrix(d_out: int, d_in: int, r: int):
    return lambda: (torch.randn(d_out, d_in, dtype=torch.float64), r)


def _svd(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.linalg.svd(W, full_matrices=False)


def _no_singular_values(W: Tensor, r: int) -> Tensor:
    U, _, Vh = _svd(W)
    return U[:, :r] @ Vh[:r]


def _no_vh(W: Tensor, r: int) -> Tensor:
    U, S, _ = _svd(W)
    return U[:, :r] * S[:r]


def _vh_taken_for_v(W: Tensor, r: int) -> Tensor:
    U, S, Vh = torch.linalg.svd(W)
    return U[:, :r] * S[:r] @ Vh[:, :r].T


def _vh_taken_for_v_reduced(W: Tensor, r: int) -> Tensor:
    U, S, Vh = _svd(W)
    return U[:, :r] * S[:r] @ Vh[:, :r].T


def _smallest(W: Tensor, r: int) -> Tensor:
    U, S, Vh = _svd(W)
    return U[:, -r:] * S[-r:] @ Vh[-r:]


def _only_term_r(W: Tensor, r: int) -> Tensor:
    U, S, Vh = _svd(W)
    return S[r - 1] * torch.outer(U[:, r - 1], Vh[r - 1])


exercise(
    "best_rank_r",
    reference=lesson.best_rank_r,
    cases=[_matrix(5, 7, 2), _matrix(7, 5, 3), _matrix(6, 6, 2)],
    mistakes=[
        Mistake(
            _no_singular_values,
            "the directions are right, but each needs its strength: the singular values S are missing.",
        ),
        Mistake(
            _no_vh,
            "that is U S, in coordinates of its own: the last factor, the first r rows of Vh, is missing.",
        ),
        Mistake(
            _vh_taken_for_v,
            "the third result of svd is Vh, V transposed already: keep its first r rows, Vh[:r].",
        ),
        Mistake(
            _vh_taken_for_v_reduced,
            "Vh[:, :r].T is made as if Vh were V. It is V transposed already: Vh[:r] is what you want.",
        ),
        Mistake(_smallest, "you kept the r SMALLEST singular values; torch gives the largest first."),
        Mistake(_only_term_r, "that is the r-th outer product alone: the approximation is the sum of the first r."),
    ],
    hints=[
        "U, S, Vh = torch.linalg.svd(W, full_matrices=False), and W is U @ torch.diag(S) @ Vh.",
        "Keep r columns of U, r numbers of S, and r rows of Vh. What are the three slices?",
        "U[:, :r] * S[:r] multiplies each column by its singular value. One matrix product is left.",
    ],
    points=2,
)

# ------------------------------------------------------------------------------------------- energy captured


def _values(W: Tensor) -> Tensor:
    return torch.linalg.svdvals(W)


def _same_number(expected: Any, got: Any) -> bool:
    """A number, or a tensor that holds one: either will do."""
    return math.isclose(float(expected), float(got), rel_tol=1e-4, abs_tol=1e-7)


exercise(
    "energy_captured",
    reference=lesson.energy_captured,
    cases=[_matrix(5, 7, 2), _matrix(7, 5, 4), _matrix(6, 6, 1)],
    compare=_same_number,
    mistakes=[
        Mistake(
            lambda W, r: _values(W)[:r].sum() / _values(W).sum(),
            "you added the singular values themselves; energy adds their squares.",
        ),
        Mistake(
            lambda W, r: (_values(W)[:r] ** 2).sum(),
            "that is the energy of the first r in absolute terms; divide by the energy of all of them.",
        ),
        Mistake(
            lambda W, r: (_values(W)[r:] ** 2).sum() / (_values(W) ** 2).sum(),
            "that is the share that is LOST, the tail; the question is about the first r.",
        ),
        Mistake(
            lambda W, r: _values(W)[:r].norm() / _values(W).norm(),
            "that is a ratio of norms, which is the square root of the share of energy.",
        ),
        Mistake(
            lambda W, r: r / min(W.shape),
            "that counts directions as if all were equally strong: weigh them by S squared.",
        ),
    ],
    hints=[
        "torch.linalg.svdvals(W) gives the singular values, the largest first.",
        "Square them. Then: the sum of the first r over the sum of all.",
    ],
)

# ------------------------------------------------------------------------------------------- break-even rank

exercise(
    "break_even_rank",
    reference=lesson.break_even_rank,
    cases=[(4096, 4096), (4096, 1024), (4096, 11008), (192, 512), (10, 15)],
    mistakes=[
        Mistake(
            lambda d_in, d_out: d_in * d_out // (d_in + d_out),
            "almost: where the division leaves no remainder, that rank costs as much as the weight.",
        ),
        Mistake(
            lambda d_in, d_out: d_in * d_out / (d_in + d_out),
            "that is where the two counts are equal; the answer is the largest whole number below it.",
        ),
        Mistake(
            lambda d_in, d_out: math.ceil(d_in * d_out / (d_in + d_out)),
            "you rounded up, to a rank at which LoRA is no longer the smaller one.",
        ),
        Mistake(
            lambda d_in, d_out: min(d_in, d_out),
            "that is the largest rank the matrix can have; A and B outgrow it long before.",
        ),
        Mistake(
            lambda d_in, d_out: min(d_in, d_out) // 2,
            "half the side is where a square breaks even; a rectangle's two sides enter differently.",
        ),
    ],
    hints=[
        "Write down the two counts: r * (d_in + d_out) and d_in * d_out. Which r makes them equal?",
        "You want the largest r with r * (d_in + d_out) < d_in * d_out. Mind the case of equality.",
        "For whole numbers, r * b < a means r <= (a - 1) // b.",
    ],
)

# -------------------------------------------------------------------------------------- forward and backward


def _layer(n: int, d_in: int, d_out: int, r: int, s: float):
    def make() -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
        draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
        return draw(n, d_in), draw(d_out, d_in), draw(r, d_in), draw(d_out, r), s

    return make


# The last is square all over, so that a product in the wrong order gives wrong numbers and no error.
_SHAPES = ((3, 5, 4, 2, 2.0), (2, 4, 6, 3, 0.5), (3, 3, 3, 3, 4.0))

exercise(
    "lora_forward",
    reference=lesson.lora_forward,
    cases=[_layer(*sizes) for sizes in _SHAPES],
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
            lambda x, W0, A, B, s: x @ W0 + s * (x @ A.T @ B.T),
            "W0 needs its transpose, as in nn.Linear: x @ W0.T.",
        ),
    ],
    hints=[
        "A linear layer with weight W of shape (out, in) computes x @ W.T.",
        "The side path is two linear layers, one after the other: A takes d_in to r, B takes r to d_out.",
    ],
)


def _backward(n: int, d_in: int, d_out: int, r: int, s: float):
    def make() -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
        x, _, A, B, _ = _layer(n, d_in, d_out, r, s)()
        return x, torch.randn(n, d_out, dtype=torch.float64), A, B, s

    return make


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


exercise(
    "lora_gradients",
    reference=lesson.lora_gradients,
    cases=[_backward(*sizes) for sizes in _SHAPES],
    mistakes=[
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
        Mistake(_order_swapped, "both are right, in the wrong order: return dA first, then dB."),
        Mistake(_transposed, "both are transposed: dA has A's shape (r, d_in), dB has B's shape (d_out, r)."),
        Mistake(
            _averaged,
            "you averaged over the rows. Sum them: if the loss is a mean, g holds that factor already.",
        ),
        Mistake(_a_without_b, "dA lacks B: the error g reaches A only through B."),
        Mistake(_b_without_a, "dB lacks A: what B is multiplied with is A x, and not x."),
    ],
    hints=[
        "Let the shapes lead: dB has B's shape (d_out, r). g is (n, d_out), x @ A.T is (n, r).",
        "For one token dB = s g (A x)^T. Over a batch it is a product that sums over n.",
        "For dA, send g back through B first: g @ B is (n, r). Then do with x what you did for dB.",
    ],
    points=3,
)

# --------------------------------------------------------------------------------------- what the scale does


exercise(
    "equivalent_b_rate",
    reference=lesson.equivalent_b_rate,
    cases=[
        (1e-3, 2.0, 8.0, "adam"),
        (1e-3, 2.0, 8.0, "sgd"),
        (0.1, 4.0, 1.0, "adam"),
        (0.1, 4.0, 1.0, "sgd"),
    ],
    mistakes=[
        Mistake(
            lambda lr, s_old, s_new, optimizer: lr * s_new / s_old,
            "right for Adam. Under SGD the gradient of B carries the scale a second time.",
        ),
        Mistake(
            lambda lr, s_old, s_new, optimizer: lr * (s_new / s_old) ** 2,
            "right for SGD. Adam divides the gradient's size away, so one of the two factors goes.",
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
            lambda lr, s_old, s_new, optimizer: lr,
            "then nothing would have changed, but a larger scale does take larger steps.",
        ),
    ],
    hints=[
        "Call the ratio c = s_new / s_old.",
        "B's gradient carries a factor c; so does a step of B, seen in s B A. Which does Adam keep?",
    ],
)
