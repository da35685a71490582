"""The numbers behind the findings: of either model each setting's mean and 95% interval over its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tools.measure_capacity import bits_remembered
from tools.real_model.choosing import BySeed, Measured, Row, at_best, at_equal_accuracy, full, lora, picked, recipe
from utils.evaluate.seeds import interval


def summary(measured: Measured | BySeed) -> dict[str, Any]:
    """Mean, 95% interval and number of seeds; nothing of none, and no interval of one. `may_rise` and `may_fall` stand
    where the grid was too narrow to say.
    """
    if not isinstance(measured, Measured):
        measured = Measured(measured)
    values = [value for value in measured.by_seed.values() if value is not None]
    if not values:
        return {}
    found: dict[str, Any] = {"mean": round(statistics.mean(values), 4), "seeds": len(values)}
    found |= {key: True for key, may in (("may_rise", measured.rises), ("may_fall", measured.falls)) if may}
    if len(values) > 1:
        low, high = interval(values)
        found |= {"low": round(low, 4), "high": round(high, 4)}
    return found


def _values(rows: Sequence[Row], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows if key in row))


def _by_seed(rows: Sequence[Row], what: str) -> BySeed:
    return {row["seed"]: row[what] for row in rows}


def tasks(rows: Sequence[Row]) -> list[dict]:
    """Exact match on test of the base, of LoRA and of full fine-tuning, each at the rate that is best on dev."""
    found = []
    for task in _values(mine := picked(rows, section="tasks"), "task"):
        base = next((r for r in picked(mine, task=task) if "count" in r), None)
        trained = [r for r in picked(mine, task=task) if "count" not in r]
        entry: dict[str, Any] = {"task": task, "steps": trained[0]["steps"] if trained else None}
        if base:
            entry |= {"prompts": base["count"], "base": base["test"]}
            entry |= {f"base_{k}": base[k] for k in ("valid", "right") if k in base}
        found.append(
            entry | {"lora": summary(at_best(lora(trained, "tasks"))), "full": summary(at_best(full(trained, "tasks")))}
        )
    return found


def ranks(rows: Sequence[Row]) -> list[dict]:
    """Exact match on test by targets and rank, and of full fine-tuning."""
    mine = picked(rows, section="ranks")
    settings = dict.fromkeys((row["targets"], row.get("r")) for row in mine)
    return [
        {"targets": targets, "r": r, "steps": mine[0]["steps"],
         **summary(at_best([row for row in mine if (row["targets"], row.get("r")) == (targets, r)]))}
        for targets, r in settings
    ]  # fmt: skip


def rates(rows: Sequence[Row]) -> list[dict]:
    """Dev loss by learning rate: LoRA (all linear layers, r=8) and full fine-tuning, and LoRA by rank and alpha."""
    groups: list[tuple[dict, list[Row]]] = [
        ({"method": "lora", "r": 8, "lora_alpha": 16.0}, lora(rows, "ranks", targets="all-linear", r=8)),
        ({"method": "full"}, full(rows, "ranks")),
    ]
    rules = picked(rows, section="rules")
    for r, alpha in sorted({(row["r"], row["lora_alpha"]) for row in rules}):
        groups.append(({"method": "lora", "r": r, "lora_alpha": alpha}, picked(rules, r=r, lora_alpha=alpha)))
    groups.sort(key=lambda group: (group[0].get("r", 0), group[0].get("lora_alpha", 0)))
    return [
        {**head, "lr": lr, **summary(_by_seed(picked(mine, lr=lr), "dev_loss"))}
        for head, mine in groups
        for lr in sorted(_values(mine, "lr"))
    ]


def forgetting(rows: Sequence[Row]) -> list[dict]:
    """At nine tenths of the best accuracy: accuracy, general perplexity and share of the questions answered, by task,
    method and remedy; without a remedy ("none") at the learning rate that is best on dev; and the base's."""
    mine = picked(rows, section="remedies")
    found: list[dict] = [
        {"task": "the base", **{what: summary({0: row[what]}) for what in ("general", "questions") if what in row}}
        for row in picked(mine, name="base")
    ]
    for task in _values(mine, "task"):
        for method, choose in (("lora", lora), ("full", full)):
            tried = _values(choose(mine, "remedies", task=task), "remedy")
            for remedy in ["none", *tried] if "rate" in tried else tried:
                entry: dict[str, Any] = {"task": task, "method": method, "remedy": remedy}
                for what in ("test", "general", "questions"):
                    if any(what in row for row in mine):
                        measured = (
                            recipe(rows, what, method, task) if remedy == "none"
                            else at_equal_accuracy(rows, what, remedy, method, task)
                        )  # fmt: skip
                        entry[what] = summary(measured if what == "general" else measured.by_seed)
                found.append(entry)
    return found


def formats(rows: Sequence[Row]) -> list[dict]:
    """What a format changes of the base's predictions, and what LoRA learns beside it."""
    mine = picked(rows, section="formats")
    return [
        {"form": form, "task": task, "kl": some[0]["kl"], "first_choice_differs": some[0]["first_choice_differs"],
         **summary(at_best(some))}
        for form in _values(mine, "form") for task in _values(mine, "task")
        if (some := picked(mine, form=form, task=task))
    ]  # fmt: skip


def variants(rows: Sequence[Row]) -> list[dict]:
    """The variants' exact match on the seeds that report, at the rate that the other seeds chose."""
    mine = picked(rows, section="variants", role="reports")
    return [
        {"entry": entry, "task": task, "lr": some[0]["lr"],
         **summary({row["seed"]: row["test"] or 0.0 for row in some})}
        for entry in _values(mine, "entry") for task in _values(mine, "task")
        if (some := picked(mine, entry=entry, task=task))
    ]  # fmt: skip


def merging(rows: Sequence[Row]) -> list[dict]:
    """Nats per answer token against the adapter beside its own 4-bit base, and answers lost and won, by way."""
    mine, found = picked(rows, section="merging"), []
    for steps in sorted(_values(mine, "steps")):
        some = picked(mine, steps=steps)
        for way in [*some[0]["ways"], "quantizing the base"]:
            numbers = {row["seed"]: row["ways"].get(way) or row[way] for row in some}
            entry: dict[str, Any] = {"steps": steps, "way": way, "prompts": some[0]["prompts"]}
            entry["right"] = summary(_by_seed(some, "right"))
            found.append(
                entry | {k: summary({s: n[k] for s, n in numbers.items()}) for k in ("nats", "tokens", "lost", "won")}
            )
    return found


def combining(rows: Sequence[Row]) -> list[dict]:
    """Exact match of both tasks, by the way in which two adapters were made one."""
    mine = picked(rows, section="combining")
    return [
        {"how": how, "weight": weight, **{task: summary(_by_seed(some, task)) for task in ("style", "translation")}}
        for how, weight in dict.fromkeys((row["how"], row["weight"]) for row in mine)
        if (some := picked(mine, how=how, weight=weight))
    ]


def updates(rows: Sequence[Row]) -> list[dict]:
    """Energy, accuracy, intruders and relative size of updates, whole (cut_to is None) and cut to a rank."""
    mine = picked(rows, section="updates")
    keys = dict.fromkeys((row["task"], row["method"], row.get("cut_to")) for row in mine)
    found = []
    for task, method, cut_to in keys:
        some = picked(mine, task=task, method=method, cut_to=cut_to)
        entry = {"task": task, "method": method, "cut_to": cut_to, "lr": some[0]["lr"]}
        for what in ("test", "energy", "intruders", "relative_size"):
            if what in some[0]:
                entry[what] = summary(_by_seed(some, what))
        found.append(entry)
    return found


def batches(rows: Sequence[Row]) -> list[dict]:
    """Loss on test at the best rate by batch size."""
    mine = picked(rows, section="batch")
    return [
        {"method": method, "batch": size, "steps": some[0]["steps"],
         **summary(at_best(some, "test_loss", "dev_loss", lowest=True))}
        for method, choose in (("lora", lora), ("full", full)) for size in sorted(_values(mine, "batch"))
        if (some := choose(mine, "batch", batch=size))
    ]  # fmt: skip


def overfitting(rows: Sequence[Row]) -> list[dict]:
    """Losses and exact match by epochs, at the middle of the rates."""
    mine, found = picked(rows, section="overfitting"), []
    for task in _values(mine, "task"):
        middle = sorted(_values(picked(mine, task=task), "lr"))[1:2]
        for epochs in sorted(_values(mine, "epochs")):
            some = [row for row in picked(mine, task=task, epochs=epochs) if [row["lr"]] == middle]
            found.append(
                {"task": task, "epochs": epochs, **{w: summary(_by_seed(some, w)) for w in
                 ("train_loss", "dev_loss", "test")}}
            )  # fmt: skip
    return found


def capacity(rows: Sequence[Row]) -> list[dict]:
    """Bits of random strings remembered, by rank and number of strings: of each seed the best rate's."""
    mine, found = picked(rows, section="capacity"), []
    for r, strings in dict.fromkeys((row["r"], row["strings"]) for row in mine):
        bits: BySeed = {}
        for row in picked(mine, r=r, strings=strings):
            bits[row["seed"]] = max(bits.get(row["seed"], 0.0), bits_remembered(strings, row["loss"]))
        found.append({"r": r, "strings": strings, "bits": summary(bits)})
    return found


TABLES: dict[str, Callable[[Sequence[Row]], list[dict]]] = {
    f.__name__: f
    for f in (
        tasks, ranks, rates, batches, forgetting, formats, updates, combining, merging, overfitting, variants, capacity,
    )
}  # fmt: skip


KEYS: dict[str, tuple[str, ...]] = {
    "tasks": ("task",), "ranks": ("targets", "r"), "rates": ("method", "r", "lora_alpha", "lr"),
    "batches": ("method", "batch"), "forgetting": ("task", "method", "remedy"), "formats": ("form", "task"),
    "updates": ("task", "method", "cut_to"), "combining": ("how", "weight"), "merging": ("steps", "way"),
    "overfitting": ("task", "epochs"), "variants": ("entry", "task"), "capacity": ("r", "strings"),
}  # fmt: skip


def tables(
    rows: Sequence[Row], before: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]] | None = None
) -> dict[str, dict[str, list[dict]]]:
    """All tables, by name and by model. before: earlier tables, whose entries stand where `rows` has none like them."""
    found = {name: {m: make(picked(rows, model=m)) for m in ("tiny", "small")} for name, make in TABLES.items()}
    for name, models in found.items():
        for model, entries in models.items():
            there = {tuple(entry.get(key) for key in KEYS[name]) for entry in entries}
            entries += [
                dict(entry) for entry in (before or {}).get(name, {}).get(model, ())
                if tuple(entry.get(key) for key in KEYS[name]) not in there
            ]  # fmt: skip
    return found


def only(entries: Sequence[Mapping[str, Any]], **wanted: Any) -> Mapping[str, Any]:
    """The one entry of a table with these values. Raises LookupError where there is none or more than one."""
    found = [entry for entry in entries if all(entry.get(k) == v for k, v in wanted.items())]
    if len(found) != 1:
        raise LookupError(f"{len(found)} entries have {wanted}")
    return found[0]
