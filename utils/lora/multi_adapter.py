"""The form of LoRALinear for many adapters in one batch, held equal to PEFT by tests/lora/test_multi_adapter.py.

Every row of the batch takes its own LoRA correction, in one pass over the base.

The factors of all adapters are stacked: `lora_A` is (adapters, r, in), `lora_B` is (adapters, out, r). A batch comes
with a number for each row, which adapter it wants; the layer gathers those factors and multiplies batch by batch.
Number 0 is :data:`BASE`, whose factors are zero. Ranks may differ: the smaller ones are padded with zeros. This is the
plain form of what Punica (Chen et al., 2023, https://arxiv.org/abs/2310.18547) and S-LoRA (Sheng et al., 2023,
https://arxiv.org/abs/2311.03285) do with kernels of their own, which read the factors in place rather than copy them
for every row.

Attributes:
    BASE: The name that asks for the base model without an adapter, as in PEFT's ``adapter_names``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from utils.lora.combine import Adapter, Factors
from utils.lora.layer import refuse_second
from utils.lora.nf4_linear import is_quantized

BASE = "__base__"


class MultiLoRALinear(nn.Module):
    """A frozen linear layer with the corrections of several adapters, one of which each row of the batch takes.

    `factors` maps each adapter's name to its factors, or to None when the adapter leaves this layer alone. Outside
    :func:`route` the layer computes what its base computes. The stacks have the weight's dtype, or are float32 beside a
    quantized one. Raises ValueError when a factor's shape doesn't fit the weight.
    """

    lora_A: Tensor
    lora_B: Tensor

    def __init__(self, base_layer: nn.Linear, factors: Mapping[str, Factors | None]) -> None:
        super().__init__()
        d_out, d_in = base_layer.out_features, base_layer.in_features  # a weight in 4 bits has another shape
        r = max((f.r for f in factors.values() if f), default=1)
        lora_a = torch.zeros(len(factors) + 1, r, d_in)
        lora_b = torch.zeros(len(factors) + 1, d_out, r)
        for number, (name, f) in enumerate(factors.items(), 1):
            if not f:
                continue
            if f.A.shape[1] != d_in or len(f.B) != d_out:
                raise ValueError(
                    f"the adapter {name!r} corrects a weight of shape {(len(f.B), f.A.shape[1])}, and this layer's is "
                    f"{(d_out, d_in)}: it belongs to another base"
                )
            lora_a[number, : f.r] = f.A
            lora_b[number, :, : f.r] = f.scaling * f.B
        dtype = torch.float32 if is_quantized(base_layer) else base_layer.weight.dtype
        where = {"device": base_layer.weight.device, "dtype": dtype}
        self.base_layer = base_layer.requires_grad_(False)
        self.register_buffer("lora_A", lora_a.to(**where), persistent=False)
        self.register_buffer("lora_B", lora_b.to(**where), persistent=False)
        self.index: Tensor | None = None

    def forward(self, x: Float[Tensor, "batch *length d_in"]) -> Float[Tensor, "batch *length d_out"]:
        y = self.base_layer(x)
        if self.index is None:
            return y
        if len(x) != len(self.index):
            raise ValueError(
                f"the batch has {len(x)} rows and {len(self.index)} adapter names were given: name one for each row "
                f"({BASE!r} for none). Beam search makes several rows of one prompt"
            )
        correction = gathered_correction(x.to(self.lora_A.dtype), self.lora_A, self.lora_B, self.index)
        return y + correction.to(y.dtype)

    def extra_repr(self) -> str:
        return f"adapters={len(self.lora_A) - 1}, r={self.lora_A.shape[1]}"


def gathered_correction(
    x: Float[Tensor, "batch *length d_in"],
    lora_A: Float[Tensor, "n r d_in"],
    lora_B: Float[Tensor, "n d_out r"],
    index: Int[Tensor, " batch"],
) -> Float[Tensor, "batch *length d_out"]:
    """``lora_B[i] @ lora_A[i] @ x`` for every row, with the row's own number `i` from `index`."""
    low = torch.einsum("b...i,bri->b...r", x, lora_A[index])
    return torch.einsum("b...r,bor->b...o", low, lora_B[index])


def multi_layers(model: nn.Module) -> dict[str, MultiLoRALinear]:
    """The model's layers with stacked adapters by name, empty when it has none."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MultiLoRALinear)}


def stack_adapters(model: nn.Module, adapters: Mapping[str, Adapter]) -> list[str]:
    """Put `adapters` on the base `model`, in place, and return the names of the layers that were wrapped.

    Raises RuntimeError when the model has adapters already; ValueError when there are no adapters, one is called
    :data:`BASE`, or one has factors for a layer that the model doesn't have or of another shape. The model is changed
    only when everything fits.
    """
    if multi_layers(model):
        raise RuntimeError("this model has stacked adapters already: call unstack_adapters(model) first")
    refuse_second(model)
    if not adapters:
        raise ValueError("there are no adapters to stack: pass at least one name: adapter")
    if BASE in adapters:
        raise ValueError(f"{BASE!r} is the name of the base itself: call the adapter something else")
    modules = dict(model.named_modules())
    targets = {layer: None for adapter in adapters.values() for layer in adapter}
    bases: dict[str, nn.Linear] = {}
    for layer in targets:
        base = modules.get(layer)
        if not isinstance(base, nn.Linear):
            owner = next(name for name, adapter in adapters.items() if layer in adapter)
            raise ValueError(
                f"the adapter {owner!r} corrects {layer}, and this model has no such linear layer: it belongs to "
                "another base"
            )
        bases[layer] = base
    wrapped = {
        layer: MultiLoRALinear(base, {name: adapter.get(layer) for name, adapter in adapters.items()})
        for layer, base in bases.items()
    }
    model.requires_grad_(False)
    for layer, module in wrapped.items():
        model.set_submodule(layer, module)
    cast(Any, model).stacked_adapters = [BASE, *adapters]
    return list(wrapped)


def unstack_adapters(model: nn.Module) -> None:
    """Put the base layers back in their places and forget the adapters. Raises RuntimeError when there are none."""
    layers = multi_layers(model)
    if not layers:
        raise RuntimeError("this model has no stacked adapters: call stack_adapters first")
    for name, layer in layers.items():
        model.set_submodule(name, layer.base_layer)
    del cast(Any, model).stacked_adapters


@contextmanager
def route(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Inside the block row `i` of every batch takes the adapter ``names[i]``; `"__base__"` takes none.

    Raises RuntimeError when the model has no stacked adapters, TypeError when `names` is one text instead of a list,
    and ValueError for no names or an unknown one; a batch of another size than `names` is refused in the forward pass,
    with ValueError.
    """
    layers = multi_layers(model)
    if not layers:
        raise RuntimeError("this model has no stacked adapters: call stack_adapters first")
    if isinstance(names, str):
        raise TypeError(f"names is a list with a name for each row of the batch, not the text {names!r}")
    known: list[str] = cast(Any, model).stacked_adapters
    if not len(names):
        raise ValueError("there are no names: give one for each row of the batch")
    if unknown := [name for name in names if name not in known]:
        near = difflib.get_close_matches(str(unknown[0]), known, n=1)
        raise ValueError(
            f"there is no adapter {unknown[0]!r}"
            + (f"; did you mean {near[0]!r}?" if near else "")
            + f" This model has {', '.join(known)}"
        )
    numbers = torch.tensor([known.index(name) for name in names])
    before = [layer.index for layer in layers.values()]
    for layer in layers.values():
        layer.index = numbers.to(layer.lora_A.device)
    try:
        yield
    finally:
        for layer, index in zip(layers.values(), before, strict=True):
            layer.index = index
