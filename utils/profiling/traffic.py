"""What a computation asks of a device: its operations one by one, with their arithmetic and the bytes they must move.

The counts need shapes only, so they are exact on every machine and for tensors without data (``device="meta"``).
Together with two rates of a device, its arithmetic and its memory's, they give the shortest time that each operation
can take: the *roofline* (Williams et al., 2009, https://doi.org/10.1145/1498765.1498785).

Attributes:
    NOTHING_MOVES: Operations that make a tensor without touching numbers; all views are such, too.
    ONLY_WRITE: Operations that don't look at what was there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

NOTHING_MOVES = {"_unsafe_view", "detach", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
ONLY_WRITE = {"zero_", "fill_", "normal_", "uniform_", "bernoulli_", "zeros", "ones"}


class Operation(NamedTuple):
    """One operation. flops: multiplications and additions of a product of matrices, else 0.
    moved: the bytes of every tensor that it reads and of every one that it writes, each once. dtype: of what it reads.
    """

    name: str
    flops: int
    moved: int
    dtype: torch.dtype

    def least_seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The shortest time on a device of these two rates: the slower of arithmetic and memory decides."""
        return max(self.flops / flops_per_second, self.moved / bytes_per_second)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """The bytes of the numbers that are there: an expanded tensor repeats its few."""
    numbers = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numbers *= size if stride or not size else 1
    return numbers * tensor.element_size()


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet, name = func.overloadpacket, func.overloadpacket.__name__
        if func.is_view or name in NOTHING_MOVES:
            return result
        inputs = (args, {key: value for key, value in kwargs.items() if key != "out"})
        read = [] if name in ONLY_WRITE else _tensors(inputs)
        if kwargs.get("beta", 1) == 0:  # the tensor that a product would be added onto is not looked at
            read = read[1:]
        written = {id(tensor): tensor for tensor in _tensors(result)}.values()
        count = flop_registry.get(torch.ops.aten.addmm if name == "addmm_" else packet)
        flops = count(*args, **kwargs, out_val=result) if count else 0
        dtypes = [tensor.dtype for tensor in (*read, *written) if tensor.dtype.is_floating_point]
        moved = sum(map(_bytes, read)) + sum(map(_bytes, written))
        self.found.append(Operation(name, flops, moved, dtypes[0] if dtypes else torch.int64))
        return result


def operations(work: Callable[[], Any]) -> list[Operation]:
    """The operations that `work` runs, in order; on CPU and meta tensors those of a backward pass that it calls, too.

    Views and bare allocations are left out. Each entry assumes that nothing stays in a cache from one operation to the
    next, as is so for tensors that are larger than the cache.
    """
    with _Watch() as watch:
        work()
    return watch.found
