"""Layers that take the memory of others' layers, for a training step without data (:mod:`utils.profiling.memory`).

What counts is which tensors a layer makes, in which dtype, and how long it holds them. So these do the operations of
PEFT's LoRA layers, of bitsandbytes' 4-bit layers and of PyTorch's fused attention, on tensors that have no data.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from utils.lora.layer import LoRALinear
from utils.lora.target_modules import output_head
from utils.quant.nf4 import BLOCK, SCALE_BLOCK

META = torch.device("meta")


class PeftLinear(LoRALinear):
    """The meta form of PEFT's LoRA layer, held to what an H100 allocated by tests/profiling/test_memory_predictor.py.

    It stands over a linear layer, or over a 4-bit one, with its adapter in `adapter_dtype`, computes what
    :class:`utils.lora.layer.LoRALinear` computes and casts in PEFT's order (peft/tuners/lora/layer.py,
    ``Linear.forward``, and bnb.py, ``Linear4bit.forward``): the sum is made in the adapter's dtype beside a 16-bit
    base, and a 4-bit base's result is copied first.
    """

    def __init__(self, base_layer: nn.Linear, r: int, lora_dropout: float, adapter_dtype: torch.dtype) -> None:
        super().__init__(base_layer, r, 2 * r, lora_dropout)
        self.lora_A.data = self.lora_A.data.to(adapter_dtype)
        self.lora_B.data = self.lora_B.data.to(adapter_dtype)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        y = self.base_layer(x)
        four_bit = isinstance(self.base_layer, FourBitLinear)
        if four_bit:
            y = y.clone()
        dtype = y.dtype
        x = x.to(self.lora_A.dtype)
        if self.lora_dropout.p and self.training:
            x = torch.native_dropout(x, self.lora_dropout.p, True)[0]  # CUDA's dropout, which keeps a mask of bytes
        if four_bit:
            output = F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scaling
            return y + output.to(dtype)
        y = y + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scaling
        return y.to(dtype)


class FourBitLinear(nn.Linear):
    """The meta form of bitsandbytes' Linear4bit, held to an H100 by tests/profiling/test_memory_predictor.py.

    `weight` holds two codes a byte, and a copy in 16 bits is made for each use. Scales are float32, or with `double`
    8 bits each and float32 for each 256 of them (:mod:`utils.quant.nf4`).
    """

    def __init__(self, layer: nn.Linear, double: bool) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        self.compute_dtype, self.double_quant = layer.weight.dtype, double
        values = layer.weight.numel()
        self.weight = nn.Parameter(torch.empty(-(-values // 2), 1, dtype=torch.uint8, device=META), requires_grad=False)
        self.blocks = -(-values // BLOCK)
        scales = {"scales": torch.empty(self.blocks, dtype=torch.uint8 if double else torch.float32, device=META)}
        scales["code"] = torch.empty(16, device=META)
        if double:
            scales["scale_scales"] = torch.empty(-(-self.blocks // SCALE_BLOCK), device=META)
            scales["scale_code"], scales["offset"] = torch.empty(256, device=META), torch.empty((), device=META)
        for name, tensor in scales.items():
            self.register_buffer(name, tensor)

    def dequantized(self) -> Tensor:
        """A new matrix (out, in) in the dtype to compute in, and on the way, with `double`, new float32 scales."""
        scales = torch.empty(self.blocks, device=META) if self.double_quant else None  # noqa: F841 (it takes memory meanwhile)
        return torch.empty(self.out_features, self.in_features, dtype=self.compute_dtype, device=META)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        y = _FourBitProduct.apply(x.to(self.compute_dtype), self)
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class _FourBitProduct(torch.autograd.Function):
    """Saves nothing: the matrix is made again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FourBitLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dequantized())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.dequantized(), None


def fused_attention(
    module: nn.Module,
    query: Float[Tensor, "batch heads length width"],
    key: Float[Tensor, "batch kv_heads length width"],
    value: Float[Tensor, "batch kv_heads length width"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers' ``sdpa`` does on CUDA, as an attention function of transformers.

    In 16 bits PyTorch takes FlashAttention's kernel, in float32 the memory-efficient one, and where heads share keys
    in float32, which neither does, the plain formula, which writes the scores down (aten/src/ATen/native/transformers/
    cuda/sdp_utils.cpp).
    """
    aten = torch.ops.aten
    if query.dtype != torch.float32:
        output = aten._scaled_dot_product_flash_attention(query, key, value, dropout, True, scale=scaling)[0]
    elif key.shape[1] == query.shape[1]:
        output = aten._scaled_dot_product_efficient_attention(
            query, key, value, None, True, dropout, True, scale=scaling
        )[0]
    else:
        output = aten._scaled_dot_product_attention_math(
            query, key, value, None, dropout, True, scale=scaling, enable_gqa=True
        )[0]
    return output.transpose(1, 2).contiguous(), None


def register_attention() -> str:
    """Make :func:`fused_attention` known to transformers, without a written mask, and return its name there."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register("fused_without_data", fused_attention)
    AttentionMaskInterface.register("fused_without_data", lambda *args, **kwargs: None)
    return "fused_without_data"


def eight_bit_adam(parameters: list[nn.Parameter], paged: bool) -> list[Tensor]:
    """The states of bitsandbytes' 8-bit AdamW that the GPU holds (its optim/optimizer.py, ``Optimizer2State``).

    Two moments of a byte each and a float32 scale for each 256 of them; parameters of less than 4,096 values keep
    float32 moments. Paged moments of 100,000 values and more lie in memory that CUDA moves between the processor and
    the GPU, and that PyTorch doesn't count.
    """
    states = [torch.empty(256, device=META), torch.empty(256, device=META)]  # the two code books
    for parameter in parameters:
        small = parameter.numel() < 4096
        if not (paged and parameter.numel() >= 100_000):
            moment = torch.empty(parameter.shape, dtype=torch.float32 if small else torch.uint8, device=META)
            states += [moment, torch.empty_like(moment)]
        if not small:
            states += [torch.empty(-(-parameter.numel() // 256), device=META) for _ in range(2)]
    return states


def paged_adam(parameters: list[nn.Parameter]) -> list[Tensor]:
    """The float32 states of bitsandbytes' paged AdamW that the GPU holds: those of less than 100,000 values."""
    small = [parameter for parameter in parameters if parameter.numel() < 100_000]
    return [torch.empty(parameter.shape, device=META) for parameter in small for _ in range(2)]


def put_lora(model: nn.Module, names: list[str], r: int, lora_dropout: float, adapter_dtype: torch.dtype) -> None:
    """Freeze `model` and put a :class:`PeftLinear` in the place of each layer of `names`."""
    model.requires_grad_(False)
    for name in names:
        model.set_submodule(
            name, PeftLinear(cast(nn.Linear, model.get_submodule(name)), r, lora_dropout, adapter_dtype)
        )


def put_four_bit(model: nn.Module, double: bool) -> None:
    """Put a :class:`FourBitLinear` in the place of each linear layer but the output head, as bitsandbytes does."""
    head = output_head(model)
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and layer is not head:
            model.set_submodule(name, FourBitLinear(layer, double))
