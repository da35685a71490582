"""From all rows to the table: what each finding says of either model, and whether it holds.

A finding is a number for each seed that lies on one side of a bound where the finding holds, such as the difference of
two accuracies above 0. Of each model it gets the mean and the 95% interval over the seeds (utils.evaluate.seeds). It
`holds` where the whole interval is on the right side, it `doesn't` where the whole interval is on the other, and
between the two it is `open`. Where it holds with less than half of the tiny model's distance from the bound, it
`holds, weaker`. The bounds were written down before SmolLM2 was trained.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tools.sweep_rank import FULL
from utils.evaluate.seeds import interval

Row = dict[str, Any]
BySeed = dict[int, float]


class Finding(NamedTuple):
    """One line of the table. `effect` gives a number for each seed, of one model's rows; it may find none."""

    key: str
    chapter: str
    says: str
    unit: str
    bound: float
    above: bool
    effect: Callable[[Sequence[Row]], BySeed]


# ------------------------------------------------------------------------------------------------------- reading rows


def picked(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows with these values; a value that is None asks for rows without the key."""
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def at_best(rows: Sequence[Row], what: str = "test", by: str = "dev", lowest: bool = False) -> BySeed:
    """By seed, `what` at the learning rate whose mean `by` over the seeds is the highest (or the lowest).

    A run that diverged has None and counts as the worst.
    """
    worst = math.inf if lowest else -math.inf
    rates: dict[float, list[float]] = {}
    for row in rows:
        rates.setdefault(row["lr"], []).append(worst if row[by] is None else row[by])
    if not rates:
        return {}
    sign = 1 if lowest else -1
    best = min(sorted(rates), key=lambda lr: sign * statistics.mean(rates[lr]))
    return {row["seed"]: row[what] for row in rows if row["lr"] == best and row[what] is not None}


def best_rate(rows: Sequence[Row], by: str = "dev_loss") -> BySeed:
    """By seed, the base-two logarithm of the learning rate whose loss on dev is the lowest."""
    found = {}
    for seed in sorted({row["seed"] for row in rows}):
        mine = [row for row in rows if row["seed"] == seed and row[by] is not None]
        if mine:
            found[seed] = math.log2(min(mine, key=lambda row: row[by])["lr"])
    return found


def less(one: BySeed, other: BySeed) -> BySeed:
    """The difference, of the seeds that both have."""
    return {seed: one[seed] - other[seed] for seed in one if seed in other}


def lora(rows: Sequence[Row], section: str, **wanted: Any) -> list[Row]:
    return [row for row in picked(rows, section=section, **wanted) if row.get("targets") != FULL]


def full(rows: Sequence[Row], section: str, **wanted: Any) -> list[Row]:
    return picked(rows, section=section, targets=FULL, **wanted)


def at_equal_accuracy(
    rows: Sequence[Row], what: str, remedy: str, method: str, task: str, target: float = 0.9
) -> BySeed:
    """By seed, `what` under a remedy: of the settings whose mean exact match on dev reaches `target` of the best that
    any setting of the task and method has, the one with the lowest general perplexity on the windows to choose by.
    """
    mine = [r for r in picked(rows, section="remedies", task=task) if (r["targets"] == FULL) == (method == "full")]
    settings: dict[tuple, list[Row]] = {}
    for row in mine:
        settings.setdefault((row["remedy"], row["knob"], row["lr"]), []).append(row)
    good = {k: v for k, v in settings.items() if all(r["dev"] is not None and r["general_dev"] for r in v)}
    if not good:
        return {}
    top = max(statistics.mean(r["dev"] for r in v) for v in good.values())
    enough = {k: v for k, v in good.items() if k[0] == remedy and statistics.mean(r["dev"] for r in v) >= target * top}
    if not enough:
        return {}
    chosen = min(enough.values(), key=lambda v: statistics.mean(r["general_dev"] for r in v))
    return {row["seed"]: row[what] for row in chosen}


def recipe(rows: Sequence[Row], what: str, method: str, task: str) -> BySeed:
    """By seed, `what` of training without a remedy at the rate that is best on dev."""
    mine = [r for r in picked(rows, section="remedies", task=task, remedy="rate")
            if (r["targets"] == FULL) == (method == "full")]  # fmt: skip
    return at_best(mine, what)


def logged(values: BySeed) -> BySeed:
    return {seed: math.log(value) for seed, value in values.items()}


# --------------------------------------------------------------------------------------------------------- the findings


def _cut(r: int) -> Callable[[Sequence[Row]], BySeed]:
    def effect(rows: Sequence[Row]) -> BySeed:
        mine = picked(rows, section="updates", method="full", task="translation")
        whole = {row["seed"]: row["test"] for row in mine if "cut_to" not in row}
        part = {row["seed"]: row["test"] for row in mine if row.get("cut_to") == r}
        return {seed: part[seed] / whole[seed] for seed in part if whole.get(seed)}

    return effect


def _rank(one: tuple[str, int], other: tuple[str, int]) -> Callable[[Sequence[Row]], BySeed]:
    def effect(rows: Sequence[Row]) -> BySeed:
        found = [at_best(lora(rows, "ranks", targets=targets, r=r)) for targets, r in (one, other)]
        return less(*found)

    return effect


def _rule(alpha: Callable[[int], float], low: int, high: int) -> Callable[[Sequence[Row]], BySeed]:
    def effect(rows: Sequence[Row]) -> BySeed:
        found = [best_rate(lora(rows, "rules", r=r, lora_alpha=alpha(r))) for r in (low, high)]
        return less(*found)

    return effect


def _method_rate(rows: Sequence[Row]) -> BySeed:
    return less(best_rate(lora(rows, "ranks", targets="all-linear", r=8)), best_rate(full(rows, "ranks")))


def _batch(rows: Sequence[Row]) -> BySeed:
    found, sizes = {}, {row["batch"] for row in picked(rows, section="batch")}
    for name, choose in (("lora", lora), ("full", full)):
        more = {"r": 64} if name == "lora" else {}
        small, large = (at_best(choose(rows, "batch", batch=b, **more), "test_loss", "dev_loss", lowest=True)
                        for b in (max(sizes, default=0) // 16, max(sizes, default=0)))  # fmt: skip
        found[name] = less(large, small)
    return less(found["lora"], found["full"])


def _remedy(remedy: str, method: str, task: str) -> Callable[[Sequence[Row]], BySeed]:
    def effect(rows: Sequence[Row]) -> BySeed:
        with_it = logged(at_equal_accuracy(rows, "general", remedy, method, task))
        return less(with_it, logged(recipe(rows, "general", method, task)))

    return effect


def _less_forgetting(task: str) -> Callable[[Sequence[Row]], BySeed]:
    def effect(rows: Sequence[Row]) -> BySeed:
        found = [logged(at_equal_accuracy(rows, "general", "rate", m, task)) for m in ("lora", "full")]
        return less(*found)

    return effect


def _form(form: str, task: str) -> Callable[[Sequence[Row]], BySeed]:
    def effect(rows: Sequence[Row]) -> BySeed:
        return less(*(at_best(picked(rows, section="formats", form=f, task=task)) for f in (form, "bf16")))

    return effect


def _variant(name: str, task: str) -> Callable[[Sequence[Row]], BySeed]:
    def effect(rows: Sequence[Row]) -> BySeed:
        found = [
            {row["seed"]: row["test"] or 0.0 for row in picked(rows, section="variants", entry=e, task=task)
             if row["role"] == "reports"}
            for e in (name, "LoRA")
        ]  # fmt: skip
        return less(*found)

    return effect


def _combined(how: str, weight: float) -> Callable[[Sequence[Row]], BySeed]:
    def effect(rows: Sequence[Row]) -> BySeed:
        return {
            row["seed"]: (row["style"] + row["translation"]) / 2
            for row in picked(rows, section="combining", how=how, weight=weight)
        }

    return effect


def _merged(way: str, what: str) -> Callable[[Sequence[Row]], BySeed]:
    def effect(rows: Sequence[Row]) -> BySeed:
        mine = picked(rows, section="merging")
        first = min((row["steps"] for row in mine), default=0)
        return {row["seed"]: row["ways"][way][what] for row in mine if row["steps"] == first}

    return effect


def _overfits(what: str) -> Callable[[Sequence[Row]], BySeed]:
    def effect(rows: Sequence[Row]) -> BySeed:
        mine = picked(rows, section="overfitting", task="translation")
        last = max((row["epochs"] for row in mine), default=0)
        rate = sorted({row["lr"] for row in mine})[1:2]
        found = {}
        for seed in {row["seed"] for row in mine}:
            runs = {row["epochs"]: row for row in mine if row["seed"] == seed and [row["lr"]] == rate}
            finite = [row for row in runs.values() if row["dev_loss"] is not None]
            if finite and runs[last][what] is not None:
                found[seed] = runs[last][what] - min(finite, key=lambda row: row["dev_loss"])[what]
        return found

    return effect


def _intruders(rows: Sequence[Row]) -> BySeed:
    mine = [row for row in picked(rows, section="updates", task="style") if "cut_to" not in row]
    return less(*({r["seed"]: r["intruders"] for r in mine if r["method"] == m} for m in ("lora", "full")))


def _bits(rows: Sequence[Row]) -> BySeed:
    from tools.measure_capacity import bits_remembered

    found: dict[int, float] = {}
    for row in picked(rows, section="capacity", r=1):
        bits = bits_remembered(row["strings"], row["loss"])
        found[row["seed"]] = max(found.get(row["seed"], 0.0), bits)
    return found


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
              "log of the general perplexity", 0, False, _less_forgetting(task)) for task in ("style", "translation")],
    *[Finding(f"{remedy} {task}", "17", f"{said}, at nine tenths of the best accuracy ({task})",
              "log of the general perplexity", 0, False, _remedy(remedy, "lora", task))
      for task in ("style", "translation")
      for remedy, said in (
          ("rate", "A lower rate forgets less"), ("replay", "Replay forgets less"),
          ("kl", "KL to the base forgets less"),
          ("weight decay", "Weight decay forgets less"), ("scale", "A scaled update forgets less"),
          ("average of steps", "Averaged steps forget less"))],
    *[Finding(f"{form} {task}", "06", f"LoRA beside {form} is within 5 points of 16 bits ({task})", "exact match",
              -0.05, True, _form(form, task))
      for form in ("int8", "nf4", "mxfp4") for task in ("translation", "style")],
    *[Finding(f"{name} {task}", "16", f"{name} is within 5 points of LoRA, at its own rate ({task})", "exact match",
              -0.05, True, _variant(name, task))
      for name in ("DoRA", "rsLoRA", "LoRA+", "PiSSA", "VeRA r=256") for task in ("translation", "style")],
    *[Finding(f"combined {how} {weight}", "11", f"Two adapters by {how}, weights {weight:g}, keep both tasks",
              "mean exact match of the two", 0.9, True, _combined(how, weight))
      for how, weight in (("cat", 1.0), ("cat", 0.5), ("linear", 0.5), ("ties", 1.0), ("dare_linear", 1.0))],
    Finding("merge", "10", "A half-learnt QLoRA adapter merged into the 16-bit original predicts otherwise",
            "nats a token", 0.01, True, _merged("into the original, bf16", "nats")),
    Finding("merge 4 bits", "10", "Merging it into 4 bits moves the predictions", "nats a token", 0.01, True,
            _merged("into 4 bits", "nats")),
    Finding("overfits", "14", "64 examples: the dev loss rises again", "nats a token", 0, True, _overfits("dev_loss")),
    Finding("overfits, exact", "14", "and the exact match on dev doesn't fall by 5 points", "exact match", -0.05, True,
            _overfits("dev")),
    Finding("bits", "08", "One direction in every layer remembers more than 20,000 bits", "bits", 20_000, True, _bits),
)  # fmt: skip


def verdict(finding: Finding, values: Sequence[float], of_the_tiny: Sequence[float] = ()) -> str:
    """Whether a finding holds for these values, one a seed; `of_the_tiny` says what weaker is weaker than."""
    if len(values) < 2:
        return "not measured"
    low, high = interval(values)
    if not finding.above:
        low, high = -high, -low
    bound = finding.bound if finding.above else -finding.bound
    if high < bound:
        return "doesn't"
    if low <= bound:
        return "open"
    if len(of_the_tiny) > 1:
        far, tiny = (abs(statistics.mean(v) - finding.bound) for v in (values, of_the_tiny))
        return "holds, weaker" if far < tiny / 2 else "holds"
    return "holds"


def table(rows: Sequence[Row]) -> list[dict]:
    """One entry for each finding: of either model the values by seed, their mean and interval, and the verdicts."""
    found = []
    for finding in FINDINGS:
        values = {m: finding.effect(picked(rows, model=m)) for m in ("tiny", "small")}
        entry: dict[str, Any] = {"key": finding.key, "chapter": finding.chapter, "says": finding.says,
                                 "unit": finding.unit, "bound": finding.bound, "above": finding.above}  # fmt: skip
        for model, by_seed in values.items():
            each = [by_seed[seed] for seed in sorted(by_seed)]
            entry[model] = {"seeds": sorted(by_seed), "values": [round(v, 4) for v in each]}
            if len(each) > 1:
                low, high = interval(each)
                entry[model] |= {"mean": round(statistics.mean(each), 4), "low": round(low, 4), "high": round(high, 4)}
            tiny = list(values["tiny"].values()) if model == "small" else ()
            entry[model]["verdict"] = verdict(finding, each, tiny)
        found.append(entry)
    return found
