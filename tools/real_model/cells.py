"""How the page writes a number and its interval, and so much of it as the number can be.

Attributes:
    UNITS: How a finding's numbers are written: the unit in words, a factor, and what the number can be at the most.
    MODELS: The record's models, and what the page calls them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MODELS = {"tiny": "tiny", "small": "SmolLM2"}
MISSING = "not measured"
ANY = (-math.inf, math.inf)
UNITS: dict[str, tuple[str, float, tuple[float, float]]] = {
    "exact match": ("points", 100, (-100, 100)),
    "mean exact match of the two": ("%", 100, (0, 100)),
    "share of the accuracy kept": ("%", 100, (0, math.inf)),
    "share of directions": ("points", 100, (-100, 100)),
    "bits": ("bits", 1, (0, math.inf)),
    "log of the general perplexity": ("in log perplexity", 1, ANY),
}


def percent(found: Any) -> str:
    """A share with its interval, in percent, and no further than 0 and 100."""
    return cell(found, 100, (0, 100), lambda values: 0)


def number(found: Any) -> str:
    """A number that is never below 0, with its interval."""
    return cell(found, 1, (0, math.inf), digits)


def plain(found: Any) -> str:
    return "-" if found is None else f"{found:g}" if isinstance(found, float) else str(found)


def digits(values: Sequence[float]) -> int:
    """So many behind the point that the largest value has two significant digits: at least two below 10, one below
    100, none from there on, and four at the most.
    """
    largest = max(map(abs, values))
    if largest >= 10:
        return 1 if largest < 100 else 0
    return 2 if largest == 0 else min(4, max(2, 1 - math.floor(math.log10(largest))))


def _written(value: float, places: int) -> str:
    return f"{round(value, places) + 0.0:,.{places}f}"  # no minus before a zero


def cell(
    found: Any, factor: float, limits: tuple[float, float], places: Callable[[Sequence[float]], int], more: str = ""
) -> str:
    """A mean and its interval, cut to what the number can be; `more` ends the parenthesis."""
    if found is None or found == {}:
        return "-"
    if not isinstance(found, Mapping):
        value, behind = factor * found, places([factor * found])
        return f"<{10**-behind:.{behind}f}" if 0 < value < 10**-behind / 2 else _written(value, behind)
    values = [min(max(factor * found[key], limits[0]), limits[1]) for key in ("mean", "low", "high") if key in found]
    mean, *ends = (_written(value, places(values)) for value in values)
    mark = "≥ " if found.get("may_rise") else "≤ " if found.get("may_fall") else ""
    return f"{mark}{mean} ({' to '.join(ends)}{more})" if ends else f"{mark}{mean}"


def side(found: Mapping[str, Any], unit: str = "") -> str:
    """A model's mean, interval and number of seeds, as a cell of the table."""
    if "mean" not in found:
        return MISSING
    _, factor, limits = UNITS.get(unit, (unit, 1, ANY))
    bare = {key: found[key] for key in ("mean", "low", "high")}
    return cell(bare, factor, limits, (lambda values: 0) if factor == 100 else digits, f"; {len(found['seeds'])}")
