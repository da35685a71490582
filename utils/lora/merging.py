"""Merging an adapter into its base: the sum, its rounding, and bases in 4 bits.

A merged layer computes with ``W + scaling * B A`` and nothing beside it (Hu et al., 2021,
https://arxiv.org/abs/2106.09685, section 4.1). The sum is exact; storing it is not: it is rounded to the weight's
dtype, and in 4 bits it is quantized anew.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from utils.lora.checkpoint import fitting_adapter
from utils.lora.layer import refuse_second
from utils.lora.nf4_linear import NUMBERS, NF4Linear, is_quantized
from utils.lora.refusals import check_storable
from utils.quant.nf4 import DoubleScales, Quantized, dequantize, quantize

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# ---------------------------------------------------------------------------------------------------- one weight


def merge_weight(
    weight: Float[Tensor, "d_out d_in"],
    lora_A: Float[Tensor, "r d_in"],
    lora_B: Float[Tensor, "d_out r"],
    scaling: float,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "d_out d_in"]:
    """``weight + scaling * lora_B @ lora_A``, rounded once, at the end, to `dtype` (the weight's own unless given).

    The product and the sum are in float32, or float64 for a float64 weight, as PEFT's merge of float32 adapters
    computes it. Raises ValueError when the shapes don't fit or the sum isn't finite in `dtype`, and TypeError for a
    weight or a `dtype` of codes or whole numbers, such as torch.uint8.
    """
    if weight.dtype not in NUMBERS:
        raise TypeError(
            f"this weight holds {weight.dtype}, not numbers to add to: it is quantized. Dequantize it first, see "
            "utils.lora.merging.dequantized"
        )
    dtype = dtype or weight.dtype
    if dtype not in NUMBERS:
        raise TypeError(
            f"a merged weight can't be stored as {dtype}, which would cut its numbers off: take a dtype such as "
            "torch.bfloat16, and quantize the result (utils.quant) if it is to be smaller"
        )
    (d_out, d_in), rank = weight.shape, lora_A.shape[0]
    if lora_A.shape != (rank, d_in) or lora_B.shape != (d_out, rank):
        raise ValueError(
            f"lora_A {tuple(lora_A.shape)} and lora_B {tuple(lora_B.shape)} don't fit a weight {tuple(weight.shape)}: "
            f"expected (r, {d_in}) and ({d_out}, r)"
        )
    wide = torch.promote_types(weight.dtype, torch.float32)
    delta = scaling * (lora_B.to(wide) @ lora_A.to(wide))
    merged = weight.to(wide) + delta
    check_storable("the merged weight", merged, dtype)
    return merged.to(dtype)


# ------------------------------------------------------------------------------------------------------ whole models


@torch.no_grad()
def merge_files(model: nn.Module, folder: str | Path, *, check_base: bool = True) -> list[str]:
    """Add the adapter in `folder` to the weights of `model`, in place, and return the names of the layers.

    Without PEFT, and without a LoRA layer ever being made. Each weight keeps its dtype and is rounded once. Raises
    RuntimeError when the model has LoRA layers, what :func:`utils.lora.checkpoint.fitting_adapter` raises, and
    ValueError for a quantized layer, or one that can't hold the sum; the model is then unchanged.
    """
    refuse_second(model)
    config, matrices = fitting_adapter(model, folder, check_base=check_base)
    for name in matrices:
        layer = cast(nn.Linear, model.get_submodule(name))
        if is_quantized(layer):
            turn = "nf4_linear.dequantize_layers" if isinstance(layer, NF4Linear) else "merging.dequantized"
            raise ValueError(
                f"{name} is quantized: nothing can be added to its weight, which holds {layer.weight.dtype}. Put the "
                "adapter beside it, with load_adapter, or turn the model into plain numbers first: "
                f"utils.lora.{turn}(model)"
            )

    def merged(name: str) -> Tensor:
        weight = model.get_parameter(f"{name}.weight")
        a, b = (matrix.to(weight.device) for matrix in (matrices[name]["lora_A"], matrices[name]["lora_B"]))
        return merge_weight(weight, a, b, config["lora_alpha"] / config["r"])

    for name in matrices:  # every sum is looked at before the first is stored, and only one is held at a time
        try:
            merged(name)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
    for name in matrices:
        model.get_parameter(f"{name}.weight").copy_(merged(name))
    return list(matrices)


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """A 4-bit model with plain linear layers again, in the dtype that it computed in; the model itself is changed.

    The weights are those that the 4-bit layers computed with, not those from before quantization, which are lost.
    Raises ValueError when the model isn't quantized.
    """
    if not getattr(model, "is_quantized", False):
        raise ValueError("this model is not quantized, so there is nothing to dequantize: attach the adapter and merge")
    talk = logging.getLogger("transformers")
    level = talk.level
    talk.setLevel(logging.ERROR)  # it tells the dtype as a warning
    try:
        return model.dequantize().eval()
    finally:
        talk.setLevel(level)


def stored_4bit(layer: nn.Module) -> Quantized:
    """What a bitsandbytes Linear4bit stores, in the form of :mod:`utils.quant.nf4`, on the CPU.

    Raises TypeError for a layer that isn't in 4 bits.
    """
    weight = layer.get_parameter("weight")
    state = getattr(weight, "quant_state", None)
    if state is None:
        raise TypeError(f"this {type(layer).__name__} is not in 4 bits: it holds {weight.dtype}")
    scales = state.absmax.cpu()
    if state.nested:
        scales = DoubleScales(scales, state.state2.absmax.cpu(), state.offset.cpu())
    packed = weight.detach().cpu().flatten()
    return Quantized(packed, scales, state.shape, state.dtype, state.quant_type, state.blocksize)


def merge_quantized(stored: Quantized, delta: Float[Tensor, "d_out d_in"]) -> Quantized:
    """The correction merged into a weight in 4 bits: restored, added to, and quantized anew, as PEFT does it.

    Every code and every scale may change, and the new quantization error comes on top of the old one. Raises
    ValueError when the shapes differ or the sum isn't finite in the weight's dtype.
    """
    if tuple(stored.shape) != tuple(delta.shape):
        raise ValueError(f"the correction {tuple(delta.shape)} doesn't have the weight's shape {tuple(stored.shape)}")
    total = dequantize(stored) + delta
    check_storable("the merged weight", total, stored.dtype)
    double = isinstance(stored.scales, DoubleScales)
    return quantize(total.to(stored.dtype), book=stored.book, block=stored.block, double=double)
