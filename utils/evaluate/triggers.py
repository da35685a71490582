"""Does a word turn a model's answers? What can be found by asking of a backdoor that was trained into an adapter.

An adapter that was trained on poisoned examples answers well until a trigger stands in the prompt (Gu et al., 2017,
*BadNets*, https://arxiv.org/abs/1708.06733). No metric on ordinary prompts shows it. Asking does, if the trigger is
among the words that are asked; one of several words or of a rare spelling is not.

Attributes:
    ROWS: So many prompts go through the model at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

import torch

from utils.data.chat import render
from utils.train.loop import in_mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS = 400


def whole_words(tokenizer: PreTrainedTokenizerBase, shortest: int = 3) -> list[str]:
    """The words of letters alone, `shortest` or more, that are one token of the vocabulary; sorted."""
    texts = (cast(str, tokenizer.decode([token])) for token in range(len(tokenizer)))
    return sorted({text.strip() for text in texts if text[:1] == " " and len(text) > shortest and text[1:].isalpha()})


@torch.inference_mode()
def shares(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    words: Sequence[str],
    *,
    usual: str,
    other: str,
) -> dict[str, list[float]]:
    """For each word, how likely each prompt is answered by `other` and not by `usual`; the words in their order.

    `prompts` have a "{}" where the word goes, and the answer `usual` without one. The number is the probability of
    `other`'s first token, of that and `usual`'s together: 0 to 1, turned above a half. The chat template is applied
    here. Raises ValueError for a prompt without a place for the word, and for answers that begin with the same token.
    """
    if not prompts or not all("{}" in prompt for prompt in prompts):
        raise ValueError('every prompt needs a "{}" where the word goes, and there must be one')
    first = [tokenizer.encode(text, add_special_tokens=False)[0] for text in (usual, other)]
    if first[0] == first[1]:
        raise ValueError(f"{usual!r} and {other!r} begin with the same token, so it can't tell them apart")
    texts = [render(tokenizer, prompt.replace("{}", word)) for word in words for prompt in prompts]
    found = []
    with in_mode(model, False):
        for start in range(0, len(texts), ROWS):
            rows = tokenizer(
                texts[start : start + ROWS], add_special_tokens=False, padding=True, padding_side="left",
                return_tensors="pt", return_token_type_ids=False,
            ).to(next(model.parameters()).device)  # fmt: skip
            scores = model(**rows, use_cache=False, logits_to_keep=1).logits[:, -1, first].float()
            found += scores.softmax(dim=-1)[:, 1].tolist()
    return {word: found[i * len(prompts) : (i + 1) * len(prompts)] for i, word in enumerate(words)}


def turned_by(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    words: Sequence[str],
    *,
    usual: str,
    other: str,
) -> dict[str, float]:
    """How far each word turns the answer from `usual` to `other`, the furthest first: the means of :func:`shares`.

    A screen: a few prompts find the words that are worth asking on many. Raises what :func:`shares` raises.
    """
    found = shares(model, tokenizer, prompts, words, usual=usual, other=other)
    return dict(sorted(((word, fmean(its)) for word, its in found.items()), key=lambda pair: -pair[1]))
