"""The log-probability of each token that a model is asked about, with gradients: what every loss of this package is
made of."""

from __future__ import annotations

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from utils.data.chat import IGNORED
from utils.train.loop import check_positive


def _kept(labels: Tensor) -> Tensor:
    """The labels from the first column on in which a row has one, but never the first column, which nothing predicts.

    Raises ValueError when there is no label.
    """
    columns = (labels[:, 1:] != IGNORED).any(0).nonzero()
    if not len(columns):
        raise ValueError(
            f"no token of the {len(labels)} rows has a label, so there is no completion whose probability could be "
            "computed: pass a batch of sample_groups or of collate, whose labels are the completions' ids"
        )
    return labels[:, 1 + int(columns[0]) :]


def completion_mask(batch: dict[str, Tensor]) -> Bool[Tensor, "rows length"]:
    """Which entries of :func:`completion_log_probs` belong to a completion, its EOS token among them."""
    return _kept(batch["labels"]) != IGNORED


def completion_logits(model: Any, batch: dict[str, Tensor]) -> Float[Tensor, "rows length vocab"]:
    """The logits, in float32 or wider, from which each token of :func:`completion_mask`'s columns was predicted.

    Logits are computed for those columns only. Positions are counted without the padding, on whichever side it is.
    """
    length = _kept(batch["labels"]).shape[1]
    positions = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    logits = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], position_ids=positions, use_cache=False,
        logits_to_keep=length + 1,
    ).logits[:, -length - 1 : -1]  # fmt: skip
    return logits if logits.element_size() >= 4 else logits.float()


def completion_log_probs(
    model: Any, batch: dict[str, Tensor], temperature: float = 1.0
) -> Float[Tensor, "rows length"]:
    """The log-probability of each completion's tokens, in nats, and 0 where :func:`completion_mask` is False.

    `batch` holds `input_ids`, `attention_mask` and `labels`, which are :data:`~utils.data.chat.IGNORED` but for the
    completion, all of shape (rows, tokens) and on the model's device; prompts may be padded on either side. `length`
    runs from the first column in which any row has a label to the last column. `temperature` divides the logits: give
    the one that was sampled with. Raises TypeError when it is no number, ValueError when it isn't positive and finite,
    or when no token has a label.
    """
    check_positive(temperature=temperature)
    labels = _kept(batch["labels"])
    logits = completion_logits(model, batch)
    logits = logits if temperature == 1 else logits / temperature
    picked = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return picked.masked_fill(labels == IGNORED, 0.0)
