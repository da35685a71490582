"""From the bytes of a file to its rows: compression, encoding, and JSON, JSONL, CSV or Parquet.

Nothing is known here of what a row must hold: that is :mod:`utils.data.formats`.

Attributes:
    ENDINGS: The endings of the files that are read; each may have ``.gz`` behind it.
    ADVICE: What to do about files of other kinds.
    DELIMITERS: What may stand between the columns of a CSV file; the header decides.
    BATCH: Rows of a Parquet file that become Python objects at once.
    SILENT: Seconds before a progress bar appears.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from utils.data.records import BadRecords, Problem, kind_of

ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
ADVICE = {
    ".txt": "a text has no records: write one JSON object a line, with instruction and output, as .jsonl",
    ".xlsx": "save the sheet as CSV",
    ".xls": "save the sheet as CSV",
    ".zip": "unpack it first",
}
DELIMITERS = {",": "CSV", ";": "CSV with ;", "\t": "values separated by tabs", "|": "CSV with |"}
BATCH = 10_000
SILENT = 3.0


class Rows(NamedTuple):
    """What a file holds: each row with its place, which `unit` counts, problems so far, and `kind`, what it proved to
    be."""

    rows: list[tuple[int, Any]]
    problems: list[Problem]
    unit: str
    kind: str


def read_rows(path: str | Path) -> Rows:
    """The rows of a file, and what is wrong with those that can't be parsed.

    The content decides where it can: JSON under the name of JSONL and the other way round is read, a CSV file's
    delimiter is found in its header, gzip and Parquet by their first bytes, UTF-16 by its zeros. Raises ValueError for
    a folder or an unknown ending, BadRecords (a ValueError too) when the file as a whole can't be read,
    FileNotFoundError when there is none.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file in it")
    endings = [suffix.lower() for suffix in path.suffixes]
    ending = next((suffix for suffix in reversed(endings) if suffix != ".gz"), "")
    if ending not in ENDINGS:
        raise ValueError(
            f"{path.name}: {ADVICE.get(ending, 'the ending says how to read a file')}; known are {', '.join(ENDINGS)}"
        )
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        return _rows(path.read_bytes(), ending)
    except BadRecords as error:
        raise BadRecords(error.problems, f"{path.name} {error}") from None
    except ValueError as error:
        raise BadRecords([Problem(1, None, str(error))], f"{path.name} {error}") from None


def _rows(data: bytes, ending: str) -> Rows:
    names: list[str] = []
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"can't be unpacked ({error}): was it cut off?") from None
        names = ["gzip"]
    if ending == ".parquet" or data[:4] == b"PAR1":
        return Rows(_parquet(data), [], "record", ", ".join(["Parquet", *names]))
    text, encoding = decode(data)
    names = [*([encoding] if encoding else []), *names]
    parse = _csv if ending in (".csv", ".tsv") else _json
    found = parse(text, ending) if text.strip() else Rows([], [], "record", "")
    return found._replace(kind=", ".join([found.kind, *names]))


# --------------------------------------------------------------------------------------------------------- encoding

BOMS = {
    codecs.BOM_UTF8: ("utf-8-sig", ""),
    codecs.BOM_UTF32_LE: ("utf-32", "UTF-32"),  # it begins as UTF-16's does, so it comes first
    codecs.BOM_UTF32_BE: ("utf-32", "UTF-32"),
    codecs.BOM_UTF16_LE: ("utf-16", "UTF-16"),
    codecs.BOM_UTF16_BE: ("utf-16", "UTF-16"),
}


NO_ASCII = re.compile(r"""[^\s",;]*[^\x00-\x7f][^\s",;]*""")


def decode(data: bytes) -> tuple[str, str]:
    """The text, and the name of its encoding unless it is UTF-8.

    A file without a valid character of UTF-8 beyond ASCII is read as cp1252, Windows' encoding of Western Europe, where
    that gives words. Raises ValueError for anything else, with the line and the byte.
    """
    encoding, name = next((found for bom, found in BOMS.items() if data.startswith(bom)), ("utf-8", ""))
    start = data[:1000]
    if name == "" and 3 * start.count(0) > len(start):
        encoding, name = ("utf-16-be" if start[::2].count(0) > start[1::2].count(0) else "utf-16-le"), "UTF-16"
    try:
        return data.decode(encoding), name
    except UnicodeDecodeError as error:
        if name:
            raise ValueError(f"is no valid {name} ({error.reason}); was it cut off?") from None
        if data.decode("utf-8", "ignore").isascii() and (text := _western(data)):
            word = NO_ASCII.search(text)
            return (
                text,
                f"cp1252 since it is no UTF-8 (look: is {word[0][:20] if word else text[:20]!r} as it should be?)",
            )
        line = data.count(b"\n", 0, error.start) + 1
        reason = f"holds the byte 0x{data[error.start]:02x}, which is no UTF-8; save the file as UTF-8"
        raise BadRecords([Problem(line, None, reason)], f"can't be read. line {line}: {reason}") from None


def _western(data: bytes) -> str:
    """The text in cp1252, or "" when too many of its letters have accents for a Western language."""
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return ""
    accented = sum(letter.isalpha() for letter in text if letter > "\x7f")
    return text if 4 * accented <= sum(map(str.isalpha, text)) else ""


# ------------------------------------------------------------------------------------------------------------- JSON


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"names the field {twice!r} twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_no_repeats)
BLANK = re.compile(r"\s*")


def _parse(text: str, start: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at `start`, and where it ends. Raises ValueError, in words that fit behind a line's
    number."""
    try:
        return DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        cut = "; was it cut off?" if error.pos >= len(text.rstrip()) or "Unterminated" in error.msg else ""
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"is not valid JSON ({error.msg.removesuffix(' at')} at {place}){cut}") from None
    except RecursionError:
        raise ValueError("is nested too deeply: a record is an object of texts, or of a list of messages") from None
    except ValueError as error:
        if "digits" in str(error):
            raise ValueError("holds a number of thousands of digits: write it as a text") from None
        raise


def _one(text: str) -> Any:
    """The one value that `text` holds. Raises ValueError when there is more."""
    begin = len(text) - len(text.lstrip())
    value, end = _parse(text, begin)
    if rest := text[end:].strip():
        raise ValueError(f"is not valid JSON (after the first value comes {rest[:12]!r})")
    return value


def _values(text: str) -> list[Any]:
    """All values of a text, one behind the other."""
    found, place, end = [], 0, len(text.rstrip())
    while place < end:
        place = BLANK.match(text, place).end()  # type: ignore[union-attr] (it matches everywhere)
        value, place = _parse(text, place)
        found.append(value)
    return found


def _json(text: str, ending: str) -> Rows:
    try:
        value = _one(text)
    except ValueError as error:
        lines = _lines(text)
        if isinstance(next((row for _, row in lines.rows), None), Mapping | list) and _starts(lines):
            return lines
        try:
            values = _values(text)
        except ValueError:
            values = []
        if len(values) > 1:
            return Rows(list(enumerate(values, 1)), [], "record", "JSON objects of several lines each")
        if ending != ".json":
            return lines
        raise error from None
    if isinstance(value, Mapping) and ending != ".json" and ("\n" not in text.strip() or not _inside(value)):
        return Rows([(1 + text[: len(text) - len(text.lstrip())].count("\n"), value)], [], "line", "JSONL")
    return _whole(value)


def _starts(lines: Rows) -> bool:
    """Whether the first line that isn't blank is a value of its own."""
    return not lines.problems or lines.rows[0][0] < lines.problems[0].row


def _lines(text: str) -> Rows:
    from tqdm.auto import tqdm

    rows, problems = [], []
    for line, content in enumerate(tqdm(text.split("\n"), desc="reading", delay=SILENT, leave=False), 1):
        if not content.strip():
            continue
        try:
            rows.append((line, _one(content)))
        except ValueError as error:
            problems.append(Problem(line, None, str(error)))
    return Rows(rows, problems, "line", "JSONL")


def _inside(value: Mapping[str, Any]) -> list[str]:
    """The keys of an object under which lists of objects lie that are no messages."""
    return [
        key
        for key, found in value.items()
        if isinstance(found, list)
        and found
        and all(isinstance(row, Mapping) for row in found)
        and not {"role", "from"} & set(found[0])
    ]


def _whole(value: Any) -> Rows:
    kind = "JSON"
    if isinstance(value, Mapping):
        inside = _inside(value)
        if len(inside) > 1:
            raise ValueError(f"holds several lists of records ({', '.join(inside)}): save the one to train on")
        if not inside:
            columns = value and all(isinstance(found, Mapping | list) for found in value.values())
            hint = '. pandas writes records with to_json(path, orient="records")' if columns else ""
            raise ValueError(f"holds an object; a .json file of records is one list of objects: [{{...}}, ...]{hint}")
        kind, value = f'JSON, the list under "{inside[0]}"', value[inside[0]]
    if not isinstance(value, list):
        raise ValueError(
            f"holds {kind_of(value)}; a .json file of records is one list of objects: [{{...}}, ...]"
        )  # fmt: skip
    return Rows(list(enumerate(value, 1)), [], "record", kind)


# -------------------------------------------------------------------------------------------------- CSV and Parquet


@contextmanager
def _long_fields() -> Iterator[None]:
    """Inside the block a CSV field may be longer than Python's 131,072 characters."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _delimiter(text: str, ending: str) -> str:
    """What makes the most columns of the header."""
    first = "\t" if ending == ".tsv" else ","

    def columns(delimiter: str) -> int:
        return len(next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), []))

    return max([first, *(d for d in DELIMITERS if d != first)], key=columns)


def _csv(text: str, ending: str) -> Rows:
    told = text[4] if text[:4].lower() == "sep=" and text[4:5] in DELIMITERS else ""  # Excel's own first line
    rows, problems, header, line = [], [], [], 1
    with _long_fields():
        delimiter = told or _delimiter(text, ending)
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
        try:
            if told:
                next(reader)
                line = 2
            for values in reader:
                if not header:
                    header = _trimmed([value.strip() for value in values], 0)
                    if twice := sorted({column for column in header if header.count(column) > 1}):
                        raise ValueError(f"has two columns named {twice[0]!r}: rename one")
                elif values:
                    values = _trimmed(values, len(header))
                    if len(values) == len(header):
                        rows.append((line, dict(zip(header, values, strict=True))))
                    else:
                        what = "comma" if delimiter == "," else "delimiter"
                        reason = f"has {len(values)} values for {len(header)} columns; is a {what} or a quote missing?"
                        problems.append(Problem(line, None, reason))
                line = reader.line_num + 1
        except csv.Error as error:
            problems.append(Problem(line, None, f"is not valid CSV ({error}); is a quote not closed?"))
    return Rows(rows, problems, "line", DELIMITERS[delimiter])


def _trimmed(values: list[str], least: int) -> list[str]:
    """Without the empty values behind the last column, which spreadsheets write."""
    end = len(values)
    while end > least and not values[end - 1].strip():
        end -= 1
    return values[:end]


def _parquet(data: bytes) -> list[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(data))
        rows = [row for batch in table.to_batches(max_chunksize=BATCH) for row in batch.to_pylist()]
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"is no whole Parquet file ({str(error).splitlines()[0]}): was it cut off?") from None
    return list(enumerate(rows, 1))
