"""A file of one's own: split so that nothing leaks, and described for the model card.

:func:`utils.data.formats.read_own` reads it. Importing this module imports neither torch nor transformers, so that a
bad file is refused at once.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from utils.data.duplicates import near_duplicates
from utils.data.formats import read_own
from utils.data.records import Record, loose, to_prompt_completion
from utils.train.settings import DEV_AT_LEAST, DEV_AT_MOST, DEV_SHARE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELD_OUT_SHARE = 0.1
HELD_OUT_AT_MOST = 200
GENERAL_TEXTS = 40
GENERAL = "40 generated picture-book texts"
GENERAL_TOKENS, GENERAL_CHARACTERS = 256, 100_000
FEWEST_PROMPTS = 10


class Split(NamedTuple):
    """Records to train on and to test with; `dropped` exact duplicates are in neither.

    near: records whose prompt is nearly another one's, and which stay on one side with it; dev: records that aren't
    trained on either, by whose loss the best checkpoint is chosen.
    """

    train: list[Record]
    held_out: list[Record]
    dropped: int
    near: int
    dev: list[Record] = []

    def digest(self) -> str:
        """The SHA-256 of the three lists: the same records on the same sides give the same, whatever the file."""
        content = json.dumps([self.train, self.held_out, self.dev], sort_keys=True, default=str)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


class DataFacts(NamedTuple):
    """What a model card says of its data: the file's name, the SHA-256 of its bytes, and the split's counts."""

    file: str
    sha256: str
    train: int
    held_out: int
    dropped: int
    near: int


def prompt_key(record: Record) -> tuple[str, ...]:
    """What two records have in common when they ask the same: every turn before the answer, case and space aside."""
    return loose(turn["content"] for turn in to_prompt_completion(record)["prompt"])


def _distinct(records: Sequence[Record]) -> dict[tuple[tuple[str, ...], str], Record]:
    """The first record of each prompt and answer, by both."""
    kept: dict[tuple[tuple[str, ...], str], Record] = {}
    for record in records:
        answer = to_prompt_completion(record)["completion"][0]["content"].strip()
        kept.setdefault((prompt_key(record), answer), record)
    return kept


def split_records(
    records: Sequence[Record], share: float = HELD_OUT_SHARE, at_most: int = HELD_OUT_AT_MOST, seed: int = 0
) -> Split:
    """Hold out about `share` of the records, `at_most` so many, so that no prompt is on both sides.

    Records with the same prompt (:func:`prompt_key`) or nearly the same (:mod:`utils.data.duplicates`) stay together,
    and of records with the same prompt and answer one is kept. Groups are drawn by `seed`; each side keeps the file's
    order. Raises ValueError when the share isn't between 0 and 1, `at_most` is below 1, or there are fewer than ten
    different prompts: too few to test with.
    """
    if not 0 < share < 1 or at_most < 1:
        raise ValueError(f"hold out a share between 0 and 1, and at least one record; not {share} and {at_most}")
    kept = _distinct(records)
    prompts = list(dict.fromkeys(prompt for prompt, _ in kept))
    first = near_duplicates(["\n".join(prompt) for prompt in prompts])
    group_of = dict(zip(prompts, first, strict=True))
    groups: dict[int, list[Record]] = {}
    for (prompt, _), record in kept.items():
        groups.setdefault(group_of[prompt], []).append(record)
    if len(groups) < FEWEST_PROMPTS:
        many = "1 different prompt" if len(groups) == 1 else f"{len(groups)} different prompts"
        near = f", when prompts that are nearly the same count once ({len(prompts)} differ at all)"
        whose = "the record has" if len(records) == 1 else f"the {len(records)} records have"
        raise ValueError(
            f"{whose} {many}{near if len(groups) < len(prompts) else ''}; at least "
            f"{FEWEST_PROMPTS} are needed, some to train on and some to test with. Collect more"
        )
    wanted = min(at_most, max(1, round(share * len(kept))))
    order = list(groups)
    random.Random(seed).shuffle(order)
    test: set[int] = set()
    count = 0
    for group in order[:-1]:  # one group at least is left to train on
        if count >= wanted:
            break
        test.add(group)
        count += len(groups[group])
    held_out = [record for (prompt, _), record in kept.items() if group_of[prompt] in test]
    train = [record for (prompt, _), record in kept.items() if group_of[prompt] not in test]
    return Split(train, held_out, len(records) - len(kept), len(prompts) - len(groups))


def hold_out(records: Sequence[Record], held_out: float | str = HELD_OUT_SHARE, seed: int = 0) -> Split:
    """Hold records out of training: a share, at most 200 of them, or a number of records, or those of a file.

    Of what is left a tenth becomes the dev split, where that is ten records or more. No prompt is on two sides: records
    to train on whose prompt is, or nearly is, in a file of held-out ones are dropped. Raises what
    :func:`split_records` and :func:`utils.data.formats.read_own` raise, and ValueError for another `held_out` and when
    nothing is left to train on.
    """
    if isinstance(held_out, str):
        split = _split_from_file(records, held_out)
    elif not isinstance(held_out, int | float) or not held_out > 0:
        raise ValueError(f"held_out={held_out!r}: give a share such as 0.1, a number of records, or a file's name")
    elif held_out >= 1:
        if held_out >= len(records):
            raise ValueError(f"held_out={held_out:g} of {len(records)} records leaves nothing to train on")
        split = split_records(records, held_out / len(records), int(held_out), seed)
    else:
        split = split_records(records, held_out, seed=seed)
    if DEV_SHARE * len(split.train) < DEV_AT_LEAST:
        return split
    try:
        inner = split_records(split.train, DEV_SHARE, DEV_AT_MOST, seed)
    except ValueError:  # many records of few prompts
        return split
    return split._replace(train=inner.train, dev=inner.held_out)


def _split_from_file(records: Sequence[Record], path: str) -> Split:
    test: list[Record] = [*read_own(path).records]
    kept = _distinct(records)
    prompts = list(dict.fromkeys(prompt for prompt, _ in kept))
    asked = list(dict.fromkeys(map(prompt_key, test)))
    first = near_duplicates(["\n".join(prompt) for prompt in asked + prompts])
    tested = set(first[: len(asked)])
    group_of = dict(zip(prompts, first[len(asked) :], strict=True))
    train = [record for (prompt, _), record in kept.items() if group_of[prompt] not in tested]
    if not train:
        raise ValueError(f"every prompt is in {path} too: nothing is left to train on")
    return Split(train, test, len(records) - len(train), len(prompts) - len(set(group_of.values())))


def data_facts(path: str | Path, split: Split) -> DataFacts:
    """What the model card says of the file that `split` was made of. Raises FileNotFoundError when it's gone."""
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return DataFacts(Path(path).name, digest, len(split.train), len(split.held_out), split.dropped, split.near)


def general_texts() -> list[str]:
    """Texts that have nothing to do with anybody's task, to see what a training forgets: held-out picture-book
    stories."""
    from utils.tinyworld import documents

    return documents(GENERAL_TEXTS, seed=13, split="test")


def other_texts(path: str | Path | None, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], str]:
    """The texts that show what a training forgets, and what they are called: :func:`general_texts`, or a text file.

    Of a file the first 100,000 characters count. Raises FileNotFoundError when there is none, ValueError when it isn't
    UTF-8 or holds fewer than 256 tokens, one window of :func:`utils.evaluate.metrics.perplexity`.
    """
    if path is None:
        return general_texts(), GENERAL
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")[:GENERAL_CHARACTERS]
    except UnicodeDecodeError:
        raise ValueError(f"{path} isn't text in UTF-8: save it as that, or pass another file as --general") from None
    tokens = len(tokenizer(text, add_special_tokens=False).input_ids)
    if tokens < GENERAL_TOKENS:
        raise ValueError(
            f"{path} holds {tokens} tokens, and a perplexity needs {GENERAL_TOKENS}: give --general some pages"
        )
    return [text], Path(path).name
