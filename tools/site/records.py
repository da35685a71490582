"""A page for each record of assets/measurements: what was measured, on what, when, and the numbers.

Attributes:
    FOLDER: Where the records are.
    MOST_ROWS: How many rows of a record a page shows; the file has all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FOLDER = "assets/measurements"
MOST_ROWS = 60
_MOST_COLUMNS = 9

# What stands in the list at a page's head, in this order, and what it is called there.
_HEAD = {
    "hardware": "hardware",
    "gpu": "hardware",
    "machine": "hardware",
    "date": "date",
    "tool": "made by",
    "commit": "commit",
    "versions": "versions",
    "torch": "torch",
    "transformers": "transformers",
    "peft": "peft",
    "seeds": "seeds",
}


def _text(value: Any) -> str:
    """A value in a cell of a table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(_text(part) for part in value)
    return re.sub(r"([|<>*_`$\\\[\]])", r"\\\1", str(value))


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the entries of its inner dictionaries beside its own, one level deep."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{key} {inner}": thing for inner, thing in value.items()}
        else:
            flat[key] = value
    return flat


def _fits(value: Any) -> bool:
    """Whether a value is short enough for a cell."""
    if isinstance(value, list):
        return len(value) <= 5 and all(isinstance(part, int | float) for part in value)
    return not isinstance(value, dict) and len(str(value)) <= 80


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows as a table of those columns that fit into it; empty for rows without any."""
    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    columns = [key for key in columns if all(_fits(row.get(key, "")) for row in flat)][:_MOST_COLUMNS]
    if not columns:
        return []
    lines = [
        "| " + " | ".join(_text(key.replace("_", " ")) or "name" for key in columns) + " |",
        "|---" * len(columns) + "|",
    ]
    for row in flat[:MOST_ROWS]:
        lines.append("| " + " | ".join("" if row.get(key) is None else _text(row[key]) for key in columns) + " |")
    return lines


def _tables(record: dict[str, Any]) -> Iterable[tuple[str, list[dict[str, Any]]]]:
    """The parts of a record that are rows: lists of dictionaries, and dictionaries of dictionaries."""
    for key, value in record.items():
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            yield key, value
        elif isinstance(value, dict) and value and key not in _HEAD:
            if all(isinstance(row, dict) for row in value.values()):
                yield key, [{"": name, **row} for name, row in value.items()]
            elif all(_fits(row) for row in value.values()):
                yield key, [{"": name, "value": row} for name, row in value.items()]


def hardware(record: dict[str, Any]) -> str:
    """What a record was measured on; empty where it doesn't say."""
    return next((str(record[key]) for key in ("hardware", "gpu", "machine") if key in record), "")


def shortened(text: str, most: int = 200) -> str:
    """A text cut behind a word, as search engines and lists show it."""
    return text if len(text) <= most else text[:most].rsplit(" ", 1)[0].rstrip(",;:") + " ..."


def about(record: dict[str, Any]) -> str:
    """What was measured, as a sentence's end."""
    return str(record.get("what", "a measurement of the course's")).rstrip(".") + "."


_NAMES = {
    word.lower(): word for word in ("SFT", "DPO", "GPU", "H100", "H200", "LoRA", "PEFT", "aLoRA", "torchao", "7B")
} | {"4bit": "4-bit"}


def title(name: str) -> str:
    """A record's name as a title, names in it as they are written: "Rank sweep", "Full or LoRA"."""
    words = [_NAMES.get(word, word) for word in name.split("_")]
    return " ".join([words[0] if words[0] in _NAMES.values() else words[0].capitalize(), *words[1:]])


def page(name: str, record: dict[str, Any], file: str, quoted: Iterable[str]) -> str:
    """A record's page in Markdown.

    Args:
        name: its name, "rank_sweep".
        record: what the file holds.
        file: the way to the file, to be rewritten as other links of the repository are.
        quoted: links to the pages that quote it.
    """
    lines = [f"# {title(name)}", ""]
    lines += [_text(record["what"]) + ".", ""] if "what" in record else []
    for key, called in _HEAD.items():
        if key in record:
            value = record[key]
            parts = ", ".join(f"{of} {what}" for of, what in value.items()) if isinstance(value, dict) else _text(value)
            lines.append(f"- {called}: {parts}")
    lines.append(f"- the whole record: [{Path(file).name}]({file})")
    quoted = list(quoted)
    lines += [f"- quoted in {', '.join(quoted)}"] if quoted else []
    for key, rows in _tables(record):
        rendered = table(rows)
        if rendered:
            lines += ["", f"## {title(key)}", "", *rendered]
            lines += ["", f"{MOST_ROWS} of {len(rows)} rows."] if len(rows) > MOST_ROWS else []
    return "\n".join(lines) + "\n"


def index(records: dict[str, dict[str, Any]], others: Iterable[str]) -> str:
    """The page that lists the records. others: sources of further pages in the same folder, without endings."""
    lines = [
        "# Measurements",
        "",
        "What was measured once, with the machine, the versions and the date. The chapters print from these files, and",
        "tests hold their prose to them.",
        "",
    ]
    for name, record in records.items():
        what = shortened(str(record.get("what", "")).rstrip("."))
        said = [part for part in (what, hardware(record), str(record.get("date", ""))) if part]
        lines.append(f"- [{title(name)}]({name}.md). {_text('; '.join(said))}")
    lines += [
        "",
        *(
            f"- [The course on a GPU]({name}.md)" if name == "course" else f"- [{title(name)}]({name}.md)"
            for name in others
        ),
    ]
    return "\n".join([*lines, "", "```{toctree}", ":hidden:", "", *others, *records, "```", ""])


def read(root: Path) -> dict[str, dict[str, Any]]:
    """All records, by name."""
    paths = sorted((root / FOLDER).glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
