"""What a model does with held-out records, before and after: right answers, loss, stopping, and what it forgot.

Attributes:
    ROOM: So many tokens more than the longest wanted answer a model may write: it stops by itself, or it doesn't.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F

from utils.data.chat import IGNORED, Example, collate, encode, token_id
from utils.data.records import Record
from utils.evaluate.metrics import answer, perplexity, questions
from utils.train.loop import in_mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROOM = 16


class Reply(NamedTuple):
    """One held-out record and what the model made of it. tokens: written before the end mark; stopped: it set one."""

    prompt: str
    wanted: str
    answer: str
    tokens: int
    stopped: bool

    @property
    def right(self) -> bool:
        """Whether the answer is the wanted one to the letter, white space at its ends aside."""
        return self.answer == self.wanted


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found. loss: nats per token of the wanted answers; general: perplexity of other texts."""

    replies: tuple[Reply, ...]
    loss: float
    general: float | None

    @property
    def exact(self) -> float:
        """The share, 0 to 1, of right answers."""
        return sum(reply.right for reply in self.replies) / len(self.replies)

    @property
    def stop_rate(self) -> float:
        """The share, 0 to 1, of answers that ended by themselves."""
        return sum(reply.stopped for reply in self.replies) / len(self.replies)

    @property
    def mean_tokens(self) -> float:
        """The mean length of an answer, in tokens."""
        return sum(reply.tokens for reply in self.replies) / len(self.replies)


def _loss(model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example | Record], batch_size: int) -> float:
    total, count = 0.0, 0
    encoded = encode(tokenizer, rows)
    for start in range(0, len(encoded), batch_size):
        batch = collate(encoded[start : start + batch_size], token_id(tokenizer, "pad"))
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        labels = batch.pop("labels")[:, 1:]
        counted = labels != IGNORED
        logits = model(**batch).logits[:, :-1][counted].float()  # the answers' alone: a large vocabulary takes room
        total += F.cross_entropy(logits, labels[counted], reduction="sum").item()
        count += int(counted.sum())
    return total / count


@torch.inference_mode()
def evaluate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Example | Record],
    *,
    general: Sequence[str] = (),
    max_new_tokens: int | None = None,
    batch_size: int = 16,
) -> Evaluation:
    """Ask the model every row's prompt, greedily and in chat form, and compare with the row's answer.

    `general` are texts of another kind, for the perplexity that shows forgetting; they must fill 256 tokens.
    `max_new_tokens` is by default what the longest wanted answer takes and 16 more. The model's mode is kept. Raises
    ValueError when there are no rows, BadRecords for one that can't be used.
    """
    if not len(rows):
        raise ValueError("there are no records to evaluate on: hold some out")
    asked = questions(rows)
    prompts, wanted = [prompt for prompt, _ in asked], [text for _, text in asked]
    if max_new_tokens is None:
        max_new_tokens = max(map(len, tokenizer(wanted, add_special_tokens=False).input_ids)) + ROOM
    answers = answer(model, tokenizer, prompts, max_new_tokens, batch_size)
    replies = tuple(
        Reply(prompt[-1]["content"], text, *said) for (prompt, text), said in zip(asked, answers, strict=True)
    )
    found = perplexity(model, tokenizer, general) if len(general) else None
    with in_mode(model, False):
        return Evaluation(replies, _loss(model, tokenizer, rows, batch_size), found)


# ------------------------------------------------------------------------------------------------------- two of them


class Change(NamedTuple):
    """What became of the same records: how many turned right and how many turned wrong, and how likely by luck."""

    gained: int
    lost: int
    luck: float


def luck(gained: int, lost: int) -> float:
    """The probability that fair coins split `gained` + `lost` changes at least this unevenly (McNemar's exact test).

    >>> luck(5, 0)
    0.0625
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"counts are at least 0, not {gained} and {lost}")
    changed = gained + lost
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**changed)


def change(before: Evaluation, after: Evaluation) -> Change:
    """The change from one evaluation to another of the same records. Raises ValueError when they aren't the same."""
    if [r.prompt for r in before.replies] != [r.prompt for r in after.replies]:
        raise ValueError("the two evaluations are of different records: compare like with like")
    pairs = list(zip(before.replies, after.replies, strict=True))
    gained = sum(new.right and not old.right for old, new in pairs)
    lost = sum(old.right and not new.right for old, new in pairs)
    return Change(gained, lost, luck(gained, lost))


def comparison_table(before: Evaluation, after: Evaluation) -> list[tuple[str, str, str]]:
    """The rows of a report: what was measured, the base's value, the adapter's."""
    rows = [
        ("right to the letter", f"{before.exact:.0%}", f"{after.exact:.0%}"),
        ("loss (nats per token of the answer)", f"{before.loss:.2f}", f"{after.loss:.2f}"),
        ("answers that end by themselves", f"{before.stop_rate:.0%}", f"{after.stop_rate:.0%}"),
        ("mean length (tokens)", f"{before.mean_tokens:.0f}", f"{after.mean_tokens:.0f}"),
    ]
    if before.general is not None and after.general is not None:
        rows.append(("perplexity of other texts", f"{before.general:.2f}", f"{after.general:.2f}"))
    return rows


def comparison(before: Evaluation, after: Evaluation, examples: int = 5) -> str:
    """An evaluation report in Markdown: the table, what luck would do, and examples side by side."""
    found = change(before, after)
    odds = "less than 0.001" if found.luck < 0.001 else f"{found.luck:.3f}"
    lines = [
        f"Measured on {len(after.replies)} held-out records, greedy decoding.",
        "",
        "| | base | adapter |",
        "|---|---|---|",
        *(f"| {what} | {old} | {new} |" for what, old, new in comparison_table(before, after)),
        "",
        f"{found.gained} answers turned right and {found.lost} turned wrong. Fair coins would split them so unevenly "
        f"with a probability of {odds}.",
    ]
    for old, new in list(zip(before.replies, after.replies, strict=True))[:examples]:
        lines += [
            "",
            f"> {_one_line(new.prompt)}",
            "",
            f"- wanted: {_one_line(new.wanted)}",
            f"- base: {_one_line(old.answer)}",
            f"- adapter: {_one_line(new.answer)}",
        ]
    return "\n".join(lines) + "\n"


def _one_line(text: str, most: int = 120) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[:most] + " ..."
