"""What one should know about a data set before training on it: of the very ids and labels that will be trained on.

Attributes:
    QUANTILES: The lengths that a report shows.
    FEW: Below so many held-out records an evaluation can tell nothing from luck.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from utils.data.chat import IGNORED
from utils.data.duplicates import near_duplicates
from utils.data.labels import encode_rows, first_learned, lost_at
from utils.data.records import (
    INSTRUCTION_FIELDS,
    Problem,
    Record,
    loose,
    problems_of,
    to_messages,
    to_prompt_completion,
)
from utils.data.rows import SILENT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUANTILES = {"shortest": 0.0, "median": 0.5, "90%": 0.9, "99%": 0.99, "longest": 1.0}
FEW = 20


@dataclass(frozen=True)
class Report:
    """A data set looked over, and its rows for the trainer. Printing it gives a table.

    count: all records; problems: what is wrong with those that can't be used (they count in nothing below).
    duplicates: records beyond the first that have the same prompt and answer; near: records whose prompt is nearly one
    that came before (:mod:`utils.data.duplicates`), and not the same; contradictions: prompts that come with more than
    one answer; leaked: usable records of the held-out data (there are `held_out`) whose prompt is in the records too,
    case and white space aside; near_leaked: further ones whose prompt is nearly there. marks: special tokens that stand
    written out in texts, each with the number of records: the tokenizer makes the token itself of them.

    lengths: tokens of each record before the cut; max_length: where they are cut; truncated and lost: the records, in
    number, that lose something and that lose all that they would teach, and aren't trained on. endless: the records
    whose last answer has no EOS token once they are cut; of these so many had none before: `unended`. context: the
    positions of the model, None when nobody said; beyond: the rows, held-out ones too, that are longer than that even
    when they are cut. rows: what the trainer gets, cut, each with ``input_ids`` and ``labels``. ragged: the records
    whose last answer begins or ends with white space.
    """

    count: int
    problems: list[Problem]
    duplicates: int
    near: int
    contradictions: int
    leaked: int
    near_leaked: int
    held_out: int
    marks: dict[str, int]
    lengths: list[int]
    max_length: int
    truncated: int
    lost: int
    endless: int
    unended: int
    context: int | None
    beyond: int
    rows: list[dict[str, Any]] = field(repr=False)
    firsts: list[int | None] = field(repr=False)
    ragged: int = 0

    @property
    def empty(self) -> dict[str, int]:
        """How many records have each field empty, by field."""
        return dict(Counter(p.field for p in self.problems if p.field and p.reason == "is empty"))

    @property
    def usable(self) -> int:
        """How many records have no problem."""
        return self.count - len({p.row for p in self.problems})

    @property
    def tokens(self) -> int:
        """Tokens that the model reads in one epoch."""
        return sum(len(row["input_ids"]) for row in self.rows)

    @property
    def learned(self) -> int:
        """Tokens that the loss counts in one epoch."""
        return sum(int((row["labels"] != IGNORED).sum()) for row in self.rows)

    @property
    def quantiles(self) -> dict[str, int]:
        """Lengths in tokens: the shortest, the median, what 90% and 99% don't exceed, the longest."""
        return {
            name: int(np.quantile(self.lengths, q, method="inverted_cdf")) for name, q in QUANTILES.items()
        } if self.lengths else {}  # fmt: skip

    def checked(self) -> Report:
        """The same. Raises ValueError when the cut leaves nothing to train on, and says which length is needed, or that
        the model hasn't so many positions."""
        first = min((first for first in self.firsts if first is not None), default=0)
        if self.context is not None and self.lengths and first >= self.context:
            raise ValueError(
                f"the answers begin after {first:,} tokens at the earliest, and the model has {self.context:,} "
                "positions: nothing would be left to train on. Shorten what stands before the answers, or take a model "
                "with more"
            )
        lost_at(self.max_length, self.firsts, self.lengths)
        return self

    def warnings(self) -> list[str]:
        """What should make one stop and look before a run, a sentence each; an empty list when there is nothing."""
        said = []
        if self.marks:
            named = ", ".join(f"{mark} in {n:,}" for mark, n in self.marks.items())
            said.append(
                f"special tokens stand written out in texts ({named}), and an EOS token there ends an answer half-way: "
                "take them out"
            )
        cut = self.endless - self.unended
        if cut:
            most = self.quantiles["longest"]
            cure = f"--max-length {most} keeps all whole"
            if self.context is not None and most > self.context:
                cure = "shorten them, or take a model with more positions"
            said.append(f"{self._share(cut, self.usable)} answers lose their end, and so don't teach to stop: {cure}")
        if self.unended:
            said.append(f"the chat template learns no EOS token in {self.unended:,} answers: they won't end")
        if self.lost:
            said.append(f"{self._share(self.lost, self.usable)} of the records aren't trained on: the cut takes all")
        if self.contradictions:
            said.append(f"{self.contradictions:,} prompts have more than one answer: exact match can't reach 100%")
        if self.ragged:
            said.append(f"{self.ragged:,} answers begin or end with white space, which is trained on too: strip them")
        if 4 * self.near > self.usable:
            near = self._share(self.near, self.usable)
            said.append(f"{near} prompts are nearly another one: the file is smaller than it looks")
        if 0 < self.held_out < FEW:
            held = "1 held-out record is" if self.held_out == 1 else f"{self.held_out} held-out records are"
            cure = (
                f"--held-out {FEW}" if self.usable + self.held_out >= 2 * FEW else f"collect {2 * FEW} or more in all"
            )
            said.append(f"{held} too few to tell anything from luck: {cure}")
        return [f"Look: {text}." for text in said]

    def _share(self, part: int, whole: int) -> str:
        return f"{part:,} of {whole:,}" + (f" ({part / whole:.1%})" if whole else "")

    def table(self) -> list[tuple[str, str]]:
        """Names and values as text."""
        empty = ", ".join(f"{field}: {n}" for field, n in self.empty.items())
        marks = ", ".join(f"{mark} in {n:,}" for mark, n in self.marks.items())
        rows = [
            ("records", f"{self.count:,}"),
            ("that can be used", self._share(self.usable, self.count)),
            ("with an empty field", empty or "none"),
            ("exact duplicates", self._share(self.duplicates, self.usable)),
            ("nearly the same prompt", self._share(self.near, self.usable)),
            ("prompts with two answers", f"{self.contradictions:,}" if self.contradictions else "none"),
        ]
        if self.held_out:
            rows.append(("held-out prompts found here", self._share(self.leaked, self.held_out)))
            rows.append(("held-out prompts nearly here", self._share(self.near_leaked, self.held_out)))
        rows.append(("special tokens in texts", f"{marks}: each becomes the token itself" if marks else "none"))
        if self.lengths:
            rows.append(("tokens", ", ".join(f"{name} {n:,}" for name, n in self.quantiles.items())))
            rows.append((f"cut at {self.max_length:,} tokens", self._share(self.truncated, self.usable)))
            rows.append(("whole completion cut away", self._share(self.lost, self.usable)))
            rows.append(("trained on", self._share(len(self.rows), self.usable)))
            rows.append(("answers without their EOS token", self._endless()))
            rows.append(("tokens trained on", self._share(self.learned, self.tokens)))
        if self.context is not None:
            rows.append(
                (f"beyond the model's {self.context:,} positions", f"{self.beyond:,}" if self.beyond else "none")
            )
        return rows

    def _endless(self) -> str:
        share = self._share(self.endless, len(self.rows))
        if self.unended:
            return f"{share}, {self.unended:,} of them before the cut: the chat template learns none"
        return f"{share}, cut off" if self.endless else share

    def __str__(self) -> str:
        table = self.table()
        width = max(len(name) for name, _ in table)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in table)


def asked(record: Record) -> tuple[tuple[str, str], ...]:
    """Every turn before the answer: who speaks, and the words."""
    return tuple((m["role"], m["content"]) for m in to_prompt_completion(record)["prompt"])


def _problems(row: int, record: Any) -> list[Problem]:
    talk = isinstance(record, Mapping) and "messages" in record
    return problems_of(row, record, ("messages",) if talk else INSTRUCTION_FIELDS)


def _good(records: Sequence[Record]) -> tuple[list[Record], list[Problem]]:
    good, problems = [], []
    for row, record in enumerate(records, 1):
        found = _problems(row, record)
        problems += found
        if not found:
            good.append(record)
    return good, problems


def _marks(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
    found: Counter[str] = Counter()
    if special:
        pattern = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
        for record in records:
            texts = "\0".join(m["content"] for m in to_messages(record)["messages"])
            found.update(set(pattern.findall(texts)))
    return dict(found.most_common())


def _answers_end(labels: Sequence[int], eos: int | None) -> bool:
    """Whether the EOS token is among the last stretch of learned tokens."""
    learned = False
    for label in reversed(labels):
        if label == eos:
            return True
        if label == IGNORED and learned:
            return False
        learned = learned or label != IGNORED
    return False


def _encoded(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[int], list[int]]]:  # fmt: skip
    from tqdm.auto import tqdm

    bar = tqdm(encode_rows(tokenizer, records), total=len(records), desc="encoding", delay=SILENT, leave=False)
    return iter(bar)


def data_report(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    held_out: Sequence[Record] | None = None,
    *,
    context: int | None = None,
) -> Report:
    """Look over instruction records or conversations: what is empty, double, leaked, too long, and what is trained on.

    Each record is encoded once, by :func:`utils.data.labels.encode_rows`, and cut to its first `max_length` tokens; the
    report is about these rows, and its `rows` are what a trainer should get. `context`: how many positions the model
    has, such as its config's ``max_position_embeddings``. Bad records are reported and left out of the other figures,
    never an error. Raises ValueError when there are no records, `max_length` isn't positive, or the chat template
    refuses one (:func:`utils.data.template.check_template` says so with its line), and TypeError for a file's name.
    """
    for given in (records, held_out):
        if isinstance(given, str | Path):
            raise TypeError(f"records are wanted, not the name of a file: read_own({str(given)!r}).records reads them")
    if not len(records):
        raise ValueError("there are no records to report on")
    if not isinstance(max_length, int) or max_length < 1:
        raise ValueError(f"max_length is the number of tokens at which rows are cut, at least 1, not {max_length!r}")
    good, problems = _good(records)
    tested, _ = _good(held_out) if held_out else ([], [])
    prompts = [asked(record) for record in good]
    pairs = [
        (prompt, to_prompt_completion(r)["completion"][0]["content"]) for prompt, r in zip(prompts, good, strict=True)
    ]
    answers: dict[tuple, set[str]] = {}
    for prompt, answer in pairs:
        answers.setdefault(prompt, set()).add(answer)
    keys = [loose(content for _, content in prompt) for prompt in prompts]
    tests = [loose(content for _, content in asked(record)) for record in tested]
    known = set(keys)
    first = near_duplicates(["\n".join(key) for key in keys + tests])
    near = len(known) - len(set(first[: len(keys)]))
    trained_places = set(first[: len(keys)])
    leaked = sum(key in known for key in tests)
    nearly = sum(
        key not in known and place in trained_places for key, place in zip(tests, first[len(keys) :], strict=True)
    )
    lengths, firsts, rows = [], [], []
    endless = unended = beyond = 0
    eos = cast("int | None", tokenizer.eos_token_id)
    for ids, labels in _encoded(good, tokenizer):
        lengths.append(len(ids))
        firsts.append(first_learned(labels))
        cut = labels[:max_length]
        if firsts[-1] is None or firsts[-1] >= max_length:
            continue
        rows.append({"input_ids": np.array(ids[:max_length], np.int32), "labels": np.array(cut, np.int32)})
        beyond += context is not None and len(cut) > context
        if not _answers_end(cut, eos):
            endless += 1
            unended += not _answers_end(labels, eos)
    if context is not None:
        beyond += sum(len(ids) > context for ids, _ in _encoded(tested, tokenizer))
    return Report(
        count=len(records),
        problems=problems,
        duplicates=len(pairs) - len(set(pairs)),
        near=near,
        contradictions=sum(len(a) > 1 for a in answers.values()),
        leaked=leaked,
        near_leaked=nearly,
        held_out=len(tested),
        marks=_marks(good, tokenizer),
        lengths=lengths,
        max_length=max_length,
        truncated=sum(length > max_length for length in lengths),
        lost=len(good) - len(rows),
        endless=endless,
        unended=unended,
        context=context,
        beyond=beyond,
        rows=rows,
        firsts=firsts,
        ragged=sum(answer != answer.strip() for _, answer in pairs),
    )
