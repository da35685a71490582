"""The LoRA layer of :mod:`utils.lora` with its own backward pass: the same numbers, less memory, fewer trips to memory.

Autograd sees ``y = W x + scaling * B (A x)`` as a chain of small operations and keeps what each of them asks for;
over a 16-bit base with float32 adapters that includes a second copy of ``x``, in float32. Written as one operation
the layer keeps ``x`` itself, which its neighbours keep as well, and ``h = scaling * x A^T``, which is small. With
``n`` tokens, rows of ``x``, and the gradient ``g`` of ``y``:

    forward:  h  = scaling * x A^T     (n, r)        backward:  q  = scaling * g B     (n, r)
              y  = h B^T + x W^T       (n, out)                 dB = g^T h             (out, r)
                                                                dA = q^T x             (r, in)
                                                                dx = q A + g W         (n, in)

The order of the two sums matters: the small product is written first, and the large one is *added onto it* by the
matrix product itself (``addmm_``), so that no separate addition reads and writes the result once more. Unsloth's layer
(https://github.com/unslothai/unsloth, ``kernels/fast_lora.py``) writes LoRA as one operation, too, and adds afterwards.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from utils.lora import LoRALinear, lora_layers

SUMS_IN_FLOAT32 = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)
"""Whether this torch's ``mm`` has `out_dtype`."""


def scaled_product(left: Float[Tensor, "n k"], right: Float[Tensor, "k m"], scale: float) -> Float[Tensor, "n m"]:
    """``scale * left @ right`` in one operation: the product multiplies by `scale` before it rounds."""
    out = left.new_empty(left.shape[0], right.shape[1])
    return torch.addmm(out, left, right, beta=0, alpha=scale, out=out)


def gradient_product(left: Float[Tensor, "k n"], right: Float[Tensor, "n m"], dtype: torch.dtype) -> Tensor:
    """``left @ right`` in `dtype`. A GPU sums 16-bit products in float32 and can give that sum away unrounded."""
    if SUMS_IN_FLOAT32 and left.is_cuda and dtype == torch.float32 and left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).to(dtype)


def dense_weight(base_layer: nn.Linear, dtype: torch.dtype) -> Float[Tensor, "d_out d_in"]:
    """The layer's weight in `dtype`: itself where it has that dtype, else a temporary copy; 4 bits are dequantized."""
    weight = base_layer.weight
    if (state := getattr(weight, "quant_state", None)) is not None:
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(weight.data, state)
    return weight.detach().to(dtype)


def _autocasts(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _in_given_dtypes(device: str) -> AbstractContextManager[Any]:
    """Autocast off, where it is on: every product below has its dtypes by now."""
    return torch.autocast(device, enabled=False) if _autocasts(device) else nullcontext()


class _LoRAProduct(torch.autograd.Function):
    """The whole layer as one operation. `x` has the dtype to compute in; the adapters may be in a wider one."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lora_A: Tensor, lora_B: Tensor, base_layer: nn.Linear, scaling: float, dropout: float
    ) -> Tensor:
        for_x, for_a, for_b = ctx.needs_input_grad[:3]
        rows = x.reshape(-1, x.shape[-1])
        a, b = lora_A.to(x.dtype), lora_B.to(x.dtype)
        weight, bias = dense_weight(base_layer, x.dtype), base_layer.bias
        with _in_given_dtypes(x.device.type):
            seen, mask = torch.native_dropout(rows, dropout, True) if dropout else (rows, None)
            h = scaled_product(seen, a.t(), scaling)
            y = h @ b.t() if bias is None else torch.addmm(bias.to(x.dtype), h, b.t())
            y.addmm_(rows, weight.t())
        in_4_bits = hasattr(base_layer.weight, "quant_state")
        ctx.save_for_backward(
            x if for_a else None,
            a if for_x else None,
            b if for_x or for_a else None,
            h if for_b else None,
            mask if for_x or for_a else None,
            base_layer.weight if for_x and not in_4_bits else None,  # so that autograd notices a change in between
        )
        ctx.base_layer, ctx.scaling, ctx.dropout = base_layer, scaling, dropout
        ctx.shape, ctx.dtypes = x.shape, (lora_A.dtype, lora_B.dtype)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "FastLoRALinear has a first derivative only, and create_graph=True asks for a second: "
                "call use_plain(model) first"
            )
        for_x, for_a, for_b = ctx.needs_input_grad[:3]
        x, a, b, h, mask, _ = ctx.saved_tensors
        g = grad.reshape(-1, grad.shape[-1])
        keep = 1 / (1 - ctx.dropout)
        dx = da = db = None
        with _in_given_dtypes(g.device.type):
            q = scaled_product(g, b, ctx.scaling) if for_x or for_a else None
            if for_b:
                db = gradient_product(g.t(), h, ctx.dtypes[1])
            if for_a:
                rows = x.reshape(-1, x.shape[-1])
                seen = rows if mask is None else (rows * mask).mul_(keep)
                da = gradient_product(q.t(), seen, ctx.dtypes[0])
            if for_x:
                dx = q @ a
                if mask is not None:
                    dx.mul_(mask).mul_(keep)
                dx.addmm_(g, dense_weight(ctx.base_layer, g.dtype))
                dx = dx.view(ctx.shape)
        return dx, da, db, None, None, None


class FastLoRALinear(LoRALinear):
    """:class:`utils.lora.LoRALinear` computed as one operation: same parameters, names and state dict, same results up
    to rounding.

    - Autograd keeps `x`, once and in the dtype in which the layer computes, and the small `h` (n, r). What no gradient
      asks for isn't kept, and isn't computed: no `dx` where the input needs none, no `dA` of a frozen `lora_A`.
    - float32 adapters over a 16-bit base are rounded to 16 bits for the products, once in the forward pass; PEFT and
      the plain layer convert `x` to float32 instead. Their gradients come in float32.
    - Under autocast it computes in autocast's dtype, as a linear layer does.
    - A base in 4 bits (bitsandbytes) is dequantized in the forward pass and again in the backward pass, and never kept.
    - Dropout keeps a mask, one byte for each number of `x`, and drops again in the backward pass.
    - A second derivative is refused with a RuntimeError.

    Where the one operation would leave something out, the plain layer computes: see :meth:`falls_back`.
    """

    def falls_back(self) -> str | None:
        """Why the plain layer has to compute, or None: the base trains, or hooks wait for its call, or it is of a type
        whose forward pass isn't known here.
        """
        base = self.base_layer
        if base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
            return "the base layer trains, and the one operation has no gradient for it"
        if base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks:
            return "the base layer has hooks, which only its own call runs"
        if type(base) is not nn.Linear and not hasattr(base.weight, "quant_state"):
            return f"a {type(base).__name__} may compute something else than a linear layer"
        return None

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        base = self.base_layer
        if self.merged or not self.enabled:
            return base(x)
        if self.falls_back():
            return super().forward(x)
        if x.shape[-1] != base.in_features:
            raise ValueError(
                f"the layer takes {base.in_features} numbers, and the input's last dimension is {x.shape[-1]}"
            )
        dtype, device = x.dtype, x.device.type
        in_4_bits = hasattr(base.weight, "quant_state")
        if dtype != torch.float64 and _autocasts(device):
            dtype = torch.get_autocast_dtype(device)
        elif in_4_bits:
            dtype = base.compute_dtype or dtype
        elif dtype != base.weight.dtype:
            raise TypeError(
                f"the input is {dtype} and the base weight {base.weight.dtype}: convert one of them, or use autocast"
            )
        dropout = self.lora_dropout.p if self.training else 0.0
        y = _LoRAProduct.apply(x.to(dtype), self.lora_A, self.lora_B, base, self.scaling, dropout)
        return y.to(x.dtype) if in_4_bits and not _autocasts(device) else y


def use_fast(model: nn.Module) -> list[str]:
    """Let every LoRA layer of the model compute as one operation, in place, and return their names.

    Parameters stay the same objects, so an optimizer that holds them goes on. Raises RuntimeError when there is none.
    """
    return _exchange(model, FastLoRALinear)


def use_plain(model: nn.Module) -> list[str]:
    """The reverse of :func:`use_fast`."""
    return _exchange(model, LoRALinear)


def _exchange(model: nn.Module, kind: type[LoRALinear]) -> list[str]:
    layers = lora_layers(model)
    if not layers:
        raise RuntimeError("this model has no LoRA layers: call inject or load_adapter first")
    for layer in layers.values():
        layer.__class__ = kind  # it holds the same things; only what it does with them differs
    return list(layers)
