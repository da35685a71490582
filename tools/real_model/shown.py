"""The tables of the record as the page shows them: both models in one, and what a reader should know of the numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tools.real_model.cells import MODELS, number, percent, plain


class Shown(NamedTuple):
    """A table of the record on the page: what stands above it and, by heading, which key a column has and how it is
    written. The key "" is the entry itself, where it is a mean and an interval. `across` turns the values of one key
    into columns of the last one. `only` says which entries are shown, and `adds` a sentence below them.
    """

    title: str
    says: str
    columns: Mapping[str, tuple[str, Callable[[Any], str]]]
    across: str | None = None
    table: str | None = None  # of the record; by default the one with the same name
    only: Callable[[Mapping[str, Any]], bool] = lambda entry: True
    adds: Callable[[Mapping[str, Sequence[Mapping[str, Any]]]], str] = lambda by_model: ""


def _by_loss(by_model: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What rank 1 and rank 16 reach by loss with alpha = 32, where neither is best at the edge of the rates."""
    best = {}
    for r in (1, 16):
        mine = [e for e in by_model.get("small", ()) if (e.get("r"), e.get("lora_alpha")) == (r, 32) and "mean" in e]
        if not mine:
            return ""
        best[r] = min(mine, key=lambda e: e["mean"])
        if best[r]["lr"] in (min(e["lr"] for e in mine), max(e["lr"] for e in mine)):
            return ""
    one, more = (f"{best[r]['mean']:.3f} at a rate of {best[r]['lr']:g}" for r in (1, 16))
    return (
        f"With alpha = 32 both ranks have their best rate inside the grid: r = 1 reaches {one}, r = 16 {more}. By loss "
        "rank 1 isn't behind on this task."
        if best[1]["mean"] <= best[16]["mean"]
        else f"With alpha = 32 both ranks have their best rate inside the grid: r = 1 reaches {one}, r = 16 {more}."
    )


ACROSS = {"lr": "rate"}  # the heads of columns that are called otherwise than their key
SHOWN = {
    "tasks": Shown("The tasks", "Exact match on test in %, at the rate that is best on dev.",
                   {"task": ("task", plain), "steps": ("steps", plain), "test prompts": ("prompts", plain),
                    "base": ("base", percent), "LoRA r=16": ("lora", percent), "full fine-tuning": ("full", percent)}),
    "ranks": Shown("Rank and targets", "Translation, stopped before it is learned: exact match on test in %. The ranks "
                   "13, 21 and 42 have the parameters of all linear layers with r=8.",
                   {"targets": ("targets", plain), "": ("", percent)}, "r"),
    "rates": Shown("Learning rate, rank and alpha", "Translation, LoRA on all linear layers: loss on dev in nats a "
                   "token, by learning rate.",
                   {"r": ("r", plain), "alpha": ("lora_alpha", plain), "": ("", number)}, "lr",
                   only=lambda entry: entry["method"] == "lora", adds=_by_loss),
    "rates of full": Shown("Learning rate of full fine-tuning", "The same loss, every weight trained.",
                           {"method": ("method", plain), "": ("", number)}, "lr", "rates",
                           only=lambda entry: entry["method"] == "full"),
    "batches": Shown("Batch size", "Translation, the number of examples held equal: loss on test, nats a token.",
                     {"method": ("method", plain), "": ("", number)}, "batch"),
    "forgetting": Shown("Forgetting", "Of the settings that reach nine tenths of the best accuracy, the one that "
                        "forgets least: exact match, perplexity of general text, and questions still answered.",
                        {"task": ("task", plain), "method": ("method", plain), "remedy": ("remedy", plain),
                         "exact match, %": ("test", percent), "perplexity": ("general", number),
                         "questions, %": ("questions", percent)}),
    "formats": Shown("The base in fewer bits", "KL of the rounded base from the original (nats a token of general "
                     "text), positions whose first choice differs, and the exact match of LoRA beside it.",
                     {"task": ("task", plain), "format": ("form", plain), "KL": ("kl", number),
                      "first choice differs, %": ("first_choice_differs", percent), "exact match, %": ("", percent)}),
    "updates": Shown("Updates", "What is left of the exact match and of the energy when an update is cut to a rank.",
                     {"task": ("task", plain), "method": ("method", plain), "cut to": ("cut_to", plain),
                      "exact match, %": ("test", percent), "energy, %": ("energy", percent),
                      "intruders, %": ("intruders", percent)}),
    "combining": Shown("Two adapters in one", "Exact match of both tasks in %.",
                       {"way": ("how", plain), "weights": ("weight", plain), "style": ("style", percent),
                        "translation": ("translation", percent)}),
    "merging": Shown("Merging a QLoRA adapter", "The style task's test prompts, answered by the adapter beside "
                     "its own 4-bit base and then in another way: how many of its right answers are wrong there, and "
                     "how many of its wrong ones right. KL from it in nats a token.",
                     {"steps": ("steps", plain), "way": ("way", plain), "prompts": ("prompts", plain),
                      "right beside its base": ("right", number), "of these lost": ("lost", number),
                      "won": ("won", number), "KL": ("nats", number)}),
    "variants": Shown("Variants", "Exact match on test in %, on seeds that had no part in choosing the rate.",
                      {"task": ("task", plain), "variant": ("entry", plain), "learning rate": ("lr", plain),
                       "exact match, %": ("", percent)}),
    "capacity": Shown("Capacity", "Bits of random strings remembered.",
                      {"r": ("r", plain), "strings": ("strings", plain), "bits": ("bits", number)}),
}  # fmt: skip


def row_of(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def shown(name: str, by_model: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """A table of the record as lines of Markdown, both models in one; no line where nothing was measured."""
    table = SHOWN[name]
    by_model = {m: [e for e in by_model.get(m, ()) if table.only(e)] for m in MODELS}
    if not any(by_model.values()):
        return []
    *fixed, last = table.columns.items()
    values = [None] if table.across is None else list(
        dict.fromkeys(entry.get(table.across) for m in MODELS for entry in by_model.get(m, ()))
    )  # fmt: skip
    values.sort(key=lambda v: (v is None, v))
    across = ACROSS.get(table.across or "", table.across)
    heads = [last[0]] if table.across is None else ["-" if v is None else f"{across} = {v}" for v in values]
    lines = ["", f"## {table.title}", "", table.says, "", row_of(["model", *(head for head, _ in fixed), *heads])]
    lines.append("|" + "---|" * (1 + len(fixed) + len(heads)))

    def written(entry: Mapping[str, Any], column: tuple[str, Callable[[Any], str]]) -> str:
        key, write = column
        return write(entry.get(key) if key else entry if "mean" in entry else None)

    for model, called in MODELS.items():
        rows: dict[tuple[str, ...], dict[Any, str]] = {}
        for entry in by_model.get(model, ()):
            first = tuple(written(entry, column) for _, column in fixed)
            rows.setdefault(first, {})[entry.get(table.across) if table.across else None] = written(entry, last[1])
        lines += [row_of([called, *first, *(cells.get(v, "") for v in values)]) for first, cells in rows.items()]
    return [*lines, "", added] if (added := table.adds(by_model)) else lines
