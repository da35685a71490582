"""Examples in chat form: from a prompt and its answer to token ids and labels.

A prompt always goes through the tokenizer's chat template, and the loss counts the answer and its end-of-turn token
alone: what the user says is given, not learned.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label that cross-entropy skips."""


class Example(NamedTuple):
    """One exercise of a task: what the user writes and the one right answer."""

    prompt: str
    answer: str


def _checked(examples: Sequence[Example]) -> Sequence[Example]:
    if not len(examples):
        raise ValueError("there are no examples: pass at least one Example(prompt, answer)")
    for i, example in enumerate(examples):
        for field in Example._fields:
            text = getattr(example, field, None)
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    f"example {i} has no {field}: it is {example!r}. Every example needs a prompt and an answer that "
                    "hold text; mend or leave out that record"
                )
    return examples


def render(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """The prompt in chat form, up to the place where the assistant's turn begins."""
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def encode(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[tuple[list[int], list[int]]]:
    """Token ids of each example: those of the prompt in chat form, and those of the answer with its end mark.

    Raises ValueError when there are no examples or one of them lacks its prompt or its answer.
    """
    _checked(examples)
    prompts = tokenizer([render(tokenizer, e.prompt) for e in examples], add_special_tokens=False).input_ids
    answers = tokenizer([e.answer for e in examples], add_special_tokens=False).input_ids
    return [(p, [*a, tokenizer.eos_token_id]) for p, a in zip(prompts, answers, strict=True)]


def collate(encoded: Sequence[tuple[list[int], list[int]]], pad_id: int) -> dict[str, Int[Tensor, "batch length"]]:
    """Pad encoded examples on the right into `input_ids`, `attention_mask` and `labels`.

    Labels are the ids of the answer; the prompt and the padding are :data:`IGNORED`.
    """
    length = max(len(p) + len(a) for p, a in encoded)
    ids = torch.full((len(encoded), length), pad_id)
    labels = torch.full((len(encoded), length), IGNORED)
    mask = torch.zeros((len(encoded), length), dtype=torch.long)
    for row, (prompt, answer) in enumerate(encoded):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
        mask[row, :end] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def batches(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], *, steps: int, batch_size: int, seed: int
) -> Iterator[dict[str, Int[Tensor, "batch length"]]]:
    """`steps` batches drawn by `seed`: each holds `batch_size` different examples, or all of them where there are
    fewer.
    """
    encoded = encode(tokenizer, examples)
    rng = random.Random(seed)
    for _ in range(steps):
        yield collate(rng.sample(encoded, min(batch_size, len(encoded))), tokenizer.pad_token_id)
