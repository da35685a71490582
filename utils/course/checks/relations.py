"""Relations between wrong numbers and right ones: the other sign, twice as much, off by one, a factor left out.

A relation has to hold for every number of every case that is looked at, to explain the wrong ones (not only to come
near them) and to do so for several different numbers: 4 for 2 may be twice, the square, or two too many.

Attributes:
    EVIDENCE: So many different right numbers a relation must explain before it is told.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.course.checks.calls import DEPTH
from utils.course.checks.describe import number
from utils.course.checks.tried import Tried, count, equal, named

EVIDENCE = 2


class Pair(NamedTuple):
    """A case's right and wrong numbers, each as one row of float64."""

    want: Tensor
    have: Tensor
    right: bool


def numeric(tried: Sequence[Tried], names: Sequence[str]) -> str | None:
    """A sentence on how all the numbers of all the cases are related to the right ones, or None."""
    if said := _transposed(tried):
        return said
    if all(isinstance(one.want, bool) for one in tried):
        return _truth(tried)
    pairs = [_pair(one) for one in tried]
    known = [pair for pair in pairs if pair is not None]
    if len(known) < len(tried) or _evidence(known) < EVIDENCE:
        return None
    for relation, needed, said in _RELATIONS:
        if _evidence(known) >= needed and all(_holds(relation, pair) for pair in known):
            return said
    return (
        _offset(known)
        or _factor(known)
        or _argument_factor(tried, known, names)
        or _argument_offset(tried, known, names)
        or _not_finite(known)
    )


def _truth(tried: Sequence[Tried]) -> str | None:
    if len({one.want for one in tried}) == 2 and all(one.have is (not one.want) for one in tried):
        return "it is exactly the other way round: True and False are exchanged."
    return None


def _transposed(tried: Sequence[Tried]) -> str | None:
    both = [(one.want, one.have) for one in tried]
    if all(isinstance(value, Tensor) and value.ndim >= 2 for pair in both for value in pair):
        if all(equal(want.mT, have) for want, have in both):
            return "your result is the transpose of the right one."
    return None


# ------------------------------------------------------------------------------------------------ pairs of numbers


def _pair(one: Tried) -> Pair | None:
    """Both results as rows of numbers, where they have numbers in the same places."""
    want, have = _leaves(one.want), _leaves(one.have)
    if not want or not have or [part.shape for part in want] != [part.shape for part in have]:
        return None
    rows = [torch.cat([part.flatten() for part in parts]) for parts in (want, have)]
    return Pair(rows[0], rows[1], one.right)


def _leaves(value: Any, depth: int = DEPTH) -> list[Tensor] | None:
    if isinstance(value, Tensor):
        if value.is_meta or value.is_complex() or value.layout != torch.strided or value.dtype == torch.bool:
            return None
        return [value.detach().cpu().to(torch.float64)]
    if isinstance(value, numbers.Real):
        try:
            return [torch.tensor(float(value), dtype=torch.float64)]
        except OverflowError:
            return None
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value, key=repr)]
    if not depth or not isinstance(value, list | tuple):
        return None
    parts = [_leaves(item, depth - 1) for item in value]
    return None if any(part is None for part in parts) else [leaf for part in parts for leaf in part or []]


def _scale(row: Tensor) -> float:
    return float(row.abs().max()) if row.numel() else 0.0


def _near(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=2e-5, atol=1e-6 * _scale(one))


def _off(pair: Pair) -> Tensor:
    """Which of a wrong result's numbers are wrong."""
    if pair.right:
        return torch.zeros_like(pair.want, dtype=torch.bool)
    return ~torch.isclose(pair.have, pair.want, rtol=1e-6, atol=1e-9 * _scale(pair.want), equal_nan=True)


def _evidence(pairs: Sequence[Pair]) -> int:
    """How many different right numbers have a wrong one in their place."""
    return len({f"{value:.6g}" for pair in pairs for value in pair.want[_off(pair)][:100].tolist()})


def _explains(told: Tensor, pair: Pair) -> bool:
    """Whether the numbers that a relation foretells are those of the answer, and not only the right ones nearly met."""
    if not (told.isfinite().all() and pair.have.isfinite().all()) or not _near(told, pair.have):
        return False
    return pair.right or _scale(pair.have - told) <= 0.01 * _scale(pair.have - pair.want)


def _holds(relation: Callable[[Tensor], Tensor], pair: Pair) -> bool:
    return bool(pair.want.isfinite().all()) and _explains(relation(pair.want), pair)


def _within(low: float, high: float, relation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The relation for numbers of a range; nan, which nothing is near, outside of it."""
    return lambda want: torch.where((want >= low) & (want <= high), relation(want), math.nan)


_ALL = math.inf

# The relation, how many different numbers it must explain, and what is said.
_RELATIONS: tuple[tuple[Callable[[Tensor], Tensor], int, str], ...] = (
    (torch.neg, 2, "every result has the wrong sign: it is the right one, negated."),
    (torch.abs, 2, "the sizes are right, but the signs are lost."),
    (_within(0, 1, lambda want: 1 - want), 2, "your results are 1 minus the right ones: the other part of the whole."),
    (torch.reciprocal, 3, "your results are upside down: 1 divided by the right ones."),
    (torch.square, 3, "your results are the squares of the right ones."),
    (_within(0, _ALL, torch.sqrt), 3, "your results are the square roots of the right ones."),
    (_within(0, _ALL, torch.log), 3, "your results are the logarithms of the right ones."),
    (torch.exp, 3, "your results are e to the power of the right ones: a logarithm is missing."),
    (torch.round, 3, "the results are rounded to whole numbers, and the task wants the fraction kept."),
    (torch.floor, 3, "the results are rounded down, and the task wants the fraction kept."),
    (torch.ceil, 3, "the results are rounded up, and the task wants the fraction kept."),
    *(
        (
            lambda want, n=n: torch.round(want, decimals=n),
            3,
            f"the results are rounded to {n} digit{'s' * (n > 1)}, and the task wants all.",
        )
        for n in (1, 2, 3, 4)
    ),
)


def _not_finite(pairs: Sequence[Pair]) -> str | None:
    """Nothing is wrong but what is nan or infinite."""
    wrong = [pair.have[_off(pair)] for pair in pairs]
    if any(row.isfinite().any() for row in wrong) or not all(pair.want.isfinite().all() for pair in pairs):
        return None
    words = "nan" if any(row.isnan().any() for row in wrong) else "infinite"
    return f"every number that is wrong is {words}: look for a division by zero, or a logarithm of it."


# --------------------------------------------------------------------------------------------- factors and offsets

_FACTORS = {
    100.0: "100 times the right one: percent for a fraction?",
    0.01: "a hundredth of the right one: a fraction for percent?",
    8.0: "8 times the right one: bits for bytes?",
    0.125: "an eighth of the right one: bytes for bits?",
    2.0: "twice the right one.",
    0.5: "half of the right one.",
    1e9: "10^9 times the right one: bytes for gigabytes?",
    1e-9: "10^9 times too small: gigabytes for bytes?",
    1e9 / 2**30: "the right one counted in GiB (2^30 bytes), and a GB has 10^9.",
    2**30 / 1e9: "the right one counted in GB (10^9 bytes), and a GiB has 2^30.",
    1e6 / 2**20: "the right one counted in MiB (2^20 bytes), and a MB has 10^6.",
    2**20 / 1e6: "the right one counted in MB (10^6 bytes), and a MiB has 2^20.",
}


def _offset(pairs: Sequence[Pair]) -> str | None:
    """The same amount too much, or too little, everywhere."""
    first = next(float((pair.have - pair.want)[0]) for pair in pairs if not pair.right)
    if not math.isfinite(first) or not first or any(pair.right for pair in pairs):
        return None
    if not all(_explains(pair.want + first, pair) for pair in pairs):
        return None
    more = "off by one?" if math.isclose(abs(first), 1, rel_tol=1e-6) else "the same every time."
    return f"every result is too {'large' if first > 0 else 'small'} by {number(abs(first))}: {more}"


def _ratios(pairs: Sequence[Pair]) -> list[float | None] | None:
    """For each pair the one factor between all of its numbers, None for a right result of zeros alone; or None when a
    pair has no such factor."""
    found: list[float | None] = []
    for pair in pairs:
        at = int(pair.want.abs().argmax()) if pair.want.numel() else -1
        if at < 0 or not pair.want[at]:
            if not pair.right:
                return None
            found.append(None)
            continue
        ratio = float(pair.have[at] / pair.want[at])
        if not ratio or not math.isfinite(ratio) or not _explains(pair.want * ratio, pair):
            return None
        found.append(ratio)
    return found


def _factor(pairs: Sequence[Pair]) -> str | None:
    ratios = [ratio for ratio in _ratios(pairs) or [] if ratio is not None]
    if not ratios or not all(math.isclose(ratio, ratios[0], rel_tol=2e-5) for ratio in ratios):
        return None
    said = next((said for k, said in _FACTORS.items() if math.isclose(k, ratios[0], rel_tol=1e-5)), None)
    return f"every result is {said or f'{number(ratios[0])} times the right one.'}"


# The power of an argument that is in the wrong result and not in the right one, and what is said.
_POWERS = {
    -1.0: "every result lacks the factor {}.",
    1.0: "every result has the factor {} once too often.",
    -2.0: "every result is divided by {} where it should be multiplied, or lacks its square.",
    2.0: "every result is multiplied by {} where it should be divided, or has its square too much.",
    -0.5: "every result lacks the square root of {} as a factor.",
    0.5: "every result has the square root of {} as a factor too much.",
}


def _argument_factor(tried: Sequence[Tried], pairs: Sequence[Pair], names: Sequence[str]) -> str | None:
    """A factor that is one of the arguments, or one of their sizes, too often or too seldom."""
    ratios = _ratios(pairs)
    if ratios is None:
        return None
    known = [at for at, ratio in enumerate(ratios) if ratio is not None]

    def holds(values: list[float], power: float) -> bool:
        return all(values[at] > 0 and math.isclose(ratios[at] or 0, values[at] ** power, rel_tol=2e-5) for at in known)

    fit = [
        (values, said.format(words))
        for words, values in _sizes(tried, names)
        if _varied([values[at] for at in known])
        for power, said in _POWERS.items()
        if holds(values, power)
    ]
    return _one_of(fit)


def _argument_offset(tried: Sequence[Tried], pairs: Sequence[Pair], names: Sequence[str]) -> str | None:
    """Too much or too little by one of the arguments, or by one of their sizes."""
    if any(pair.want.numel() != 1 or not math.isfinite(float(pair.have)) for pair in pairs):
        return None
    fit = []
    for words, values in _sizes(tried, names):
        if not _varied(values):
            continue
        for sign, said in ((1, "too large"), (-1, "too small")):
            told = (pair.want + sign * value for pair, value in zip(pairs, values, strict=True))
            if all(_explains(row, pair) for row, pair in zip(told, pairs, strict=True)):
                fit.append((values, f"every result is {said} by {words}."))
    return _one_of(fit)


def _varied(values: Sequence[float]) -> bool:
    """Whether a size varies enough to be told from a number that is always the same."""
    return len(set(values)) >= 3 and len(set(values) - {0.0, 1.0}) >= 2


def _one_of(fit: Sequence[tuple[list[float], str]]) -> str | None:
    """The first that fits, when the others are the same number in every case."""
    return fit[0][1] if fit and all(values == fit[0][0] for values, _ in fit) else None


def _sizes(tried: Sequence[Tried], names: Sequence[str]) -> Iterator[tuple[str, list[float]]]:
    """Every number among the arguments and their sizes, case by case, with its name."""
    for place in range(count(tried)):
        values = [one.arguments[place] for one in tried]
        name = named(names, place)
        if all(isinstance(value, numbers.Real) and not isinstance(value, bool) for value in values):
            yield name, [float(value) for value in values]
        elif all(isinstance(value, Tensor) for value in values):
            for dim in range(min(value.ndim for value in values)):
                yield f"{name.strip('`')}.shape[{dim}]", [float(value.shape[dim]) for value in values]
        elif all(isinstance(value, list | tuple) for value in values):
            yield f"len({name.strip('`')})", [float(len(value)) for value in values]
