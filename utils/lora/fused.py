"""The fused form of :func:`utils.lora.layer.plain`, held equal to it and to PEFT by tests/lora/test_fused.py.

The same numbers with a backward pass of its own: less memory, fewer trips to memory.
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

Attributes:
    SUMS_IN_FLOAT32: Whether this torch's ``mm`` has `out_dtype`.
    SHARE: The layers of a Llama's block that read one `x`, in the order in which they are called.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from utils.lora.layer import LoRALinear, own_layers, plain
from utils.lora.nf4_linear import dense_weight

SUMS_IN_FLOAT32 = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)


@functools.cache
def _nothing(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.empty(1, device=device, dtype=dtype)  # added with the factor 0, which means: not looked at


def scaled_product(left: Float[Tensor, "n k"], right: Float[Tensor, "k m"], scale: float) -> Float[Tensor, "n m"]:
    """``scale * left @ right`` in one operation: the product multiplies by `scale` before it rounds."""
    return torch.addmm(_nothing(left.device, left.dtype), left, right, beta=0, alpha=scale)


def gradient_product(left: Float[Tensor, "k n"], right: Float[Tensor, "n m"], dtype: torch.dtype) -> Tensor:
    """``left @ right`` in `dtype`. A GPU sums 16-bit products in float32 and can give that sum away unrounded."""
    if SUMS_IN_FLOAT32 and left.is_cuda and dtype == torch.float32 and left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).to(dtype)


def _autocasts(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _in_given_dtypes(device: str) -> AbstractContextManager[Any]:
    """Autocast off, where it is on: every product below has its dtypes by now."""
    return torch.autocast(device, enabled=False) if _autocasts(device) else nullcontext()


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])


class _OneProduct(torch.autograd.Function):
    """One layer over a dense base, without dropout: the common case, and the one in which every line of Python counts.

    Small products wait for the processor that launches them, so nothing here is asked that the caller knows already.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lora_A: Tensor, lora_B: Tensor, weight: Tensor, bias: Tensor | None, scaling: float
    ) -> Tensor:
        for_x, for_a, for_b, *_ = ctx.needs_input_grad
        rows, dtype = x.reshape(-1, x.shape[-1]), x.dtype
        a, b = lora_A.to(dtype), lora_B.to(dtype)
        h = torch.addmm(_nothing(x.device, dtype), rows, a.t(), beta=0, alpha=scaling)
        y = F.linear(h, b, bias)
        y.addmm_(rows, weight.t())
        ctx.save_for_backward(
            x if for_a else None, a if for_x else None, b if for_x or for_a else None, h if for_b else None,
            weight if for_x else None,
        )  # fmt: skip
        ctx.scaling, ctx.dtypes = scaling, (lora_A.dtype, lora_B.dtype)
        return y.view(*x.shape[:-1], y.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        for_x, for_a, for_b, *_ = ctx.needs_input_grad
        x, a, b, h, weight = ctx.saved_tensors
        dx = da = db = None
        with _in_given_dtypes(grad.device.type):
            g = grad.reshape(-1, grad.shape[-1])
            if for_b:
                db = gradient_product(g.t(), h, ctx.dtypes[1])
            if for_x or for_a:
                q = torch.addmm(_nothing(g.device, g.dtype), g, b, beta=0, alpha=ctx.scaling)
            if for_a:
                da = gradient_product(q.t(), x.reshape(-1, x.shape[-1]), ctx.dtypes[0])
            if for_x:
                dx = (q @ a).addmm_(g, weight).view(*grad.shape[:-1], a.shape[1])
        return dx, da, db, None, None, None


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the fused form has a first derivative only, and create_graph=True asks for a second: set every layer's "
            "compute to utils.lora.layer.plain first"
        )


class _LoRAProduct(torch.autograd.Function):
    """Several layers that read one `x`, or a single one, as one operation: an output for each.

    `x` has the dtype to compute in; the adapters may be in a wider one. `factors` holds lora_A of every layer, then
    lora_B of every layer; all have the same rank, scaling and dropout. The layers' `h` lie side by side in one matrix
    (n, layers * r), for which `x` is read once.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bases: Sequence[nn.Linear], scaling: float, dropout: float, *factors: Tensor
    ) -> tuple[Tensor, ...]:
        count, dtype = len(bases), x.dtype
        needs = ctx.needs_input_grad
        for_x, for_a, for_b = needs[0], True in needs[4 : 4 + count], True in needs[4 + count :]
        shape, rows, outputs = x.shape, _rows(x), []
        a = (factors[0] if count == 1 else torch.cat(factors[:count])).to(dtype)
        b = [factor.to(dtype) for factor in factors[count:]]
        with _in_given_dtypes(x.device.type):
            seen, mask = torch.native_dropout(rows, dropout, True) if dropout else (rows, None)
            h = scaled_product(seen, a.t(), scaling)
            parts = h.chunk(count, dim=1) if count > 1 else (h,)
            for base, factor, part in zip(bases, b, parts, strict=True):
                y = F.linear(part, factor, None if base.bias is None else base.bias.to(dtype))
                y.addmm_(rows, dense_weight(base, dtype).t())
                outputs.append(y if len(shape) == 2 else y.view(*shape[:-1], y.shape[-1]))
        stored = [base.weight for base in bases if type(base) is nn.Linear] if for_x else ()
        ctx.save_for_backward(
            x if for_a else None,
            a if for_x else None,
            h if for_b else None,
            mask if for_x or for_a else None,
            *(b if for_x or for_a else (None,) * count),
            *stored,  # so that autograd notices a weight that was changed in between
        )
        ctx.bases, ctx.scaling, ctx.dropout = bases, scaling, dropout
        ctx.shape, ctx.dtypes = shape, [factor.dtype for factor in factors]
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        count, needs = len(ctx.bases), ctx.needs_input_grad
        for_x, for_a = needs[0], True in needs[4 : 4 + count]
        x, a, h, mask, *b = ctx.saved_tensors
        keep = 1 / (1 - ctx.dropout)
        da: Sequence[Tensor | None] = [None] * count
        db: list[Tensor | None] = [None] * count
        dx = None
        first = next((grad for grad in grads if grad is not None), None)
        if first is None:
            return (None,) * (4 + 2 * count)
        with _in_given_dtypes(first.device.type):
            g = [None if grad is None else _rows(grad) for grad in grads]
            if for_x or for_a:
                parts = [
                    first.new_zeros(len(_rows(first)), b[i].shape[1]) if grad is None
                    else scaled_product(grad, b[i], ctx.scaling)
                    for i, grad in enumerate(g)
                ]  # fmt: skip
                q = parts[0] if count == 1 else torch.cat(parts, dim=1)
            thin = () if h is None else (h,) if count == 1 else h.chunk(count, dim=1)
            for i, grad in enumerate(g):
                if needs[4 + count + i] and grad is not None:
                    db[i] = gradient_product(grad.t(), thin[i], ctx.dtypes[count + i])
            if for_a:
                rows = _rows(x)
                seen = rows if mask is None else (rows * mask).mul_(keep)
                whole = gradient_product(q.t(), seen, ctx.dtypes[0])
                da = [whole] if count == 1 else whole.chunk(count)
            if for_x:
                dx = q @ a
                if mask is not None:
                    dx.mul_(mask).mul_(keep)
                for base, grad in zip(ctx.bases, g, strict=True):
                    if grad is not None:
                        dx.addmm_(grad, dense_weight(base, grad.dtype))
                dx = dx if len(ctx.shape) == 2 else dx.view(ctx.shape)
        wanted = (factor if need else None for factor, need in zip((*da, *db), needs[4:], strict=True))
        return dx, None, None, None, *wanted


def one_operation(layer: LoRALinear, x: Float[Tensor, "*batch d_in"]) -> Tensor:
    """A layer's output as one operation: a `compute` of :class:`utils.lora.layer.LoRALinear`, with the results of
    :func:`utils.lora.layer.plain` up to rounding.

    - Autograd keeps `x`, once and in the dtype in which the layer computes, and the small `h` (n, r). What no gradient
      asks for isn't kept, and isn't computed: no `dx` where the input needs none, no `dA` of a frozen `lora_A`.
    - float32 adapters over a 16-bit base are rounded to 16 bits for the products, once in the forward pass; PEFT and
      the plain form convert `x` to float32 instead. Their gradients come in float32.
    - Under autocast it computes in autocast's dtype, as a linear layer does.
    - A base in 4 bits (bitsandbytes) is dequantized in the forward pass and again in the backward pass, and never kept.
    - Dropout keeps a mask, one byte for each number of `x`, and drops again in the backward pass.
    - A second derivative is refused with a RuntimeError.

    Where the one operation would leave something out, the plain form computes: see :func:`falls_back`.
    """
    return plain(layer, x) if falls_back(layer) else product_of([layer], x)[0]


def falls_back(layer: LoRALinear) -> str | None:
    """Why the plain form has to compute, or None: the base trains, or hooks wait for its call, or it is of a type whose
    forward pass isn't known here.
    """
    base = layer.base_layer
    own = base._parameters  # as base.weight and base.bias, without the search that makes them slow
    weight, bias = own["weight"], own["bias"]
    if (weight is not None and weight.requires_grad) or (bias is not None and bias.requires_grad):
        return "the base layer trains, and the one operation has no gradient for it"
    if base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks:
        return "the base layer has hooks, which only its own call runs"
    if type(base) is not nn.Linear and not hasattr(weight, "quant_state"):
        return f"a {type(base).__name__} may compute something else than a linear layer"
    return None


def product_of(layers: Sequence[LoRALinear], x: Float[Tensor, "*batch d_in"]) -> tuple[Tensor, ...]:
    """The outputs of layers that read one `x`, computed as one operation.

    The layers have the same rank, scaling and dropout, and bases of the same dtype. Raises ValueError for an input of
    another size, TypeError for one of another dtype than the base's, where autocast is off.
    """
    base, device, dtype = layers[0].base_layer, x.device.type, x.dtype
    autocasts, in_4_bits = _autocasts(device), type(base) is not nn.Linear
    if x.shape[-1] != base.in_features:
        raise ValueError(f"the layer takes {base.in_features} numbers, and the input's last dimension is {x.shape[-1]}")
    if autocasts and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    elif in_4_bits:
        dtype = cast(Any, base).compute_dtype or dtype
    elif dtype != base.weight.dtype:
        raise TypeError(
            f"the input is {dtype} and the base weight {base.weight.dtype}: convert one of them, or use autocast"
        )
    dropout = layers[0].lora_dropout.p if layers[0].training else 0.0
    if len(layers) == 1 and not (in_4_bits or autocasts or dropout):
        (layer,) = layers
        return (_OneProduct.apply(x, layer.lora_A, layer.lora_B, base.weight, base.bias, layer.scaling),)
    bases = [layer.base_layer for layer in layers]
    factors = [layer.lora_A for layer in layers] + [layer.lora_B for layer in layers]
    given = x if dtype == x.dtype else x.to(dtype)
    outputs = _LoRAProduct.apply(given, bases, layers[0].scaling, dropout, *factors)
    return tuple(y.to(x.dtype) for y in outputs) if in_4_bits and not autocasts else outputs


class SharedInput:
    """Layers that a model calls one after the other with one `x`, such as q_proj, k_proj and v_proj: their `compute`.

    The first of them that is called computes for all, and the others hand out what is there. What is there belongs to
    that very `x`: it goes when `x` does, at the first call that doesn't fit, and is in no copy of the model. Another
    `x`, or layers that can't be computed together at the moment, and each computes alone.
    """

    def __init__(self, layers: Sequence[LoRALinear]) -> None:
        self.layers = list(layers)
        self._forget()

    def _forget(self, _: Any = None) -> None:
        self.x: weakref.ref[Tensor] | None = None
        self.version = 0
        self.waiting: dict[LoRALinear, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"layers": self.layers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["layers"])

    def together(self) -> bool:
        """Whether one operation can compute all of them now."""
        kinds = set()
        for layer in self.layers:
            if layer.merged or not layer.enabled or layer.compute is not self or falls_back(layer):
                return False
            a = layer.lora_A
            kinds.add((layer.r, layer.scaling, layer.lora_dropout.p, layer.training, a.dtype, a.requires_grad))
        return len(kinds) == 1

    def __call__(self, layer: LoRALinear, x: Float[Tensor, "*batch d_in"]) -> Tensor:
        if x.is_inference():  # such a tensor can't tell whether it was changed in between
            return one_operation(layer, x)
        if layer in self.waiting and self.x is not None and self.x() is x and x._version == self.version:
            return self.waiting.pop(layer)
        self._forget()
        if layer is not self.layers[0] or not self.together():
            return one_operation(layer, x)
        first, *others = product_of(self.layers, x)
        self.x, self.version = weakref.ref(x, self._forget), x._version
        self.waiting = dict(zip(self.layers[1:], others, strict=True))
        return first


SHARE = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def use_fused(model: nn.Module, *, share: Sequence[Sequence[str]] = ()) -> list[str]:
    """Let every LoRA layer of the model, which may be a layer itself, compute as one operation, and return their names.

    Nothing else about the layers changes: an optimizer that holds their parameters goes on, and the model is merged and
    saved as ever. `share`, such as :data:`SHARE`, names layers of one parent that the model calls in this order with
    one `x`; where all of them have LoRA, they are computed together. Raises RuntimeError when there is no LoRA, and
    TypeError when a layer is of another class, or its variant computes something else than plain LoRA's product;
    nothing is changed then.
    """
    layers = own_layers(model, "computes in its own way: inject the library's layer, without layer=..., to fuse it")
    for name, layer in layers.items():
        if not layer.variant.is_product:
            raise TypeError(
                f"{name or 'this layer'} is {type(layer.variant).__name__}, and the fused form knows only corrections "
                "scaling * B A x (LoRA, LoRA+, rsLoRA, PiSSA): leave the model in the plain form"
            )
    for layer in layers.values():
        layer.compute = one_operation
    for parent in model.modules():
        for group in share:
            named = (getattr(parent, name, None) for name in group)
            members = [member for member in named if isinstance(member, LoRALinear)]
            if len(members) == len(group):
                together = SharedInput(members)
                for member in members:
                    member.compute = together
    return list(layers)
