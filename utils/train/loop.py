"""The short training loop. The model may carry LoRA layers or none; whatever requires a gradient is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from utils.data.chat import Example, batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WARMUP_STEPS = 10
MAX_GRAD_NORM = 1.0


class Diverged(ValueError):
    """The loss of a run stopped being a number."""


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
