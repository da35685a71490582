"""Chapter 13's exercises: what a run has, when to stop it, how often an update is in a weight, the largest batch."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from utils.course.checks.references import ch13 as lesson
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


def _drawn_losses(rng: random.Random) -> tuple[list[float], int]:
    """Losses with ties, so that "no new best" is asked of equal ones; often without a stop, and as short as one."""
    levels = rng.choice([[1.0, 0.5, 0.25], [2.0, 1.5, 1.25, 1.0, 0.75, 0.5]])
    losses = rng.choices(levels, k=rng.randint(1, 9))
    if rng.random() < 0.3:
        losses.sort(reverse=True)
    return losses, rng.randint(1, 4)


def _stop_last(losses: list[float], patience: int) -> tuple[int, int]:
    """Keeps what it stopped at."""
    _, last = lesson.stop_early(losses, patience)
    return last, last


def _stop_never(losses: list[float], patience: int) -> tuple[int, int]:
    return losses.index(min(losses)), len(losses) - 1


def _stop_at_rises(losses: list[float], patience: int) -> tuple[int, int]:
    """Counts rises from one evaluation to the next in the place of evaluations without a new best."""
    rises = 0
    for i in range(1, len(losses)):
        rises = rises + 1 if losses[i] > losses[i - 1] else 0
        if rises == patience:
            return losses.index(min(losses[: i + 1])), i
    return losses.index(min(losses)), len(losses) - 1


def _stop_in_all(losses: list[float], patience: int) -> tuple[int, int]:
    """Doesn't begin to count anew at a new best."""
    best, without = 0, 0
    for i, loss in enumerate(losses[1:], 1):
        if loss < losses[best]:
            best = i
        else:
            without += 1
            if without == patience:
                return best, i
    return best, len(losses) - 1


def _stop_with_ties(losses: list[float], patience: int) -> tuple[int, int]:
    best = 0
    for i, loss in enumerate(losses):
        if loss <= losses[best]:
            best = i
        if i - best == patience:
            return best, i
    return best, len(losses) - 1


def _stop_best_of_all(losses: list[float], patience: int) -> tuple[int, int]:
    return losses.index(min(losses)), lesson.stop_early(losses, patience)[1]


exercise(
    "stop_early",
    reference=lesson.stop_early,
    cases=[
        ([1.2, 1.0, 1.1, 1.3, 0.9], 2),
        ([1.0, 0.9, 0.8, 0.7], 2),
        ([1.0, 1.1, 0.9, 1.0, 0.8, 0.9, 1.0], 2),
        ([1.0, 1.0, 1.0, 0.5], 2),
        ([0.5], 1),
        ([1.0, 1.4, 1.3, 1.2, 0.9], 3),
    ],
    drawn=_drawn_losses,
    mistakes=[
        Mistake(
            _stop_last,
            "you keep the adapter at which training stopped, and that is the worse one: keep the best until then.",
        ),
        Mistake(_stop_never, "yours never stops before the end: count the evaluations since the last new best."),
        Mistake(
            _stop_best_of_all,
            "you keep an evaluation that comes after the stop: the run never got there. Look at those until then.",
        ),
        Mistake(
            _stop_at_rises,
            "you count rises from one evaluation to the next; a fall that stays above the best is no new best either.",
        ),
        Mistake(
            _stop_in_all, "you count all evaluations without a new best: in a row means that a new best begins anew."
        ),
        Mistake(_stop_with_ties, "a loss equal to the best is no new best: compare with <, not <=."),
        Mistake(
            lambda losses, patience: lesson.stop_early(losses, patience + 1),
            "yours stops one evaluation late: it stops at the one that makes it `patience` in a row.",
        ),
        Mistake(
            lambda losses, patience: lesson.stop_early(losses, patience)[::-1],
            "the two are exchanged: first the evaluation that you keep, then the one at which training stops.",
        ),
        Mistake(
            lambda losses, patience: (
                losses[lesson.stop_early(losses, patience)[0]],
                lesson.stop_early(losses, patience)[1],
            ),
            "you return the loss of the best evaluation; its index is asked for.",
        ),
        Mistake(
            lambda losses, patience: lesson.stop_early(losses, patience)[0],
            "two numbers are asked for: the evaluation that you keep, and the one at which training stops.",
        ),
    ],
    hints=[
        "Go through the losses and remember the index of the best so far.",
        "At evaluation i, i - best evaluations in a row have brought no new best.",
        "if loss < losses[best]: best = i; then: if i - best == patience: return best, i",
    ],
    why="The best so far is what you keep, and its distance to now is how long you have waited.",
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


def _drawn_bytes(rng: random.Random) -> tuple[float, float, float]:
    per_sequence = rng.choice([1, 3, 5, 2e9, 3.5e9])
    held = (rng.randint(0, 9) + rng.choice([0.0, 0.25, 0.75])) * per_sequence
    return held + rng.choice([-1.0, 0.0, 0.5, 1.0, 2.75, 3.0, 7.5]) * per_sequence, held, per_sequence


exercise(
    "largest_batch",
    reference=lesson.largest_batch,
    cases=[(24e9, 13.6e9, 3.3e9), (16e9, 13.6e9, 3.3e9), (8e9, 13.6e9, 3.3e9), (20, 10, 5)],
    drawn=_drawn_bytes,
    mistakes=[
        Mistake(
            lambda budget, held, per_sequence: lesson.largest_batch(0.9 * budget, held, per_sequence),
            "you left a tenth of the budget free: the margin is in `held` already.",
        ),
        Mistake(
            lambda budget, held, per_sequence: float(lesson.largest_batch(budget, held, per_sequence)),
            "a batch has a whole number of sequences, and a float's // stays a float: int(...) makes it one.",
        ),
        Mistake(
            lambda budget, held, per_sequence: max(0, math.ceil((budget - held) / per_sequence) - 1),
            "where the last sequence fills the budget exactly it still fits.",
        ),
        Mistake(
            lambda budget, held, per_sequence: max(0, int(budget // per_sequence)),
            "weights, gradients and the optimizer are there whatever the batch: take them off the budget first.",
        ),
        Mistake(
            lambda budget, held, per_sequence: max(0, math.ceil((budget - held) / per_sequence)),
            "rounding up runs out of memory by a part of a sequence: round down.",
        ),
        Mistake(
            lambda budget, held, per_sequence: max(0, round((budget - held) / per_sequence)),
            "round() goes to the nearest whole number, up too, and a part of a sequence is no sequence: use // or int.",
        ),
        Mistake(
            lambda budget, held, per_sequence: max(1, int((budget - held) // per_sequence)),
            "where not one sequence fits, the answer is 0.",
        ),
        Mistake(
            lambda budget, held, per_sequence: int((budget - held) // per_sequence),
            "less than nothing is left for the batch: the answer is 0, not a negative number.",
        ),
        Mistake(
            lambda budget, held, per_sequence: max(0, int(budget // (held + per_sequence))),
            "the base is held once, and not once for each sequence.",
        ),
    ],
    hints=[
        "What is left for the batch is budget - held.",
        "Whole sequences only, and never less than 0: max(0, int(left // per_sequence)).",
    ],
    why="Only the activations grow with the batch; what is there anyway comes off the budget once.",
)
