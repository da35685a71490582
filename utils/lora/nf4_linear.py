"""The readable form of bitsandbytes' Linear4bit, held equal by tests/lora/test_variants.py: QLoRA's base in 4 bits.

A linear layer here keeps its weight in 4 bits and unpacks it whenever it computes. QLoRA (Dettmers et al., 2023,
https://arxiv.org/abs/2305.14314) is LoRA on a frozen base in NF4 with doubly quantized scales. The adapter is
:class:`utils.lora.layer.LoRALinear`, unchanged, of any variant.

Attributes:
    NUMBERS: The dtypes of a weight that one can add to; what holds another dtype holds codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from utils.lora.target_modules import find_targets
from utils.quant import nf4

NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class _Product(torch.autograd.Function):
    """``x @ W.T`` that keeps no unpacked weight for the backward pass: it unpacks it again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: NF4Linear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.unpacked().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.unpacked().to(gradient.dtype), None


class NF4Linear(nn.Linear):
    """A frozen linear layer in NF4 with double quantization, as bitsandbytes' Linear4bit has it.

    `weight` holds the packed codes, two to a byte; the scales are buffers. Passes gradients on to its input, and has
    none itself. Raises what :func:`utils.quant.nf4.quantize` raises.
    """

    scale_codes: Tensor
    scale_scales: Tensor
    scale_offset: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        device = linear.weight.device
        quantized = nf4.quantize(linear.weight.detach().cpu(), double=True)
        self.weight = nn.Parameter(quantized.packed.to(device), requires_grad=False)
        for name, part in cast(nf4.DoubleScales, quantized.scales)._asdict().items():
            self.register_buffer(f"scale_{name}", part.to(device))
        self._rest = quantized._replace(packed=None, scales=None)
        self.register_parameter("bias", linear.bias)  # by its name, also where there is none
        self.train(linear.training)

    def quantized(self) -> nf4.Quantized:
        """The weight as it is kept."""
        scales = nf4.DoubleScales(self.scale_codes, self.scale_scales, self.scale_offset)
        return self._rest._replace(packed=self.weight, scales=scales)

    def unpacked(self) -> Float[Tensor, "d_out d_in"]:
        """The weight that the codes and scales stand for, in the dtype that it had."""
        return nf4.dequantize(self.quantized())

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        y = _Product.apply(x, self)
        return y if self.bias is None else y + self.bias


def quantize_layers(model: nn.Module, target_modules: Sequence[str] | str = "all-linear") -> list[str]:
    """Put the targets of a plain model into 4 bits, in place, and return their names. Do this before `inject`.

    "all-linear" leaves out what the model's class keeps in float32, as transformers does: T5 asks `wo` for a dtype that
    it can compute in. Raises what :func:`utils.lora.target_modules.find_targets` and :class:`NF4Linear` raise, and
    ValueError for a target in 4 bits already, or of that kind; the model is then as it was.
    """
    names = find_targets(model, target_modules)
    kept = [name for name in names if name.rpartition(".")[2] in (getattr(model, "_keep_in_fp32_modules", None) or ())]
    if target_modules == "all-linear":
        names = [name for name in names if name not in kept]
    elif kept:
        raise ValueError(
            f"{kept[0]} can't be in 4 bits: a {type(model).__name__} computes in its weight's dtype, and keeps it in "
            "float32. Leave it out"
        )
    if done := [name for name in names if isinstance(model.get_submodule(name), NF4Linear)]:
        raise ValueError(f"{done[0]} is in 4 bits already")
    for name, layer in [(name, NF4Linear(cast(nn.Linear, model.get_submodule(name)))) for name in names]:
        model.set_submodule(name, layer)
    return names


def dequantize_layers(model: nn.Module) -> None:
    """Put plain linear layers with the unpacked weights in the place of all 4-bit ones, also beneath LoRA layers."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, NF4Linear):
            linear = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            linear.weight = nn.Parameter(layer.unpacked(), requires_grad=False)
            linear.bias = layer.bias
            model.set_submodule(name, linear.train(layer.training))


# ------------------------------------------------------------------------------------- what stands below a LoRA layer


def is_quantized(base_layer: nn.Linear) -> bool:
    """Whether the layer's weight holds codes (this module's, bitsandbytes') and no numbers that one could add to.

    The dtype alone doesn't tell: bitsandbytes can store its codes as if they were bfloat16 (`quant_storage`).
    """
    weight = base_layer.weight
    packed = weight.shape != (base_layer.out_features, base_layer.in_features)
    return packed or weight.dtype not in NUMBERS or getattr(weight, "quant_state", None) is not None


def dense_weight(base_layer: nn.Linear, dtype: torch.dtype | None = None) -> Float[Tensor, "d_out d_in"]:
    """The layer's weight in `dtype`, or its own: itself where it has that dtype, else a temporary copy; 4 bits are
    dequantized. Raises TypeError for codes that are neither this module's nor bitsandbytes' 4 bits.
    """
    weight = base_layer.weight
    if isinstance(base_layer, NF4Linear):
        weight = base_layer.unpacked()
    elif (state := getattr(weight, "quant_state", None)) is not None:
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(weight.data, state)
    elif is_quantized(base_layer):
        raise TypeError(f"this {type(base_layer).__name__} holds {weight.dtype}, and how to turn it back isn't known")
    return weight if dtype in (None, weight.dtype) else weight.to(dtype)
