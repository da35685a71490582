"""The short training loop, and how a model is asked and marked.

A prompt always goes through the tokenizer's chat template, and the loss counts the answer and its end mark alone:
what the user says is given, not learnt. The model may carry LoRA layers or none; whatever requires a gradient is
trained.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from utils.tinyworld import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100
"""The label that cross-entropy skips."""
WARMUP_STEPS = 10
MAX_GRAD_NORM = 1.0


class Diverged(ValueError):
    """The loss of a run stopped being a number."""


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


def learning_rate_factor(step: int, steps: int, warmup: int = WARMUP_STEPS) -> float:
    """What the peak learning rate is multiplied by at `step` of `steps`, counted from 0: a ramp up over `warmup` steps
    (0: none), then a line down.
    """
    return min(1.0, (step + 1) / max(1, warmup)) * (1 - step / steps)


def train(
    model: PreTrainedModel | nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    steps: int,
    lr: float,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
    groups: Sequence[dict[str, Any]] | None = None,
    extra_loss: Callable[[], Tensor] | None = None,
    after_step: Callable[[int], None] | None = None,
) -> list[float]:
    """Train whatever of the model requires a gradient, with AdamW, and return the loss of every step (nats per token).

    The rate rises to `lr` in ten steps and falls to zero along a line; gradients are clipped to norm 1. `seed` decides
    the batches and the dropout. Three more are for variants of LoRA: `groups`, the optimizer's parameter groups with a
    peak rate each, in the place of one group with `lr`; `extra_loss`, whose value is added to what is minimised, not to
    what is returned; `after_step`, called with the step's number while the gradients are still there. A model in
    float16 trains with loss scaling; what trains must be float32 then. The model ends in evaluation mode. Raises
    ValueError when nothing is trainable, `steps`, `batch_size` or `lr` isn't positive or an example lacks its text, and
    :class:`Diverged`, a ValueError, when the loss stops being a number.
    """
    for name, value in (("steps", steps), ("batch_size", batch_size), ("lr", lr)):
        if value <= 0:
            raise ValueError(f"{name} must be positive, not {value}")
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError(
            "nothing to train: no parameter of the model has requires_grad. Did you freeze it before adding LoRA?"
        )
    from tqdm.auto import tqdm

    device = trainable[0].device
    # Loss scaling, where the model computes in float16; elsewhere the scaler does nothing.
    scaler = torch.amp.GradScaler(device.type, enabled=any(p.dtype == torch.float16 for p in model.parameters()))
    optimizer = torch.optim.AdamW(groups or trainable, lr=lr, weight_decay=0.0)
    peaks = [group["lr"] for group in optimizer.param_groups]
    torch.manual_seed(seed)
    losses: list[float] = []
    model.train()
    drawn = batches(tokenizer, examples, steps=steps, batch_size=batch_size, seed=seed)
    for step, batch in enumerate(tqdm(drawn, total=steps, desc="training", disable=not progress)):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * learning_rate_factor(step, steps)
        loss = model(**{k: v.to(device) for k, v in batch.items()}).loss
        losses.append(loss.item())
        if losses[-1] != losses[-1]:
            raise Diverged(f"the loss is not a number any more at step {step}: try a learning rate below {lr}")
        scaler.scale(loss + extra_loss() if extra_loss else loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(trainable, MAX_GRAD_NORM)
        scaler.step(optimizer)
        scaler.update()
        if after_step:
            after_step(step)
        optimizer.zero_grad(set_to_none=True)
    model.eval()
    return losses


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
