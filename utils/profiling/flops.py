"""A training step of a real model with shapes alone: what it would keep, and how much it would compute.

PyTorch's fake tensors have a shape, a dtype and a device, and no data. Every operation on them works out the shape of
its result and does no arithmetic, so a step of a 7B model takes a second or two and hardly any memory. Attention is
PyTorch's fused one (`sdpa`), as on a CPU; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from utils.lora.layer import inject
from utils.models.configs import real_config
from utils.profiling.activations import checkpoint_blocks, saved_activation_bytes

SHALLOW = 3
"""Blocks of the deepest model that is really played through."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class DryRun(NamedTuple):
    """What one training step would keep and compute.

    activations: bytes that the forward pass keeps for the backward pass; parameters are not among them.
    forward_flops, backward_flops: floating-point operations of the linear layers, a multiplication and an addition
        being two. Attention's own products are left out: 2% of the whole for a 7B model and 512 tokens.
    """

    activations: int
    forward_flops: int
    backward_flops: int


def dry_run(
    name: str,
    batch: int,
    length: int,
    *,
    dtype: str = "bfloat16",
    target_modules: Sequence[str] | str | None = None,
    r: int = 8,
    checkpointing: bool = False,
    layers: int | None = None,
) -> DryRun:
    """One training step of a real model, of `batch` sequences of `length` tokens, without its weights.

    `name` is one of :data:`utils.models.configs.REAL_MODELS`. Without `target_modules` every parameter trains, in
    `dtype`. With them the model is frozen, and LoRA of rank `r` trains in float32 as in PEFT, for which each LoRA layer
    makes and keeps a float32 copy of its input. With `checkpointing` each block keeps its input alone and computes the
    rest again in the backward pass (transformers' gradient checkpointing).

    The blocks of a model are alike, so each adds the same to all three numbers: two shallow models tell what a deep one
    takes, exactly, and in a fifth of the time.

    Raises ValueError for a name or a dtype that isn't known and for a batch or a length below 1, and what
    :func:`utils.lora.layer.inject` raises.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    if batch < 1 or length < 1:
        raise ValueError(f"a step needs at least one sequence of one token, not {batch} of {length}")
    if layers is not None and layers < 1:
        raise ValueError(f"a model has at least one block, not {layers}")
    depth = real_config(name).num_hidden_layers if layers is None else layers
    settings = {"dtype": dtype, "target_modules": target_modules, "r": r, "checkpointing": checkpointing}
    if depth <= SHALLOW:
        return _run(name, batch, length, depth, **settings)
    one, other = (_run(name, batch, length, few, **settings) for few in (SHALLOW - 1, SHALLOW))
    return DryRun(*(b + (depth - SHALLOW) * (b - a) for a, b in zip(one, other, strict=True)))


def _run(
    name: str, batch: int, length: int, layers: int, *, dtype: str, target_modules: Sequence[str] | str | None, r: int,
    checkpointing: bool,
) -> DryRun:  # fmt: skip
    """The step itself, of a model of `layers` blocks."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    # Without data transformers can't see that nothing is padded or packed, and would write a mask down.
    AttentionInterface.register("sdpa_without_mask", sdpa_attention_forward)
    AttentionMaskInterface.register("sdpa_without_mask", lambda *args, **kwargs: None)

    def linear_flops() -> int:
        """Operations of the linear layers so far. Attention is counted by some versions of torch and not by others."""
        counted = counter.get_flop_counts().get("Global", {})
        return sum(counted.get(operation, 0) for operation in (torch.ops.aten.mm, torch.ops.aten.addmm))

    losses: list[Tensor] = []
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        config = real_config(name)
        config.num_hidden_layers = layers
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype], attn_implementation="sdpa_without_mask")
        if target_modules is not None:
            inject(model, target_modules, r=r, lora_alpha=2 * r)
        if checkpointing:
            model.train()  # it is ignored in evaluation mode
            checkpoint_blocks(model)
        ids = torch.zeros(batch, length, dtype=torch.long)

        def forward() -> Tensor:
            losses.append(model(input_ids=ids, labels=ids, use_cache=False).loss)
            return losses[0]

        before = linear_flops()
        activations = saved_activation_bytes(model, forward)
        forward_flops = linear_flops() - before
        losses[0].backward()
        backward_flops = linear_flops() - before - forward_flops
    return DryRun(activations, forward_flops, backward_flops)
