"""Chapter 16's exercises: the variants of LoRA."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from utils.course.checks.behaviour import same_factors, same_gradients
from utils.course.checks.references import ch16 as lesson
from utils.course.checks.registry import Mistake, Wrong, exercise

# ------------------------------------------------------------------------------------------ variants

exercise(
    "same_as_rslora",
    reference=lesson.same_as_rslora,
    cases=[(16, 4), (16, 8), (8, 64), (32, 1)],
    drawn=lambda rng: (rng.choice([1, 8, 16, 32, 0.5, 12.5]), rng.choice([2, 3, 4, 8, 12, 16, 32, 64, 256])),
    mistakes=[
        Mistake(
            lambda lora_alpha, r: lora_alpha * math.isqrt(r),
            "the root was rounded down: lora_alpha need not be a whole number.",
        ),
        Mistake(
            lambda lora_alpha, r: math.sqrt(lora_alpha * r),
            "the root is taken of both: lora_alpha stands outside of it.",
        ),
        Mistake(
            lambda lora_alpha, r: round(lora_alpha * math.sqrt(r)),
            "it was rounded to a whole number: PEFT takes any number for lora_alpha, and rounding changes the scaling.",
        ),
        Mistake(
            lambda lora_alpha, r: lora_alpha / math.sqrt(r),
            "that is rsLoRA's scaling itself. Plain LoRA divides your number by r, so it has to be r times as much.",
        ),
        Mistake(
            lambda lora_alpha, r: lora_alpha * r,
            "divided by r that leaves lora_alpha, and rsLoRA has lora_alpha / sqrt(r).",
        ),
        Mistake(
            lambda lora_alpha, r: lora_alpha / r,
            "that is plain LoRA's scaling with the old lora_alpha; a new lora_alpha is wanted.",
        ),
        Mistake(
            lambda lora_alpha, r: math.sqrt(r),
            "that is by how much lora_alpha has to grow. Multiply lora_alpha by it.",
        ),
        Mistake(
            lambda lora_alpha, r: math.sqrt(lora_alpha) * r,
            "the root is at the wrong place: rsLoRA takes the root of r, and lora_alpha stays as it is.",
        ),
    ],
    hints=[
        "Call it x. Plain LoRA scales by x / r, rsLoRA by lora_alpha / sqrt(r): set them equal.",
        "r / sqrt(r) = sqrt(r).",
    ],
    why="x / r = lora_alpha / sqrt(r) gives x = lora_alpha * sqrt(r): at one rank the two differ in a number, and only "
    "as r changes do they part.",
)


def _drawn_dora(rng: random.Random) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    d_out, d_in, r = rng.sample(range(1, 9), 3)
    *tensors, s = _dora_case(d_out, d_in, r, rng.choice([0.25, 1.5, 2.0, 4.0]))()
    dtype = rng.choice([torch.float32, torch.float64])
    return *(tensor.to(dtype) for tensor in tensors), s  # pyright: ignore[reportReturnType]


def _dora_case(d_out: int, d_in: int, r: int, s: float):
    return lambda: (
        torch.randn(d_out, d_in), torch.randn(r, d_in), torch.randn(d_out, r), torch.rand(d_out) + 0.5, s
    )  # fmt: skip


def _norm_as_a_constant(W: Tensor, A: Tensor, B: Tensor, m: Tensor, s: float) -> Tensor:
    """The right weight with the paper's (and PEFT's) gradient, which leaves out that of the norm."""
    turned = W + s * B @ A
    return m[:, None] * turned / torch.linalg.norm(turned, dim=1, keepdim=True).detach()


def _dora_gradients(answer: Any) -> None:
    """The formula's gradients; the paper's, which treats the norm as a constant, are told by name."""
    made, names = _dora_case(5, 7, 2, 2.0), ("W", "A", "B", "m", "s")
    try:
        same_gradients(lesson.dora_weight, made, names)(answer)
    except Wrong as wrong:
        try:
            same_gradients(_norm_as_a_constant, made, names)(answer)
        except Wrong:
            raise wrong from None
        raise Wrong(
            "your result is right, and its gradient is the one of the paper and PEFT, who detach the norm. Here the "
            "whole formula is asked for: let gradients pass through the norm too."
        ) from None


exercise(
    "dora_weight",
    reference=lesson.dora_weight,
    cases=[_dora_case(5, 7, 2, 2.0), _dora_case(6, 4, 1, 0.5), _dora_case(4, 4, 2, 2.0)],
    drawn=_drawn_dora,
    new_result=True,
    test=_dora_gradients,
    mistakes=[
        Mistake(
            lambda W, A, B, m, s: lesson.dora_weight(W, A, B, m, s).detach(),
            expect="no gradient passes through your result",
        ),
        Mistake(_norm_as_a_constant, expect="who detach the norm"),
        Mistake(
            lambda W, A, B, m, s: m[:, None] / torch.linalg.norm(W + s * B @ A, dim=1, keepdim=True) * W + s * B @ A,
            "m over the length multiplies W alone: the update belongs in the bracket with it, since both are scaled.",
        ),
        Mistake(
            lambda W, A, B, m, s: lesson.dora_weight(W.add_(s * B @ A), 0 * A, B, m, s),
            "your function changes its input: W is frozen, and adding the update in place spoils it.",
        ),
        Mistake(
            lambda W, A, B, m, s: m[:, None] * (W + s * B @ A) / (W + s * B @ A).abs().sum(1, keepdim=True),
            "the length of a row is the root of its summed squares; you added absolute values.",
        ),
        Mistake(
            lambda W, A, B, m, s: m[:, None] * (W + s * B @ A),
            "the rows keep their lengths and are scaled on top: divide each by its length first.",
        ),
        Mistake(
            lambda W, A, B, m, s: lesson.dora_weight(W, A, B, m, 1.0),
            "the scaling s has no effect: the update is s * B @ A.",
        ),
        Mistake(
            lambda W, A, B, m, s: m[:, None] * (W + s * B @ A) / torch.linalg.norm(W, dim=1, keepdim=True),
            "you divide by the lengths of W's rows. Divide by those of the changed weight.",
        ),
        Mistake(
            lambda W, A, B, m, s: m[:, None] * W / torch.linalg.norm(W, dim=1, keepdim=True) + s * B @ A,
            "the update is added behind the division, so it changes lengths too. Add it to W, then divide.",
        ),
        Mistake(
            lambda W, A, B, m, s: m[:, None] * (W + s * B @ A) / torch.linalg.norm(W + s * B @ A, dim=0),
            "these are the lengths of the columns. One row makes one output: norm(..., dim=1, keepdim=True).",
        ),
        Mistake(
            lambda W, A, B, m, s: m[:, None] * (W + s * B @ A) / torch.linalg.norm(W + s * B @ A, dim=1),
            "without keepdim=True the lengths are (out,), and PyTorch lays them along the columns. keepdim=True makes "
            "them (out, 1).",
        ),
        Mistake(
            lambda W, A, B, m, s: m * (W + s * B @ A) / torch.linalg.norm(W + s * B @ A, dim=1, keepdim=True),
            "m is (out,), and PyTorch lays it along the columns. It belongs to the rows: m[:, None] is (out, 1).",
        ),
        Mistake(
            lambda W, A, B, m, s: m * (W + s * B @ A) / torch.linalg.norm(W + s * B @ A, dim=1),
            "m and the lengths are (out,), and PyTorch lays both along the columns. They belong to the rows: m[:, "
            "None], and keepdim=True in the norm.",
        ),
        Mistake(
            lambda W, A, B, m, s: (W + s * B @ A) / torch.linalg.norm(W + s * B @ A, dim=1, keepdim=True),
            "every row has length 1, and the learned lengths have no effect: multiply row i by m[i].",
        ),
        Mistake(
            lambda W, A, B, m, s: m[:, None] * (W + s * B @ A) / torch.linalg.norm(W + s * B @ A),
            "you divide all rows by one number, the norm of the whole matrix. Each row has its own: dim=1.",
        ),
        Mistake(
            lambda W, A, B, m, s: m[:, None] * (W + s * B @ A) / (W + s * B @ A).square().sum(1, keepdim=True),
            "you divide by the squared lengths: the root is missing.",
        ),
    ],
    hints=[
        "Three steps: the changed weight W + s * B @ A, the length of each of its rows, and m over that length.",
        "torch.linalg.norm(V, dim=1, keepdim=True) is (out, 1), and m[:, None] too.",
    ],
    why="Dividing by a row's length leaves its direction, and m gives it a length of its own.",
    points=2,
)


def _falls(between, *, before: bool = True):
    """A budget that is `first` up to `begin` (with before=False, not even there), `last` from `end` on, and between
    them `between(first - last, last, share)`, where the share of the way that is done goes from 0 to 1.
    """

    def budget(step: int, first: int, last: int, begin: int, end: int):
        if step >= end:
            return last
        if before and step <= begin:
            return first
        return between(first - last, last, (step - begin) / (end - begin))

    return budget


def _drawn_budget(rng: random.Random) -> tuple[int, int, int, int, int]:
    while True:
        last, begin = rng.randint(1, 60), rng.randint(0, 40)
        first, end = last + rng.randint(0, 90), begin + rng.randint(2, 60)
        step = rng.randint(0, end + 20)
        exact = (first - last) * (1 - Fraction(step - begin, end - begin)) ** 3
        # Where the exact budget is whole, rounding down hangs on the last bit of a float.
        if not begin < step < end or Fraction(1, 50) < exact % 1 < Fraction(49, 50):
            return step, first, last, begin, end


exercise(
    "cubic_budget",
    reference=lesson.cubic_budget,
    cases=[
        (0, 100, 20, 10, 50),
        (10, 100, 20, 10, 50),
        (20, 100, 20, 10, 50),
        (30, 96, 32, 10, 50),
        (49, 100, 20, 10, 50),
        (50, 100, 20, 10, 50),
        (80, 100, 20, 10, 50),
    ],  # fmt: skip
    drawn=_drawn_budget,
    mistakes=[
        Mistake(
            lambda step, first, last, begin, end: int(
                last + (first - last) * (1 - (step - begin) / (end - begin)) ** 3
            ),
            "the formula holds between `begin` and `end`: before it the budget is first, from `end` on it is last.",
        ),
        Mistake(
            _falls(lambda fall, last, done: int(fall * (1 - done) + last)),
            "the budget falls along a line. Raise what is left of the way to the third power.",
        ),
        Mistake(
            _falls(lambda fall, last, done: int(fall * done**3 + last)),
            "after `begin` the budget jumps down and then grows: take the share of the way that is left, 1 - ...",
        ),
        Mistake(
            _falls(lambda fall, last, done: int(fall * (1 - done**3) + last)),
            "this falls slowly at first, then fast. The third power belongs to the share that is left, not to the one "
            "that is done.",
        ),
        Mistake(
            _falls(lambda fall, last, done: int((fall + last) * (1 - done) ** 3)),
            "this falls towards 0. It should fall from first to last: scale their difference, then add last.",
        ),
        Mistake(
            _falls(lambda fall, last, done: int(fall * (1 - done) ** 3 + last), before=False),
            "before `begin` nothing is pruned yet, and your budget is larger than there are triplets.",
        ),
        Mistake(
            lambda step, first, last, begin, end: (
                first if step <= begin else int((first - last) * (1 - (step - begin) / (end - begin)) ** 3 + last)
            ),
            "behind `end` your budget goes on falling, even below zero. From `end` on it is last.",
        ),
        Mistake(
            lambda step, first, last, begin, end: _falls(lambda fall, low, _: int(fall * (1 - step / end) ** 3 + low))(
                step, first, last, begin, end
            ),
            "the way begins at `begin`, not at step 0: its share that is done is (step - begin) / (end - begin).",
        ),
        Mistake(
            _falls(lambda fall, last, done: int(fall * (1 - done) ** 2 + last)),
            "that is the second power of what is left; the third is asked for.",
        ),
        Mistake(
            _falls(lambda fall, last, done: fall * (1 - done) ** 3 + last),
            "nobody can keep a part of a triplet: round down with int(...).",
        ),
        Mistake(
            _falls(lambda fall, last, done: math.ceil(fall * (1 - done) ** 3 + last)),
            "nearly: this rounds up. Round down, with int(...).",
        ),
        Mistake(
            _falls(lambda fall, last, done: round(fall * (1 - done) ** 3 + last)),
            "nearly: this rounds to the nearest whole number. Round down, with int(...).",
        ),
    ],
    hints=[
        "Three cases: up to begin, from end on, and between.",
        "Between: left = 1 - (step - begin) / (end - begin) goes from 1 to 0.",
        "int((first - last) * left**3 + last)",
    ],
    why="The third power of what is left prunes fast while there is much to prune, and slowly towards the end.",
    points=2,
)


def _pissa_case(d_out: int, d_in: int, r: int):
    return lambda: (torch.randn(r, d_in), torch.randn(d_out, r), torch.randn(r, d_in), torch.randn(d_out, r))


def _drawn_pissa(rng: random.Random) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_out, d_in = rng.sample(range(2, 9), 2)
    return _pissa_case(d_out, d_in, rng.randint(1, 3))()


exercise(
    "pissa_difference",
    reference=lesson.pissa_difference,
    cases=[_pissa_case(5, 7, 2), _pissa_case(4, 3, 1)],
    drawn=_drawn_pissa,
    compare=same_factors,
    mistakes=[
        Mistake(
            lambda A, B, A0, B0: (torch.cat([-A, A0]), torch.cat([B, B0], dim=1)),
            "the sign is the wrong way round: that is B0 A0 - B A.",
        ),
        Mistake(
            lambda A, B, A0, B0: (torch.cat([A, A]), torch.cat([B, -B0], dim=1)),
            "A stands there twice: the second half of A belongs to the old factors, A0.",
        ),
        Mistake(
            lambda A, B, A0, B0: (torch.cat([A, A0]), torch.cat([B, B0], dim=1)),
            "this is the sum B A + B0 A0. Give one of the old factors a minus sign, and one alone: two make a plus.",
        ),
        Mistake(
            lambda A, B, A0, B0: (A - A0, B - B0),
            "(B - B0)(A - A0) has the cross terms B A0 and B0 A in it. Put the factors beside each other instead.",
        ),
        Mistake(
            lambda A, B, A0, B0: (torch.cat([-A0, A]), torch.cat([B, B0], dim=1)),
            "A stands below, but B stands first: B meets A0 and B0 meets A. Keep the same order in both.",
        ),
        Mistake(
            lambda A, B, A0, B0: B @ A - B0 @ A0,
            "that is the product itself, a full matrix. An adapter stores two factors: return the pair (A, B).",
        ),
        Mistake(
            lambda A, B, A0, B0: (torch.cat([B, B0], dim=1), torch.cat([A, -A0])),
            "the right two factors, in the wrong order: return A first, then B.",
        ),
        Mistake(
            lambda A, B, A0, B0: (torch.cat([A, -A0], dim=1), torch.cat([B, B0])),
            "you joined along the wrong sides, and the product has twice the rows and columns. A grows by rows (dim=0) "
            "and B by columns (dim=1): what grows is the rank.",
        ),
    ],
    hints=[
        "Chapter 11's cat: rows of A below each other, columns of B beside each other, and the product is the sum.",
        "B A - B0 A0 = B A + B0 (-A0).",
    ],
    why="Side by side each old factor meets its own partner only, and the minus makes their product a subtraction.",
    points=2,
)
