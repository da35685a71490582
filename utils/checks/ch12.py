"""Chapter 12's exercises: the variants of LoRA, and what an update does."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from utils import spectrum
from utils.checks.core import Mistake, Wrong, exercise  # noqa: F401

# ------------------------------------------------------------------------------------------ variants (parts 1 and 2)

exercise(
    "same_as_rslora",
    reference=lambda lora_alpha, r: lora_alpha * math.sqrt(r),
    cases=[(16, 4), (16, 8), (8, 64), (32, 1)],
    mistakes=[
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
    ],
    hints=[
        "Call it x. Plain LoRA scales by x / r, rsLoRA by lora_alpha / sqrt(r): set them equal.",
        "r / sqrt(r) = sqrt(r).",
    ],
)


def _dora(W: Tensor, A: Tensor, B: Tensor, m: Tensor, s: float) -> Tensor:
    turned = W + s * B @ A
    return m[:, None] * turned / torch.linalg.norm(turned, dim=1, keepdim=True)


def _dora_case(d_out: int, d_in: int, r: int, s: float):
    return lambda: (
        torch.randn(d_out, d_in), torch.randn(r, d_in), torch.randn(d_out, r), torch.rand(d_out) + 0.5, s
    )  # fmt: skip


exercise(
    "dora_weight",
    reference=_dora,
    cases=[_dora_case(5, 7, 2, 2.0), _dora_case(6, 4, 1, 0.5), _dora_case(4, 4, 2, 2.0)],
    mistakes=[
        Mistake(
            lambda W, A, B, m, s: m[:, None] * (W + s * B @ A),
            "the rows keep their lengths and are scaled on top: divide each by its length first.",
        ),
        Mistake(
            lambda W, A, B, m, s: _dora(W, A, B, m, 1.0),
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
    ],
    hints=[
        "Three steps: the changed weight W + s * B @ A, the length of each of its rows, and m over that length.",
        "torch.linalg.norm(V, dim=1, keepdim=True) is (out, 1), and m[:, None] too.",
    ],
    points=2,
)


def _budget(step: int, first: int, last: int, begin: int, end: int) -> int:
    if step <= begin:
        return first
    if step >= end:
        return last
    return int((first - last) * (1 - (step - begin) / (end - begin)) ** 3 + last)


exercise(
    "cubic_budget",
    reference=_budget,
    cases=[
        (0, 100, 20, 10, 50),
        (10, 100, 20, 10, 50),
        (20, 100, 20, 10, 50),
        (30, 96, 32, 10, 50),
        (49, 100, 20, 10, 50),
        (50, 100, 20, 10, 50),
        (80, 100, 20, 10, 50),
    ],  # fmt: skip
    mistakes=[
        Mistake(
            lambda step, first, last, begin, end: (
                first
                if step <= begin
                else last
                if step >= end
                else int((first - last) * (1 - (step - begin) / (end - begin)) + last)
            ),
            "the budget falls along a line. Raise what is left of the way to the third power.",
        ),
        Mistake(
            lambda step, first, last, begin, end: (
                first
                if step <= begin
                else last
                if step >= end
                else int((first - last) * ((step - begin) / (end - begin)) ** 3 + last)
            ),
            "after `begin` the budget jumps down and then grows: take the share of the way that is left, 1 - ...",
        ),
        Mistake(
            lambda step, first, last, begin, end: (
                first
                if step <= begin
                else last
                if step >= end
                else int(first * (1 - (step - begin) / (end - begin)) ** 3)
            ),
            "this falls towards 0. It should fall from first to last: scale their difference, then add last.",
        ),
        Mistake(
            lambda step, first, last, begin, end: (
                last if step >= end else int((first - last) * (1 - (step - begin) / (end - begin)) ** 3 + last)
            ),
            "before `begin` nothing is pruned yet, and your budget is larger than there are triplets.",
        ),
        Mistake(
            lambda step, first, last, begin, end: (
                first
                if step <= begin
                else last
                if step >= end
                else (first - last) * (1 - (step - begin) / (end - begin)) ** 3 + last
            ),
            "nobody can keep a part of a triplet: round down with int(...).",
        ),
    ],
    hints=[
        "Three cases: up to begin, from end on, and between.",
        "Between: left = 1 - (step - begin) / (end - begin) goes from 1 to 0.",
        "int((first - last) * left**3 + last)",
    ],
    points=2,
)


def _difference(A: Tensor, B: Tensor, A0: Tensor, B0: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([A, -A0]), torch.cat([B, B0], dim=1)


def _product(answer) -> Tensor:
    A, B = answer
    return B @ A


def _same_product(expected, got) -> bool:
    try:
        return torch.allclose(_product(expected), _product(got), atol=1e-5) and got[0].shape[0] == expected[0].shape[0]
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return False


def _pissa_case(d_out: int, d_in: int, r: int):
    return lambda: (torch.randn(r, d_in), torch.randn(d_out, r), torch.randn(r, d_in), torch.randn(d_out, r))


exercise(
    "pissa_difference",
    reference=_difference,
    cases=[_pissa_case(5, 7, 2), _pissa_case(4, 3, 1)],
    compare=_same_product,
    mistakes=[
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
    ],
    hints=[
        "Chapter 9's cat: rows of A below each other, columns of B beside each other, and the product is the sum.",
        "B A - B0 A0 = B A + B0 (-A0).",
    ],
    points=2,
)

_CHOICE = {
    "the base alone does not fit on the card": "QLoRA",
    "ten thousand users, an adapter each, and little room to store them": "VeRA",
    "lora_alpha was found at r=8, and now r=64 is to be tried": "rsLoRA",
    "which layers need rank is to be found out by training": "AdaLoRA",
    "a first run on a new task": "LoRA",
}


def _but(**changes: str) -> dict[str, str]:
    words = {"card": 0, "users": 1, "rank": 2, "layers": 3, "first": 4}
    names = list(_CHOICE)
    return _CHOICE | {names[words[word]]: variant for word, variant in changes.items()}


exercise(
    "choose",
    reference=_CHOICE,
    mistakes=[
        Mistake(
            _but(card="VeRA"),
            "VeRA makes the adapter small, and the adapter isn't what fills the card: the frozen base is.",
        ),
        Mistake(
            _but(users="QLoRA"),
            "QLoRA shrinks the base, which is there once. What is stored ten thousand times is the adapter.",
        ),
        Mistake(
            _but(rank="LoRA+"),
            "LoRA+ changes the two rates. What depends on the rank is the scaling.",
        ),
        Mistake(
            _but(layers="rsLoRA"),
            "rsLoRA scales all layers alike. One variant begins with too many triplets and prunes the least important.",
        ),
        Mistake(
            _but(first="DoRA"),
            "begin with plain LoRA: every tool supports it, and its learning rate is what decides. Compare later.",
        ),
    ],
    hints=[
        "Ask of each: is it the base that is too large, the adapter, the scaling, or where the rank is?",
        "Every name is used once: LoRA, QLoRA, rsLoRA, VeRA, AdaLoRA.",
    ],
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


def _close(expected, got) -> bool:
    """Whether a number, or a tensor of one, is the expected one."""
    try:
        return math.isclose(float(expected), float(got), rel_tol=1e-4, abs_tol=1e-6)
    except (TypeError, ValueError, RuntimeError):
        return False


exercise(
    "stable_rank",
    reference=spectrum.stable_rank,
    compare=_close,
    cases=[_rank_case([2.0, 2.0, 2.0]), _rank_case([4.0, 2.0, 1.0, 0.5]), _rank_case([3.0], 4, 7)],
    mistakes=[
        Mistake(
            lambda update: torch.linalg.svdvals(update).sum() / torch.linalg.svdvals(update)[0],
            "you summed the singular values; the stable rank sums their squares and divides by the largest square.",
        ),
        Mistake(
            lambda update: torch.linalg.svdvals(update).square().sum() / torch.linalg.svdvals(update)[0],
            "the sum is right; divide it by the largest singular value's square. Twice the matrix has the same rank.",
        ),
        Mistake(
            lambda update: torch.linalg.matrix_rank(update),
            "that is the rank itself, which counts a tiny singular value as much as a large one.",
        ),
        Mistake(
            lambda update: torch.linalg.svdvals(update)[0] ** 2 / torch.linalg.svdvals(update).square().sum(),
            "upside down: that is the share of the largest one.",
        ),
        Mistake(
            lambda update: (torch.linalg.svdvals(update).square().sum()).sqrt() / torch.linalg.svdvals(update)[0],
            "that is the ratio of two norms. The stable rank is its square.",
        ),
    ],
    hints=[
        "torch.linalg.svdvals(update) gives the singular values, the largest first.",
        "(s**2).sum() divided by the square of s[0].",
    ],
)


def _count(base, tuned, threshold, leading, *, sign=abs, reduce="amax", above=False, right=False):
    if right:
        base, tuned = base.T, tuned.T
    old = torch.linalg.svd(base, full_matrices=False).U
    new = torch.linalg.svd(tuned, full_matrices=False).U[:, :leading]
    closest = getattr(sign(old.T @ new), reduce)(0)
    return int(((closest > threshold) if above else (closest < threshold)).sum())


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
    base, once, *_ = _planted(48, 64, 40.0, 0.7, 1)()
    new = torch.outer(torch.randn(48, dtype=torch.float64), torch.randn(64, dtype=torch.float64))
    return base, once + 10 * new / new.norm(), 0.7, 1


def _turned(leading: int):
    def make():
        base = _spread(24, 24)
        return base, -base.flip(1), 0.5, leading

    return make


def _swapped():
    """The leading two directions change places: both were there before."""
    u, s, vh = torch.linalg.svd(_spread(24, 24), full_matrices=False)
    order = torch.tensor([1, 0, *range(2, 24)])
    return u * s @ vh, u[:, order] * s @ vh, 0.5, 6


def _right_only():
    """Only the inputs' side is new: no left singular vector changes."""
    u, s, vh = torch.linalg.svd(_spread(24, 24), full_matrices=False)
    other = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64)).Q
    return u * s @ vh, u * s @ other, 0.5, 6


exercise(
    "count_intruders",
    reference=lambda base, tuned, threshold, leading: spectrum.intruders(base, tuned, threshold, leading),
    cases=[
        _planted(64, 48, 20.0, 0.7, 4),
        _planted_twice,
        _turned(8),
        _swapped,
        _right_only,
        _planted(64, 64, 0.0, 0.9, 5),
    ],
    mistakes=[
        Mistake(
            lambda base, tuned, threshold, leading: _count(base, tuned, threshold, leading, sign=lambda x: x),
            "the sign of a singular vector means nothing: take the cosine's absolute value before the largest.",
        ),
        Mistake(
            lambda base, tuned, threshold, leading: _count(base, tuned, threshold, leading, above=True),
            "those are the directions that were there before; the intruders are below the threshold.",
        ),
        Mistake(
            _same_place,
            "you compared each vector with the base's vector of the same number. It may have changed places: compare "
            "with all of them.",
        ),
        Mistake(
            lambda base, tuned, threshold, leading: _count(base, tuned, threshold, leading, right=True),
            "those are the right singular vectors, directions of the input; asked for are the left ones.",
        ),
        Mistake(
            lambda base, tuned, threshold, leading: _count(base, tuned, threshold, leading, reduce="mean"),
            "the mean cosine is small for every vector. One base vector that is close is enough: take the largest.",
        ),
        Mistake(
            lambda base, tuned, threshold, leading: _count(base, tuned, threshold, min(base.shape)),
            "all singular vectors were counted; only the first `leading` of the tuned weight matter.",
        ),
    ],
    hints=[
        "torch.linalg.svd(w, full_matrices=False).U holds the left singular vectors as columns.",
        "old.T @ new has the cosine of every old with every new vector: they are unit vectors already.",
        "(...).abs().max(dim=0).values is each new vector's closest. Count those below the threshold.",
    ],
    points=2,
)


def _dpo(chosen, rejected, ref_chosen, ref_rejected, beta, *, reference=True, flip=1):
    lead = chosen - rejected - (ref_chosen - ref_rejected if reference else 0)
    return -F.logsigmoid(flip * beta * lead).mean()


def _preferences(n: int, beta: float):
    return lambda: (*(torch.randn(n) * size - 20 for size in (3, 3, 2, 2)), beta)


exercise(
    "dpo_loss",
    reference=_dpo,
    compare=_close,
    cases=[_preferences(1, 0.5), _preferences(4, 0.1), _preferences(3, 1.0)],
    mistakes=[
        Mistake(
            lambda chosen, rejected, ref_chosen, ref_rejected, beta: _dpo(
                chosen, rejected, ref_chosen, ref_rejected, beta, reference=False
            ),
            "the reference has no effect: a reward is beta times the log-probability *above the reference's*.",
        ),
        Mistake(
            lambda chosen, rejected, ref_chosen, ref_rejected, beta: _dpo(
                chosen, rejected, ref_chosen, ref_rejected, beta, flip=-1
            ),
            "the sign is turned round: this loss falls when the rejected answer leads.",
        ),
        Mistake(
            lambda chosen, rejected, ref_chosen, ref_rejected, beta: (
                -torch.sigmoid(beta * (chosen - ref_chosen - rejected + ref_rejected)).mean()
            ),
            "the logarithm is missing: the loss is -log sigmoid(lead), so that an unlikely preference costs a lot.",
        ),
        Mistake(
            lambda chosen, rejected, ref_chosen, ref_rejected, beta: (
                -beta * F.logsigmoid(chosen - ref_chosen - rejected + ref_rejected).mean()
            ),
            "beta belongs inside the sigmoid, to the rewards.",
        ),
        Mistake(
            lambda chosen, rejected, ref_chosen, ref_rejected, beta: (
                -F.logsigmoid(beta * (chosen - ref_chosen - rejected + ref_rejected).mean())
            ),
            "you took the mean of the leads first. Every pair has its own loss; the mean is over those.",
        ),
        Mistake(
            lambda chosen, rejected, ref_chosen, ref_rejected, beta: (
                -F.logsigmoid(beta * (chosen - ref_chosen - rejected + ref_rejected)).sum()
            ),
            "that is the sum over the pairs; the loss is their mean.",
        ),
    ],
    hints=[
        "reward = beta * (log-probability - the reference's), for the preferred and for the rejected answer.",
        "The lead is the preferred one's reward minus the other's.",
        "-F.logsigmoid(lead).mean(), with torch.nn.functional as F.",
    ],
    points=2,
)
