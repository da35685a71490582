"""Chapter 2's exercises: the best approximation of a rank, its energy, and the rank at which nothing is saved."""

from __future__ import annotations

import math
import numbers
import random
from typing import Any

import torch
from torch import Tensor

from utils.course.checks.references import ch02 as lesson
from utils.course.checks.registry import Mistake, exercise

# --------------------------------------------------------------------------------- best rank-r approximation


def _matrix(d_out: int, d_in: int, r: int):
    return lambda: (torch.randn(d_out, d_in, dtype=torch.float64), r)


def _drawn_matrix(draw: random.Random) -> tuple[Tensor, int]:
    """Wide, high or square, in either precision, with singular values that are well apart, of which some are zero."""
    d_out, d_in = draw.choice((draw.sample(range(1, 12), 2), [draw.randint(1, 8)] * 2))
    side = min(d_out, d_in)
    U, Vh = (torch.linalg.qr(torch.randn(size, side, dtype=torch.float64))[0] for size in (d_out, d_in))
    S = torch.arange(side, 0, -1, dtype=torch.float64) * draw.choice((0.1, 1.0, 30.0))
    S[side - draw.choice((0, 0, side // 3)) :] = 0
    return (U * S @ Vh.mT).to(draw.choice((torch.float32, torch.float64))), draw.randint(1, side)


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


def _root_of_values(W: Tensor, r: int) -> Tensor:
    U, S, Vh = _svd(W)
    return U[:, :r] * S[:r].sqrt() @ Vh[:r]


def _in_place(W: Tensor, r: int) -> Tensor:
    return W.copy_(lesson.best_rank_r(W, r))


def _cut_out(W: Tensor, r: int) -> Tensor:
    kept = torch.zeros_like(W)
    kept[:r, :r] = W[:r, :r]
    return kept


exercise(
    "best_rank_r",
    reference=lesson.best_rank_r,
    cases=[_matrix(6, 6, 2), _matrix(5, 7, 2), _matrix(7, 5, 3)],
    drawn=_drawn_matrix,
    new_result=True,
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
        Mistake(
            lambda W, r: lesson.best_rank_r(W, r + 1),
            "one term too many: the first r have the numbers 0 to r - 1, which is what [:r] takes.",
        ),
        Mistake(
            lambda W, r: lesson.best_rank_r(W, r - 1),
            "one term too few: a slice [:r] ends before r by itself.",
        ),
        Mistake(
            lambda W, r: (_svd(W)[0][:, :r] * _svd(W)[1][:r], _svd(W)[2][:r]),
            "those are the two factors: return their product, a matrix of W's shape.",
        ),
        Mistake(
            lambda W, r: _svd(W)[0][:, :r] * _svd(W)[1][:r] ** 2 @ _svd(W)[2][:r],
            "S isn't squared here: the squares belong to the energy, and W is U S Vh.",
        ),
        Mistake(
            lambda W, r: lesson.best_rank_r(W, r) * (W.norm() / lesson.best_rank_r(W, r).norm()),
            "scaled up to W's norm it is farther from W: what is dropped is missing, and the rest stays as it is.",
        ),
        Mistake(lambda W, r: W - lesson.best_rank_r(W, r), "that is the rest, W without its best approximation."),
        Mistake(
            _root_of_values,
            "the square roots of S belong into each of two factors, as in B and A; in one product S stands whole.",
        ),
        Mistake(
            _cut_out,
            "you kept the first rows and columns of W itself; the terms to keep are those of its decomposition.",
        ),
        Mistake(lambda W, r: lesson.best_rank_r(W, r).float().double(), "keep W's dtype, float32 or float64."),
        Mistake(_in_place, "your function changes its input: W is needed again for the next rank. Make a new matrix."),
    ],
    hints=[
        "U, S, Vh = torch.linalg.svd(W, full_matrices=False), and W is U @ torch.diag(S) @ Vh.",
        "Keep r columns of U, r numbers of S, and r rows of Vh. What are the three slices?",
        "U[:, :r] * S[:r] multiplies each column by its singular value. One matrix product is left.",
    ],
    why="The singular values come sorted and their directions are perpendicular, so what is dropped is as small as it "
    "can be: Eckart and Young's theorem.",
    points=2,
)

# ------------------------------------------------------------------------------------------- energy captured


def _values(W: Tensor) -> Tensor:
    return torch.linalg.svdvals(W)


def _same_share(expected: Any, got: Any) -> bool:
    """As near as float32's singular values allow."""
    is_number = isinstance(got, numbers.Real) and not isinstance(got, bool)
    return is_number and math.isclose(expected, got, rel_tol=1e-4, abs_tol=1e-6)


exercise(
    "energy_captured",
    reference=lesson.energy_captured,
    cases=[_matrix(5, 7, 2), _matrix(7, 5, 4), _matrix(6, 6, 1)],
    drawn=_drawn_matrix,
    compare=_same_share,
    mistakes=[
        Mistake(
            lambda W, r: (_values(W)[:r].sum() / _values(W).sum()).item(),
            "you added the singular values themselves; energy adds their squares.",
        ),
        Mistake(
            lambda W, r: (_values(W)[:r].sum() ** 2 / _values(W).sum() ** 2).item(),
            "you squared the sums; energy is the sum of the squares.",
        ),
        Mistake(
            lambda W, r: (_values(W)[:r] ** 2).sum().item(),
            "that is the energy of the first r in absolute terms; divide by the energy of all of them.",
        ),
        Mistake(
            lambda W, r: ((_values(W)[r:] ** 2).sum() / (_values(W) ** 2).sum()).item(),
            "that is the share that is LOST, the tail; the question is about the first r.",
        ),
        Mistake(
            lambda W, r: (_values(W)[:r].norm() / _values(W).norm()).item(),
            "that is a ratio of norms, which is the square root of the share of energy.",
        ),
        Mistake(
            lambda W, r: (_values(W)[r - 1] ** 2 / (_values(W) ** 2).sum()).item(),
            "that is the r-th value alone: add up the first r.",
        ),
        Mistake(
            lambda W, r: ((_values(W)[: r + 1] ** 2).sum() / (_values(W) ** 2).sum()).item(),
            "you took r + 1 values: [:r] takes the first r.",
        ),
        Mistake(
            lambda W, r: 100 * lesson.energy_captured(W, r),
            "that is in percent; the task wants a share between 0 and 1.",
        ),
        Mistake(
            lambda W, r: ((_values(W)[:r] ** 2).sum() / _values(W)[0] ** 2).item(),
            "divide by the energy of all singular values, not by that of the largest.",
        ),
        Mistake(
            lambda W, r: ((W[:, :r] ** 2).sum() / (W**2).sum()).item(),
            "those are the first r columns of W itself; the share is that of its singular values.",
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
    why="The energy of W is the sum of its squared entries, and rotating by U and Vh changes no lengths: so it is the "
    "sum of the squared singular values, too.",
)

# ------------------------------------------------------------------------------------------- break-even rank


def _drawn_sides(draw: random.Random) -> tuple[int, int]:
    """Any two sides, or two for which the counts are equal at a whole rank."""
    if draw.random() < 0.5:
        return draw.choice((1, draw.randint(2, 40))), draw.randint(1, 2000)
    p, q, m = draw.randint(1, 5), draw.randint(1, 5), draw.randint(1, 9)
    return m * p * (p + q), m * q * (p + q)


exercise(
    "break_even_rank",
    reference=lesson.break_even_rank,
    cases=[(4096, 4096), (4096, 1024), (4096, 11008), (192, 512), (10, 15)],
    drawn=_drawn_sides,
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
            "that is the first rank that saves nothing, the division rounded up; the last that saves is one lower.",
        ),
        Mistake(
            lambda d_in, d_out: d_in * d_out // (d_in + d_out) - 1,
            "one too few where the division leaves a remainder: there the whole part is small enough already.",
        ),
        Mistake(
            lambda d_in, d_out: round(d_in * d_out / (d_in + d_out)),
            "rounded to the nearest, it may be a rank at which A and B are the larger ones.",
        ),
        Mistake(
            lambda d_in, d_out: max(1, (d_in * d_out - 1) // (d_in + d_out)),
            "where even rank 1 takes as many numbers as the weight, the answer is 0.",
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
    why="Fewer means strictly fewer, so one is taken away before the division: it matters where there is no remainder.",
)
