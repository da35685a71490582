"""Chapter 14's exercises: the variants of LoRA, and what an update does."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.course.checks.behaviour import same_factors, same_gradients
from utils.course.checks.references import ch14 as lesson
from utils.course.checks.registry import Mistake, Wrong, exercise
from utils.evaluate import spectrum

# ------------------------------------------------------------------------------------------ variants (parts 1 and 2)

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


exercise(
    "dora_weight",
    reference=lesson.dora_weight,
    cases=[_dora_case(5, 7, 2, 2.0), _dora_case(6, 4, 1, 0.5), _dora_case(4, 4, 2, 2.0)],
    drawn=_drawn_dora,
    new_result=True,
    test=same_gradients(lesson.dora_weight, _dora_case(5, 7, 2, 2.0), ("W", "A", "B", "m", "s")),
    mistakes=[
        Mistake(
            lambda W, A, B, m, s: lesson.dora_weight(W, A, B, m, s).detach(),
            expect="no gradient passes through your result",
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
            "every row has length 1, and the learnt lengths have no effect: multiply row i by m[i].",
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

_NOT_FOR = {
    "the base alone does not fit on the card": "leaves the frozen base as large as it was, and it is the base that "
    "fills the card.",
    "ten thousand users, an adapter each, and little room to store them": "stores as much for each user as plain LoRA. "
    "(A smaller base wouldn't help either: it is there once.)",
    "lora_alpha was found at r=8, and now r=64 is to be tried": "doesn't change how the scaling depends on r, and so "
    "the old lora_alpha doesn't fit the new rank.",
    "which layers need rank is to be found out by training": "gives every layer the same rank. One variant begins with "
    "too much everywhere and prunes.",
    "a first run on a new task": "answers one particular weakness, and you don't know yet whether you have it. Begin "
    "with what every tool supports.",
}


def _right_choice(choose: dict) -> None:
    names = {name.lower(): name for name in lesson.choose.values()}
    for situation, right in lesson.choose.items():
        if choose.get(situation) is None:
            raise Wrong(f"no variant yet for '{situation}'.")
        said = choose[situation]
        if said not in names.values():
            known = ", ".join(sorted(names.values()))
            raise Wrong(f"'{situation}': {said!r} is none of the five names. They are spelt {known}.")
        if said != right:
            raise Wrong(f"'{situation}': {said} {_NOT_FOR[situation]}")


def _but(**changes: str | None) -> dict[str, str | None]:
    places: dict[str, str] = dict(zip(("card", "users", "rank", "layers", "first"), lesson.choose, strict=True))
    return lesson.choose | {places[word]: variant for word, variant in changes.items()}


exercise(
    "choose",
    reference=lesson.choose,
    compare=lambda expected, got: isinstance(got, dict),  # what is in it, _right_choice says more kindly
    test=_right_choice,
    mistakes=[
        Mistake(_but(card="VeRA", users="QLoRA"), expect="VeRA leaves the frozen base as large as it was"),
        Mistake(_but(users="LoRA", first="VeRA"), expect="LoRA stores as much for each user as plain LoRA"),
        Mistake(_but(rank="AdaLoRA", layers="rsLoRA"), expect="AdaLoRA doesn't change how the scaling depends on r"),
        Mistake(_but(layers="VeRA"), expect="VeRA gives every layer the same rank"),
        Mistake(_but(first="rsLoRA"), expect="rsLoRA answers one particular weakness"),
        Mistake(_but(card="qlora"), expect="'qlora' is none of the five names"),
        Mistake(_but(rank=None), expect="no variant yet for 'lora_alpha was found at r=8"),
    ],
    hints=[
        "Ask of each: is it the base that is too large, the adapter, the scaling, or where the rank is?",
        "Every name is used once: LoRA, QLoRA, rsLoRA, VeRA, AdaLoRA.",
    ],
    why="Each variant mends one weakness; without that weakness plain LoRA is what every tool supports.",
)


# ------------------------------------------------------------------------------------------- effects (parts 3 and 4)


def _spread(rows: int, columns: int, step: float = 0.7) -> Tensor:
    """A matrix with well separated singular values, so that its singular vectors don't hang on rounding."""
    n = min(rows, columns)
    left, right = (torch.linalg.qr(torch.randn(size, n, dtype=torch.float64)).Q for size in (rows, columns))
    return left * step ** torch.arange(n, dtype=torch.float64) @ right.T


def _rank_case(values: list[float], rows: int = 6, columns: int = 5):
    def make():
        left, right = (torch.linalg.qr(torch.randn(n, len(values), dtype=torch.float64)).Q for n in (rows, columns))
        return (left * torch.tensor(values, dtype=torch.float64) @ right.T,)

    return make


def _number(value: Tensor) -> Any:
    """A tensor of one number as that number; others as they are."""
    return value.item() if value.numel() == 1 else value


exercise(
    "stable_rank",
    reference=lesson.stable_rank,
    cases=[_rank_case([2.0, 2.0, 2.0]), _rank_case([4.0, 2.0, 1.0, 0.5]), _rank_case([3.0], 4, 7)],
    drawn=lambda rng: _rank_case(
        [rng.uniform(0.1, 5) for _ in range(rng.randint(1, 4))], *rng.sample(range(4, 9), 2)
    )(),
    mistakes=[
        Mistake(
            lambda update: _number(torch.linalg.svdvals(update).sum() / torch.linalg.svdvals(update)[0]),
            "you summed the singular values; the stable rank sums their squares and divides by the largest square.",
        ),
        Mistake(
            lambda update: _number(torch.linalg.svdvals(update).square().sum() / torch.linalg.svdvals(update)[0]),
            "the sum is right; divide it by the largest singular value's square. Twice the matrix has the same rank.",
        ),
        Mistake(
            lambda update: _number(torch.linalg.matrix_rank(update)),
            "that is the rank itself, which counts a tiny singular value as much as a large one.",
        ),
        Mistake(
            lambda update: _number(torch.linalg.svdvals(update)[0] ** 2 / torch.linalg.svdvals(update).square().sum()),
            "upside down: that is the share of the largest one.",
        ),
        Mistake(
            lambda update: _number(torch.linalg.svdvals(update).norm() / torch.linalg.svdvals(update)[0]),
            "that is the ratio of two norms. The stable rank is its square.",
        ),
        Mistake(
            lambda update: _number(torch.linalg.svdvals(update).square().mean() / torch.linalg.svdvals(update)[0] ** 2),
            "you took the mean of the squares. Eight equal ones should give 8: take their sum.",
        ),
        Mistake(
            lambda update: _number(torch.linalg.svdvals(update).square() / torch.linalg.svdvals(update)[0] ** 2),
            "these are the squares, each over the largest. The stable rank is one number, their sum.",
        ),
        Mistake(
            lambda update: lesson.stable_rank(update.abs()),
            "abs() makes another matrix: the singular values are of the update as it is.",
        ),
        Mistake(
            lambda update: _number(update.square().sum() / update.abs().max() ** 2),
            "you divided by the largest entry's square: the largest singular value is asked for.",
        ),
        Mistake(
            lambda update: spectrum.effective_rank(update),
            "that is the effective rank, from the entropy. The stable one needs squares only.",
        ),
    ],
    hints=[
        "torch.linalg.svdvals(update) gives the singular values, the largest first.",
        "(s**2).sum() divided by the square of s[0].",
    ],
    why="All energy over the strongest direction's: how many directions as strong as that one there would be.",
)


def _cosines(base, tuned, leading):
    """The cosine of every left singular vector of `base` (rows) with the first `leading` of `tuned` (columns)."""
    old, new = (torch.linalg.svd(w, full_matrices=False).U for w in (base, tuned))
    return old.T @ new[:, :leading]


def _same_place(base, tuned, threshold, leading):
    old, new = (torch.linalg.svd(w, full_matrices=False).U[:, :leading] for w in (base, tuned))
    return int(((old * new).sum(0).abs() < threshold).sum())


def _planted(rows: int, columns: int, size: float, threshold: float, leading: int):
    def make():
        base = _spread(rows, columns)
        new = torch.outer(torch.randn(rows, dtype=torch.float64), torch.randn(columns, dtype=torch.float64))
        return base, base + size * new / new.norm(), threshold, leading

    return make


def _planted_twice():
    """Two new directions, and only the first is asked for."""
    base, once, *_ = _planted(32, 24, 40.0, 0.7, 1)()
    new = torch.outer(torch.randn(32, dtype=torch.float64), torch.randn(24, dtype=torch.float64))
    return base, once + 10 * new / new.norm(), 0.7, 1


def _turned(leading: int):
    def make():
        base = _spread(12, 12)
        return base, -base.flip(1), 0.5, leading

    return make


def _swapped():
    """Two directions change places, and one of them was not among the base's leading: all were there before."""
    u, s, vh = torch.linalg.svd(_spread(12, 12), full_matrices=False)
    order = torch.tensor([8, *range(1, 8), 0, *range(9, 12)])
    return u * s @ vh, u[:, order] * s @ vh, 0.5, 6


def _right_only():
    """Only the inputs' side is new: no left singular vector changes."""
    u, s, vh = torch.linalg.svd(_spread(12, 12), full_matrices=False)
    other = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q
    return u * s @ vh, u * s @ other, 0.5, 6


def _drawn_turned(rng: random.Random) -> tuple[Tensor, Tensor, float, int]:
    """Some of the leading vectors are turned out of the base's space, each by an angle of its own, and all are shuffled
    a little; no cosine is near the threshold, where rounding would decide."""
    rows, columns = rng.randint(14, 18), rng.randint(5, 7)
    square = torch.linalg.qr(torch.randn(rows, rows, dtype=torch.float64)).Q
    u, free = square[:, :columns], square[:, columns:]
    v = torch.linalg.qr(torch.randn(columns, columns, dtype=torch.float64)).Q
    values = 0.6 ** torch.arange(columns, dtype=torch.float64)
    threshold = rng.choice([0.3, 0.5, 0.7, 0.9])
    turned = u.clone()
    for place in rng.sample(range(columns), rng.randint(0, columns - 1)):
        cosine = rng.choice([c for c in (0.1, 0.4, 0.6, 0.8, 0.95) if abs(c - threshold) > 0.02])
        turned[:, place] = rng.choice([-1, 1]) * (cosine * u[:, place] + (1 - cosine**2) ** 0.5 * free[:, place])
    order = torch.tensor(rng.sample(range(columns), columns))
    return u * values @ v, turned[:, order] * values @ v, threshold, rng.randint(1, columns)


exercise(
    "count_intruders",
    reference=lesson.count_intruders,
    cases=[
        _planted(32, 24, 20.0, 0.7, 4),
        _planted_twice,
        _turned(8),
        _swapped,
        _right_only,
        _planted(16, 16, 0.0, 0.9, 5),
    ],
    drawn=_drawn_turned,
    mistakes=[
        Mistake(
            lambda base, tuned, threshold, leading: int(
                (_cosines(base, tuned, leading).square().amax(0) < threshold).sum()
            ),
            "that is the cosine's square, which is smaller, so too many are counted: the threshold is one of |cosine|.",
        ),
        Mistake(
            lambda base, tuned, threshold, leading: lesson.count_intruders(tuned, base, threshold, leading),
            "base and tuned are exchanged: the leading vectors of tuned are compared with all of base.",
        ),
        Mistake(
            lambda base, tuned, threshold, leading: int((_cosines(base, tuned, leading).amax(0) < threshold).sum()),
            "the sign of a singular vector means nothing: take the cosine's absolute value before the largest.",
        ),
        Mistake(
            lambda base, tuned, threshold, leading: int(
                (_cosines(base, tuned, leading).abs().amax(0) > threshold).sum()
            ),
            "those are the directions that were there before; the intruders are below the threshold.",
        ),
        Mistake(
            _same_place,
            "you compared each vector with the base's vector of the same number. It may have changed places: compare "
            "with all of them.",
        ),
        Mistake(
            lambda base, tuned, threshold, leading: lesson.count_intruders(base.T, tuned.T, threshold, leading),
            "those are the right singular vectors, directions of the input; asked for are the left ones.",
        ),
        Mistake(
            lambda base, tuned, threshold, leading: int(
                (_cosines(base, tuned, leading).abs().mean(0) < threshold).sum()
            ),
            "the mean cosine is small for every vector, and the smallest is too. One base vector that is close is "
            "enough: take the largest.",
        ),
        Mistake(
            lambda base, tuned, threshold, leading: lesson.count_intruders(base, tuned, threshold, min(base.shape)),
            "all singular vectors were counted; only the first `leading` of the tuned weight matter.",
        ),
        Mistake(
            lambda base, tuned, threshold, leading: int(
                (_cosines(base, tuned, leading)[:leading].abs().amax(0) < threshold).sum()
            ),
            "you compared with the base's first `leading` vectors only. A direction that was there, further down, "
            "isn't new: compare with all of them.",
        ),
        Mistake(
            lambda base, tuned, threshold, leading: int(
                (_cosines(base, tuned, leading).abs().amax(1) < threshold).sum()
            ),
            "the largest was taken along the wrong side: you counted the base's vectors. Each column of old.T @ new "
            "belongs to a new one, so take the maximum over dim=0.",
        ),
        Mistake(
            lambda base, tuned, threshold, leading: int((_cosines(base, tuned, leading).abs() < threshold).sum()),
            "you counted pairs. First take each new vector's largest cosine, then count those below the threshold.",
        ),
    ],
    hints=[
        "torch.linalg.svd(w, full_matrices=False).U holds the left singular vectors as columns.",
        "old.T @ new has the cosine of every old with every new vector: they are unit vectors already.",
        "(...).abs().max(dim=0).values is each new vector's closest. Count those below the threshold.",
    ],
    why="A direction is new when no direction of the base lies near it, whatever its number and its sign.",
    points=2,
)


def _of_lead(loss: Callable[[Any, Any], Any], message: str | None = None, expect: str | None = None) -> Mistake:
    """The mistake of whoever has the right lead, before beta, and returns `loss(lead, beta)`."""
    return Mistake(
        lambda chosen, rejected, ref_chosen, ref_rejected, beta: loss(
            chosen - rejected - (ref_chosen - ref_rejected), beta
        ),
        message,
        expect,
    )


def _preferences(n: int, beta: float):
    return lambda: (*(torch.randn(n, dtype=torch.float64) * size - 20 for size in (2, 2, 1, 1)), beta)


def _hopeless() -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """A pair whose sigmoid is 0 in any dtype, and its logarithm not."""
    chosen, *others = (torch.tensor([value], dtype=torch.float64) for value in (-2500.0, -20.0, -30.0, -25.0))
    return chosen, *others, 0.5  # pyright: ignore[reportReturnType]


exercise(
    "dpo_loss",
    reference=lesson.dpo_loss,
    cases=[_preferences(1, 0.5), _preferences(4, 0.1), _preferences(3, 1.0), _hopeless],
    drawn=lambda rng: _preferences(rng.randint(1, 6), rng.choice([0.05, 0.1, 0.3, 0.5]))(),
    test=same_gradients(
        lesson.dpo_loss, _preferences(4, 0.3), ("chosen", "rejected", "ref_chosen", "ref_rejected", "beta")
    ),
    mistakes=[
        _of_lead(
            lambda lead, beta: -torch.log(torch.sigmoid(beta * lead)).mean(),
            "the sigmoid of a very negative lead is 0, and its logarithm -inf: F.logsigmoid does both at once.",
        ),
        _of_lead(
            lambda lead, beta: 1 - torch.sigmoid(beta * lead).mean(),
            "that is 1 minus the probability: the loss is its negative logarithm, so that an unlikely one costs a lot.",
        ),
        _of_lead(
            lambda lead, beta: (-F.logsigmoid(beta * lead).mean()).detach(),
            expect="no gradient passes through your result",
        ),
        Mistake(
            lambda chosen, rejected, ref_chosen, ref_rejected, beta: lesson.dpo_loss(chosen, rejected, 0, 0, beta),
            "the reference has no effect: a reward is beta times the log-probability *above the reference's*.",
        ),
        _of_lead(
            lambda lead, beta: -F.logsigmoid(-beta * lead).mean(),
            "the sign is turned round: this loss falls when the rejected answer leads.",
        ),
        _of_lead(
            lambda lead, beta: -torch.sigmoid(beta * lead).mean(),
            "the logarithm is missing: the loss is -log sigmoid(lead), so that an unlikely preference costs a lot.",
        ),
        _of_lead(
            lambda lead, beta: -beta * F.logsigmoid(lead).mean(),
            "beta belongs inside the sigmoid, to the rewards.",
        ),
        _of_lead(
            lambda lead, beta: -F.logsigmoid(beta * lead.mean()),
            "you took the mean of the leads first. Every pair has its own loss; the mean is over those.",
        ),
        _of_lead(
            lambda lead, beta: -F.logsigmoid(beta * lead).sum(),
            "that is the sum over the pairs; the loss is their mean.",
        ),
        _of_lead(
            lambda lead, beta: -F.logsigmoid(beta * lead),
            "that is one loss for each pair; return their mean.",
        ),
        _of_lead(
            lambda lead, beta: F.logsigmoid(beta * lead).mean(),
            "the minus is missing: a loss falls as the preferred answer's chance rises.",
        ),
        _of_lead(
            lambda lead, beta: -F.logsigmoid(lead).mean(),
            "beta has no effect: a reward is beta times the difference of log-probabilities.",
        ),
        Mistake(
            lambda chosen, rejected, ref_chosen, ref_rejected, beta: lesson.dpo_loss(
                chosen, rejected, -ref_chosen, -ref_rejected, beta
            ),
            "the references are added, or exchanged. From each answer its own is taken away: chosen - ref_chosen.",
        ),
    ],
    hints=[
        "reward = beta * (log-probability - the reference's), for the preferred and for the rejected answer.",
        "The lead is the preferred one's reward minus the other's.",
        "-F.logsigmoid(lead).mean(), with torch.nn.functional as F.",
    ],
    why="The loss asks that the preferred answer's log-probability grow more, from the reference's, than the other's.",
    points=2,
)
