"""A linear layer whose weight lies in pieces on all ranks, gathered for its own product and freed: FSDP by hand.

Held between two layers is the shard alone, 1/N of the weight; the whole weight is there while its layer computes,
forward and once more backward (Rajbhandari et al., *ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models*, 2020, stage 3). `tests/distributed/test_shard.py` holds it to the plain layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn


def gathered(shard: Float[Tensor, "rows d_in"], d_out: int) -> Float[Tensor, "d_out d_in"]:
    """The whole weight, of the ranks' shards one below the other; the rows that pad the last ones are cut off."""
    whole = shard.new_empty(len(shard) * dist.get_world_size(), shard.shape[1])
    dist.all_gather_into_tensor(whole, shard.contiguous())
    return whole[:d_out]


def reduced(gradient: Float[Tensor, "d_out d_in"], rows: int) -> Float[Tensor, "rows d_in"]:
    """This rank's rows of the mean of all ranks' gradients: a reduce-scatter."""
    world = dist.get_world_size()
    padded = nn.functional.pad(gradient, (0, 0, 0, rows * world - len(gradient)))
    own = gradient.new_empty(rows, gradient.shape[1])
    dist.reduce_scatter_tensor(own, padded.contiguous())
    return own / world


class _Gathered(torch.autograd.Function):
    """``x @ W.T`` with a W that is gathered in both passes and kept in neither."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shard: Tensor, d_out: int) -> Tensor:
        ctx.d_out = d_out
        ctx.save_for_backward(shard, x if shard.requires_grad else None)
        return x @ gathered(shard, d_out).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (g,), (shard, x) = gradients, ctx.saved_tensors
        dx = g @ gathered(shard, ctx.d_out) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return dx, None, None
        dW = g.flatten(0, -2).T @ x.flatten(0, -2)
        return dx, reduced(dW, len(shard)), None


class ShardedLinear(nn.Module):
    """A linear layer of which each rank holds ``ceil(d_out / N)`` rows. Built from a whole one; its bias stays whole.

    The shard trains if the whole weight did, with the mean of the ranks' gradients, as in FSDP. Every rank has to call
    the layer, as often as the others.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.d_out, world = linear.out_features, dist.get_world_size()
        rows = -(-self.d_out // world)
        padded = nn.functional.pad(linear.weight.detach(), (0, 0, 0, rows * world - self.d_out))
        own = padded[rows * dist.get_rank() :][:rows].clone()
        self.shard = nn.Parameter(own, requires_grad=linear.weight.requires_grad)
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        y = _Gathered.apply(x, self.shard, self.d_out)
        return y if self.bias is None else y + self.bias
