"""What one should know about a data set before training on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from utils.data.chat import IGNORED
from utils.data.labels import encode_record
from utils.data.records import INSTRUCTION_FIELDS, Problem, Record, find_problems, to_prompt_completion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUANTILES = {"shortest": 0.0, "median": 0.5, "90%": 0.9, "99%": 0.99, "longest": 1.0}


@dataclass(frozen=True)
class Report:
    """A data set looked over. Printing it gives a table.

    count: all records; problems: what :func:`utils.data.records.find_problems` found (those records count in nothing
    below).
    duplicates: records beyond the first that have the same prompt and answer; contradictions: prompts that come with
    more than one answer; leaked: usable records of the held-out data (there are `held_out`) whose prompt is in
    the records too, case and white space aside. lengths: tokens of each record; max_length: where they are cut;
    truncated and lost: the records, in number, that lose something and that lose their whole completion. endless: the
    records among whose labels the tokenizer's end mark is not, so that nothing teaches the model to stop.
    """

    count: int
    problems: list[Problem]
    duplicates: int
    contradictions: int
    leaked: int
    held_out: int
    lengths: list[int]
    max_length: int
    truncated: int
    lost: int
    endless: int

    @property
    def empty(self) -> dict[str, int]:
        """How many records have each field empty, by field."""
        return dict(Counter(p.field for p in self.problems if p.field and p.reason == "is empty"))

    @property
    def usable(self) -> int:
        """How many records have no problem."""
        return self.count - len({p.row for p in self.problems})

    @property
    def quantiles(self) -> dict[str, int]:
        """Lengths in tokens: the shortest, the median, what 90% and 99% don't exceed, the longest."""
        return {
            name: int(np.quantile(self.lengths, q, method="inverted_cdf")) for name, q in QUANTILES.items()
        } if self.lengths else {}  # fmt: skip

    def _share(self, part: int, whole: int) -> str:
        return f"{part:,} of {whole:,}" + (f" ({part / whole:.1%})" if whole else "")

    def rows(self) -> list[tuple[str, str]]:
        """The table: names and values as text."""
        empty = ", ".join(f"{field}: {n}" for field, n in self.empty.items())
        rows = [
            ("records", f"{self.count:,}"),
            ("that can be used", self._share(self.usable, self.count)),
            ("with an empty field", empty or "none"),
            ("exact duplicates", self._share(self.duplicates, self.usable)),
            ("prompts with two answers", f"{self.contradictions:,}" if self.contradictions else "none"),
        ]
        if self.held_out:
            rows.append(("held-out prompts found here", self._share(self.leaked, self.held_out)))
        if self.lengths:
            rows.append(("tokens", ", ".join(f"{name} {n:,}" for name, n in self.quantiles.items())))
            rows.append(("answers without an end mark", self._share(self.endless, self.usable)))
            rows.append((f"cut at {self.max_length:,} tokens", self._share(self.truncated, self.usable)))
            rows.append(("whole completion cut away", self._share(self.lost, self.usable)))
        return rows

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.rows())
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.rows())


def _required(records: Sequence[Record]) -> Sequence[str]:
    conversations = sum("messages" in r for r in records if isinstance(r, dict))
    return ("messages",) if 2 * conversations > len(records) else INSTRUCTION_FIELDS


def _prompt(record: Record) -> tuple[tuple[str, str], ...]:
    return tuple((m["role"], m["content"]) for m in to_prompt_completion(record)["prompt"])


def _loose(prompt: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    return tuple(" ".join(content.casefold().split()) for _, content in prompt)


def _good(records: Sequence[Record]) -> tuple[list[Record], list[Problem]]:
    problems = find_problems(records, _required(records))
    bad = {p.row for p in problems}
    return [r for row, r in enumerate(records, 1) if row not in bad], problems


def data_report(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    held_out: Sequence[Record] | None = None,
) -> Report:
    """Look over instruction records or conversations: what is empty, double, leaked, too long.

    Lengths are those of the whole conversation in the tokenizer's chat form; a record is cut when it has more than
    `max_length` tokens. Bad records are reported and left out of the other figures, never an error. Raises ValueError
    when there are no records or `max_length` isn't positive.
    """
    if not len(records):
        raise ValueError("there are no records to report on")
    if max_length < 1:
        raise ValueError(f"max_length is a number of tokens, at least 1, not {max_length}")
    good, problems = _good(records)
    pairs = [(_prompt(r), to_prompt_completion(r)["completion"][0]["content"]) for r in good]
    answers: dict[tuple, set[str]] = {}
    for prompt, answer in pairs:
        answers.setdefault(prompt, set()).add(answer)
    known = {_loose(prompt) for prompt in answers}
    tested, _ = _good(held_out) if held_out else ([], [])
    encoded = [encode_record(tokenizer, r) for r in good]
    return Report(
        count=len(records),
        problems=problems,
        duplicates=len(pairs) - len(set(pairs)),
        contradictions=sum(len(a) > 1 for a in answers.values()),
        leaked=sum(_loose(_prompt(r)) in known for r in tested),
        held_out=len(tested),
        lengths=[len(ids) for ids, _ in encoded],
        max_length=max_length,
        truncated=sum(len(ids) > max_length for ids, _ in encoded),
        lost=sum(all(label == IGNORED for label in labels[:max_length]) for _, labels in encoded),
        endless=sum(tokenizer.eos_token_id not in labels for _, labels in encoded),
    )
