"""The peak of one rank's memory when a step is spread over several GPUs, by DDP or by FSDP2.

DDP holds everything on every rank, and beside it the gradients once more, in the buckets that are reduced. FSDP2
(``fully_shard`` of every block, then of the model) holds a share of weights, gradients and optimizer states on every
rank, and gathers a block's weights for as long as the block computes. Which copies are held when is what PyTorch's
`_fsdp_param_group.py` does; :class:`Shards` makes the same steps on the meta device:

    forward:   gather the block into one flat buffer, copy it out into weights, keep the flat buffer until the next
               block has copied out, free the weights behind the block
    backward:  gather (unless it was gathered ahead), copy out, gather the block before ahead, compute, free the
               weights, copy the gradients into one flat buffer, reduce it into this rank's share, keep that buffer
               until the next block's

The model's own group (embedding, last norm, head) stays gathered from the forward pass to the end of the backward pass.
One process copies its shards and gathers nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from utils.lora.refusals import check_count
from utils.profiling.memory import Prediction, Setup, follow, model_of
from utils.profiling.peak import PeakTracker, rounded

ENGINES = ("DDP", "FSDP2")
_GATHERED, _BUFFERS = "gathered weights", "communication"


def predict_rank(setup: Setup, engine: str, gpus: int) -> Prediction:
    """The peak memory of one rank's training step, with `setup.batch` sequences on each of `gpus` GPUs.

    What :func:`utils.profiling.memory.predict` says of one GPU, and what the engine changes; NCCL's own buffers, a few
    hundred MB that PyTorch's allocator doesn't see, are not in it. Scales of a 4-bit base are buffers, which FSDP2
    doesn't share out. Raises ValueError for an engine that isn't known, for fewer than one GPU, and under FSDP2 for
    adapters of another dtype than the weights, which it refuses in a group, and for optimizers other than torch's fused
    AdamW.
    """
    check_count("gpus", gpus)
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}: choose one of {', '.join(ENGINES)}")
    if engine == "DDP":
        return follow(setup, model_of(setup), _buckets)
    if setup.method != "full" and setup.adapter_dtype != setup.dtype:
        raise ValueError(
            f"FSDP2 gathers a block's weights and adapters together, in one dtype, not {setup.dtype} and "
            f"{setup.adapter_dtype}: set adapter_dtype={setup.dtype!r} (PEFT: autocast_adapter_dtype=False)"
        )
    if setup.optimizer not in ("adamw-fused", "none"):
        raise ValueError(f"only 'adamw-fused' and 'none' are followed under FSDP2, not {setup.optimizer!r}")
    return follow(setup, model_of(setup), lambda model, tracker: Shards(model, tracker, gpus).end)


def _buckets(model: nn.Module, tracker: PeakTracker) -> Callable[[], None]:
    """DDP's reducer has a copy of all gradients from its start on, ``gradient_as_bucket_view=False``."""
    tracker.fixed(_BUFFERS, sum(rounded(_bytes(p)) for p in model.parameters() if p.requires_grad))
    return lambda: None


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def share_of(parameter: Tensor, gpus: int) -> int:
    """The bytes of a rank's shard: rows are dealt out along the first dimension, rounded up."""
    rows = parameter.shape[0] if parameter.ndim else 1
    return -(-rows // gpus) * (_bytes(parameter) // max(rows, 1))


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer: the longest ``ModuleList`` in it. Raises ValueError when it has none."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of blocks to shard one by one")
    return list(max(lists, key=len))


class _Group:
    """The parameters that are gathered together: a block's, or all that is in no block."""

    def __init__(self, parameters: list[nn.Parameter], gpus: int) -> None:
        self.parameters = parameters
        self.size = sum(rounded(_bytes(p)) for p in parameters)  # the weights, each of its own
        self.flat = rounded(sum(gpus * share_of(p, gpus) for p in parameters)) if gpus > 1 else 0
        self.gathered = self.unsharded = self.done = False


class _Behind(torch.autograd.Function):
    """Hands its input on, and calls `then` when its gradient is there: everything that used it is differentiated."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, then: Callable[[], None]) -> Tensor:
        ctx.then = then
        return tensor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.then()
        return gradient, None


class Shards:
    """FSDP2's copies of weights and gradients on one of `gpus` ranks, counted by `tracker` while `model` runs."""

    def __init__(self, model: nn.Module, tracker: PeakTracker, gpus: int) -> None:
        self.tracker, self.gpus = tracker, gpus
        blocks = blocks_of(model)
        mine = [list(block.parameters()) for block in blocks]
        inside = {id(p) for parameters in mine for p in parameters}
        self.groups = [_Group(parameters, gpus) for parameters in mine]
        self.root = _Group([p for p in model.parameters() if id(p) not in inside], gpus)
        self.flat_kept, self.reduce_kept, self.backward = 0, 0, False
        self._share_out(model)
        model.register_forward_pre_hook(lambda *_: self._enter(self.root))
        for number, block in enumerate(blocks):
            block.register_forward_pre_hook(lambda _, i, k, n=number: self._before(n, i, k), with_kwargs=True)
            block.register_forward_hook(lambda _, i, out, n=number: self._after(n, out))
        model.register_forward_hook(self._leave_model)

    def _share_out(self, model: nn.Module) -> None:
        """A share in the place of what was counted whole: weights, adapters, and both of AdamW's moments."""
        full = all(p.requires_grad for p in model.parameters())
        for parameter in model.parameters():
            saved = rounded(_bytes(parameter)) - rounded(share_of(parameter, self.gpus))
            self.tracker.fixed("adapters" if parameter.requires_grad and not full else "weights", -saved)
            if parameter.requires_grad and self.tracker.now["optimizer"]:
                self.tracker.fixed("optimizer", -2 * saved)

    def _enter(self, group: _Group) -> None:
        """Forward: gather and copy out; the flat buffer of the group before goes, this one's stays for now."""
        if self.backward or group.unsharded:  # a checkpointed block is computed again between both
            return
        self.tracker.fixed(_GATHERED, group.flat)
        self.tracker.fixed(_GATHERED, -self.flat_kept)
        self.tracker.fixed(_GATHERED, group.size)
        self.flat_kept, group.unsharded, group.done = group.flat, True, False

    def _before(self, number: int, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        group = self.groups[number]
        self._enter(group)
        if not torch.is_grad_enabled() or self.backward:
            return inputs, named

        def behind(value: Any) -> Any:
            wanted = isinstance(value, Tensor) and value.requires_grad
            return _Behind.apply(value, lambda: self._leave_backward(group)) if wanted else value

        return tuple(behind(value) for value in inputs), {name: behind(value) for name, value in named.items()}

    def _after(self, number: int, output: Any) -> None:
        if self.backward:
            return
        self._free(self.groups[number])
        first = output[0] if isinstance(output, tuple) else output
        if first.requires_grad:
            first.register_hook(lambda _: self._enter_backward(number))

    def _leave_model(self, model: nn.Module, inputs: Any, output: Any) -> None:
        self.tracker.fixed(_GATHERED, -self.flat_kept)
        self.flat_kept = 0
        output.loss.register_hook(lambda _: self._begin_backward())

    def _begin_backward(self) -> None:
        self.backward = True
        self._gather(self.groups[-1])

    def _gather(self, group: _Group) -> None:
        if not group.gathered and not group.unsharded:
            self.tracker.fixed(_GATHERED, group.flat)
            group.gathered = True

    def _enter_backward(self, number: int) -> None:
        group = self.groups[number]
        self._gather(group)
        if not group.unsharded:
            self.tracker.fixed(_GATHERED, group.size)
            self.tracker.fixed(_GATHERED, -group.flat)
            group.unsharded, group.gathered = True, False
        if number:
            self._gather(self.groups[number - 1])

    def _free(self, group: _Group) -> None:
        if group.unsharded:
            self.tracker.fixed(_GATHERED, -group.size)
            group.unsharded = False

    def _leave_backward(self, group: _Group) -> None:
        """Behind a group's backward pass: free its weights, reduce its gradients into this rank's share."""
        if group.done:
            return
        group.done = True
        self._free(group)
        self.tracker.fixed(_BUFFERS, -self.reduce_kept)
        self.reduce_kept = 0
        if trained := [p for p in group.parameters if p.grad is not None]:
            self.reduce_kept = rounded(sum(self.gpus * share_of(p, self.gpus) for p in trained))
            self.tracker.fixed(_BUFFERS, self.reduce_kept)
            for parameter in trained:
                parameter.grad = None
            self.tracker.fixed("gradients", rounded(self.reduce_kept // self.gpus))

    def end(self) -> None:
        """The backward pass is over: what no hook reduced, the model's own group, and the last buffers."""
        for group in (*reversed(self.groups), self.root):
            self._leave_backward(group)
        for group in self.groups:
            if group.gathered:
                self.tracker.fixed(_GATHERED, -group.flat)
                group.gathered = False
        self.tracker.fixed(_BUFFERS, -self.reduce_kept)
        self.reduce_kept, self.backward = 0, False
