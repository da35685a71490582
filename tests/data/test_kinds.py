"""Kinds of files that people have, and what whoever hands one in is told.

``python tests/data/test_kinds.py`` prints them as a table.
"""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from utils.data.formats import read_own

PAIRS = [("Who was shy?", "Zoe was shy."), ("Count to three.", "One, two, three."), ("Say hello.", "Hello!")]


def lines(records: Any) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()


def pairs(question: str, answer: str, **more: Any) -> list[dict[str, Any]]:
    return [{question: q, answer: a, **more} for q, a in PAIRS]


def talks(*before: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a, **more}] for q, a in PAIRS]
    return [{"messages": [*before, *talk]} for talk in turns]


def sharegpt(**more: Any) -> list[dict[str, Any]]:
    turns = [[{"from": "human", "value": q}, {"from": "gpt", "value": a}] for q, a in PAIRS]
    return [{"id": f"a{n}", "conversations": talk, **more} for n, talk in enumerate(turns)]


def table(delimiter: str, header: tuple[str, ...] = ("instruction", "output")) -> str:
    rows = [header, *[(f'"{q}"', f'"{a}"') for q, a in PAIRS]]
    return "".join(delimiter.join(row) + "\n" for row in rows)


def parquet(records: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), file)
    return file.getvalue()


def swapped(value: Any) -> list[dict[str, Any]]:
    """Instruction records of which the second has `value` for its output."""
    records = pairs("instruction", "output")
    records[1]["output"] = value
    return records


class Kind(NamedTuple):
    """A kind of file: its name, its content, a part of what is said of it, and how many records are read of it."""

    what: str
    file: str
    content: bytes
    said: str
    records: int = 0


ALPACA = pairs("instruction", "output")
LONG = [[{"role": r, "content": f"{r} {n} {q}"} for n in (1, 2) for r in ("user", "assistant")] for q, _ in PAIRS]
LISTS = [
    {"prompt": [{"role": "user", "content": q}], "completion": [{"role": "assistant", "content": a}]} for q, a in PAIRS
]
CALL = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
CALLS = [
    {"role": "user", "content": "What time is it?"},
    {"role": "assistant", "content": None, "tool_calls": CALL},
    {"role": "tool", "content": "noon"},
    {"role": "assistant", "content": "Noon."},
]
PICTURE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}, LONG[0][1]]

KINDS = [
    # ------------------------------------------------------------------------------------------------- forms of records
    Kind("Alpaca", "a.jsonl", lines(ALPACA), "instruction records: instruction -> the user's words", 3),
    Kind("Alpaca with input", "a.jsonl", lines(pairs("instruction", "output", input="x")), "instruction + input ->", 3),
    Kind("input null", "a.jsonl", lines(pairs("instruction", "output", input=None)), "instruction records", 3),
    Kind("Capitals", "a.csv", table(",", ("Instruction", "Output")).encode(), "Instruction -> the user's words", 3),
    Kind("messages", "a.jsonl", lines(talks()), "role/content -> messages, every answer can be trained on", 3),
    Kind("several turns", "a.jsonl", lines({"messages": t} for t in LONG), "can be trained on; 3 records", 3),
    Kind("messages in a CSV cell", "a.csv", b'messages\n"%s"\n' % json.dumps(LONG[0]).replace('"', '""').encode(),
         "read as conversations", 1),
    Kind("ShareGPT", "a.json", json.dumps(sharegpt()).encode(), "read as ShareGPT: conversations[].from/value", 3),
    Kind("prompt, completion", "a.jsonl", lines(pairs("prompt", "completion")), "prompt and completion: prompt ->", 3),
    Kind("prompt, completion: lists", "a.jsonl", lines(LISTS), "lists of turns -> messages, of which completion is", 3),
    Kind("question, answer", "a.jsonl", lines(pairs("question", "answer")), "question -> the user's words", 3),
    Kind("query, response", "a.jsonl", lines(pairs("query", "response")), "read as query and response", 3),
    Kind("input, output", "a.jsonl", lines(pairs("input", "output")), "read as input and output: input ->", 3),
    Kind("Dolly", "a.jsonl", lines(pairs("instruction", "response", context="Zoe was shy.", category="qa")),
         "instruction + context -> the user's words, response -> the answer that is trained on", 3),
    Kind("a system column", "a.jsonl", lines(pairs("instruction", "output", system="")), "instruction records", 3),
    Kind("columns that nobody knows", "a.jsonl", lines(pairs("question", "answer", source="web")),
         "not used: source (in 3)", 3),
    Kind("text parts", "a.jsonl", lines(talks({"role": "user", "content": [{"type": "text", "text": "Hi."}]})),
         "read as conversations", 3),
    Kind("weight 0", "a.jsonl", lines({"messages": [*t[:1], {**t[1], "weight": 0}, *t[2:]]} for t in LONG),
         "weight 0: 3 answers are read and not trained on", 3),
    Kind("a field meta.messages", "a.jsonl", lines(pairs("instruction", "output", meta={"messages": []})),
         "not used: meta (in 3)", 3),
    # ----------------------------------------------------------------------------------------- forms that are refused
    Kind("system on a base without", "a.jsonl", lines(talks({"role": "system", "content": "Be kind."})),
         "lines 1, 2, 3: has the roles system, user, assistant, and the base's chat template refuses"),
    Kind("a system column with text", "a.jsonl", lines(pairs("instruction", "output", system="Be kind.")),
         "A system text can stand in front of the user's first words instead"),
    Kind("tool calls on a base without", "a.jsonl", lines([*talks(), {"messages": CALLS}]),
         "line 4: has the roles user, assistant, tool, assistant, and the base's chat template refuses"),
    Kind("reasoning on a base without", "a.jsonl", lines(talks(reasoning_content="Hm.")),
         "lines 1, 2, 3: loses reasoning_content: the base's chat template leaves it out"),
    Kind("pictures", "a.jsonl", lines([*talks(), {"messages": PICTURE}]),
         "line 4: messages: the content of message 1 (user) is a list with parts of the type image, text"),
    Kind("weight 0 everywhere", "a.jsonl", lines(talks(weight=0)), "has weight 0 on every answer"),
    Kind("another weight", "a.jsonl", lines(talks(weight=0.5)), "the weight of message 2 is 0.5; known are 0"),
    Kind("a strange role", "a.jsonl", lines(talks({"role": "narrator", "content": "x"})),
         "messages: message 1 has the role 'narrator'; known are system, user, assistant, tool"),
    Kind("the user has the last word", "a.jsonl", lines({"messages": t[:3]} for t in LONG), "messages[:2]"),
    Kind("text alone", "a.jsonl", lines({"text": q} for q, _ in PAIRS), "A text alone has no answer to learn"),
    Kind("preference pairs", "a.jsonl", lines(pairs("chosen", "rejected", prompt="x")), "which DPO takes (chapter 18)"),
    Kind("names that nobody knows", "a.jsonl", lines(pairs("id", "foo")),
         "no record has a question and an answer under names that the course knows; yours have id, foo"),
    Kind("a CSV without a header", "a.csv", table(",", PAIRS[0]).encode(), "Is the first line a header"),
    Kind("a list of texts", "a.json", json.dumps([q for q, _ in PAIRS]).encode(), "no objects: a str comes first"),
    Kind("numbers for answers", "a.jsonl", lines(swapped(4)), "line 2: output is a number, not text"),
    Kind("NaN", "a.jsonl", lines(swapped(float("nan"))), "line 2: output is NaN (pandas' missing value; write null)"),
    Kind("half an emoji", "a.jsonl", json.dumps(swapped("x \ud83d")[1]).encode(), "holds \\ud83d, half of a character"),
    Kind("an empty answer", "a.jsonl", lines(swapped(" ")), "line 2: output is empty"),
    # -------------------------------------------------------------------------------------------------- kinds of files
    Kind("a JSON list", "a.json", json.dumps(ALPACA, indent=1).encode(), "3 records, JSON", 3),
    Kind("a list in an object", "a.json", json.dumps({"v": 1, "data": ALPACA}).encode(), 'the list under "data"', 3),
    Kind("two lists in an object", "a.json", json.dumps({"train": ALPACA, "test": ALPACA}).encode(),
         "holds several lists of records (train, test)"),
    Kind("columns in an object", "a.json", json.dumps({"instruction": {"0": "a"}, "output": {"0": "b"}}).encode(),
         'pandas writes records with to_json(path, orient="records")'),
    Kind("JSONL named .json", "a.json", lines(ALPACA), "3 records, JSONL", 3),
    Kind("JSON named .jsonl", "a.jsonl", json.dumps(ALPACA).encode(), "3 records, JSON", 3),
    Kind("objects of several lines", "a.jsonl", "\n".join(json.dumps(r, indent=1) for r in ALPACA).encode(),
         "JSON objects of several lines each", 3),
    Kind("CSV", "a.csv", table(",").encode(), "3 records, CSV", 3),
    Kind("CSV with ;", "a.csv", table(";").encode(), "3 records, CSV with ;", 3),
    Kind("Excel's sep=;", "a.csv", b"sep=;\r\n" + table(";").encode(), "3 records, CSV with ;", 3),
    Kind("TSV", "a.tsv", table("\t").encode(), "3 records, values separated by tabs", 3),
    Kind("tabs named .csv", "a.csv", table("\t").encode(), "3 records, values separated by tabs", 3),
    Kind("empty columns behind", "a.csv", table(",").replace("\n", ",,\n").encode(), "3 records, CSV", 3),
    Kind("a long CSV field", "a.csv", b'instruction,output\na,"' + b"x" * 140_000 + b'"\n', "1 record, CSV", 1),
    Kind("Parquet", "a.parquet", parquet(ALPACA), "3 records, Parquet", 3),
    Kind("Parquet with messages", "a.parquet", parquet(talks()), "read as conversations", 3),
    Kind("gzip", "a.jsonl.gz", gzip.compress(lines(ALPACA)), "3 records, JSONL, gzip", 3),
    Kind("gzip of CSV", "a.csv.gz", gzip.compress(table(",").encode()), "3 records, CSV, gzip", 3),
    Kind("UTF-16", "a.csv", table("\t").encode("utf-16"), "values separated by tabs, UTF-16", 3),
    Kind("UTF-16 without its mark", "a.jsonl", lines(ALPACA).decode().encode("utf-16-le"), "JSONL, UTF-16", 3),
    Kind("cp1252", "a.csv", "instruction,output\nWho sings?,“Zoé” sings in the café\n".encode("cp1252"),
         "cp1252 since it is no UTF-8 (look: is '“Zoé”' as it should be?)", 1),
    Kind("UTF-8 with a BOM", "a.jsonl", b"\xef\xbb\xbf" + lines(ALPACA), "3 records, JSONL", 3),
    Kind("other letters", "a.jsonl", lines(swapped("火 🔥 Привет")), "3 records, JSONL", 3),
    # ------------------------------------------------------------------------------------------ files that are refused
    Kind("Cyrillic in cp1251", "a.csv", "instruction,output\nКто поёт?,Зоя поёт в кафе\n".encode("cp1251"),
         "line 2: holds the byte 0xca, which is no UTF-8; save the file as UTF-8"),
    Kind("one broken byte", "a.jsonl", lines(swapped("é")) + b'{"instruction": "\xe9", "output": "b"}\n',
         "line 4: holds the byte 0xe9, which is no UTF-8"),
    Kind("text file", "a.txt", b"Once there was a fox.", "a text has no records: write one JSON object a line"),
    Kind("Excel", "a.xlsx", b"PK", "save the sheet as CSV"),
    Kind("nothing in it", "a.jsonl", b"", "holds no records"),
    Kind("a header alone", "a.csv", b"instruction,output\n", "holds no records"),
    Kind("an empty list", "a.json", b"[]", "holds no records"),
    Kind("a torn last line", "a.jsonl", lines(ALPACA)[:-20], "line 3: is not valid JSON"),
    Kind("a torn JSON list", "a.json", json.dumps(ALPACA).encode()[:-20], "was it cut off?"),
    Kind("torn gzip", "a.jsonl.gz", gzip.compress(lines(ALPACA))[:-20], "can't be unpacked"),
    Kind("torn Parquet", "a.parquet", parquet(ALPACA)[:-20], "is no whole Parquet file"),
    Kind("torn UTF-16", "a.jsonl", lines(ALPACA).decode().encode("utf-16")[:-1], "is no valid UTF-16"),
    Kind("a quote not closed", "a.csv", b'instruction,output\n"a,b\n', "is a quote not closed?"),
    Kind("a comma too many", "a.csv", b"instruction,output\na,b,c\n", "line 2: has 3 values for 2 columns"),
    Kind("a column twice", "a.csv", b"output,output\na,b\n", "has two columns named 'output'"),
    Kind("a field in two spellings", "a.jsonl", lines([{**ALPACA[0], "Output": "x"}, *ALPACA]), "differ in upper and"),
    Kind("a field twice", "a.jsonl", b'{"output": "a", "output": "b"}\n', "names the field 'output' twice"),
    Kind("nested deeply", "a.jsonl", b"[" * 100_000, "is nested too deeply"),
    Kind("an endless number", "a.jsonl", b'{"output": ' + b"1" * 5000 + b"}", "thousands of digits"),
]  # fmt: skip


def told(kind: Kind, folder: Path, tokenizer: Any) -> tuple[str, int]:
    """What whoever has the tiny model is told of such a file, and how many records are read."""
    from utils.data.template import check_template

    path = folder / kind.file
    path.write_bytes(kind.content)
    try:
        reading = read_own(path)
        check_template(reading, tokenizer)
    except ValueError as refusal:
        return str(refusal), 0
    return str(reading), len(reading.records)


@pytest.mark.parametrize("kind", KINDS, ids=[kind.what for kind in KINDS])
def test_a_kind_of_file(tmp_path, tokenizer, kind):
    said, records = told(kind, tmp_path, tokenizer)
    assert kind.said in said and records == kind.records
    assert len(said.splitlines()) <= 3, "what is said is short"


def main() -> None:
    import tempfile

    from utils.models import load_tokenizer

    tokenizer = load_tokenizer()
    print(f"| kind of file ({len(KINDS)}) | what a user of the tiny model sees |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            said, _ = told(kind, Path(folder), tokenizer)
            print(f"| {kind.what} | {' / '.join(' '.join(line.split()) for line in said.splitlines())[:300]} |")


if __name__ == "__main__":
    main()
