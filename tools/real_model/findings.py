"""From all rows to the table: what each finding says of either model, and whether it holds.

A finding is a number for each seed that lies on one side of a bound where the finding holds, such as the difference of
two accuracies above 0. Of each model it gets the mean and the 95% interval over the seeds (utils.evaluate.seeds). It
`holds` where the whole interval is on the right side, it `doesn't` where the whole interval is on the other, and
between the two it is `open`. It is open as well where the best setting lies at the edge of the grid that was searched
and a better one beyond it could turn the verdict (choosing.Measured). Where it holds with less than half of the tiny
model's distance from the bound, it `holds, weaker`. The bounds were written down before SmolLM2 was trained, but for
one that could not be missed (64 examples: a last loss above the lowest).

Attributes:
    EDGE: The verdict of a finding that only a wider grid can settle.
    NOT_REACHED: Of one whose runs were made, and none is as accurate as the comparison asks for.
    LOG_PERPLEXITY: A unit in which an effect is never called weaker: how far it can go is what a model had forgotten.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tools.real_model.choosing import (
    NOTHING,
    Measured,
    Row,
    at_best,
    at_edge,
    at_equal_accuracy,
    best_rate,
    full,
    less,
    lora,
    picked,
    recipe,
)
from utils.evaluate.seeds import interval

EDGE = "open: at the edge of the grid"
NOT_REACHED = "open: not accurate enough"
LOG_PERPLEXITY = "log of the general perplexity"


class Finding(NamedTuple):
    """One line of the table. `effect` gives a number for each seed, of one model's rows; it may find none."""

    key: str
    chapter: str
    says: str
    unit: str
    bound: float
    above: bool
    effect: Callable[[Sequence[Row]], Measured]


Effect = Callable[[Sequence[Row]], Measured]

# ---------------------------------------------------------------------------------------- a number's sides, in words


def _share(value: float) -> str:
    return f"{100 * value:.0f}%"


def _rate(value: float) -> str:
    return f"a rate of {2**value:.2g}"


def _between(one: Measured, other: Measured, write: Callable[[float], str] = _share) -> Measured:
    """The difference of two numbers, with both of them in words."""
    found = less(one, other)
    if not found.by_seed:
        return found
    return found._replace(means=f"{write(one.mean)} against {write(other.mean)}")


def _of(by_seed: Mapping[int, float], what: Sequence[Row], *keys: str) -> list[float]:
    """The means of these values over the rows of the seeds."""
    return [statistics.mean(row[key] for row in what if row["seed"] in by_seed) for key in keys]


# --------------------------------------------------------------------------------------------------------- the findings


def _cut(r: int) -> Effect:
    def effect(rows: Sequence[Row]) -> Measured:
        mine = picked(rows, section="updates", method="full", task="translation")
        whole = {row["seed"]: row["test"] for row in mine if "cut_to" not in row}
        part = {row["seed"]: row["test"] for row in mine if row.get("cut_to") == r}
        found = Measured({seed: part[seed] / whole[seed] for seed in part if whole.get(seed)})
        return found._replace(means=_between(Measured(part), Measured(whole)).means)

    return effect


def _rank(one: tuple[str, int], other: tuple[str, int]) -> Effect:
    def effect(rows: Sequence[Row]) -> Measured:
        found = [at_best(lora(rows, "ranks", targets=targets, r=r)) for targets, r in (one, other)]
        return _between(*found)

    return effect


def _rule(alpha: Callable[[int], float], low: int, high: int) -> Effect:
    def effect(rows: Sequence[Row]) -> Measured:
        found = [best_rate(lora(rows, "rules", r=r, lora_alpha=alpha(r))) for r in (low, high)]
        return _between(*found, write=_rate)

    return effect


def _method_rate(rows: Sequence[Row]) -> Measured:
    found = best_rate(lora(rows, "ranks", targets="all-linear", r=8)), best_rate(full(rows, "ranks"))
    return _between(*found, write=_rate)


def _batch(rows: Sequence[Row]) -> Measured:
    found, sizes = {}, {row["batch"] for row in picked(rows, section="batch")}
    for name, choose in (("lora", lora), ("full", full)):
        more = {"r": 64} if name == "lora" else {}
        small, large = (at_best(choose(rows, "batch", batch=b, **more), "test_loss", "dev_loss", lowest=True)
                        for b in (max(sizes, default=0) // 16, max(sizes, default=0)))  # fmt: skip
        found[name] = less(large, small)
    return _between(found["lora"], found["full"], lambda nats: f"+{nats:.2f}")


def _logged(one: Measured, other: Measured) -> Measured:
    """The difference of the logarithms, with the two themselves in words."""
    words = _between(one, other, lambda value: f"{value:.2f}").means
    logs = (m._replace(by_seed={s: math.log(v) for s, v in m.by_seed.items()}) for m in (one, other))
    return less(*logs)._replace(means=words and f"perplexity {words}")


def _remedy(remedy: str, method: str, task: str) -> Effect:
    def effect(rows: Sequence[Row]) -> Measured:
        found = at_equal_accuracy(rows, "general", remedy, method, task)
        return _logged(found, recipe(rows, "general", method, task)) if found.by_seed else found

    return effect


def _less_forgetting(task: str) -> Effect:
    def effect(rows: Sequence[Row]) -> Measured:
        return _logged(*(at_equal_accuracy(rows, "general", "rate", m, task, both=True) for m in ("lora", "full")))

    return effect


def _form(form: str, task: str) -> Effect:
    def effect(rows: Sequence[Row]) -> Measured:
        return _between(*(at_best(picked(rows, section="formats", form=f, task=task)) for f in (form, "bf16")))

    return effect


def _variant(name: str, task: str) -> Effect:
    def one(rows: Sequence[Row], entry: str) -> Measured:
        mine = picked(rows, section="variants", entry=entry, task=task)
        by_seed = {row["seed"]: row["test"] or 0.0 for row in mine if row["role"] == "reports"}
        rate = {row["lr"] for row in mine if row["role"] == "reports"}
        tried = {row["lr"] for row in mine}
        return Measured(by_seed, rises=any(at_edge(lr, tried) for lr in rate))

    return lambda rows: _between(one(rows, name), one(rows, "LoRA"))


WAYS = (("cat", 1.0), ("cat", 0.5), ("linear", 0.5), ("ties", 1.0), ("dare_linear", 1.0))


def _combined(rows: Sequence[Row]) -> Measured:
    """The mean exact match of both tasks, by the way of combining in which it is the highest."""
    found: list[Measured] = []
    for how, weight in WAYS:
        mine = picked(rows, section="combining", how=how, weight=weight)
        if not mine:
            continue
        by_seed = {row["seed"]: (row["style"] + row["translation"]) / 2 for row in mine}
        style, translation = (_share(value) for value in _of(by_seed, mine, "style", "translation"))
        found.append(
            Measured(by_seed, means=f"best: {how} at weights {weight:g}, style {style}, translation {translation}")
        )
    return max(found, key=lambda one: one.mean, default=NOTHING)


def _merged(way: str, what: str) -> Effect:
    def effect(rows: Sequence[Row]) -> Measured:
        mine = picked(rows, section="merging")
        first = [row for row in mine if row["steps"] == min(row["steps"] for row in mine)]
        by_seed = {row["seed"]: row["ways"][way][what] for row in first}
        if not first:
            return NOTHING
        right = statistics.mean(row["right"] for row in first)
        lost, won = (statistics.mean(row["ways"][way][key] for row in first) for key in ("lost", "won"))
        return Measured(by_seed, means=f"{lost:.1f} of {right:.1f} right answers lost, {won:.1f} won")

    return effect


def _overfits(what: str) -> Effect:
    def effect(rows: Sequence[Row]) -> Measured:
        mine = picked(rows, section="overfitting", task="translation")
        epochs = max((row["epochs"] for row in mine), default=0)
        rate = sorted({row["lr"] for row in mine})[1:2]
        last, best = {}, {}
        for seed in {row["seed"] for row in mine}:
            runs = {row["epochs"]: row for row in mine if row["seed"] == seed and [row["lr"]] == rate}
            finite = [row for row in runs.values() if row["dev_loss"] is not None]
            if finite and runs[epochs][what] is not None:
                last[seed], best[seed] = runs[epochs][what], min(finite, key=lambda row: row["dev_loss"])[what]
        if what == "dev" and best and max(best.values()) < 0.05:
            return Measured({}, means=f"at most {_share(max(best.values()))} right, so it couldn't fall by 5 points")
        return _between(
            Measured(last), Measured(best), _share if what == "dev" else lambda nats: f"a loss of {nats:.3f}"
        )

    return effect


def _intruders(rows: Sequence[Row]) -> Measured:
    mine = [row for row in picked(rows, section="updates", task="style") if "cut_to" not in row]
    found = (Measured({r["seed"]: r["intruders"] for r in mine if r["method"] == m}) for m in ("lora", "full"))
    return _between(*found)


def _bits(rows: Sequence[Row]) -> Measured:
    """By seed, the most that any rate and any number of strings has: at the edge of either it may be more."""
    from tools.measure_capacity import bits_remembered

    mine, best = picked(rows, section="capacity", r=1), {}
    for row in mine:
        bits = bits_remembered(row["strings"], row["loss"])
        best[row["seed"]] = max(best.get(row["seed"], (0.0, row)), (bits, row), key=lambda found: found[0])
    edge = any(at_edge(row[key], {r[key] for r in mine}) for _, row in best.values() for key in ("lr", "strings"))
    means = " and ".join(dict.fromkeys(f"{row['strings']} strings, rate {row['lr']:g}" for _, row in best.values()))
    return Measured({seed: bits for seed, (bits, _) in best.items()}, rises=edge, means=means and f"at {means}")


FINDINGS = (
    Finding("cut", "02", "An update of full fine-tuning cut to rank 16 keeps the task", "share of the accuracy kept",
            0.95, True, _cut(16)),
    Finding("cut 1", "02", "Cut to rank 1 it loses the task", "share of the accuracy kept", 0.5, False, _cut(1)),
    Finding("intruders", "17", "LoRA leaves more intruders than full fine-tuning (style)", "share of directions", 0,
            True, _intruders),
    Finding("targets", "08", "At equal parameters all linear layers beat q and v", "exact match", 0, True,
            _rank(("all-linear", 8), ("q,v", 42))),
    Finding("rank", "08", "Rank 16 beats rank 1 on all linear layers", "exact match", 0, True,
            _rank(("all-linear", 16), ("all-linear", 1))),
    Finding("attention", "08", "At equal parameters the MLP beats attention", "exact match", 0, True,
            _rank(("MLP", 13), ("attention", 21))),
    Finding("method rate", "08", "LoRA's best learning rate is more than four times that of full fine-tuning",
            "powers of two", 2, True, _method_rate),
    Finding("rule fixed", "08", "With alpha = 32 at every rank, the best rate of r=64 and r=4 differ by less than four",
            "powers of two", 2, False, _rule(lambda r: 32, 64, 4)),
    Finding("rule 2r", "08", "With alpha = 2r, r=64 wants a lower rate than r=4", "powers of two", 0, False,
            _rule(lambda r: 2 * r, 64, 4)),
    Finding("batch", "08", "A batch 16 times as large costs LoRA (r=64) more than full fine-tuning", "nats a token", 0,
            True, _batch),
    *[Finding(f"forgets {task}", "17", f"At equal accuracy LoRA forgets less than full fine-tuning ({task})",
              LOG_PERPLEXITY, 0, False, _less_forgetting(task)) for task in ("style", "translation")],
    *[Finding(f"{remedy} {task}", "17", f"{said}, at nine tenths of the best accuracy ({task})",
              LOG_PERPLEXITY, 0, False, _remedy(remedy, "lora", task))
      for task in ("style", "translation")
      for remedy, said in (
          ("rate", "A lower rate forgets less"), ("replay", "Replay forgets less"),
          ("kl", "KL to the base forgets less"),
          ("weight decay", "Weight decay forgets less"), ("scale", "A scaled update forgets less"),
          ("average of steps", "Averaged steps forget less"))],
    Finding("kl on answers style", "17", "KL to the base on its own answers forgets less, at nine tenths of the best "
            "accuracy (style)", LOG_PERPLEXITY, 0, False, _remedy("kl on answers", "lora", "style")),
    *[Finding(f"{form} {task}", "06", f"LoRA beside {form} is within 5 points of 16 bits ({task})", "exact match",
              -0.05, True, _form(form, task))
      for form in ("int8", "nf4", "mxfp4") for task in ("translation", "style")],
    *[Finding(f"{name} {task}", "16", f"{name} is within 5 points of LoRA, at its own rate ({task})", "exact match",
              -0.05, True, _variant(name, task))
      for name in ("DoRA", "rsLoRA", "LoRA+", "PiSSA", "VeRA r=256") for task in ("translation", "style")],
    Finding("combined", "11", "The best of five ways to combine two adapters keeps both tasks",
            "mean exact match of the two", 0.9, True, _combined),
    Finding("merge", "10", "A half-learnt QLoRA adapter merged into the 16-bit original predicts otherwise",
            "nats a token", 0.01, True, _merged("into the original, bf16", "nats")),
    Finding("merge 4 bits", "10", "Merging it into 4 bits moves the predictions", "nats a token", 0.01, True,
            _merged("into 4 bits", "nats")),
    Finding("overfits", "09", "64 examples: the dev loss rises again", "nats a token", 0.05, True,
            _overfits("dev_loss")),
    Finding("overfits, exact", "09", "and the exact match on dev doesn't fall by 5 points", "exact match", -0.05, True,
            _overfits("dev")),
    Finding("bits", "08", "One direction in every layer remembers more than 20,000 bits", "bits", 20_000, True, _bits),
)  # fmt: skip


def verdict(
    finding: Finding, values: Sequence[float], of_the_tiny: Sequence[float] = (), rises: bool = False,
    falls: bool = False,
) -> str:  # fmt: skip
    """Whether a finding holds for these values, one a seed; `of_the_tiny` says what weaker is weaker than, `rises` and
    `falls` whether a wider grid could move them up or down.
    """
    if len(values) < 2:
        return "not measured"
    low, high = interval(values)
    towards, away = (rises, falls) if finding.above else (falls, rises)
    if not finding.above:
        low, high = -high, -low
    bound = finding.bound if finding.above else -finding.bound
    if high < bound:
        return EDGE if towards else "doesn't"
    if low <= bound:
        return "open"
    if away:
        return EDGE
    if len(of_the_tiny) > 1 and finding.unit != LOG_PERPLEXITY:
        far, tiny = (abs(statistics.mean(v) - finding.bound) for v in (values, of_the_tiny))
        return "holds, weaker" if far < tiny / 2 else "holds"
    return "holds"


def table(rows: Sequence[Row], before: Sequence[Mapping[str, Any]] = ()) -> list[dict]:
    """One entry for each finding: of either model the values by seed, their mean and interval, and the verdicts.

    before: an earlier table; of a model whose runs aren't in `rows` its numbers stand.
    """
    earlier, found = {entry["key"]: entry for entry in before}, []
    for finding in FINDINGS:
        entry: dict[str, Any] = {"key": finding.key, "chapter": finding.chapter, "says": finding.says,
                                 "unit": finding.unit, "bound": finding.bound, "above": finding.above}  # fmt: skip
        for model in ("tiny", "small"):
            side = _side(finding.effect(picked(rows, model=model)))
            if len(side["values"]) < 2 and "means" not in side and finding.key in earlier:
                side = {k: v for k, v in earlier[finding.key][model].items() if k != "verdict"}
            of_the_tiny = entry["tiny"]["values"] if model == "small" else ()
            rises, falls = side.get("may_rise", False), side.get("may_fall", False)
            judged = verdict(finding, side["values"], of_the_tiny, rises, falls)
            entry[model] = side | {"verdict": NOT_REACHED if not side["values"] and "means" in side else judged}
        found.append(entry)
    return found


def _side(measured: Measured) -> dict[str, Any]:
    """One model's part of an entry, without its verdict."""
    by_seed, rises, falls, means = measured
    side: dict[str, Any] = {"seeds": sorted(by_seed), "values": [round(by_seed[seed], 4) for seed in sorted(by_seed)]}
    if len(by_seed) > 1:
        low, high = interval([by_seed[seed] for seed in sorted(by_seed)])
        side |= {"mean": round(statistics.mean(by_seed.values()), 4), "low": round(low, 4), "high": round(high, 4)}
        side |= {"may_rise": rises, "may_fall": falls}
    if means and len(by_seed) != 1:
        side |= {"means": means}
    return side
