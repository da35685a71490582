"""All-reduce as a ring, by sends to the right neighbour alone: what NCCL and gloo do for large tensors.

Each rank ends with the sum of all ranks' tensors and has sent ``2 (N - 1) / N`` times its own, whatever N is (Patarasuk
and Yuan, *Bandwidth optimal all-reduce algorithms for clusters of workstations*, 2009).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor


def sent_chunk(rank: int, step: int, world: int) -> int:
    """Which of `world` chunks `rank` sends at `step`, counted from 0 to ``2 * world - 3``.

    In the first ``world - 1`` steps, the reduce-scatter, a rank begins with the chunk of its own number and then sends
    on the one that it has just received and added to. In the others, the all-gather, it begins with the chunk that it
    has whole, the last one that it received, and again sends on what it has just received: one formula for both.
    """
    return (rank - step) % world


def ring_all_reduce(tensor: Tensor, chunk: Callable[[int, int, int], int] = sent_chunk) -> int:
    """Replace `tensor` by the sum of all ranks' and return how many bytes this rank sent. Any shape, contiguous.

    chunk: :func:`sent_chunk` or a function with its arguments and result. Raises ValueError for a tensor that isn't
    contiguous, since its chunks would be copies. In a group of one nothing is sent.
    """
    if not tensor.is_contiguous():
        raise ValueError("the ring works in place, and this tensor isn't contiguous: pass tensor.contiguous()")
    rank, world, sent = dist.get_rank(), dist.get_world_size(), 0
    chunks = tensor.view(-1).tensor_split(world)  # views, of equal length but for one element
    for step in range(2 * (world - 1)):
        outgoing = chunks[chunk(rank, step, world)]
        incoming = chunks[chunk((rank - 1) % world, step, world)]
        received = torch.empty_like(incoming)
        waiting = [dist.isend(outgoing.clone(), (rank + 1) % world), dist.irecv(received, (rank - 1) % world)]
        for request in waiting:
            if request is not None:
                request.wait()
        if step < world - 1:
            incoming += received
        else:
            incoming.copy_(received)
        sent += outgoing.numel() * outgoing.element_size()
    return sent
