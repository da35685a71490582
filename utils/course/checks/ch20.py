"""Chapter 20's exercises: hold out by groups, and luck."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from utils.course.checks.references import ch20 as lesson
from utils.course.checks.registry import Mistake, exercise

# --------------------------------------------------------------------------------------------- hold out whole groups


def _key(prompt: str) -> str:
    return " ".join(prompt.casefold().split())


def _groups(prompts: list[str], key: Callable[[str], str]) -> list[int]:
    """Each prompt's group: prompts with the same `key` are one, numbered as they come."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(key(prompt), len(numbers)) for prompt in prompts]


_PROMPTS = ["Hi", "Who?", "hi ", "Where to?", "WHO?", "When?", "Where  to?", "Why?", "how", "Why?", "How", "What?"]


def _drawn_prompts(rng: random.Random) -> tuple[list[str], int]:
    def said(text: str) -> str:
        gap = rng.choice([" ", "  ", "\t", "\n"])
        return rng.choice(["", " "]) + gap.join(rng.choice([text, text.upper()]).split()) + rng.choice(["", "\n"])

    texts = ["hi", "who are you", "whoareyou", "why not", "when", "where to", "what", "how so"]
    return [said(rng.choice(texts)) for _ in range(rng.randint(0, 14))], rng.randint(2, 5)


def _sorted_first(prompts: list[str], every: int) -> list[int]:
    order = sorted({_key(prompt) for prompt in prompts})
    return [row for row, prompt in enumerate(prompts) if order.index(_key(prompt)) % every == every - 1]


def _numbered(prompts: list[str], every: int, numbers: dict[str, int]) -> list[int]:
    """The rows to hold out when the prompts are numbered so."""
    return [row for row, prompt in enumerate(prompts) if numbers[_key(prompt)] % every == every - 1]


def _by_first_row(prompts: list[str], every: int) -> list[int]:
    return _numbered(prompts, every, {_key(prompts[row]): row for row in reversed(range(len(prompts)))})


def _by_last_row(prompts: list[str], every: int) -> list[int]:
    return _numbered(prompts, every, {_key(prompt): row for row, prompt in enumerate(prompts)})


def _only_stripped(prompts: list[str], every: int) -> list[int]:
    numbers = _groups(prompts, lambda prompt: prompt.casefold().strip())
    return [row for row, number in enumerate(numbers) if number % every == every - 1]


def _last_group(prompts: list[str], every: int) -> list[int]:
    return [row for row, number in enumerate(_groups(prompts, _key)) if number == every - 1]


exercise(
    "held_out_rows",
    reference=lesson.held_out_rows,
    cases=[(_PROMPTS, 2), (_PROMPTS, 3), (["a", "b", "A", "c", "B ", "d", "c"], 2)],
    drawn=_drawn_prompts,
    mistakes=[
        Mistake(
            _sorted_first,
            "the prompts are numbered in the order of the alphabet: the first that comes gets 0, the next new one 1.",
        ),
        Mistake(
            _by_first_row,
            "a prompt's number is the row in which it first came: count the different prompts, 0, 1, 2, without gaps.",
        ),
        Mistake(
            _by_last_row,
            "a prompt that comes again gets a new number: the number of its first time stays.",
        ),
        Mistake(
            _only_stripped,
            "strip() mends the ends only, and two spaces between words still make another prompt.",
        ),
        Mistake(
            _last_group,
            "one group alone is held out: of each `every` numbers the last, so every - 1, 2 * every - 1 and so on.",
        ),
        Mistake(
            lambda prompts, every: [r for r, n in enumerate(_groups(prompts, _key)) if (n + 2) % every == 0],
            "one too early: with every=10 the numbers 9, 19, 29 are held out, where number % every is every - 1.",
        ),
        Mistake(
            lambda prompts, every: [
                r for r, n in enumerate(_groups(prompts, lambda p: "".join(_key(p).split()))) if n % every == every - 1
            ],
            "all spaces were taken out, so that two different prompts may become one: leave one of each run.",
        ),
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
    why="What is counted is prompts and not rows, so every row of a prompt goes to the same side.",
    points=2,
)

# --------------------------------------------------------------------------------------------------------------- luck


def _tail(changed: int, up_to: int) -> float:
    return sum(math.comb(changed, k) for k in range(up_to + 1)) / 2**changed


exercise(
    "luck",
    reference=lesson.luck,
    cases=[(5, 0), (2, 6), (9, 4), (3, 3), (0, 0)],
    drawn=lambda rng: (rng.randint(0, 40), rng.randint(0, 12)),
    mistakes=[
        Mistake(
            lambda gained, lost: min(1.0, 2 * _tail(gained + lost, min(gained, lost) - 1)),
            "k runs from 0 to the smaller count, which belongs to it: range(fewer + 1).",
        ),
        Mistake(
            lambda gained, lost: 1 - min(1.0, 2 * _tail(gained + lost, min(gained, lost))),
            "that is the probability of something less uneven; the small number is the one that speaks against luck.",
        ),
        Mistake(
            lambda gained, lost: math.erfc(abs(gained - lost) / math.sqrt(2 * (gained + lost or 1))),
            "that is the normal curve's approximation: with few answers it is far off, and the exact sum is short.",
        ),
        Mistake(
            lambda gained, lost: min(1.0, 2 * _tail(max(gained, lost), min(gained, lost))),
            "n is the number of all coins, gained + lost.",
        ),
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
    why="Only answers that changed say anything, and a fair coin decides each if the adapter does nothing: 8 of 10 is "
    "luck one time in nine.",
    points=2,
)
