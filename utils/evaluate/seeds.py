"""Two settings, each trained with the same seeds: how far apart are they, and could the seeds alone have done it?

Attributes:
    T_975: Student's t at 97.5%, by degrees of freedom from 1 on (NIST/SEMATECH e-Handbook, table 1.3.6.7.2).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
         2.120, 2.110, 2.101, 2.093)  # fmt: skip


class Difference(NamedTuple):
    """A mean difference over seeds, its 95% interval, and the chance of one as large if the labels meant nothing."""

    mean: float
    low: float
    high: float
    p: float


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of a mean over seeds, by Student's t.

    Raises ValueError for fewer than 2 values, or for more than 20, which the table doesn't hold.
    """
    if not 2 <= len(values) <= len(T_975) + 1:
        raise ValueError(f"an interval of a mean takes 2 to {len(T_975) + 1} seeds, and got {len(values)}")
    half = T_975[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    middle = statistics.mean(values)
    return middle - half, middle + half


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """`ours - theirs`, seed by seed: a seed decides the order of the data for both, so what it gives both cancels.

    p is exact: of all 2^n ways to swap the two labels within seeds, the share whose mean is at least as far from 0.
    With 12 seeds no p is below 2/4096. Raises ValueError when the two don't have as many seeds, and what
    :func:`interval` raises.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"a pair for every seed: got {len(ours)} and {len(theirs)} values")
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    low, high = interval(differences)
    found = abs(sum(differences))
    swapped = [
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    at_least = sum(one >= found - 1e-12 for one in swapped)
    return Difference(statistics.mean(differences), low, high, at_least / len(swapped))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values, corrected for how many there are, in their order (Holm, 1979).

    The smallest is multiplied by n, the next by n - 1, and so on; none falls below the one before it. Calling those
    below 0.05 findings keeps the chance of even one false finding below 5%.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, so_far = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        so_far = max(so_far, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = so_far
    return corrected
