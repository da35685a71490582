"""The peak of a computation's memory, byte by byte, without a GPU and without data.

PyTorch's *meta* tensors have a shape and a dtype and no data. Operations on them work out the shape of their result
and compute nothing, so a training step of a 7B model runs in seconds. :class:`PeakTracker` watches such a step: each
new tensor adds its bytes, each tensor that nobody holds any longer takes them away, and the largest sum is the peak.
It is what ``torch.cuda.max_memory_allocated`` reports on a GPU, which rounds every tensor up to 512 bytes, as we do.

Attributes:
    ROUNDING: The CUDA allocator hands out multiples of so many bytes (kMinBlockSize in
        c10/cuda/CUDACachingAllocator.cpp).
    KERNEL_WORKSPACE: Operations whose CUDA kernels allocate more than their results while they run.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

ROUNDING = 512


def rounded(nbytes: int) -> int:
    """The bytes that the CUDA allocator hands out for `nbytes`."""
    return -(-nbytes // ROUNDING) * ROUNDING


class Peak(NamedTuple):
    """The moment of a phase at which most is allocated: bytes in all, and of each kind."""

    total: int
    parts: dict[str, int]


class PeakTracker(TorchDispatchMode):
    """Inside ``with tracker:`` follow the bytes of all meta tensors that come and go.

    A tensor is of the `kind` that is set when it is made; :meth:`relabel` changes it afterwards. `peaks` has the
    largest moment of each phase, `now` the bytes of each kind at this moment. `phase` None keeps no peaks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kind = "other"
        self.now: Counter[str] = Counter()
        self.total = 0
        self.peaks: dict[str, Peak] = {}
        self.phase: str | None = None
        self._live: dict[int, tuple[weakref.ref, str, int]] = {}
        self._sizes: dict[int, str] = {}
        self._outer: list[str] = []
        self._kept: list[Any] = []
        self._known: dict[Any, tuple[torch.Size, tuple[int, ...], torch.dtype]] = {}

    def enter(self, kind: str) -> None:
        """What is made from now on is of this kind, until :meth:`leave`."""
        self._outer.append(self.kind)
        self.kind = kind

    def leave(self) -> None:
        """Go back to the kind from before the last :meth:`enter`."""
        self.kind = self._outer.pop()

    def fixed(self, kind: str, size: int) -> None:
        """Count bytes that no tensor has and that stay."""
        self._change(kind, size)

    def keep(self, tensors: Any) -> None:
        """Hold tensors for as long as the tracker lives."""
        self._kept.append(tensors)

    def size_means(self, elements: int, kind: str) -> None:
        """Every tensor of so many elements is of this kind, whatever `kind` says."""
        self._sizes[elements] = kind

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Keep the block's peak under the name `phase`."""
        self.phase = phase
        self._look()
        try:
            yield
        finally:
            self.phase = None

    def hold(self, tensors: Any, kind: str) -> None:
        """Count meta tensors that were made before, each storage once."""
        for tensor in tree_iter(tensors):
            if isinstance(tensor, Tensor):
                self._add(tensor, kind)

    def relabel(self, tensor: Tensor, kind: str) -> None:
        """The tensor's bytes are of this kind from now on."""
        key = tensor.untyped_storage()._cdata
        if key in self._live:
            reference, old, size = self._live[key]
            self.now[old] -= size
            self.now[kind] += size
            self._live[key] = reference, kind, size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "meta":
            return True  # what is asked has no data; transformers asks whether the positions are those of one text
        result = self._run(func, args, kwargs or {})
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._add(tensor, self._sizes.get(tensor.numel(), self.kind))
        if (workspace := KERNEL_WORKSPACE.get(func)) is not None:
            self._change("kernels' workspace", size := workspace(*args))
            self._change("kernels' workspace", -size)
        return result

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The operation's result. Layers are alike, so what came out is remembered by the shapes that went in: PyTorch
        takes ten times as long to work it out again. An optimizer's changes in place of whole lists aren't run at all.
        """
        if _changes_only_meta_lists(func, args):
            return None
        key = _signature(func, args, kwargs)
        if key in self._known:
            shape, stride, dtype = self._known[key]
            return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        result = func(*args, **kwargs)
        if key is not None and isinstance(result, Tensor) and result.device.type == "meta":
            inputs = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
            if result.untyped_storage()._cdata not in inputs and result.storage_offset() == 0:
                self._known[key] = result.shape, result.stride(), result.dtype
        return result

    def _add(self, tensor: Tensor, kind: str) -> None:
        if tensor.device.type != "meta":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata  # the address of the C++ object: all meta tensors have the data pointer 0
        if key in self._live or not (size := rounded(storage.nbytes())):
            return
        self._live[key] = weakref.ref(storage, lambda _: self._remove(key)), kind, size
        self._change(kind, size)

    def _remove(self, key: int) -> None:
        _, kind, size = self._live.pop(key)
        self._change(kind, -size)

    def _change(self, kind: str, size: int) -> None:
        self.now[kind] += size
        self.total += size
        if size > 0:
            self._look()

    def _look(self) -> None:
        if self.phase is not None and (self.phase not in self.peaks or self.total > self.peaks[self.phase].total):
            self.peaks[self.phase] = Peak(self.total, {kind: n for kind, n in self.now.items() if n})


def _changes_only_meta_lists(func: Any, args: Any) -> bool:
    """Whether this is one of the optimizers' ``torch._foreach_..._`` on meta tensors alone: it makes no tensor that
    lives on, and PyTorch takes a millisecond for each tensor to find that out. A list on the CPU, such as Adam's counts
    of steps, is changed.
    """
    name = func._schema.name
    if not (name.startswith("aten::_foreach_") and name.endswith("_") and not func._schema.returns):
        return False
    return all(tensor.device.type == "meta" for tensor in args[0])


def _signature(func: Any, args: Any, kwargs: Any) -> Any:
    """What the result's form depends on, or None where the result may be a view of an input or an input itself."""
    if torch.Tag.nondeterministic_seeded in func.tags or any(a.alias_info for a in func._schema.arguments):
        return None
    parts: list[Any] = [func]
    for value in (*args, *kwargs.items()):
        if isinstance(value, Tensor):
            if value.device.type != "meta":
                return None
            parts.append((value.shape, value.stride(), value.dtype))
        elif isinstance(value, list):
            if any(isinstance(item, Tensor) for item in value):
                return None
            parts.append(tuple(value))
        elif isinstance(value, tuple) and isinstance(value[1], Tensor | list):
            return None
        else:
            parts.append((type(value), value))  # 1, 1.0 and True are equal, and give results of different dtypes
    return tuple(parts)


def _flash_backward(grad: Tensor, query: Tensor, key: Tensor, *_: Any) -> int:
    """What FlashAttention's backward pass takes for itself: a float32 sum of the query's gradient and one number for
    each of its rows, and, where heads share keys and values, each head's own gradient of them.

    PyTorch's aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, ``mha_bwd``: the length is rounded up to
    128, the head's size to 32.
    """
    batch, heads, length, width = query.shape
    length, wide = -(-length // 128) * 128, -(-width // 32) * 32
    total = rounded(batch * length * heads * wide * 4) + rounded(batch * heads * length * 4)
    if key.shape[1] != heads:
        total += 2 * rounded(batch * key.shape[2] * heads * width * key.element_size())
    return total


def _softmax_backward(grad: Tensor, *_: Any) -> int:
    """``Tensor tmp = grad * output``, in aten/src/ATen/native/cuda/SoftMax.cu: once more what comes in."""
    return rounded(grad.numel() * grad.element_size())


KERNEL_WORKSPACE = {
    torch.ops.aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
    torch.ops.aten._softmax_backward_data.default: _softmax_backward,
}
