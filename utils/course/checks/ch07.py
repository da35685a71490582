"""Chapter 7's exercises: counting steps, today's arguments, the rate's schedule, accumulation, and clipping."""

from __future__ import annotations

import math

import torch

from utils.course.checks.references import ch07 as lesson
from utils.course.checks.registry import Mistake, Wrong, exercise

# ---------------------------------------------------------------------------------------------------- counting steps


exercise(
    "optimizer_steps",
    reference=lesson.optimizer_steps,
    cases=[(15000, 3, 4, 4), (10, 2, 2, 2), (7, 1, 4, 1), (9, 3, 2, 2)],
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
            lambda n, e, b, a: math.ceil(n / b / a),
            "that is one epoch: the data is gone through `epochs` times.",
        ),
        Mistake(
            lambda n, e, b, a: math.ceil(e * n / (b * a)),
            "an epoch ends with whatever is left, and the next begins anew: round up in each epoch, then multiply.",
        ),
        Mistake(
            lambda n, e, b, a: e * math.ceil(n / b) * a,
            "accumulation makes fewer steps, not more: divide by it.",
        ),
    ],
    hints=[
        "How many batches has one epoch? The last one may be small, so round up: math.ceil.",
        "One step for every `accumulation` batches, rounded up as well; then times the epochs.",
    ],
)

# ------------------------------------------------------------------------------------------------ today's arguments

RENAMED = {"evaluation_strategy": "eval_strategy", "max_seq_length": "max_length"}
GONE = ("overwrite_output_dir", "logging_dir")


def _leaves_input(answer) -> None:
    arguments = {"evaluation_strategy": "steps", "logging_dir": "x", "learning_rate": 1.0}
    answer(arguments, RENAMED, GONE)
    if set(arguments) != {"evaluation_strategy", "logging_dir", "learning_rate"}:
        raise Wrong("your function changes the dictionary it was given: make a new one.")


def _in_place(arguments: dict, renamed: dict, gone: tuple) -> dict:
    for name in list(arguments):
        value = arguments.pop(name)
        if name not in gone:
            arguments[renamed.get(name, name)] = value
    return arguments


exercise(
    "todays_arguments",
    reference=lesson.todays_arguments,
    cases=[
        ({"evaluation_strategy": "steps", "learning_rate": 2e-4}, RENAMED, GONE),
        ({"overwrite_output_dir": True, "logging_dir": "logs", "max_seq_length": 512, "bf16": False}, RENAMED, GONE),
        ({"seed": 0}, RENAMED, GONE),
    ],
    test=_leaves_input,
    mistakes=[
        Mistake(
            lambda arguments, renamed, gone: {renamed.get(k, k): v for k, v in arguments.items()},
            "what is gone is still there: leave out the names in `gone`.",
        ),
        Mistake(
            lambda arguments, renamed, gone: {k: v for k, v in arguments.items() if k not in gone},
            "the old names are still there: put renamed[name] in the place of each name that has one.",
        ),
        Mistake(
            lambda arguments, renamed, gone: {k: v for k, v in arguments.items() if k not in gone and k not in renamed},
            "an argument that was renamed lost its value: keep it under the new name.",
        ),
        Mistake(
            lambda arguments, renamed, gone: {renamed[k]: v for k, v in arguments.items() if k in renamed},
            "what didn't change is lost: an argument that is neither renamed nor gone stays as it is.",
        ),
        Mistake(_in_place, expect="changes the dictionary it was given"),
    ],
    hints=[
        "A dictionary comprehension over arguments.items() does it in one line.",
        "renamed.get(name, name) is the new name where there is one and else the old.",
    ],
)

# ---------------------------------------------------------------------------------------------------- the schedule


exercise(
    "rate_at",
    reference=lesson.rate_at,
    cases=[(0, 100, 10, 1.0), (5, 100, 10, 2e-4), (10, 100, 10, 1.0), (30, 100, 10, 1.0), (100, 100, 10, 1.0)],
    mistakes=[
        Mistake(
            lambda step, steps, warmup, peak: peak * (1 + math.cos(math.pi * step / steps)) / 2,
            "there is no warm-up: for step < warmup the rate is peak * step / warmup.",
        ),
        Mistake(
            lambda step, steps, warmup, peak: (
                peak * step / warmup if step < warmup else peak * (1 + math.cos(math.pi * step / steps)) / 2
            ),
            "the cosine begins where the warm-up ends: it runs over steps - warmup, counted from warmup.",
        ),
        Mistake(
            lambda step, steps, warmup, peak: (
                peak * step / warmup
                if step < warmup
                else peak * (1 + math.cos(2 * math.pi * (step - warmup) / (steps - warmup))) / 2
            ),
            "that is a whole wave, which comes back up: half a wave, from cos(0) to cos(pi).",
        ),
        Mistake(
            lambda step, steps, warmup, peak: (
                peak * step / warmup if step < warmup else peak * (1 - (step - warmup) / (steps - warmup))
            ),
            "that falls along a line: here it is half a cosine wave.",
        ),
        Mistake(
            lambda step, steps, warmup, peak: (
                peak * step / warmup if step < warmup else peak * math.cos(math.pi * (step - warmup) / (steps - warmup))
            ),
            "the cosine runs from 1 to -1, and a rate below zero would climb the loss: (1 + cos) / 2 runs from 1 to 0.",
        ),
    ],
    hints=[
        "Two cases: before `warmup` a line from 0 up to peak, after it half a cosine wave.",
        "How much of the rest is done? (step - warmup) / (steps - warmup), from 0 to 1.",
        "(1 + math.cos(math.pi * done)) / 2 falls from 1 to 0.",
    ],
)

# ------------------------------------------------------------------------------------------------------ accumulation


def _per_token(*counts: int):
    return lambda: ([torch.rand(count) + i for i, count in enumerate(counts)],)


exercise(
    "accumulated_loss",
    reference=lesson.accumulated_loss,
    cases=[_per_token(2, 9), _per_token(5, 1, 3), _per_token(4)],
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
        Mistake(lambda losses: losses[-1].mean(), "that is the last batch alone."),
    ],
    hints=[
        "One large batch would give the mean over all tokens of all parts.",
        "Add up the sums and the counts separately, or torch.cat the parts.",
    ],
)

# ---------------------------------------------------------------------------------------------------------- clipping


def _gradients(scale: float, max_norm: float):
    return lambda: ([scale * torch.randn(2, 3), 2 * scale * torch.randn(4)], max_norm)


exercise(
    "clipped",
    reference=lesson.clipped,
    cases=[_gradients(3.0, 1.0), _gradients(0.01, 1.0), _gradients(1.0, 0.5)],
    mistakes=[
        Mistake(
            lambda gradients, max_norm: [g * min(1.0, max_norm / g.norm().item()) for g in gradients],
            "each tensor was clipped by itself, which turns the gradient: one norm and one factor for all of them.",
        ),
        Mistake(
            lambda gradients, max_norm: [g.clamp(-max_norm, max_norm) for g in gradients],
            "that cuts single numbers, which turns the gradient: scale all of it by one factor.",
        ),
        Mistake(
            lambda gradients, max_norm: [
                g * (max_norm / torch.cat([h.flatten() for h in gradients]).norm().item()) for g in gradients
            ],
            "a gradient that is short already was made longer: the factor is never above 1.",
        ),
        Mistake(lambda gradients, max_norm: gradients, "nothing is clipped yet."),
        Mistake(
            lambda gradients, max_norm: [
                g * min(1.0, max_norm / sum(h.norm().item() for h in gradients)) for g in gradients
            ],
            "norms don't add up: the norm of everything is the square root of the sum of all squares.",
        ),
    ],
    hints=[
        "One norm over everything: torch.cat([g.flatten() for g in gradients]).norm().",
        "Multiply all by the same factor, min(1, max_norm / norm).",
    ],
)
