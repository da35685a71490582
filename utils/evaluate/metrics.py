"""How a model is asked and marked: greedy answers, exact match, perplexity.

Every prompt goes through :func:`utils.data.chat.render`, as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from utils.data.chat import Example, _checked, encode, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@torch.inference_mode()
def complete(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    batch_size: int = 100,
    **sampling: Any,
) -> list[str]:
    """What the model answers to each prompt, greedily, each prompt in chat form as a user's turn.

    `sampling` goes to transformers' ``generate``: with ``do_sample=True, temperature=0.7`` it isn't greedy any more.
    Prompts are padded on the left, so that every answer begins right behind its prompt; the answer is cut by token ids,
    not by characters. Raises ValueError when there are no prompts.
    """
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"there are no prompts to answer: pass a list of texts, not {prompts!r}")
    was_training = model.training
    model.eval()
    answers: list[str] = []
    for start in range(0, len(prompts), batch_size):
        texts = [render(tokenizer, p) for p in prompts[start : start + batch_size]]
        inputs = tokenizer(
            texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt",
            return_token_type_ids=False,
        ).to(model.device)  # fmt: skip
        settings = {"do_sample": False, "pad_token_id": tokenizer.pad_token_id, **sampling}
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, **settings)
        answers += tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    model.train(was_training)
    return [a.strip() for a in answers]


def exact_match(model: Any, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> float:
    """The share, between 0 and 1, of examples whose greedy answer is the right one to the letter."""
    _checked(examples)
    longest = max(len(answer) for _, answer in encode(tokenizer, examples))
    answers = complete(model, tokenizer, [e.prompt for e in examples], max_new_tokens=longest + 1)
    return sum(a == e.answer for a, e in zip(answers, examples, strict=True)) / len(examples)


@torch.inference_mode()
def perplexity(model: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], window: int = 256) -> float:
    """The perplexity of the model on texts that are joined by end marks and cut into windows of `window` tokens.

    Raises ValueError when the texts don't fill one window.
    """
    ids = [i for text in texts for i in [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]]
    count = len(ids) // window
    if not count:
        raise ValueError(f"the texts hold {len(ids)} tokens, less than one window of {window}: pass more of them")
    model.eval()
    rows = torch.tensor(ids[: count * window], device=model.device).view(count, window)
    losses = [model(input_ids=part, labels=part).loss * len(part) for part in rows.split(16)]
    return float(torch.exp(torch.stack(losses).sum() / count))
