"""Chapter 17's exercises: what an update does."""

from __future__ import annotations

import random
import statistics
from typing import Any

import torch
from torch import Tensor

from utils.course.checks.compare import difference
from utils.course.checks.references import ch17 as lesson
from utils.course.checks.registry import Mistake, exercise
from utils.evaluate import spectrum

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


def _setting(dev: list[float], stories: list[float], lr: float) -> dict[str, Any]:
    return {"lr": lr, "dev": dev, "stories_dev": stories}


def _settings(*rows: tuple[list[float], list[float]], target: float = 0.95):
    return lambda: ([_setting(dev, read, 0.001 * 2**i) for i, (dev, read) in enumerate(rows)], target)


def _drawn_settings(rng: random.Random) -> tuple[list[dict[str, Any]], float]:
    seeds = rng.randint(2, 4)
    rows = [
        ([rng.randint(80, 100) / 100 for _ in range(seeds)], [rng.uniform(1.6, 6) for _ in range(seeds)])
        for _ in range(rng.randint(1, 7))
    ]
    return _settings(*rows, target=rng.choice([0.885, 0.905, 0.925, 0.955]))()


def _reached(settings, target):
    return [s for s in settings if statistics.mean(s["dev"]) >= target]


def _least(settings, key):
    return min(settings, key=key, default=None)


exercise(
    "choose_setting",
    reference=lesson.choose_setting,
    cases=[
        _settings(
            ([1.0, 0.9, 1.0], [4.0, 5.0, 9.0]), ([0.9, 0.96, 1.0], [2.0, 3.0, 2.5]), ([0.5, 0.4, 1.0], [1.7] * 3)
        ),
        _settings(([0.94, 0.95, 0.95], [2.0, 2.0, 2.0]), ([0.9, 1.0, 0.9], [1.8, 1.8, 1.8])),
        _settings(([0.5, 1.0], [3.0, 3.0]), ([1.0, 1.0], [3.5, 3.5]), target=0.75),
        _settings(([1.0, 1.0, 1.0], [1.7, 9.0, 1.7]), ([0.98, 0.98, 0.98], [2.0, 2.1, 2.2])),
        _settings(([1.0, 1.0, 1.0], [1.7, 1.7, 4.0]), ([0.98, 0.98, 0.98], [2.0, 2.1, 2.2]), target=0.99),
        _settings(([1.0, 1.0], [3.0, 3.0]), ([1.0, 1.0], [1.9, 2.0]), ([1.0, 1.0], [1.8, 2.4])),
    ],
    drawn=_drawn_settings,
    mistakes=[
        Mistake(
            lambda settings, target: _least(settings, lambda s: statistics.mean(s["stories_dev"])),
            "the target wasn't asked for: an adapter that learned nothing forgets nothing. Leave out the settings "
            "whose mean exact match is below it.",
        ),
        Mistake(
            lambda settings, target: _least(_reached(settings, target), lambda s: -statistics.mean(s["dev"])),
            "that is the most accurate one. Among those that reach the target the lowest perplexity counts.",
        ),
        Mistake(
            lambda settings, target: _least(_reached(settings, target), lambda s: -statistics.mean(s["stories_dev"])),
            "that is the highest perplexity: a lower one keeps more.",
        ),
        Mistake(
            lambda settings, target: _least(
                [s for s in settings if min(s["dev"]) >= target], lambda s: statistics.mean(s["stories_dev"])
            ),
            "you asked every seed to reach the target; their mean has to.",
        ),
        Mistake(
            lambda settings, target: _least(
                [s for s in settings if max(s["dev"]) >= target], lambda s: statistics.mean(s["stories_dev"])
            ),
            "one lucky seed is enough for you; the mean over the seeds has to reach the target.",
        ),
        Mistake(
            lambda settings, target: _least(
                [s for s in settings if statistics.mean(s["dev"]) > target], lambda s: statistics.mean(s["stories_dev"])
            ),
            "a mean that equals the target has reached it: use >=.",
        ),
        Mistake(
            lambda settings, target: _least(_reached(settings, target), lambda s: min(s["stories_dev"])),
            "you took each setting's luckiest seed. Compare the mean perplexities.",
        ),
        Mistake(
            lambda settings, target: _least(_reached(settings, target), lambda s: s["stories_dev"][0]),
            "you compared the first seed alone. Compare the mean perplexities.",
        ),
        Mistake(
            lambda settings, target: next(iter(_reached(settings, target)), None),
            "that is the first setting that reaches the target, not the one with the lowest perplexity.",
        ),
    ],
    hints=[
        'First keep the settings with mean(s["dev"]) >= target.',
        'min(kept, key=lambda s: mean(s["stories_dev"]), default=None) takes care of an empty list.',
    ],
    why="Equal accuracy first, then the least that was broken. A mean over seeds, so that no lucky one decides.",
    points=2,
)


def _as_number(expected: Any, got: Any) -> bool | str:
    """A tensor of one number is as good as the number."""
    return difference(expected, got.item() if isinstance(got, Tensor) and got.ndim == 0 else got) or True


exercise(
    "stable_rank",
    reference=lesson.stable_rank,
    compare=_as_number,
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


def _left(W: Tensor) -> Tensor:
    """The left singular vectors of W, as columns."""
    return torch.linalg.svd(W, full_matrices=False).U


def _cosines(base, tuned, leading):
    """The cosine of every left singular vector of `base` (rows) with the first `leading` of `tuned` (columns)."""
    return _left(base).T @ _left(tuned)[:, :leading]


def _same_place(base, tuned, threshold, leading):
    old, new = (_left(w)[:, :leading] for w in (base, tuned))
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
    compare=_as_number,
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
            "you took the base's leading vectors and asked which of them tuned has lost. Either base and tuned are "
            "exchanged, or the maximum runs along the wrong axis: in old.T @ new each column belongs to a vector of "
            "tuned, so take it over dim=0 and keep the first `leading` columns.",
        ),
        Mistake(
            lambda base, tuned, threshold, leading: int(
                (_left(base) @ _left(tuned)[:leading].T).abs().amax(0).lt(threshold).sum()
            ),
            "you took rows of U. Its columns are the left singular vectors: U[:, :leading].",
        ),
        Mistake(
            lambda base, tuned, threshold, leading: int(
                (_left(base).T @ _left(tuned - base)[:, :leading]).abs().amax(0).lt(threshold).sum()
            ),
            "those are the update's singular vectors: the intruders are looked for among the tuned weight's.",
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
