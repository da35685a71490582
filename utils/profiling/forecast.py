"""What a LoRA run of a 7B model will take, before it takes it: weights, gradients, optimizer, activations.

The first three are arithmetic (:mod:`utils.profiling.memory`). The activations are played through with shapes alone
(:mod:`utils.profiling.flops`), on one block and on two: all blocks are alike, so the difference is what every further
one adds. What kernels use in passing isn't counted; leave a gigabyte for it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from utils.models.configs import lora_parameter_count, meta_model
from utils.profiling import memory
from utils.profiling.flops import dry_run
from utils.profiling.memory import GB

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
RESERVE = GB
"""Bytes that a forecast leaves free: for what it doesn't count, see chapter 11."""


class Forecast(NamedTuple):
    """Bytes of a run at its peak: what is held throughout, and what one step's forward pass keeps."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """The sum of the four."""
        return sum(self)


class WontFit(MemoryError):
    """A run that would run out of memory, found out before it began."""


@functools.cache
def activations(name: str, batch: int, length: int, *, r: int = 8, checkpointing: bool = False) -> int:
    """Bytes that one step of LoRA on attention keeps for the backward pass, of `batch` sequences of `length` tokens.

    `name` is one of :data:`utils.models.configs.REAL_MODELS` with Llama's names of layers; the base computes in
    bfloat16. Raises what :func:`utils.profiling.flops.dry_run` raises.
    """
    blocks = _counts(name)[2]
    one, two = (
        dry_run(
            name, batch, length, target_modules=list(ATTENTION), r=r, checkpointing=checkpointing, layers=layers
        ).activations
        for layers in (1, 2)
    )
    return one + (blocks - 1) * (two - one)


@functools.cache
def _counts(name: str) -> tuple[int, int, int]:
    """A model's parameters in its blocks' linear layers, its other ones, and its number of blocks."""
    model = meta_model(name)
    total = sum(p.numel() for p in model.parameters())
    head = model.get_output_embeddings()
    linear = sum(
        module.weight.numel() for module in model.modules() if hasattr(module, "in_features") and module is not head
    )
    return linear, total - linear, model.config.num_hidden_layers


@functools.cache
def _trainable(name: str, r: int) -> int:
    return lora_parameter_count(meta_model(name), list(ATTENTION), r=r)


def forecast(
    name: str, batch: int, length: int, *, r: int = 8, checkpointing: bool = False, four_bit: bool = False
) -> Forecast:
    """What LoRA of rank `r` on attention will take, with Adam; the base in bfloat16, or in NF4 (QLoRA).

    A frozen layer in 4 bits keeps the same input as one in 16, so the activations are the same. Raises what
    :func:`activations` raises.
    """
    kept = activations(name, batch, length, r=r, checkpointing=checkpointing)
    linear, rest, _ = _counts(name)
    trainable = _trainable(name, r)
    state = memory.qlora(linear, rest, trainable) if four_bit else memory.lora(linear + rest, trainable)
    return Forecast(*state, kept)


def refuse_unless_it_fits(run: Forecast, budget: int, reserve: int = RESERVE) -> None:
    """Raise :class:`WontFit`, with the large parts and their cures, when a run and `reserve` bytes exceed `budget`."""
    missing = run.total + reserve - budget
    if missing > 0:
        parts = sorted(run._asdict().items(), key=lambda part: -part[1])
        large = [(name, size) for name, size in parts if size >= SHARE * run.total]
        helps = "; ".join(f"{name} {size / GB:.1f} GB: {CURES[name]}" for name, size in large)
        raise WontFit(
            f"this run needs {run.total / GB:.1f} GB and {reserve / GB:.1f} in reserve, {missing / GB:.1f} more than "
            f"the {budget / GB:.1f} GB there are. What can be made smaller: {helps}"
        )


SHARE = 0.1
"""A part below this share of the whole isn't worth a cure."""
CURES = {
    "weights": "hold the base in 4 bits",
    "activations": "checkpoint the blocks, or make the batch smaller",
    "gradients": "train fewer parameters",
    "optimizer": "train fewer parameters, or use an 8-bit optimizer",
}
"""What makes each part of a forecast smaller."""
