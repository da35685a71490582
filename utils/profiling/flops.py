"""The arithmetic of a training step: the floating-point operations of its matrix products, without computing any.

The step is that of a :class:`utils.profiling.memory.Setup`, on the meta device, as the estimator of memory follows it.

Attributes:
    SHALLOW: Blocks of the deepest model that is really followed.
    PRODUCTS: What a linear layer calls. Attention's own products go by other names.
    NOT_COUNTED: Attention's products: some versions of torch count them, some refuse to where heads share keys (2.11).
"""

from __future__ import annotations

import copy
import dataclasses
from typing import NamedTuple

import torch

from utils.profiling.memory import Setup, config_of, model_of
from utils.profiling.peak import PeakTracker

SHALLOW = 3
PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm)
NOT_COUNTED = {
    op: lambda *shapes, **named: 0
    for op in (
        torch.ops.aten._scaled_dot_product_flash_attention,
        torch.ops.aten._scaled_dot_product_flash_attention_backward,
    )
}


class Flops(NamedTuple):
    """Floating-point operations of a step's forward and backward pass, a multiplication and an addition being two."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """The sum of the two."""
        return sum(self)


def step_flops(setup: Setup) -> Flops:
    """How much the linear layers of a training step compute; with checkpointing, what is computed twice counts twice.

    Attention's own products are left out: 2% of the whole for a 7B model and 512 tokens. The blocks of a model are
    alike, so each adds the same: two shallow models tell what a deep one takes, exactly, and in a fifth of the time.

    Raises what :func:`utils.profiling.memory.config_of` and :func:`utils.lora.layer.find_targets` raise.
    """
    depth = config_of(setup.model).get_text_config().num_hidden_layers
    if depth <= SHALLOW:
        return _count(setup, depth)
    one, other = (_count(setup, layers) for layers in (SHALLOW - 1, SHALLOW))
    return Flops(*(b + (depth - SHALLOW) * (b - a) for a, b in zip(one, other, strict=True)))


def _count(setup: Setup, layers: int) -> Flops:
    """The operations of a model of `layers` blocks, one after the other."""
    from torch.utils.flop_counter import FlopCounterMode

    config = copy.deepcopy(config_of(setup.model))
    config.get_text_config().num_hidden_layers = layers
    model = model_of(dataclasses.replace(setup, model=config))
    ids = torch.zeros(setup.batch, setup.length, dtype=torch.long, device="meta")
    counting = FlopCounterMode(display=False, custom_mapping=NOT_COUNTED)
    with PeakTracker(), counting as counter:  # the tracker makes a model run on the meta device

        def counted() -> int:
            return sum(n for op, n in counter.get_flop_counts().get("Global", {}).items() if op in PRODUCTS)

        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        forward = counted()
        loss.backward()
        return Flops(forward, counted() - forward)
