"""Chapter 13's exercises: hold out by groups, the loss of answers, the share that stops, luck, and what fits a card."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from utils.course.checks.references import ch13 as lesson
from utils.course.checks.registry import Mistake, exercise

# --------------------------------------------------------------------------------------------- hold out whole groups


def _key(prompt: str) -> str:
    return " ".join(prompt.casefold().split())


def _groups(prompts: list[str], key: Callable[[str], str]) -> list[int]:
    """Each prompt's group: prompts with the same `key` are one, numbered as they come."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(key(prompt), len(numbers)) for prompt in prompts]


_PROMPTS = ["Hi", "Who?", "hi ", "Where to?", "WHO?", "When?", "Where  to?", "Why?", "how", "Why?", "How", "What?"]

exercise(
    "held_out_rows",
    reference=lesson.held_out_rows,
    cases=[(_PROMPTS, 2), (_PROMPTS, 3), (["a", "b", "A", "c", "B ", "d", "c"], 2)],
    mistakes=[
        Mistake(
            lambda prompts, every: [row for row in range(len(prompts)) if row % every == every - 1],
            "you counted rows. The same prompt is then on both sides: number the different prompts, and count those.",
        ),
        Mistake(
            lambda prompts, every: [r for r, n in enumerate(_groups(prompts, str)) if n % every == every - 1],
            'to you "Hi" and "hi " are different prompts: compare them in small letters, with single spaces.',
        ),
        Mistake(
            lambda prompts, every: [r for r, n in enumerate(_groups(prompts, str.casefold)) if n % every == every - 1],
            'white space is still compared: " ".join(text.split()) makes it single and takes it off the ends.',
        ),
        Mistake(
            lambda prompts, every: [r for r, n in enumerate(_groups(prompts, _key)) if n % every == 0],
            "the first of each `every` prompts is held out; it should be the last: number % every == every - 1.",
        ),
        Mistake(
            lambda prompts, every: [
                row for row in range(len(prompts)) if row not in lesson.held_out_rows(prompts, every)
            ],
            "these are the rows to train on: return those to hold out.",
        ),
    ],
    hints=[
        'A dictionary from " ".join(prompt.casefold().split()) to a number: 0 for the first, 1 for the next new one.',
        "number.setdefault(key, len(number)) gives a new key the next number, and leaves a known one alone.",
        "Hold a row out when its prompt's number % every == every - 1.",
    ],
    points=2,
)

# ------------------------------------------------------------------------------------------------ the loss of answers


def _losses_case(rows: int, length: int):
    def make() -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, 50, (rows, length))
        for row in range(rows):
            labels[row, : row + 2] = -100
            labels[row, length - row :] = -100
        labels[0, 2] = 0  # a token like any other
        return torch.rand(rows, length) * 4 + 0.5, labels

    return make


exercise(
    "answer_loss",
    reference=lesson.answer_loss,
    cases=[_losses_case(3, 9), _losses_case(4, 12), _losses_case(2, 7)],
    mistakes=[
        Mistake(
            lambda losses, labels: losses.mean().item(),
            "prompt and padding are counted too: take the places where labels != -100.",
        ),
        Mistake(
            lambda losses, labels: (losses * (labels != -100)).mean().item(),
            "you put zeros in the other places and then divided by all of them: divide by the answers' tokens alone.",
        ),
        Mistake(
            lambda losses, labels: (
                torch.stack([row[kept != -100].mean() for row, kept in zip(losses, labels, strict=True)]).mean().item()
            ),
            "that is the mean of the rows' means, in which a token of a short answer counts more than one of a long.",
        ),
        Mistake(
            lambda losses, labels: losses[labels > 0].mean().item(),
            "you left token 0 out, which may well stand in an answer: the mark is -100, so compare with that.",
        ),
        Mistake(
            lambda losses, labels: losses[labels != -100].sum().item(),
            "that is the sum: divide by how many tokens there are.",
        ),
        Mistake(
            lambda losses, labels: losses[labels != -100].mean(),
            "right, as a tensor; .item() makes it a number.",
        ),
    ],
    hints=["labels != -100 is True where the answer is.", "losses[mask] keeps those places, in one row."],
)

# --------------------------------------------------------------------------------------------------- who stops


exercise(
    "stop_rate",
    reference=lesson.stop_rate,
    cases=[
        ([[5, 6, 1, 0, 0], [5, 7, 8, 9, 4], [3, 4, 5, 6, 1], [2, 2, 2, 2, 2]], 1),
        ([[9, 9, 9], [9, 2, 2], [4, 2, 2]], 2),
        ([[3, 8, 3, 7], [7, 3, 3, 3]], 7),
    ],
    mistakes=[
        Mistake(
            lambda rows, eos_id: sum(row[-1] == eos_id for row in rows) / len(rows),
            "you looked at the last place only. A short answer has its end mark earlier, and padding behind it.",
        ),
        Mistake(
            lambda rows, eos_id: sum(eos_id not in row for row in rows) / len(rows),
            "that is the share that runs on to the limit.",
        ),
        Mistake(
            lambda rows, eos_id: sum(row.count(eos_id) for row in rows) / len(rows),
            "you counted end marks. Where padding is the end mark too, one answer has several: count answers.",
        ),
        Mistake(
            lambda rows, eos_id: 100 * sum(eos_id in row for row in rows) / len(rows),
            "right, in percent; a share lies between 0 and 1.",
        ),
        Mistake(
            lambda rows, eos_id: sum(eos_id in row for row in rows),
            "that is a number of answers; the share of them is asked for.",
        ),
    ],
    hints=["eos_id in row says whether one answer ended.", "True counts as 1 in sum(...)."],
)

# --------------------------------------------------------------------------------------------------------------- luck


def _tail(changed: int, up_to: int) -> float:
    return sum(math.comb(changed, k) for k in range(up_to + 1)) / 2**changed


exercise(
    "luck",
    reference=lesson.luck,
    cases=[(5, 0), (2, 6), (9, 4), (3, 3)],
    mistakes=[
        Mistake(
            lambda gained, lost: _tail(gained + lost, min(gained, lost)),
            "that is one side only. Coins may be as uneven the other way: twice that, and never more than 1.",
        ),
        Mistake(
            lambda gained, lost: 2 * _tail(gained + lost, min(gained, lost)),
            "a probability above 1: where both counts are equal the two sides overlap. Take min(1.0, ...).",
        ),
        Mistake(
            lambda gained, lost: min(1.0, 2 * math.comb(gained + lost, min(gained, lost)) / 2 ** (gained + lost)),
            "that is the probability of this split alone: add the more uneven ones, k = 0 up to the smaller count.",
        ),
        Mistake(
            lambda gained, lost: min(1.0, 2 * _tail(gained + lost, lost)),
            "you added from 0 up to lost, also where lost is the larger one: take min(gained, lost).",
        ),
    ],
    hints=[
        "n = gained + lost coins. math.comb(n, k) / 2**n is the probability of k heads.",
        "Sum it for k from 0 to the smaller of the two counts; twice that, and at most 1.",
    ],
    points=2,
)

# -------------------------------------------------------------------------------------------------------- what fits


_WAYS = ("full", "LoRA", "LoRA, checkpointing", "QLoRA")
_NEEDS = [dict(zip(_WAYS, gb, strict=True)) for gb in ((110.0, 36.0, 18.0, 6.8), (26.0, 12.6, 7.2, 8.1))]

exercise(
    "what_fits",
    reference=lesson.what_fits,
    cases=[(needs, card) for needs in _NEEDS for card in (6, 8, 12.6, 19, 24, 36, 80, 110)],
    mistakes=[
        Mistake(
            lambda needs, card_gb: lesson.what_fits(needs, 0.9 * card_gb),
            "you left a tenth of the card free; the safety margin is in the numbers already.",
        ),
        Mistake(
            lambda needs, card_gb: next((way for way, gb in needs.items() if gb < card_gb), "none"),
            "a way that needs just what the card has fits: compare with <=.",
        ),
        Mistake(
            lambda needs, card_gb: next((way for way, gb in reversed(needs.items()) if gb <= card_gb), "none"),
            "you began with the last way, which is the one that you like least: keep the order of `needs`.",
        ),
        Mistake(
            lambda needs, card_gb: min(needs, key=needs.get) if min(needs.values()) <= card_gb else "none",
            "that is the way that needs least. The task wants the first that fits, the one you like best.",
        ),
        Mistake(
            lambda needs, card_gb: next((way for way, gb in needs.items() if gb <= card_gb), None),
            'where nothing fits the answer is the text "none", not None.',
        ),
    ],
    hints=[
        "for way, gb in needs.items() goes through them in their order.",
        'Return the first way whose gb <= card_gb; after the loop, return "none".',
    ],
)
