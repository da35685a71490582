"""Which tokens end a text: a tokenizer names one, and a model's generation config may name several."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def listed_ids(eos_id: Any) -> list[int]:
    """An EOS token's id, or several of them in a list, tuple or tensor, as a list; None gives an empty one.

    Raises TypeError for anything that is no whole number.
    """
    given = eos_id.tolist() if isinstance(eos_id, Tensor) else eos_id
    listed = list(given) if isinstance(given, list | tuple | set) else [] if given is None else [given]
    for end in listed:
        if isinstance(end, bool) or not isinstance(end, Integral):
            raise TypeError(f"eos_id is the id of the EOS token, or a list of ids, not {eos_id!r}")
    return [int(end) for end in listed]


def configured_ends(model: Any) -> list[int]:
    """The ids of the EOS tokens that the model's generation config names; empty where it has none."""
    return listed_ids(getattr(getattr(model, "generation_config", None), "eos_token_id", None))


def end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids that end an answer: the tokenizer's EOS token and those of the model's generation config, one or more."""
    return {*listed_ids(tokenizer.eos_token_id), *configured_ends(model)}
