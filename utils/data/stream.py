"""Files of records that are read while a run goes on, in the same order however many processes share them.

Nothing is held but a buffer that shuffles. Every process reads every line, which is cheap, and makes records only of
its own share, so that a step's batch is the same set of records on 1, 2 or 64 processes, and a run that was stopped
goes on at its record on any of these numbers.
"""

from __future__ import annotations

import glob
import gzip
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.data.records import BadRecords, Problem, kind_of, to_prompt_completion

if TYPE_CHECKING:
    from datasets import IterableDataset


def stream_files(pattern: str | Path) -> list[Path]:
    """The files that a name or a pattern such as ``data/part-*.jsonl`` means, sorted by name.

    Raises FileNotFoundError when there is none, ValueError for a file that isn't JSONL: others can't be read by line.
    """
    files = sorted(map(Path, glob.glob(str(pattern))))
    if not files:
        raise FileNotFoundError(f"there is no file {pattern}")
    for file in files:
        if file.name.lower().removesuffix(".gz").rpartition(".")[2] not in ("jsonl", "ndjson"):
            raise ValueError(f"{file.name} can't be streamed: write one JSON object a line, as .jsonl or .jsonl.gz")
    return files


def stream_lines(files: Sequence[str | Path]) -> Iterator[dict[str, Any]]:
    """The objects of JSONL files, one after another; empty lines are left out. Raises BadRecords, with file and line,
    for a line that is no object, once it gets there."""
    for file in map(Path, files):
        unpacked = gzip.open(file, "rt", encoding="utf-8") if file.name.lower().endswith(".gz") else None
        with unpacked or open(file, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise BadRecords.of_file([Problem(number, None, f"is no JSON ({error})")], file.name) from error
                if not isinstance(row, dict):
                    problem = Problem(number, None, f"is {kind_of(row)}, not an object with fields")
                    raise BadRecords.of_file([problem], file.name)
                yield row


def wanted(row: Mapping[str, Any], only: Mapping[str, Any]) -> bool:
    """Whether a row has these values in these fields."""
    return all(row.get(field) == value for field, value in only.items())


def shuffled(rows: Iterator[dict[str, Any]], buffer: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """The rows in another order: each place of a buffer of so many rows gives its row for the next one that comes, at
    random. A row travels about `buffer` places; with ``buffer=1`` the order stays."""
    held: list[dict[str, Any]] = []
    for row in rows:
        if len(held) < buffer:
            held.append(row)
            continue
        place = rng.randrange(buffer)
        held[place], row = row, held[place]
        yield row
    rng.shuffle(held)
    yield from held


def endless(
    files: Sequence[str | Path], *, only: Mapping[str, Any] | None = None, buffer: int = 1000, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """The wanted rows of the files, pass after pass, in another order in each (`seed`, and the number of the pass).

    Raises ValueError when a whole pass has no wanted row.
    """
    passes = 0
    while True:
        found = False
        rows = (row for row in stream_lines(files) if wanted(row, only or {}))
        for row in shuffled(rows, buffer, random.Random(f"{seed}/{passes}")):
            found = True
            yield row
        if not found:
            what = f" with {', '.join(f'{name}={value!r}' for name, value in only.items())}" if only else ""
            raise ValueError(f"{', '.join(Path(file).name for file in files)}: there is no record{what}")
        passes += 1


def share(
    rows: Iterator[dict[str, Any]], *, batch: int, part: int, parts: int, start: int = 0
) -> Iterator[dict[str, Any]]:
    """The rows of one process: of every `batch` rows the `part`-th of `parts` equal pieces, from row `start` on.

    `start` rows of all processes together were used already, a multiple of `batch`. Raises ValueError where `batch` or
    `start` can't be divided so.
    """
    if batch % parts or start % batch:
        raise ValueError(f"batches of {batch} from row {start} can't be divided among {parts} processes")
    each = batch // parts
    for place, row in enumerate(rows):
        if place >= start and place % batch // each == part:
            yield row


def _records(
    part: list[int], parts: int, files: list[str], only: dict[str, Any], batch: int, start: int, buffer: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Prompt and completion for one process. `part` is a list of one, which is how datasets deals out shares; without
    a list of its own the dataset would be cut a second time."""
    rows = endless(files, only=only, buffer=buffer, seed=seed)
    for mine in share(rows, batch=batch, part=part[0], parts=parts, start=start):
        yield to_prompt_completion(mine)


def stream_dataset(
    files: Sequence[str | Path],
    *,
    batch: int,
    parts: int = 1,
    only: Mapping[str, Any] | None = None,
    start: int = 0,
    buffer: int = 1000,
    seed: int = 0,
) -> IterableDataset:
    """An endless dataset of prompt and completion with one shard a process, for a trainer with ``max_steps``.

    batch: records of an optimizer step, over all processes and accumulated batches. parts: processes; accelerate gives
    each its shard, which is its piece of every batch (:func:`share`). start: records that an interrupted run used.
    buffer, seed: as in :func:`endless`. Raises ValueError when `parts` don't divide `batch`.
    """
    from datasets import IterableDataset

    if batch % parts:
        raise ValueError(f"a batch of {batch} records can't be divided among {parts} processes")
    given = {
        "part": list(range(parts)), "parts": parts, "files": tuple(map(str, files)), "only": dict(only or {}),
        "batch": batch, "start": start, "buffer": buffer, "seed": seed,
    }  # fmt: skip
    return IterableDataset.from_generator(_records, gen_kwargs=given)
