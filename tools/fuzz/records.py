"""Fuzz target: files of records, and what reads them, looks them over and makes ids of them.

Twelve records are written in one of the forms and kinds of files that people have. One thing is changed: bytes, a
value, a name, the file's end, its encoding. Then the file is refused in words, or every record that wasn't touched
comes as it is, and what comes can be encoded.
"""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.fuzz.frame import Outcome, Trial, change_bytes, judged
from utils.data.formats import Reading, read_own, read_records
from utils.data.records import find_problems, to_messages
from utils.data.report import Report, data_report
from utils.data.template import check_template
from utils.models.loading import load_tokenizer
from utils.train.own_data import split_records

WORDS = ("Zoe was shy.", "Tom, the fox, ran.", 'Sue said "no".', "Größe: 3; 4", "火 🔥", "a\nb", "Is it | or \t?")
VALUES: list[Any] = [
    None, True, 0, -1, 10**400, 0.5, math.nan, math.inf, "", " ", "x", "\ud83d", "a\0b", "\u2028", "<|end|>", [],
    {}, [[]], [None], ["a"], [{}], {"a": 1}, [{"role": "user"}], [{"role": "user", "content": "Hi."}], "[1", "[]",
]  # fmt: skip
NAMES = (
    "instruction", "input", "output", "messages", "conversations", "prompt", "completion", "question", "answer",
    "system", "context", "text", "role", "from", "content", "value", "weight", "tools", "tool_calls", "", " ", "Output",
    "x" * 300,
)  # fmt: skip


def records(draw: random.Random) -> list[dict[str, Any]]:
    """Twelve records of one form; their questions differ."""
    form = draw.choice(["alpaca", "input", "messages", "turns", "sharegpt", "lists", "question", "system", "weight"])
    made: list[dict[str, Any]] = []
    for number in range(12):
        q, a = f"{number} {draw.choice(WORDS)}", draw.choice(WORDS)
        user, assistant = {"role": "user", "content": q}, {"role": "assistant", "content": a}
        made.append(
            {
                "alpaca": {"instruction": q, "output": a},
                "input": {"instruction": q, "input": draw.choice(WORDS), "output": a},
                "messages": {"messages": [user, assistant]},
                "turns": {"messages": [user, assistant, user, assistant]},
                "sharegpt": {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]},
                "lists": {"prompt": [user], "completion": [assistant]},
                "question": {"id": number, "question": q, "answer": a},
                "system": {"instruction": q, "system": "", "output": a},
                "weight": {"messages": [user, {**assistant, "weight": 0}, user, {**assistant, "weight": 1}]},
            }[form]
        )
    return made


def a_value(draw: random.Random, rows: list[dict[str, Any]], row: int) -> str:
    """Exchange, take out or rename something inside of one record."""
    place: Any = rows[row]
    while draw.random() < 0.7 and (inner := [v for v in values(place) if isinstance(v, dict | list) and v]):
        place = draw.choice(inner)
    key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
    kind, value, name = (
        draw.choice(["exchanged", "exchanged", "gone", "renamed"]),
        draw.choice(VALUES),
        draw.choice(NAMES),
    )
    if kind == "gone":
        del place[key]
    elif kind == "renamed" and isinstance(place, dict):
        place[name] = place.pop(key)
    else:
        place[key] = value
    return f"record {row}: {str(key)[:20]} {kind} ({str(value)[:12]!r}, {name[:12]!r})"


def values(place: Any) -> list[Any]:
    return list(place.values()) if isinstance(place, dict) else list(place)


def written(draw: random.Random, rows: list[dict[str, Any]]) -> tuple[str, bytes]:
    """The rows as a file of some kind: its name and its content."""
    flat = all(isinstance(row, dict) and all(isinstance(v, str) for v in row.values()) for row in rows)
    kind = draw.choice(["jsonl", "jsonl", "json", "inside", "pretty", *(["csv", "csv;", "tsv"] if flat else [])])
    if kind == "jsonl":
        name, text = "a.jsonl", "\n".join(json.dumps(row, ensure_ascii=draw.random() < 0.3) for row in rows)
    elif kind == "pretty":
        name, text = "a.jsonl", "\n".join(json.dumps(row, indent=2) for row in rows)
    elif kind in ("json", "inside"):
        name, text = "a.json", json.dumps(rows if kind == "json" else {"data": rows}, indent=draw.choice([None, 1]))
    else:
        file = io.StringIO()
        names = list(dict.fromkeys(name for row in rows for name in row))
        delimiter = {"csv": ",", "csv;": ";", "tsv": "\t"}[kind]
        writer = csv.DictWriter(file, names, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
        name, text = f"a.{kind[:3]}", file.getvalue()
    data = text.encode(draw.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16"]), "surrogatepass")
    return (f"{name}.gz", gzip.compress(data)) if draw.random() < 0.1 else (name, data)


def some_bytes(draw: random.Random, data: bytes) -> tuple[str, bytes]:
    changed, at = bytearray(data), draw.randrange(len(data))
    kind = draw.choice(["bit", "byte", "cut", "gone", "doubled", "zeros", "deep", "latin"])
    end = at + draw.randint(1, 8)
    if kind == "deep":
        changed[at:at] = b"[" * draw.choice([10, 2000, 100_000])
    elif kind == "latin":
        changed[at:at] = "é".encode("latin-1")
    else:
        change_bytes(draw, changed, kind, at, end)
    return f"{kind} at byte {at}", bytes(changed)


@functools.cache
def tokenizer() -> Any:
    return load_tokenizer()


def trial(draw: random.Random, folder: Path) -> Iterator[Trial]:
    rows = records(draw)
    (folder / "whole.jsonl").write_text("\n".join(map(json.dumps, rows)))
    whole = read_own(folder / "whole.jsonl").records
    row, inside = draw.randrange(len(rows)), draw.random() < 0.6
    damage = a_value(draw, rows, row) if inside else ""
    name, data = written(draw, rows)
    if not inside:
        damage, data = some_bytes(draw, data)
    damage = f"{name}, {damage}"
    path = folder / name
    path.write_bytes(data)

    def wrong(reading: Reading) -> Outcome | None:
        """The records that weren't touched are there, in their order; bytes touch two at most, or end the file."""
        read = reading.records
        for record in read:
            if find_problems([record], ("messages",) if "messages" in record else ("instruction", "output")):
                return "silent"
        plain, others = ([to_messages(record) for record in side] for side in (read, whole))
        if any(note.startswith("not used") for note in reading.notes):
            return None  # a name was hit, and what isn't used is said
        if inside:
            same = [r == o for r, o in zip(plain, others, strict=False)]
            return None if len(read) == len(whole) and all(same[:row] + same[row + 1 :]) else "silent"
        return None if sum(r not in others for r in plain) <= 1 else "silent"

    yield judged(damage, "read_own", lambda: read_own(path), wrong)
    required = ("instruction", "output")
    yield judged(
        damage, "read_records", lambda: read_records(path), lambda r: "silent" if find_problems(r, required) else None
    )

    def used() -> Report:
        reading = read_own(path)
        check_template(reading, tokenizer())
        return data_report(reading.records, tokenizer(), 64, held_out=reading.records[:1])

    yield judged(damage, "check_template and data_report", used, lambda report: None if report.usable else "silent")
    yield judged(damage, "split_records", lambda: split_records(read_own(path).records), lambda split: None)
