"""Chapter 14's exercises: what a run has, and how often an update is in a weight."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from utils.course.checks.references import ch14 as lesson
from utils.course.checks.registry import Mistake, exercise
from utils.evaluate.diagnose import Signs, Trend


def _diagnose_curve(signs: Signs) -> list[str]:
    return {"jumped": ["rate too high"], "flat": ["rate too low"], "fell": []}[signs.trend]


def _diagnose_no_count(signs: Signs) -> list[str]:
    return lesson.diagnose(signs._replace(trainable=1))


def _diagnose_both(signs: Signs) -> list[str]:
    found = lesson.diagnose(signs)
    return [*found, "rate too low"] if signs.trainable == 0 and signs.trend == "flat" else found


def _diagnose_no_end(signs: Signs) -> list[str]:
    return lesson.diagnose(signs._replace(eos=True))


def _diagnose_share(signs: Signs) -> list[str]:
    return lesson.diagnose(signs._replace(padding=int(signs.share == 1)))


def _diagnose_labels_first(signs: Signs) -> list[str]:
    found = lesson.diagnose(signs)
    labels = [illness for illness in found if illness in ("padding trained on", "no EOS")]
    return labels[::-1] + [illness for illness in found if illness not in labels]


_OTHER_WAY: dict[Trend, Trend] = {"jumped": "flat", "flat": "jumped", "fell": "fell"}


def _drawn_signs(rng: random.Random) -> tuple[Signs]:
    trends: list[Trend] = ["fell", "flat", "jumped"]
    trend = rng.choice(trends)
    padding = rng.choice([0, 0, 1, 7, 193])
    return (Signs(rng.choice([0, 1, 108_544]), trend, rng.choice([0.05, 0.5, 1.0]), padding, rng.random() < 0.6),)


exercise(
    "diagnose",
    reference=lesson.diagnose,
    cases=[
        (Signs(108_544, "fell", 0.12, 0, True),),
        (Signs(0, "flat", 0.12, 0, True),),
        (Signs(108_544, "flat", 0.12, 0, True),),
        (Signs(108_544, "jumped", 0.12, 0, True),),
        (Signs(108_544, "fell", 0.08, 0, False),),
        (Signs(108_544, "fell", 1.0, 193, True),),
        (Signs(108_544, "fell", 0.6, 96, False),),
        (Signs(108_544, "flat", 0.08, 0, False),),
        (Signs(108_544, "fell", 1.0, 0, True),),
        (Signs(0, "flat", 1.0, 12, False),),
    ],
    drawn=_drawn_signs,
    mistakes=[
        Mistake(
            lambda signs: ["nothing trainable"] if signs.trainable == 0 else lesson.diagnose(signs),
            "where nothing is trainable you stop: the labels may be wrong as well, and that stays after the cure.",
        ),
        Mistake(
            lambda signs: lesson.diagnose(signs._replace(padding=int(signs.padding > 1))),
            "a single label on padding is one too many: padding trained on where signs.padding isn't 0.",
        ),
        Mistake(
            lambda signs: lesson.diagnose(signs._replace(trend=_OTHER_WAY[signs.trend])),
            "too high and too low are exchanged: a jump comes from too large steps, a flat curve from too small ones.",
        ),
        Mistake(
            _diagnose_curve,
            "you look at the curve alone. Labels on padding and a missing EOS leave it falling like a healthy one.",
        ),
        Mistake(
            _diagnose_no_count,
            'a model with nothing trainable is called "rate too low". No rate moves what has no gradient: count first.',
        ),
        Mistake(
            _diagnose_both,
            "where nothing is trainable the flat curve is explained; a rate too low would need gradients.",
        ),
        Mistake(
            lambda signs: lesson.diagnose(signs)[:1],
            "a run can have two illnesses, and yours stops at the first: put all of them in the list.",
        ),
        Mistake(
            _diagnose_no_end,
            "a run without an EOS among its labels passes as healthy: it will never stop. Look at signs.eos.",
        ),
        Mistake(
            _diagnose_share,
            "the share of labels says nothing about padding: one long answer may fill a batch. Look at signs.padding.",
        ),
        Mistake(
            lambda signs: lesson.diagnose(signs) or ["healthy"],
            "a healthy run has nothing, so its list is empty: [].",
        ),
        Mistake(
            _diagnose_labels_first,
            "all illnesses are found, but not in the order of the text. The labels' come last: padding, then EOS.",
        ),
    ],
    hints=[
        "Three questions, in this order: can anything learn? what does the curve do? what do the labels hold?",
        'The first two exclude each other: if signs.trainable == 0 ... elif signs.trend == "jumped" ... elif "flat".',
        "The labels' illnesses come on top: two more ifs that append, not elif.",
    ],
    why="Nothing trainable explains the curve, whatever it does; nothing explains the labels away.",
    points=2,
)


def _merged_case(times: float, noise: float = 0.0):
    """`noise`: what else befell the weight, such as rounding to few bits."""
    return lambda: _merged(6, 8, 2, times, noise)


def _merged(d_out: int, d_in: int, r: int, times: float, noise: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = lambda *size: torch.randn(*size, dtype=torch.float64)  # noqa: E731
    before, a, b = draw(d_out, d_in), draw(r, d_in), draw(d_out, r)
    return before, before + times * (b @ a) + noise * draw(d_out, d_in), a, b


def _drawn_merge(rng: random.Random) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_out, d_in = rng.sample(range(3, 9), 2)
    return _merged(d_out, d_in, rng.randint(1, 3), rng.choice([0.5, 1, 2, 3, -1]), rng.choice([0.0, 0.3]))


def _unsquared(before: Tensor, after: Tensor, A: Tensor, B: Tensor) -> float:
    return float(((after - before) * (B @ A)).sum() / (B @ A).norm())


exercise(
    "how_often",
    reference=lesson.how_often,
    cases=[_merged_case(2.0), _merged_case(1.0), _merged_case(4.0), _merged_case(0.0), _merged_case(2.0, noise=0.8)],
    drawn=_drawn_merge,
    mistakes=[
        Mistake(
            lambda before, after, A, B: float(round(lesson.how_often(before, after, A, B))),
            "the number needn't be whole: 1.5 says that a wrong scaling was merged. Don't round.",
        ),
        Mistake(
            lambda before, after, A, B: lesson.how_often(before, after, A, 2 * B),
            "that is half of it: delta is B @ A, once.",
        ),
        Mistake(
            lambda before, after, A, B: float((after - before).square().sum() / ((after - before) * (B @ A)).sum()),
            "the roles are exchanged: before + s * delta comes nearest with <added, delta> / <delta, delta>.",
        ),
        Mistake(
            lambda before, after, A, B: float((after - before).norm() / (B @ A).norm()),
            "a ratio of sizes takes every other change for the adapter, rounding too: project on B @ A.",
        ),
        Mistake(_unsquared, "divide by the square of B @ A's size: (delta * delta).sum(), not its norm."),
        Mistake(
            lambda before, after, A, B: float((after * (B @ A)).sum() / (B @ A).square().sum()),
            "the weight itself is in it: what the merge added is after - before.",
        ),
        Mistake(
            lambda before, after, A, B: float(((before - after) * (B @ A)).sum() / (B @ A).square().sum()),
            "the sign is wrong: added is after - before.",
        ),
        Mistake(
            lambda before, after, A, B: float(((after - before) / (B @ A)).mean()),
            "a mean of ratios blows up where an entry of B @ A is near zero: multiply and sum, then divide once.",
        ),
        Mistake(
            lambda before, after, A, B: float((after - before).sum() / (B @ A).sum()),
            "in a plain sum, entries with opposite signs cancel: weigh each by its entry of B @ A before you sum.",
        ),
        Mistake(
            lambda before, after, A, B: float(((after - before) * (B @ A)).sum()),
            "a division is missing: <added, delta> grows with the size of B @ A, so divide by <delta, delta>.",
        ),
    ],
    hints=[
        "added = after - before should be s times delta = B @ A. Which s is nearest, over all entries?",
        "Least squares: s = <added, delta> / <delta, delta>.",
        "float(((after - before) * delta).sum() / delta.square().sum())",
    ],
    why="A projection sees only what lies along B @ A, so rounding and other changes hardly touch it.",
    points=2,
)
