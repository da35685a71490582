"""Chapter 9's exercises: counting steps, early stopping, accumulation, the learning rate's schedule, and clipping."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from utils.course.checks.behaviour import same_gradients, same_loss
from utils.course.checks.references import ch09 as lesson
from utils.course.checks.registry import Mistake, exercise

# ---------------------------------------------------------------------------------------------------- counting steps


exercise(
    "optimizer_steps",
    reference=lesson.optimizer_steps,
    cases=[(15000, 3, 4, 4), (10, 2, 2, 2), (7, 1, 4, 1), (9, 3, 2, 2), (64, 2, 4, 8)],
    drawn=lambda rng: (rng.randint(1, 200), rng.randint(1, 5), rng.randint(1, 9), rng.choice([1, 2, 3, 4, 8])),
    mistakes=[
        Mistake(
            lambda n, e, b, a: e * math.ceil(n / b),
            "that counts batches: the optimizer steps once after `accumulation` of them.",
        ),
        Mistake(
            lambda n, e, b, a: e * (n // (b * a)),
            "the last, smaller batch counts too: round up, not down.",
        ),
        Mistake(
            lambda n, e, b, a: e * (math.ceil(n / b) // a),
            "the last group of accumulated batches counts even if it is smaller: round up there, too.",
        ),
        Mistake(
            lambda n, e, b, a: e * math.ceil(n // b / a),
            "the last batch counts even if it is smaller: round the batches up, too.",
        ),
        Mistake(
            lambda n, e, b, a: e * (n // (b * a) + 1),
            "adding 1 to what is rounded down counts a step too many whenever the division comes out even: math.ceil.",
        ),
        Mistake(
            lambda n, e, b, a: e * round(n / (b * a)),
            "round(...) goes down as often as up; what is left over always makes one more step: math.ceil.",
        ),
        Mistake(
            lambda n, e, b, a: math.ceil(n / b / a),
            "that is one epoch: the data is gone through `epochs` times.",
        ),
        Mistake(
            lambda n, e, b, a: math.ceil(e * n / (b * a)),
            "an epoch ends with whatever is left, and the next begins anew: round up in each epoch, then multiply.",
        ),
        Mistake(
            lambda n, e, b, a: math.ceil(e * math.ceil(n / b) / a),
            "the batches left over at an epoch's end aren't kept for the next: round up in each epoch, then multiply.",
        ),
        Mistake(
            lambda n, e, b, a: e * math.ceil(n / b) * a,
            "accumulation makes fewer steps, not more: divide by it.",
        ),
        Mistake(
            lambda n, e, b, a: e * (n // (b * a)) + (n % (b * a) > 0),
            "what is left over makes one more step in every epoch, not once.",
        ),
        Mistake(
            lambda n, e, b, a: e * n // (b * a),
            "what is left over at each epoch's end makes a step of its own: round up, epoch by epoch.",
        ),
        Mistake(
            lambda n, e, b, a: e * math.ceil(n / (b + a)),
            "a step takes `accumulation` batches of `batch` examples: times, not plus.",
        ),
        Mistake(
            lambda n, e, b, a: e * n / (b * a),
            "steps are whole: what is left over at an epoch's end makes one more, so round up with math.ceil.",
        ),
    ],
    hints=[
        "How many batches has one epoch? The last one may be small, so round up: math.ceil.",
        "One step for every `accumulation` batches, rounded up as well; then times the epochs.",
    ],
    why="The trainer begins each epoch anew and doesn't carry the rest over, so it rounds up epoch by epoch; the "
    "product comes last.",
)

# ---------------------------------------------------------------------------------------------------- early stopping


def _drawn_losses(rng: random.Random) -> tuple[list[float], int]:
    losses = [2.0]
    drift = rng.choice([-0.2, 0.0, 0.1])
    while len(losses) < rng.randint(1, 14):
        losses.append(max(0.1, losses[-1] + drift + rng.choice([-0.3, -0.1, 0.0, 0.1, 0.2, 0.4])))
    return [round(loss, 1) for loss in losses], rng.randint(1, 4)


def _walk(
    losses: list[float],
    patience: int,
    *,
    better: Callable[[float, float], bool] = float.__lt__,
    reset: bool = True,
    previous: bool = False,
    first_counts: bool = False,
) -> tuple[int, int]:
    """Early stopping with one thing changed: what counts as better, and whether the patience begins anew."""
    best, worse, now = 0, 0, 0
    for now, loss in enumerate(losses):
        if (now == 0 and not first_counts) or better(loss, losses[now - 1 if previous else best]):
            best, worse = (now, 0) if reset else (now, worse)
        else:
            worse += 1
        if worse == patience:
            break
    return now, best


def _compared_with_previous(losses: list[float], patience: int) -> tuple[int, int]:
    end = _walk(losses, patience, previous=True)[0]
    return end, min(range(end + 1), key=losses.__getitem__)


def _patience_after_the_lowest(losses: list[float], patience: int) -> tuple[int, int]:
    lowest = min(range(len(losses)), key=losses.__getitem__)
    return min(lowest + patience, len(losses) - 1), lowest


def _in_the_given_list(losses: list[float], patience: int) -> tuple[int, int]:
    end, best = lesson.best_checkpoint(losses, patience)
    del losses[end + 1 :]
    return end, best


exercise(
    "best_checkpoint",
    reference=lesson.best_checkpoint,
    cases=[
        ([2.0, 1.5, 1.2, 1.3, 1.4, 1.5, 1.6], 3),
        ([2.0, 1.5, 1.6, 1.4, 1.5, 1.3], 2),
        ([2.0, 1.5, 1.7, 1.6, 1.0], 2),
        ([1.0, 1.0, 0.9], 2),
        ([1.0], 3),
    ],
    drawn=_drawn_losses,
    draws=40,
    mistakes=[
        Mistake(
            lambda losses, patience: (len(losses) - 1, min(range(len(losses)), key=losses.__getitem__)),
            "you look at all the evaluations. After `patience` of them in a row without a better one the run has "
            "stopped, and what comes later never happened.",
        ),
        Mistake(
            lambda losses, patience: _walk(losses, patience, better=float.__le__),
            "an equal loss counts as better with you; the trainer wants it lower, and goes on waiting.",
        ),
        Mistake(
            lambda losses, patience: _walk(losses, patience, reset=False),
            "you count all the evaluations that brought nothing better. Only those in a row count: a better one begins "
            "anew, from 0.",
        ),
        Mistake(
            _compared_with_previous,
            "each loss has to be compared with the best so far, not with the one before it: a loss that goes down "
            "again without reaching the best is nothing better.",
        ),
        Mistake(
            lambda losses, patience: _walk(losses, patience, previous=True),
            "each loss has to be compared with the best so far, and the best is loaded, not the last that went down.",
        ),
        Mistake(
            lambda losses, patience: _walk(losses, patience + 1),
            "you stop one evaluation too late: the run ends with the `patience`-th in a row that isn't better.",
        ),
        Mistake(
            lambda losses, patience: tuple(place + 1 for place in lesson.best_checkpoint(losses, patience)),
            "you count from 1; the evaluations are numbered from 0, as the items of a list are.",
        ),
        Mistake(
            lambda losses, patience: (
                lesson.best_checkpoint(losses, patience)[0],
                losses[lesson.best_checkpoint(losses, patience)[1]],
            ),
            "the second is the loss itself; asked for is which evaluation it is.",
        ),
        Mistake(
            lambda losses, patience: tuple(losses[place] for place in lesson.best_checkpoint(losses, patience)),
            "those are the losses themselves; asked for are the numbers of the two evaluations.",
        ),
        Mistake(
            lambda losses, patience: (
                lesson.best_checkpoint(losses, patience)[0],
                min(range(len(losses)), key=losses.__getitem__),
            ),
            "the end is right. But you look for the best among all the losses: those after the end never happened.",
        ),
        Mistake(
            _patience_after_the_lowest,
            "you take the lowest of all the losses and wait from there. But the run may stop before it comes to that "
            "one: a later, lower loss never happens.",
        ),
        Mistake(
            lambda losses, patience: _walk(losses, patience, first_counts=True),
            "the first evaluation has nothing before it that it could fail to beat: it is the best so far, and the "
            "count stays at 0.",
        ),
        Mistake(
            lambda losses, patience: (
                found if (found := lesson.best_checkpoint(losses, patience))[0] - found[1] == patience else None
            ),
            "if the run is never stopped, your function returns nothing: it ends with the last evaluation.",
        ),
        Mistake(
            lambda losses, patience: (
                end := lesson.best_checkpoint(losses, patience)[0],
                max(0, end - patience),
            ),
            "the best one is `patience` before the end only if the run was stopped; it may also come to its end.",
        ),
        Mistake(
            lambda losses, patience: (end := lesson.best_checkpoint(losses, patience)[0], end),
            "that loads the last one, which is what happens without load_best_model_at_end.",
        ),
        Mistake(
            lambda losses, patience: _walk(losses, patience, better=float.__gt__),
            "a loss is better when it is lower.",
        ),
        Mistake(_in_the_given_list, expect="changes its input"),
    ],
    hints=[
        "Walk through the losses and remember which was the best so far, and how many in a row weren't better.",
        "A loss below the best: it is the new best, and the count begins anew. Else the count goes up by 1.",
        "When the count reaches patience, break. What the walk stands on is the end.",
    ],
    why="The best so far and the count are all that the callback keeps. The comparison is strict, so a plateau uses up "
    "the patience; and a later, better loss isn't seen, since it never comes to it.",
)

# ---------------------------------------------------------------------------------------------------- the schedule


def _drawn_step(rng: random.Random) -> tuple[int, int, int, float]:
    steps = rng.randint(5, 3000)
    warmup = rng.choice([0, 1, steps // 10, steps // 3, steps - 1])
    step = rng.choice([0, warmup // 2, max(0, warmup - 1), warmup, (warmup + steps) // 2, steps - 1, steps])
    return step, steps, warmup, rng.choice([1.0, 2e-4, 3e-3, 5e-5])


def _rate(
    step: float, steps: float, warmup: float, peak: float, fall: Callable[[float], float], before: bool = True
) -> float:
    """The schedule with another fall after the warm-up."""
    if before and step < warmup:
        return peak * step / warmup
    return peak * fall((step - warmup) / (steps - warmup))


def _eager(rise: float, step: int, steps: int, warmup: int, peak: float) -> float:
    """The schedule, with the warm-up's share computed in any case."""
    return peak * rise if step < warmup else lesson.rate_at(step, steps, warmup, peak)


def _cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2


exercise(
    "rate_at",
    reference=lesson.rate_at,
    cases=[(0, 100, 10, 1.0), (5, 100, 10, 2e-4), (10, 100, 10, 1.0), (30, 100, 10, 1.0), (100, 100, 10, 1.0)],
    drawn=_drawn_step,
    mistakes=[
        Mistake(
            lambda step, steps, warmup, peak: _rate(step, steps, 0, peak, _cosine),
            "there is no warm-up: for step < warmup the rate is peak * step / warmup.",
        ),
        Mistake(
            lambda step, steps, warmup, peak: _rate(step, steps, warmup, peak, lambda done: _cosine(step / steps)),
            "the cosine begins where the warm-up ends: it runs over steps - warmup, counted from warmup.",
        ),
        Mistake(
            lambda step, steps, warmup, peak: _rate(
                step, steps, warmup, peak, lambda done: _cosine((step - warmup) / steps)
            ),
            "the cosine has only steps - warmup steps left; over `steps` it doesn't come down to 0.",
        ),
        Mistake(
            lambda step, steps, warmup, peak: _rate(step, steps, warmup, peak, lambda done: _cosine(2 * done)),
            "that is a whole wave, which comes back up: half a wave, from cos(0) to cos(pi).",
        ),
        Mistake(
            lambda step, steps, warmup, peak: _rate(step, steps, warmup, peak, lambda done: _cosine(done / 2)),
            "a quarter of a wave: from cos(0) to cos(pi / 2) the rate comes down to one half only.",
        ),
        Mistake(
            lambda step, steps, warmup, peak: _rate(
                step, steps, warmup, peak, lambda done: math.cos(math.pi / 2 * done)
            ),
            "that is a quarter of a wave, which falls late and steeply: half a wave, raised by 1 and halved.",
        ),
        Mistake(
            lambda step, steps, warmup, peak: _rate(step, steps, warmup, peak, lambda done: 1 - done),
            "that falls along a line: here it is half a cosine wave.",
        ),
        Mistake(
            lambda step, steps, warmup, peak: _rate(step, steps, warmup, peak, lambda done: math.cos(math.pi * done)),
            "the cosine runs from 1 to -1, and a rate below zero would climb the loss: (1 + cos) / 2 runs from 1 to 0.",
        ),
        Mistake(
            lambda step, steps, warmup, peak: _rate(step, steps, warmup, peak, lambda done: 2 * _cosine(done)),
            "1 + cos runs from 2 to 0, so that the rate jumps to twice the peak: halve it.",
        ),
        Mistake(
            lambda step, steps, warmup, peak: _rate(
                step, steps, warmup, peak, lambda done: (1 + math.cos(180 * done)) / 2
            ),
            "math.cos takes radians: half a wave is math.pi, not 180.",
        ),
        Mistake(
            lambda step, steps, warmup, peak: _rate(step, steps, warmup, 1.0, _cosine),
            "`peak` isn't used: that is the share of it, from 0 to 1.",
        ),
        Mistake(
            lambda step, steps, warmup, peak: (
                step / warmup if step < warmup else lesson.rate_at(step, steps, warmup, peak)
            ),
            "in the warm-up `peak` is missing: the line goes up to peak, not to 1.",
        ),
        Mistake(
            lambda step, steps, warmup, peak: (
                peak * (step + 1) / warmup if step < warmup else lesson.rate_at(step, steps, warmup, peak)
            ),
            "the line starts at 0: at step 0 the rate is 0, not peak / warmup.",
        ),
        Mistake(
            lambda step, steps, warmup, peak: lesson.rate_at(step + 1, steps, warmup, peak),
            "you are one step ahead: `step` counts from 0, so that step 0 has the rate 0 and not that of step 1. Take "
            "`step` as it is, without + 1.",
        ),
        Mistake(
            lambda step, steps, warmup, peak: peak if step < warmup else lesson.rate_at(step, steps, warmup, peak),
            "before `warmup` the rate rises along a line, from 0; yours is at its peak at once.",
        ),
        Mistake(
            lambda step, steps, warmup, peak: _eager(step / warmup, step, steps, warmup, peak),
            "with warmup=0 that divides by zero: only steps before `warmup` may be divided by it.",
        ),
        Mistake(
            lambda step, steps, warmup, peak: _rate(step, steps, warmup, peak, lambda done: 1 - _cosine(done)),
            "1 - cos rises: after the warm-up the rate would fall to 0 at once and climb again. It is 1 + cos.",
        ),
        Mistake(
            lambda step, steps, warmup, peak: _rate(step, steps, warmup, peak, lambda done: _cosine(done / math.pi)),
            "math.pi is missing in the cosine: half a wave goes from cos(0) to cos(pi), not to cos(1).",
        ),
    ],
    hints=[
        "Two cases: before `warmup` a line from 0 up to peak, after it half a cosine wave.",
        "How much of the rest is done? (step - warmup) / (steps - warmup), from 0 to 1.",
        "(1 + math.cos(math.pi * done)) / 2 falls from 1 to 0.",
    ],
    why="`done` runs from 0 to 1 over what the warm-up leaves, so the wave starts at peak exactly where the line "
    "arrives, and ends at 0 with the run. The step before `warmup` alone is divided by it, so warmup=0 works.",
)

# ------------------------------------------------------------------------------------------------------ accumulation


def _per_token(*counts: int) -> Callable[[], tuple[list[Tensor]]]:
    return lambda: ([torch.rand(count) + i for i, count in enumerate(counts)],)


def _drawn_tokens(rng: random.Random) -> tuple[list[Tensor]]:
    (losses,) = _per_token(*(rng.randint(1, 12) for _ in range(rng.randint(1, 5))))()
    return ([part * (torch.rand(len(part)) < 0.8) for part in losses],)  # a token that is foreseen surely costs nothing


def _added_in_place(losses: list[Tensor]) -> Tensor:
    count = sum(len(part) for part in losses)
    for i, part in enumerate(losses):
        losses[i] = part.sum()
    return torch.stack(losses).sum() / count


exercise(
    "accumulated_loss",
    reference=lesson.accumulated_loss,
    cases=[_per_token(2, 9), _per_token(5, 1, 3), _per_token(4)],
    drawn=_drawn_tokens,
    compare=same_loss,
    test=same_gradients(lesson.accumulated_loss, _per_token(3, 5), ["losses"]),
    mistakes=[
        Mistake(
            lambda losses: torch.stack([part.mean() for part in losses]).mean(),
            "that is the mean of the means: a token in a short batch weighs more than one in a long batch.",
        ),
        Mistake(
            lambda losses: sum(part.sum() for part in losses),
            "that is the sum: the loss would grow with the batch. Divide by the number of all tokens.",
        ),
        Mistake(
            lambda losses: sum(part.sum() for part in losses) / len(losses),
            "you divided by the number of batches: divide by the number of tokens in all of them.",
        ),
        Mistake(
            lambda losses: sum(part.mean() for part in losses),
            "those are the means, added up: the loss would grow with the number of batches, and a token in a short one "
            "weighs more.",
        ),
        Mistake(lambda losses: losses[-1].mean(), "that is the last batch alone."),
        Mistake(lambda losses: losses[0].mean(), "that is the first batch alone."),
        Mistake(
            lambda losses: sum(part.sum() for part in losses) / len(losses[0]),
            "you divided by the first batch's tokens: count those of all batches.",
        ),
        Mistake(
            lambda losses: sum(part.sum() for part in losses) / (len(losses) * len(losses[0])),
            "you took the first batch's length for all of them: count the tokens of each.",
        ),
        Mistake(
            lambda losses: sum(part.sum() for part in losses) / (len(losses) * max(map(len, losses))),
            "you took the longest batch's length for all of them, as if the others were padded: count the tokens of "
            "each.",
        ),
        Mistake(
            lambda losses: torch.stack(losses).mean(),
            "the batches have different lengths, so they don't stack: torch.cat joins them into one row.",
        ),
        Mistake(
            lambda losses: torch.cat(losses).median(),
            "the median isn't the mean.",
        ),
        Mistake(
            lambda losses: [part.mean() for part in losses],
            "one loss is asked for, from all the batches together.",
        ),
        Mistake(
            lambda losses: torch.cat(losses).mean().item(), expect="keep it a tensor, without .item() or float(...)"
        ),
        Mistake(lambda losses: torch.cat(losses).mean().detach(), expect="no gradient passes through your result"),
        Mistake(_added_in_place, expect="changes its input"),
    ],
    hints=[
        "One large batch would give the mean over all tokens of all parts.",
        "Add up the sums and the counts separately, or torch.cat the parts.",
    ],
    why="A mean over all tokens gives each of them the same weight, whichever batch it came in. That takes the sums "
    "and the counts apart until the end; and it stays a tensor, since backward() goes through it.",
)

# ---------------------------------------------------------------------------------------------------------- clipping


def _gradients(scale: float, max_norm: float) -> Callable[[], tuple[list[Tensor], float]]:
    return lambda: ([scale * torch.randn(2, 3), 2 * scale * torch.randn(4)], max_norm)


def _drawn_gradients(rng: random.Random) -> tuple[list[Tensor], float]:
    shapes = rng.choices([(3,), (2, 5), (4, 1), (2, 2, 3), (1,), ()], k=rng.randint(1, 4))
    max_norm = rng.choice([0.3, 1.0, 2.5, 10.0])
    gradients = [torch.randn(shape) * 10 ** rng.uniform(-2, 1) for shape in shapes]
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    length = rng.choice([None, 0.0, 0.9 * max_norm, 1.2 * max_norm])
    return [g if length is None else g * (length / norm) for g in gradients], max_norm


def _norm(gradients: list[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients]).norm()


def _by(factor: Callable[[list[Tensor], float], Any]) -> Callable[[list[Tensor], float], list[Tensor]]:
    """Clipping with another factor."""
    return lambda gradients, max_norm: [g * factor(gradients, max_norm) for g in gradients]


def _clipped_in_place(gradients: list[Tensor], max_norm: float) -> list[Tensor]:
    factor = min(1.0, max_norm / _norm(gradients))
    for g in gradients:
        g.mul_(factor)
    return [g.clone() for g in gradients]


exercise(
    "clipped",
    reference=lesson.clipped,
    cases=[
        _gradients(3.0, 1.0),
        _gradients(0.01, 1.0),
        _gradients(1.0, 0.5),
        lambda: ([torch.zeros(3), torch.zeros(2)], 1.0),
    ],
    drawn=_drawn_gradients,
    new_result=True,
    mistakes=[
        Mistake(
            lambda gradients, max_norm: [g * min(1.0, max_norm / g.norm()) for g in gradients],
            "each tensor was clipped by itself, which turns the gradient: one norm and one factor for all of them.",
        ),
        Mistake(
            lambda gradients, max_norm: [g.clamp(-max_norm, max_norm) for g in gradients],
            "that cuts single numbers, which turns the gradient: scale all of it by one factor.",
        ),
        Mistake(
            lambda gradients, max_norm: [
                g * (max_norm / norm if (norm := _norm(gradients)) > 0 else 1.0) for g in gradients
            ],
            "a gradient that is short already was made longer: the factor is never above 1.",
        ),
        Mistake(
            lambda gradients, max_norm: [g * (max_norm / _norm(gradients)) for g in gradients],
            "a gradient that is short already was made longer, and one of zeros becomes nan: the factor is at most 1.",
        ),
        Mistake(
            lambda gradients, max_norm: [g.clone() for g in gradients],
            "nothing is clipped yet. (torch's clip_grad_norm_ "
            "scales the .grad of parameters; here the tensors are the gradients themselves.)",
        ),
        Mistake(
            _by(lambda gradients, max_norm: max(1.0, max_norm / max(1e-9, _norm(gradients)))),
            "max(1, ...) makes short gradients longer and leaves long ones: the factor is at most 1, so min.",
        ),
        Mistake(
            lambda gradients, max_norm: torch.cat([(g * 1.0).flatten() for g in lesson.clipped(gradients, max_norm)]),
            "that is one long vector: return a list of tensors, each in the shape that it came in.",
        ),
        Mistake(
            lambda gradients, max_norm: [g.flatten() for g in lesson.clipped(gradients, max_norm)],
            "each tensor has to keep its shape: flatten only to take the norm.",
        ),
        Mistake(
            _by(lambda gradients, max_norm: min(1.0, max_norm / max(1e-9, sum(g.norm() for g in gradients)))),
            "norms don't add up: the norm of everything is the square root of the sum of all squares.",
        ),
        Mistake(
            _by(lambda gradients, max_norm: min(1.0, max_norm / max(1e-9, sum(g.square().sum() for g in gradients)))),
            "that is the square of the norm: the root is missing.",
        ),
        Mistake(
            _by(lambda gradients, max_norm: min(1.0, max_norm / gradients[0].norm())),
            "you took the norm of the first tensor; the gradient is all of them together.",
        ),
        Mistake(
            _by(lambda gradients, max_norm: min(1.0, max_norm / max(1e-9, max(g.norm() for g in gradients)))),
            "you took the norm of the longest tensor; the gradient is all of them together.",
        ),
        Mistake(
            _by(lambda gradients, max_norm: min(1.0, max_norm / max(1e-9, max(g.abs().max() for g in gradients)))),
            "you took the largest number; a gradient's length is its norm, the root of the sum of all squares.",
        ),
        Mistake(
            _by(lambda gradients, max_norm: min(1.0, 1 / max(1e-9, _norm(gradients)))),
            "your gradients are clipped to 1, whatever max_norm says.",
        ),
        Mistake(
            _by(lambda gradients, max_norm: min(1.0, max_norm / _norm(gradients).item())),
            "a gradient of zeros has the norm 0, and your division stops there: as a Python number it can't divide. A "
            "tensor gives infinity, and min(1, infinity) is 1; or ask first whether the norm is above max_norm.",
        ),
        Mistake(
            lambda gradients, max_norm: (
                gradients if _norm(gradients) <= max_norm else lesson.clipped(gradients, max_norm)
            ),
            expect="your result is the argument itself",
        ),
        Mistake(
            _clipped_in_place,
            "the result is right, but the gradients that you were given are scaled as well (mul_, *=): return new "
            "tensors, and leave those as they are.",
        ),
    ],
    hints=[
        "One norm over everything: torch.cat([g.flatten() for g in gradients]).norm().",
        "Multiply all by the same factor, min(1, max_norm / norm).",
    ],
    why="One factor for all tensors shortens the gradient and keeps its direction; a factor for each would turn it. "
    "min(1, ...) leaves a short one alone, a zero one too: max_norm / 0 is infinity for a tensor.",
)
