"""Of many runs the setting that counts: its number for each seed, and whether its grid was wide enough to find it.

Attributes:
    BySeed: A number for each seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from tools.sweep_rank import FULL

Row = dict[str, Any]
BySeed = dict[int, float]


class Measured(NamedTuple):
    """A number for each seed. It may rise, or fall, with a wider grid where the best value lies at the grid's edge.

    means: the number's two sides, or what it comes to, in words.
    """

    by_seed: BySeed
    rises: bool = False
    falls: bool = False
    means: str = ""

    @property
    def mean(self) -> float:
        """The mean over the seeds; raises statistics.StatisticsError where there is none."""
        return statistics.mean(self.by_seed.values())


NOTHING = Measured({})


def picked(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows with these values; a value that is None asks for rows without the key."""
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def lora(rows: Sequence[Row], section: str, **wanted: Any) -> list[Row]:
    return [row for row in picked(rows, section=section, **wanted) if row.get("targets") != FULL]


def full(rows: Sequence[Row], section: str, **wanted: Any) -> list[Row]:
    return picked(rows, section=section, targets=FULL, **wanted)


def at_edge(value: float, tried: Collection[float]) -> bool:
    """Whether a value is the first or the last of those that were tried."""
    return value in (min(tried), max(tried))


def at_best(rows: Sequence[Row], what: str = "test", by: str = "dev", lowest: bool = False) -> Measured:
    """By seed, `what` at the learning rate whose mean `by` over the seeds is the highest (or the lowest).

    A run that diverged has None and counts as the worst. At the edge of the rates a higher `what` may rise with more
    rates, and a lowest one fall; a share of 1 can't rise.
    """
    worst = math.inf if lowest else -math.inf
    rates: dict[float, list[float]] = {}
    for row in rows:
        rates.setdefault(row["lr"], []).append(worst if row[by] is None else row[by])
    if not rates:
        return NOTHING
    sign = 1 if lowest else -1
    means = {lr: statistics.mean(rates[lr]) for lr in sorted(rates)}
    best = min(means, key=lambda lr: sign * means[lr])
    edge = at_edge(best, rates) and (lowest or means[best] < 1)
    by_seed = {row["seed"]: row[what] for row in rows if row["lr"] == best and row[what] is not None}
    return Measured(by_seed, rises=edge and not lowest, falls=edge and lowest)


def best_rate(rows: Sequence[Row], by: str = "dev_loss") -> Measured:
    """By seed, the base-two logarithm of the learning rate whose loss on dev is the lowest."""
    found, tried = {}, {row["lr"] for row in rows}
    for seed in sorted({row["seed"] for row in rows}):
        mine = [row for row in rows if row["seed"] == seed and row[by] is not None]
        if mine:
            found[seed] = min(mine, key=lambda row: row[by])["lr"]
    return Measured(
        {seed: math.log2(lr) for seed, lr in found.items()},
        rises=any(lr == max(tried) for lr in found.values()), falls=any(lr == min(tried) for lr in found.values()),
    )  # fmt: skip


def less(one: Measured, other: Measured) -> Measured:
    """The difference, of the seeds that both have."""
    by_seed = {seed: one.by_seed[seed] - other.by_seed[seed] for seed in one.by_seed if seed in other.by_seed}
    return Measured(by_seed, one.rises or other.falls, one.falls or other.rises)


def at_equal_accuracy(
    rows: Sequence[Row], what: str, remedy: str, method: str, task: str, target: float = 0.9, both: bool = False
) -> Measured:
    """By seed, `what` under a remedy: of the settings whose mean exact match on dev reaches `target` of the best that
    any setting of the task and method has (with `both`: of the task, by LoRA or by full fine-tuning), the one with the
    lowest general perplexity on the windows to choose by.

    At the edge of the rates or of the remedy's own strengths a wider grid may find a lower perplexity. Where the remedy
    was tried and none of its settings is accurate enough, there are no seeds, and `means` says how far it came.
    """
    every: dict[str, dict[tuple, list[Row]]] = {"lora": {}, "full": {}}
    for row in picked(rows, section="remedies", task=task):
        of_its = every["full" if row["targets"] == FULL else "lora"]
        of_its.setdefault((row["remedy"], row["knob"], row["lr"]), []).append(row)
    finite = {
        name: {k: v for k, v in found.items() if all(r["dev"] is not None and r["general_dev"] for r in v)}
        for name, found in every.items()
    }
    settings, good = every[method], finite[method]
    if not good:
        return NOTHING
    compared = [*finite["lora"].values(), *finite["full"].values()] if both else good.values()
    top = max(statistics.mean(r["dev"] for r in v) for v in compared)
    enough = {k: v for k, v in good.items() if k[0] == remedy and statistics.mean(r["dev"] for r in v) >= target * top}
    if not enough:
        best = max((statistics.mean(r["dev"] for r in v) for k, v in good.items() if k[0] == remedy), default=None)
        said = "" if best is None else f"at most {100 * best:.0f}% on dev, and {100 * target * top:.0f}% is asked for"
        return NOTHING._replace(means=said)
    chosen = min(enough, key=lambda k: statistics.mean(r["general_dev"] for r in enough[k]))
    rates, knobs = ({k[i] for k in settings if k[0] == remedy} for i in (2, 1))
    edge = at_edge(chosen[2], rates) or (len(knobs) > 1 and at_edge(chosen[1], knobs))
    return Measured({row["seed"]: row[what] for row in enough[chosen]}, falls=edge)


def recipe(rows: Sequence[Row], what: str, method: str, task: str) -> Measured:
    """By seed, `what` of training without a remedy at the rate that is best on dev.

    At the edge of the rates it may go either way: the rate was chosen for something else.
    """
    mine = [r for r in picked(rows, section="remedies", task=task, remedy="rate")
            if (r["targets"] == FULL) == (method == "full")]  # fmt: skip
    found = at_best(mine, what)
    return found._replace(falls=found.rises)
