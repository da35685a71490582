"""Layers that take the memory of others' layers, for a training step without data (:mod:`utils.profiling.memory`).

What counts is which tensors a layer makes, in which dtype, and how long it holds them. So these do the operations of
PEFT's LoRA layers, of bitsandbytes' 4-bit layers and of PyTorch's fused attention, on tensors that have no data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from utils.lora.layer import LoRALinear
from utils.lora.target_modules import is_conv1d, output_head
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


class PeftParameter(nn.Module):
    """The meta form of PEFT's LoRA for a weight that is a parameter and no layer (peft/tuners/lora/layer.py,
    ``ParamWrapper``), held to the parameters that PEFT makes by tests/profiling/test_memory.py.

    A 3-dimensional weight holds a matrix for each expert, (experts, out, in) or `transposed`, and each has a rank of
    its own in A (r * experts, in) and B (out, r * experts). In each pass the whole weight is made anew.
    """

    def __init__(self, weight: Tensor, r: int, transposed: bool, adapter_dtype: torch.dtype) -> None:
        super().__init__()
        *stacked, d_out, d_in = weight.shape
        self.experts, self.transposed = (stacked[0] if stacked else 1), transposed and bool(stacked)
        if self.transposed:
            d_out, d_in = d_in, d_out
        self.lora_A = nn.Parameter(torch.empty(r * self.experts, d_in, device=META, dtype=adapter_dtype))
        self.lora_B = nn.Parameter(torch.empty(d_out, r * self.experts, device=META, dtype=adapter_dtype))

    def forward(self, weight: Float[Tensor, "*experts rows columns"]) -> Float[Tensor, "*experts rows columns"]:
        if weight.ndim == 2:
            return weight + (self.lora_B @ self.lora_A * 2.0).to(weight.dtype)
        a = self.lora_A.reshape(self.experts, -1, self.lora_A.shape[-1]).to(weight.dtype)
        b = self.lora_B.reshape(self.lora_B.shape[0], -1, self.experts).permute(2, 0, 1).to(weight.dtype)
        one, other = (a.transpose(1, 2), b.transpose(1, 2)) if self.transposed else (b, a)
        return torch.baddbmm(weight, one, other, alpha=2.0)


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
    value: Float[Tensor, "batch kv_heads length value_width"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers' ``sdpa`` does on CUDA, as an attention function of transformers."""
    return attention_kernel(query, key, value, dropout, scaling).transpose(1, 2).contiguous(), None


def attention_kernel(
    query: Float[Tensor, "batch heads length width"],
    key: Float[Tensor, "batch kv_heads length width"],
    value: Float[Tensor, "batch kv_heads length value_width"],
    dropout: float,
    scaling: float | None,
) -> Float[Tensor, "batch heads length value_width"]:
    """Causal attention by the kernel that PyTorch takes on CUDA (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp).

    In 16 bits that is FlashAttention's; in float32, or where values have another width than keys (DeepSeek), the
    memory-efficient one; and where heads share keys, which that can't do, the plain formula, which writes the scores
    down.
    """
    aten = torch.ops.aten
    if query.dtype != torch.float32 and value.shape[-1] == query.shape[-1]:
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout, True, scale=scaling)[0]
    if key.shape[1] == query.shape[1]:
        return aten._scaled_dot_product_efficient_attention(
            query, key, value, None, True, dropout, True, scale=scaling
        )[0]
    return aten._scaled_dot_product_attention_math(
        query, key, value, None, dropout, True, scale=scaling, enable_gqa=True
    )[0]


class FusedAttention(TorchFunctionMode):
    """Inside the block :func:`attention_kernel` stands for PyTorch's ``scaled_dot_product_attention``, for models that
    call it themselves and not through transformers' attention functions, such as Falcon.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            return attention_kernel(query, key, value, kwargs.get("dropout_p", 0.0), kwargs.get("scale"))
        return func(*args, **kwargs)


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


def put_lora_on_parameters(model: nn.Module, factors: Mapping[str, int], r: int, adapter_dtype: torch.dtype) -> None:
    """Put a :class:`PeftParameter` on each parameter of `factors`, with so many times the rank `r`."""
    for name, factor in factors.items():
        parent, _, own = name.rpartition(".")
        module = model.get_submodule(parent)
        transposed = getattr(module, "is_transposed", False)  # how transformers marks experts stored as (in, out)
        correction = PeftParameter(module.get_parameter(own), factor * r, transposed, adapter_dtype)
        if not parametrize.is_parametrized(module):
            module.forward = _with_one_copy(module.forward)
        parametrize.register_parametrization(module, own, correction)


def _with_one_copy(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Within one call of `forward` a parameter's correction is added once, however often the parameter is read."""

    def cached(*args: Any, **kwargs: Any) -> Any:
        with parametrize.cached():
            return forward(*args, **kwargs)

    return cached


def plain_linear(model: nn.Module) -> None:
    """Put an ``nn.Linear`` in the place of each of transformers' Conv1D, which takes the same memory."""
    for name, layer in list(model.named_modules()):
        if is_conv1d(layer):
            weight = layer.get_parameter("weight")
            d_in, d_out = weight.shape
            model.set_submodule(name, nn.Linear(d_in, d_out, device=META, dtype=weight.dtype))


def put_four_bit(model: nn.Module, double: bool) -> None:
    """Put a :class:`FourBitLinear` in the place of each linear layer but the output head, as bitsandbytes does."""
    head = output_head(model)
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and layer is not head:
            model.set_submodule(name, FourBitLinear(layer, double))
