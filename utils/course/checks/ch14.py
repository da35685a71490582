"""Chapter 14's exercises: a layer's arithmetic, a product's shortest time, the backward pass, the bytes kept."""

from __future__ import annotations

from functools import partial
from operator import itemgetter

import torch
from torch import Tensor

from utils.course.checks.registry import Mistake, exercise


def _variation(function, message: str, **how) -> Mistake:
    """The mistake of whoever computes what `function` gives with `how` instead of its defaults."""
    return Mistake(partial(function, **how), message)


# ----------------------------------------------------------------------------------------------------- the arithmetic


def _flops(n: int, d_in: int, d_out: int, r: int, *, pair: int = 2, base: int = 2, thin: int = 3) -> tuple[int, int]:
    return pair * base * n * d_in * d_out, pair * thin * n * r * (d_in + d_out)


exercise(
    "layer_flops",
    reference=_flops,
    cases=[(8192, 4096, 4096, 16), (100, 30, 20, 2), (512, 4096, 11008, 8)],
    mistakes=[
        _variation(_flops, "each step of a product is a multiplication and an addition: two operations.", pair=1),
        _variation(
            _flops, "the frozen weight has no gradient: the base computes y and dx, two products and not three.", base=3
        ),
        _variation(
            _flops, "that is the forward pass alone; the backward pass has products of its own.", base=1, thin=1
        ),
        _variation(
            _flops,
            "two of the six thin products are missing: the gradients of A and of B train, so they are computed.",
            thin=2,
        ),
        Mistake(
            lambda n, d_in, d_out, r: (4 * n * d_in * d_out, 4 * n * d_in * d_out + 6 * n * r * (d_in + d_out)),
            "the second number is what LoRA adds, without the base.",
        ),
        _variation(
            _flops, "your LoRA has its two forward products only; four more follow in the backward pass.", thin=1
        ),
        _variation(
            _flops,
            "the frozen layer computes a second product on the way back: dx = g W, which the layers below need.",
            base=1,
        ),
    ],
    hints=[
        "A product of (n, k) and (k, m) is 2 * n * k * m operations.",
        "The base: y = x W^T and dx = g W, both 2 * n * d_in * d_out.",
        "LoRA: x A^T, h B^T, g B, q A, g^T h and q^T x. Three of them have d_in in them and three d_out.",
    ],
)

# ------------------------------------------------------------------------------------------- a product's shortest time


def _time(n, k, m, flops, memory, *, ops=2, size=2, out=True, decide=max):
    moved = size * (n * k + k * m + (n * m if out else 0))
    return decide(ops * n * k * m / flops, moved / memory)


exercise(
    "product_time",
    reference=_time,
    cases=[(8192, 4096, 4096, 8e14, 3e12), (8192, 4096, 16, 8e14, 3e12), (8192, 16, 64, 8e14, 3e12), (9, 9, 9, 1, 1)],
    mistakes=[
        _variation(
            _time,
            "arithmetic and memory work at the same time: the slower one decides, not the sum.",
            decide=lambda a, b: a + b,
        ),
        _variation(_time, "both have to be done: the slower one decides.", decide=min),
        _variation(_time, "you counted numbers; in 16 bits each of them is two bytes.", size=1),
        _variation(_time, "that is four bytes a number; 16 bits are two.", size=4),
        _variation(_time, "the result has to be written, too: n * m numbers.", out=False),
        _variation(_time, "a multiplication and an addition are two operations.", ops=1),
        _variation(
            _time,
            "twice too short: a number has two bytes, and a multiplication with its addition is two operations.",
            ops=1,
            size=1,
        ),
        _variation(_time, "memory counts bytes, and you counted bits: 16 bits are two bytes.", size=16),
        Mistake(
            lambda n, k, m, flops, memory: 1e6 * _time(n, k, m, flops, memory),
            "those are microseconds; return seconds.",
        ),
    ],
    hints=[
        "Operations: 2 * n * k * m. Numbers that move: n * k, k * m and n * m.",
        "max(operations / flops, bytes / memory)",
    ],
)

# ------------------------------------------------------------------------------------------------- the backward pass


def _backward(g: Tensor, x: Tensor, W: Tensor, A: Tensor, B: Tensor, s: float) -> tuple[Tensor, Tensor, Tensor]:
    q = s * g @ B
    return g @ W + q @ A, q.T @ x, g.T @ (s * x @ A.T)


def _layer(n: int, d_in: int, d_out: int, r: int, s: float):
    def make():
        shapes = (n, d_out), (n, d_in), (d_out, d_in), (r, d_in), (d_out, r)
        return *(torch.randn(shape) for shape in shapes), s

    return make


exercise(
    "lora_backward",
    reference=_backward,
    cases=[_layer(7, 6, 5, 2, 2.0), _layer(3, 4, 8, 3, 0.5), _layer(1, 5, 5, 1, 4.0)],
    mistakes=[
        Mistake(
            lambda g, x, W, A, B, s: _backward(g, x, W, A, B, 1.0),
            "the scaling is missing: it is in dx, in dA and in dB, once in each.",
        ),
        Mistake(
            lambda g, x, W, A, B, s: (g @ W, *_backward(g, x, W, A, B, s)[1:]),
            "x reaches the output on two paths: dx lacks the one through A and B.",
        ),
        Mistake(
            lambda g, x, W, A, B, s: (s * g @ B @ A, *_backward(g, x, W, A, B, s)[1:]),
            "x reaches the output on two paths: dx lacks the one through W.",
        ),
        Mistake(
            lambda g, x, W, A, B, s: (_backward(g, x, W, A, B, s)[0], *_backward(g, x, W, A, B, 1.0)[1:]),
            "dx is right, and dA and dB lack the scaling: the forward pass has it, so each gradient has it once.",
        ),
        Mistake(
            lambda g, x, W, A, B, s: (g @ W + s * g @ B @ A, x.T @ (s * g @ B), (s * x @ A.T).T @ g),
            "dA and dB are transposed: a gradient has its parameter's shape, (r, d_in) and (d_out, r).",
        ),
        Mistake(
            lambda g, x, W, A, B, s: itemgetter(0, 2, 1)(_backward(g, x, W, A, B, s)),
            "dA and dB are exchanged: first the gradient of A, then that of B.",
        ),
        Mistake(
            lambda g, x, W, A, B, s: (g @ W, *_backward(g, x, W, A, B, 1.0)[1:]),
            "two things: dx lacks the path through A and B, and dA and dB lack the scaling.",
        ),
        Mistake(
            lambda g, x, W, A, B, s: (*_backward(g, x, W, A, B, s)[:2], _backward(g, x, W, A, B, 1.0)[2]),
            "dx and dA are right, and dB lacks the scaling: y holds scaling * (x A^T) B^T, so dB does, too.",
        ),
        Mistake(
            lambda g, x, W, A, B, s: (g @ W + s * s * g @ B @ A, s * (s * g @ B).T @ x, g.T @ (s * x @ A.T)),
            "the scaling is in dx and dA twice: if q has it, don't multiply by it again.",
        ),
        Mistake(
            lambda g, x, W, A, B, s: itemgetter(1, 2, 0)(_backward(g, x, W, A, B, s)),
            "the order is the gradient of x, then that of A, then that of B.",
        ),
    ],
    hints=[
        "q = s * g @ B is needed twice: (n, r), the gradient that reaches A's output.",
        "dx = g @ W + q @ A, since x goes through W and through A.",
        "dA = q.T @ x, and dB = g.T @ h with the h = s * x @ A.T of the forward pass.",
    ],
    points=3,
)

# ---------------------------------------------------------------------------------------------------- what is kept


def _kept(n: int, d_in: int, d_out: int, r: int) -> tuple[int, int]:
    return 4 * n * d_in + 4 * n * r, 2 * n * d_in + 2 * n * r + 2 * r * (d_in + d_out)


exercise(
    "kept_bytes",
    reference=_kept,
    cases=[(8192, 4096, 4096, 16), (40, 256, 192, 8), (10, 3, 5, 1)],
    mistakes=[
        Mistake(
            lambda n, d_in, d_out, r: (2 * n * d_in + 2 * n * r, _kept(n, d_in, d_out, r)[1]),
            "the plain layer converts x to float32 for its adapters, and keeps that: four bytes a number.",
        ),
        Mistake(
            lambda n, d_in, d_out, r: (4 * n * d_in, 2 * n * d_in + 2 * r * (d_in + d_out)),
            "h is missing: (n, r) numbers, which the gradient of B needs.",
        ),
        Mistake(
            lambda n, d_in, d_out, r: (4 * n * d_in + 4 * n * r, 2 * n * d_in + 2 * n * r),
            "the fast layer's rounded copies of A and B are missing: r * (d_in + d_out) numbers of two bytes.",
        ),
        Mistake(
            lambda n, d_in, d_out, r: (
                _kept(n, d_in, d_out, r)[0] + 4 * n * d_out, _kept(n, d_in, d_out, r)[1] + 2 * n * d_out
            ),
            "no gradient of this layer needs y, so it isn't kept here.",
        ),
        Mistake(
            lambda n, d_in, d_out, r: _kept(n, d_in, d_out, r)[::-1],
            "the two are exchanged: first the plain layer, then the fast one.",
        ),
        Mistake(
            lambda n, d_in, d_out, r: (4 * n * d_in, 2 * n * d_in),
            "that is x alone. Both keep h as well, (n, r), and the fast layer its rounded A and B.",
        ),
        Mistake(
            lambda n, d_in, d_out, r: (
                _kept(n, d_in, d_out, r)[0] + 4 * r * (d_in + d_out), _kept(n, d_in, d_out, r)[1]
            ),
            "the plain layer's A and B are parameters, which are there anyway: they don't count.",
        ),
        Mistake(
            lambda n, d_in, d_out, r: (_kept(n, d_in, d_out, r)[0] + 2 * n * d_in, _kept(n, d_in, d_out, r)[1]),
            "the plain layer keeps the float32 copy of x alone: W is frozen, so nothing needs the 16-bit x itself.",
        ),
        Mistake(
            lambda n, d_in, d_out, r: (n * d_in + n * r, n * d_in + n * r + r * (d_in + d_out)),
            "you counted numbers; in float32 each takes four bytes, in 16 bits two.",
        ),
    ],
    hints=[
        "Both keep an x of (n, d_in) and an h of (n, r); what differs is the size of a number.",
        "The plain layer's parameters A and B are there anyway and don't count. The fast layer's rounded copies do.",
        "Four bytes in the plain layer, two in the fast one.",
    ],
    points=2,
)  # fmt: skip
