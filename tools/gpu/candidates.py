"""Ways to compute a LoRA layer, for :mod:`gpu.layer`: the same function, with other operations in another order.

Each is a pair of functions over x (n, in), W (out, in), A (r, in), B (out, r) and the scaling `s`, all in one dtype:
``forward(x, W, A, B, s) -> y, h`` with ``h = s x A^T`` and ``backward(g, x, W, A, B, h, s) -> dx, dA, dB``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from utils.fast_lora import gradient_product, scaled_product
from utils.lora import LoRALinear

F32 = torch.float32


class Way(NamedTuple):
    """A pair of functions."""

    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


def forward_after(x, W, A, B, s):
    """The large product first, then the small one is added: y is written, read and written."""
    h = scaled_product(x, A.t(), s)
    y = x @ W.t()
    return y.addmm_(h, B.t()), h


def forward_onto(x, W, A, B, s):
    """The small product first; the large one is added onto it by its own epilogue."""
    h = scaled_product(x, A.t(), s)
    return (h @ B.t()).addmm_(x, W.t()), h


def backward_after(g, x, W, A, B, h, s):
    q = scaled_product(g, B, s)
    dB, dA = gradient_product(g.t(), h, F32), gradient_product(q.t(), x, F32)
    return (g @ W).addmm_(q, A), dA, dB


def backward_onto(g, x, W, A, B, h, s):
    q = scaled_product(g, B, s)
    dB, dA = gradient_product(g.t(), h, F32), gradient_product(q.t(), x, F32)
    return (q @ A).addmm_(g, W), dA, dB


def chunked(rows: int) -> Way:
    """`rows` tokens at a time, so that the small product and x are still in the cache when the large one comes."""

    def forward(x, W, A, B, s):
        y, h = x.new_empty(len(x), len(W)), x.new_empty(len(x), len(A))
        for i in range(0, len(x), rows):
            part = slice(i, i + rows)
            torch.addmm(h[part], x[part], A.t(), beta=0, alpha=s, out=h[part])
            torch.mm(h[part], B.t(), out=y[part])
            y[part].addmm_(x[part], W.t())
        return y, h

    def backward(g, x, W, A, B, h, s):
        dx, q = torch.empty_like(x), torch.empty_like(h)
        for i in range(0, len(x), rows):
            part = slice(i, i + rows)
            torch.addmm(q[part], g[part], B, beta=0, alpha=s, out=q[part])
            torch.mm(q[part], A, out=dx[part])
            dx[part].addmm_(g[part], W)
        return dx, gradient_product(q.t(), x, F32), gradient_product(g.t(), h, F32)

    return Way(forward, backward)


_side: list[Any] = []


def backward_beside(g, x, W, A, B, h, s):
    """The two thin gradients on a second stream, beside the large product."""
    if not _side:
        _side.append(torch.cuda.Stream())
    side, main = _side[0], torch.cuda.current_stream()
    q = scaled_product(g, B, s)
    dA, dB = (m.new_empty(m.shape, dtype=F32) for m in (A, B))
    side.wait_stream(main)
    with torch.cuda.stream(side):
        torch.mm(g.t(), h, out_dtype=F32, out=dB)
        torch.mm(q.t(), x, out_dtype=F32, out=dA)
    dx = (q @ A).addmm_(g, W)
    main.wait_stream(side)
    return dx, dA, dB


def thin_ways(**options) -> dict[str, Way]:
    """The same with Triton's thin products: `g` is read once for q and dB."""
    from gpu.triton_lora import thin

    def backward_g(g, x, W, A, B, h, s):
        q, dB = thin(g, B, h, **options)
        q = (q * s).to(g.dtype)
        return (q @ A).addmm_(g, W), gradient_product(q.t(), x, F32), dB

    def backward_all(g, x, W, A, B, h, s):
        q, dB = thin(g, B, h, **options)
        q = (q * s).to(g.dtype)
        _, dA = thin(x, right=q, **options)
        return (q @ A).addmm_(g, W), dA.t(), dB

    def forward(x, W, A, B, s):
        h, _ = thin(x, A.t().contiguous(), **options)
        h = (h * s).to(x.dtype)
        return (h @ B.t()).addmm_(x, W.t()), h

    return {"g": Way(forward_onto, backward_g), "x, g": Way(forward, backward_all)}


def inside_way(**options) -> Way:
    """Triton's large product, which takes the small one in; thin products by cuBLAS, which is told nothing."""
    from gpu.triton_lora import padded, product

    def forward(x, W, A, B, s):
        h = scaled_product(x, A.t(), s)
        return product(x, W, padded(h, x.dtype), padded(B, x.dtype), transposed=True, **options), h

    def backward(g, x, W, A, B, h, s):
        q = scaled_product(g, B, s)
        dB, dA = gradient_product(g.t(), h, F32), gradient_product(q.t(), x, F32)
        return product(g, W, padded(q, g.dtype), padded(A.t(), g.dtype), transposed=False, **options), dA, dB

    return Way(forward, backward)


class _Computed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, W, A, B, s, way):
        rows, a, b = x.reshape(-1, x.shape[-1]), A.to(x.dtype), B.to(x.dtype)
        y, h = way.forward(rows, W, a, b, s)
        ctx.save_for_backward(x, W, a, b, h)
        ctx.way, ctx.s = way, s
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):
        x, W, a, b, h = ctx.saved_tensors
        rows, g = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        dx, dA, dB = ctx.way.backward(g, rows, W, a, b, h, ctx.s)
        return dx.view(x.shape), None, dA, dB, None, None


class CandidateLinear(LoRALinear):
    """A LoRALinear that computes in the `way` it is given."""

    way: Way

    def forward(self, x: Tensor) -> Tensor:
        return _Computed.apply(x, self.base_layer.weight, self.lora_A, self.lora_B, self.scaling, self.way)


def candidate(base: nn.Linear, r: int, alpha: float, way: Way) -> CandidateLinear:
    layer = CandidateLinear(base, r, alpha)
    layer.way = way
    return layer


def ways(*, trial: bool, r: int) -> dict[str, Way]:
    """The candidates by name; with `trial` only those that a CPU can run."""
    found = {
        "added after": Way(forward_after, backward_after),
        "added onto": Way(forward_onto, backward_onto),
        "onto after": Way(forward_onto, backward_after),
        "chunks of 2048": chunked(2048),
        "chunks of 4096": chunked(4096),
    }
    if trial:
        return found
    found["onto, beside"] = Way(forward_onto, backward_beside)
    for name, way in thin_ways().items():
        found[f"onto, thin {name}"] = way
    wide = {"rows": 256, "columns": 64, "spans": 4, "warps": 8}
    found["onto, thin wide"] = thin_ways(**wide)["x, g"]
    inside = inside_way(flat=r <= 16)
    found["inside"] = inside
    thin = thin_ways()["x, g"]
    found["inside 128"] = inside_way(columns=128, warps=4, stages=4)

    def backward_inside_thin(g, x, W, A, B, h, s):
        from gpu.triton_lora import padded, product
        from gpu.triton_lora import thin as thin_products

        q, dB = thin_products(g, B, h)
        q = (q * s).to(g.dtype)
        _, dA = thin_products(x, right=q)
        dx = product(g, W, padded(q, g.dtype), padded(A.t(), g.dtype), transposed=False, flat=r <= 16)
        return dx, dA.t(), dB

    found["inside, thin"] = Way(inside.forward, backward_inside_thin)
    found["onto, inside back"] = Way(thin.forward, backward_inside_thin)
    return found
