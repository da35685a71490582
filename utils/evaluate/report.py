"""What a model does with held-out records, before and after: right answers, chrF, loss, stopping, what it forgot.

Attributes:
    ROOM: So many tokens more than the longest wanted answer a model may write: it stops by itself, or it doesn't.
    MOST_TOKENS: But at most so many in all, however long the wanted answers are.
    LOSS_TOKENS: So many tokens at once the loss is computed of, padding too: a large vocabulary's logits take room.
    SHORT: Characters of an answer that is meant to be given word by word. Where most are longer, exact match says
        nothing and is left out.
    FEW: Below so many records neither a percentage nor a probability is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F

from utils.data.chat import IGNORED, Example, collate, encode, prompt_completions, token_id
from utils.data.records import Record
from utils.data.report import FEW
from utils.evaluate.metrics import answer, chrf, perplexity, questions, wilson
from utils.models.context import positions
from utils.train.loop import in_mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROOM = 16
MOST_TOKENS = 512
LOSS_TOKENS = 2048
SHORT = 100


class Reply(NamedTuple):
    """One held-out record and what the model made of it.

    prompt: the last turn before the answer; tokens: written before the EOS token; stopped: whether it came; earlier:
    the turns before the prompt, system prompt first, as pairs of role and text.
    """

    prompt: str
    wanted: str
    answer: str
    tokens: int
    stopped: bool
    earlier: tuple[tuple[str, str], ...] = ()

    @property
    def right(self) -> bool:
        """Whether the answer is the wanted one to the letter, white space at its ends aside."""
        return self.answer == self.wanted

    @property
    def chrf(self) -> float:
        """How much of the wanted answer it has, 0 to 100: :func:`utils.evaluate.metrics.chrf`."""
        return chrf(self.answer, self.wanted)


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found.

    loss: nats per token of the wanted answers; general: perplexity of other texts, which `general_name` names;
    too_long: records that were left out because the model hasn't so many positions.
    """

    replies: tuple[Reply, ...]
    loss: float
    general: float | None
    general_name: str = "other texts"
    too_long: int = 0

    @property
    def short(self) -> bool:
        """Whether nine in ten of the wanted answers are of one line and at most :data:`SHORT` characters."""
        fit = sum(len(reply.wanted) <= SHORT and "\n" not in reply.wanted for reply in self.replies)
        return fit >= 0.9 * len(self.replies)

    @property
    def exact(self) -> float:
        """The share, 0 to 1, of right answers."""
        return sum(reply.right for reply in self.replies) / len(self.replies)

    @property
    def chrf(self) -> float:
        """The mean chrF of the answers, 0 to 100."""
        return sum(reply.chrf for reply in self.replies) / len(self.replies)

    @property
    def perplexity(self) -> float:
        """The perplexity of the wanted answers, per token."""
        return math.exp(min(self.loss, 700.0))

    @property
    def stop_rate(self) -> float:
        """The share, 0 to 1, of answers that ended by themselves."""
        return sum(reply.stopped for reply in self.replies) / len(self.replies)

    @property
    def mean_tokens(self) -> float:
        """The mean length of an answer, in tokens."""
        return sum(reply.tokens for reply in self.replies) / len(self.replies)


def _loss(model: Any, encoded: Sequence[tuple[list[int], list[int]]], pad_id: int, batch_size: int) -> float:
    total, count = 0.0, 0
    longest = max(len(prompt) + len(answer) for prompt, answer in encoded)
    batch_size = min(batch_size, max(1, LOSS_TOKENS // longest))
    for start in range(0, len(encoded), batch_size):
        batch = collate(encoded[start : start + batch_size], pad_id)
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
    general_name: str = "other texts",
    max_new_tokens: int | None = None,
    batch_size: int = 16,
    progress: str = "",
) -> Evaluation:
    """Ask the model every row's prompt, greedily and in chat form, and compare with the row's answer.

    `general` are texts of another kind, for the perplexity that shows forgetting; they must fill 256 tokens, and
    `general_name` says what they are. `max_new_tokens` is by default what the longest wanted answer takes and 16 more,
    at most 512. `progress` names a bar for what takes more than three seconds. Rows with more tokens than the model has
    positions are left out and counted. The model's mode is kept. Raises ValueError when there are no rows, or none that
    the model has positions for, BadRecords for one that can't be used.
    """
    if not len(rows):
        raise ValueError("there are no records to evaluate on: hold some out")
    context = positions(model)
    encoded = encode(tokenizer, rows)
    fitting = [
        i for i, (prompt, wanted) in enumerate(encoded) if context is None or len(prompt) + len(wanted) <= context
    ]
    if not fitting:
        raise ValueError(
            f"each of the {len(rows)} records to evaluate on has more tokens than the model has positions ({context}): "
            "shorten them, hold out others, or take a model with more"
        )
    fitting.sort(key=lambda i: len(encoded[i][0]))  # a batch pads to its longest prompt
    asked, pairs = questions(rows), prompt_completions(rows)
    if max_new_tokens is None:
        longest = max(len(encoded[i][1]) for i in fitting) - 1  # without the EOS token
        max_new_tokens = min(longest + ROOM, MOST_TOKENS)
    answers = answer(
        model, tokenizer, [asked[i][0] for i in fitting], max_new_tokens, batch_size, progress=progress,
        context=context, tools=[pairs[i].get("tools") for i in fitting],
    )  # fmt: skip
    replies = {}
    for i, said in zip(fitting, answers, strict=True):
        prompt, wanted = asked[i]
        if not wanted:  # it calls a tool, and says nothing
            wanted = cast(str, tokenizer.decode(encoded[i][1], skip_special_tokens=True)).strip()
        earlier = tuple((message["role"], message["content"] or "") for message in prompt[:-1])
        replies[i] = Reply(prompt[-1]["content"] or "", wanted, *said, earlier)
    kept = sorted(fitting)
    found = perplexity(model, tokenizer, general) if len(general) else None
    with in_mode(model, False):
        loss = _loss(model, [encoded[i] for i in kept], token_id(tokenizer, "pad"), batch_size)
    return Evaluation(tuple(replies[i] for i in kept), loss, found, general_name, len(rows) - len(kept))


# ------------------------------------------------------------------------------------------------------- two of them


class Change(NamedTuple):
    """What became of the same records: how many got better and how many worse, and how likely by luck."""

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
    """The change from one evaluation to another of the same records: which turned right, which wrong.

    Where answers are long (:attr:`Evaluation.short`), which came nearer to the wanted one by chrF and which moved away.
    Raises ValueError when the records aren't the same.
    """
    if [(r.earlier, r.prompt) for r in before.replies] != [(r.earlier, r.prompt) for r in after.replies]:
        raise ValueError("the two evaluations are of different records: compare like with like")
    marks = [
        (old.right, new.right) if after.short else (old.chrf, new.chrf)
        for old, new in zip(before.replies, after.replies, strict=True)
    ]
    gained, lost = sum(new > old for old, new in marks), sum(new < old for old, new in marks)
    return Change(gained, lost, luck(gained, lost))


def share(part: int, count: int) -> str:
    """A share in words: "41 of 45 (91%, 79 to 97)", with its 95% interval; below :data:`FEW` the counts alone."""
    if count < FEW:
        return f"{part} of {count}"
    low, high = wilson(part, count)
    return f"{part} of {count} ({part / count:.0%}, {100 * low:.0f} to {100 * high:.0f})"


def comparison_table(before: Evaluation, after: Evaluation) -> list[tuple[str, str, str]]:
    """The rows of a report: what was measured, the base's value, the adapter's."""
    both = (before, after)

    def row(what: str, values: Sequence[str]) -> tuple[str, str, str]:
        return what, values[0], values[1]

    rows = []
    if after.short:
        rows.append(row("exact match", [share(sum(r.right for r in e.replies), len(e.replies)) for e in both]))
    rows += [
        row("chrF of the answer, 0 to 100", [f"{e.chrf:.0f}" for e in both]),
        row("loss (nats per token of the answer)", [f"{e.loss:.2f}" for e in both]),
        row("perplexity of the answer", [f"{e.perplexity:.3g}" for e in both]),
        row("answers that end by themselves", [share(sum(r.stopped for r in e.replies), len(e.replies)) for e in both]),
        row("mean length (tokens)", [f"{e.mean_tokens:.0f}" for e in both]),
    ]
    if before.general is not None and after.general is not None:
        rows.append(row(f"perplexity of {after.general_name}", [f"{before.general:.2f}", f"{after.general:.2f}"]))
    return rows


def verdict(before: Evaluation, after: Evaluation) -> str:
    """What changed, and what luck would do, in two sentences; where there are too few records, that there are."""
    found, count = change(before, after), len(after.replies)
    if after.short:
        said = f"{found.gained} answers turned right and {found.lost} turned wrong."
    else:
        said = f"By chrF {found.gained} answers came nearer to the wanted one and {found.lost} moved away."
    if count < FEW:
        held = "record is" if count == 1 else "records are"
        return f"{said} {count} held-out {held} too few to tell this from luck; it takes {FEW} or more."
    odds = "less than 0.001" if found.luck < 0.001 else f"{found.luck:.2g}"
    return f"{said} Fair coins would split them so unevenly with a probability of {odds}."


def comparison(before: Evaluation, after: Evaluation, examples: int = 5) -> str:
    """An evaluation report in Markdown: the table, what luck would do, and examples side by side."""
    count = len(after.replies)
    intervals = " In brackets: the share and its 95% interval (Wilson)." if count >= FEW else ""
    omitted = f" {after.too_long} more have more tokens than the model has positions." if after.too_long else ""
    lines = [
        f"Measured on {count} held-out record{'s' * (count != 1)}, greedy decoding.{intervals}{omitted}",
        "",
        "| | base | adapter |",
        "|---|---|---|",
        *(f"| {what} | {old} | {new} |" for what, old, new in comparison_table(before, after)),
        "",
        verdict(before, after),
    ]
    for old, new in list(zip(before.replies, after.replies, strict=True))[:examples]:
        lines += [
            "",
            *(f"> {role}: {_one_line(text)}  " for role, text in new.earlier),
            f"> {'user: ' if new.earlier else ''}{_one_line(new.prompt)}",
            "",
            f"- wanted: {_one_line(new.wanted)}",
            f"- base: {_one_line(old.answer)}",
            f"- adapter: {_one_line(new.answer)}",
        ]
    return "\n".join(lines) + "\n"


def _one_line(text: str, most: int = 120) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[:most] + " ..."
