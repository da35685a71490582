"""A file of one's own: read whole or refused, split so that nothing leaks, and described for the model card."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from utils.data.records import INSTRUCTION_FIELDS, Record, read_records, to_prompt_completion
from utils.tinyworld import documents
from utils.train.loop import train
from utils.train.settings import DEV_AT_LEAST, DEV_AT_MOST, DEV_SHARE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELD_OUT_SHARE = 0.1
HELD_OUT_AT_MOST = 200
GENERAL_TEXTS = 40
GENERAL = "40 generated picture-book stories"
FEWEST_PROMPTS = 10


class Split(NamedTuple):
    """Records to train on and to test with; `dropped` exact duplicates are in neither, and neither are those of `dev`,
    by whose loss the best checkpoint is chosen."""

    train: list[Record]
    held_out: list[Record]
    dropped: int
    dev: list[Record] = []


class DataFacts(NamedTuple):
    """What a model card says of its data: the file's name, the SHA-256 of its bytes, and the split's counts."""

    file: str
    sha256: str
    train: int
    held_out: int
    dropped: int


def read_own(path: str | Path) -> list[Record]:
    """The records of a .csv, .json or .jsonl file: instruction records, or conversations where it has ``messages``.

    Raises what :func:`utils.data.records.read_records` raises: for bad records BadRecords with each line and its
    reason, and then nothing is read.
    """
    path = Path(path)
    conversations = path.suffix.lower() != ".csv" and path.is_file() and _has_messages(path)
    return list(read_records(path, ("messages",) if conversations else INSTRUCTION_FIELDS))


def train_on_file(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
    *,
    steps: int,
    lr: float,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> list[float]:
    """A file of one's own, its labels, the course's loop, and the loss of every step (nats per token).

    For a file in another shape put your own list of ``prompt`` and ``completion`` in the place of `records`. Nothing is
    held out (see :func:`split_records`), and no record is cut, whatever its length. Raises what :func:`read_own` and
    :func:`utils.train.loop.train` raise.
    """
    records = read_own(path)
    return train(
        model, tokenizer, records, steps=steps, lr=lr, batch_size=batch_size, seed=seed, progress=progress
    )  # fmt: skip


def _has_messages(path: Path) -> bool:
    with path.open("rb") as file:
        return re.search(rb'"messages"\s*:', file.read(100_000)) is not None


def prompt_key(record: Record) -> tuple[str, ...]:
    """What two records have in common when they ask the same: every turn before the answer, case and space aside."""
    return tuple(" ".join(turn["content"].casefold().split()) for turn in to_prompt_completion(record)["prompt"])


def _distinct(records: Sequence[Record]) -> dict[tuple[Hashable, str], Record]:
    """The first record of each prompt and answer, by both."""
    kept: dict[tuple[Hashable, str], Record] = {}
    for record in records:
        answer = to_prompt_completion(record)["completion"][0]["content"].strip()
        kept.setdefault((prompt_key(record), answer), record)
    return kept


def split_records(
    records: Sequence[Record], share: float = HELD_OUT_SHARE, at_most: int = HELD_OUT_AT_MOST, seed: int = 0
) -> Split:
    """Hold out about `share` of the records, `at_most` so many, so that no prompt is on both sides.

    Records with the same prompt (:func:`prompt_key`) stay together, and of records that also have the same answer one
    is kept. Groups are drawn by `seed`; each side keeps the file's order. Raises ValueError when the share isn't
    between 0 and 1, `at_most` is below 1, or there are fewer than ten different prompts: too few to test with.
    """
    if not 0 < share < 1 or at_most < 1:
        raise ValueError(f"hold out a share between 0 and 1, and at least one record; not {share} and {at_most}")
    kept = _distinct(records)
    groups: dict[Hashable, list[Record]] = {}
    for (prompt, _), record in kept.items():
        groups.setdefault(prompt, []).append(record)
    if len(groups) < FEWEST_PROMPTS:
        raise ValueError(
            f"there are {len(groups)} different prompts in {len(records)} records; at least {FEWEST_PROMPTS} are "
            "needed, some to train on and some to test with. Collect more"
        )
    wanted = min(at_most, max(1, round(share * len(kept))))
    order = list(groups)
    random.Random(seed).shuffle(order)
    test: set[Hashable] = set()
    count = 0
    for prompt in order[:-1]:  # one group at least is left to train on
        if count >= wanted:
            break
        test.add(prompt)
        count += len(groups[prompt])
    held_out = [record for (prompt, _), record in kept.items() if prompt in test]
    train = [record for (prompt, _), record in kept.items() if prompt not in test]
    return Split(train, held_out, len(records) - len(kept))


def hold_out(records: Sequence[Record], held_out: float | str = HELD_OUT_SHARE, seed: int = 0) -> Split:
    """Hold records out of training: a share, at most 200 of them, or a number of records, or those of a file.

    Of what is left a tenth becomes the dev split, where that is ten records or more. No prompt is on two sides: of
    records whose prompt is in a file of held-out ones too, those to train on are dropped. Raises what
    :func:`split_records` and :func:`read_own` raise, and ValueError when nothing is left to train on.
    """
    if isinstance(held_out, str):
        test = read_own(held_out)
        asked = {prompt_key(record) for record in test}
        rest = [record for record in records if prompt_key(record) not in asked]
        if not rest:
            raise ValueError(f"every prompt is in {held_out} too: nothing is left to train on")
        kept = list(_distinct(rest).values())
        split = Split(kept, test, len(records) - len(kept))
    elif held_out >= 1:
        if held_out >= len(records):
            raise ValueError(f"held_out={held_out:g} of {len(records)} records leaves nothing to train on")
        split = split_records(records, min(0.999, held_out / max(1, len(records))), int(held_out), seed)
    else:
        split = split_records(records, held_out, seed=seed)
    if DEV_SHARE * len(split.train) < DEV_AT_LEAST or len(set(map(prompt_key, split.train))) < FEWEST_PROMPTS:
        return split
    inner = split_records(split.train, DEV_SHARE, DEV_AT_MOST, seed)
    return Split(inner.train, split.held_out, split.dropped, inner.held_out)


def data_facts(path: str | Path, split: Split) -> DataFacts:
    """What the model card says of the file that `split` was made of. Raises FileNotFoundError when it's gone."""
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return DataFacts(Path(path).name, digest, len(split.train), len(split.held_out), split.dropped)


def general_texts() -> list[str]:
    """Texts that have nothing to do with anybody's task, to see what a training forgets: held-out picture-book
    stories."""
    return documents(GENERAL_TEXTS, seed=13, split="test")
