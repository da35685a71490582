"""A mean over the tokens of all ranks, where DDP takes the mean over ranks.

DDP and FSDP average gradients over ranks. If each rank's loss is the mean over its own tokens, a token on the rank with
few of them counts for more than one on the rank with many, and a rank without any makes 0 / 0. transformers' Trainer
counts as here with ``average_tokens_across_devices=True``, its default.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor


def counted_on_all(counted: Bool[Tensor, "*tokens"]) -> int:
    """How many tokens count on all ranks together. Every rank has to call it: it is a collective."""
    total = counted.sum().to(torch.int64)
    dist.all_reduce(total)
    return int(total)


def ddp_loss(losses: Float[Tensor, "*tokens"], counted: Bool[Tensor, "*tokens"]) -> Float[Tensor, ""]:
    """A rank's loss, such that the mean of its gradients over ranks is the gradient of the mean over all tokens.

    losses: the cross-entropy of each token of this rank. counted: which of them have a label. A rank with none gets a
    zero with a gradient of zeros, so that it takes part in the reduction. Every rank has to call it. Raises ValueError,
    on all ranks, when no token counts anywhere.
    """
    total = counted_on_all(counted)
    if not total:
        raise ValueError("no rank has a token with a label in this batch: look at the labels (chapter 5)")
    return losses.where(counted, 0.0).sum() * dist.get_world_size() / total
