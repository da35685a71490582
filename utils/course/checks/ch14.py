"""Chapter 14's exercises: a layer's arithmetic, a product's shortest time, the backward pass, the bytes kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import add, itemgetter

import torch

from utils.course.checks.references import ch14 as lesson
from utils.course.checks.registry import Mistake, exercise

# ----------------------------------------------------------------------------------------------------- the arithmetic


def _flops(message: str, *, frozen: int = 2, thin: int = 3) -> Mistake:
    """The mistake of whoever counts another number of products: of the frozen weight's 2, or of LoRA's 3 pairs."""

    def answer(n: int, d_in: int, d_out: int, r: int) -> tuple[int, int]:
        base, lora = lesson.layer_flops(n, d_in, d_out, r)
        return base * frozen // 2, lora * thin // 3

    return Mistake(answer, message)


exercise(
    "layer_flops",
    reference=lesson.layer_flops,
    cases=[(8192, 4096, 4096, 16), (100, 30, 20, 2), (512, 4096, 11008, 8)],
    mistakes=[
        Mistake(
            lambda *sizes: tuple(count // 2 for count in lesson.layer_flops(*sizes)),
            "each step of a product is a multiplication and an addition: two operations.",
        ),
        _flops("the frozen weight has no gradient: the base computes y and dx, two products and not three.", frozen=3),
        _flops("that is the forward pass alone; the backward pass has products of its own.", frozen=1, thin=1),
        _flops(
            "two of the six thin products are missing: the gradients of A and of B train, so they are computed.", thin=2
        ),
        Mistake(
            lambda n, d_in, d_out, r: (4 * n * d_in * d_out, 4 * n * d_in * d_out + 6 * n * r * (d_in + d_out)),
            "the second number is what LoRA adds, without the base.",
        ),
        _flops("your LoRA has its two forward products only; four more follow in the backward pass.", thin=1),
        _flops(
            "the frozen layer computes a second product on the way back: dx = g W, which the layers below need.",
            frozen=1,
        ),
    ],
    hints=[
        "A product of (n, k) and (k, m) is 2 * n * k * m operations.",
        "The base: y = x W^T and dx = g W, both 2 * n * d_in * d_out.",
        "LoRA: x A^T, h B^T, g B, q A, g^T h and q^T x. Three of them have d_in in them and three d_out.",
    ],
)

# ------------------------------------------------------------------------------------------- a product's shortest time


def _time(message: str, *, ops: float = 2, size: float = 2) -> Mistake:
    """The mistake of whoever counts `ops` operations for a step of a product, and `size` bytes for a number."""
    return Mistake(
        lambda n, k, m, flops, memory: lesson.product_time(n, k, m, flops * 2 / ops, memory * 2 / size), message
    )


def _both(decide: Callable[[float, float], float], message: str) -> Mistake:
    """The mistake of whoever makes one time of the two, arithmetic's and memory's, by `decide`."""

    def answer(n: int, k: int, m: int, flops: float, memory: float) -> float:
        two = (flops, math.inf), (math.inf, memory)
        return decide(*(lesson.product_time(n, k, m, *speeds) for speeds in two))

    return Mistake(answer, message)


exercise(
    "product_time",
    reference=lesson.product_time,
    cases=[(8192, 4096, 4096, 8e14, 3e12), (8192, 4096, 16, 8e14, 3e12), (8192, 16, 64, 8e14, 3e12), (9, 9, 9, 1, 1)],
    mistakes=[
        _both(add, "arithmetic and memory work at the same time: the slower one decides, not the sum."),
        _both(min, "both have to be done: the slower one decides."),
        _time("you counted numbers; in 16 bits each of them is two bytes.", size=1),
        _time("that is four bytes a number; 16 bits are two.", size=4),
        Mistake(
            lambda n, k, m, flops, memory: max(2 * n * k * m / flops, 2 * (n * k + k * m) / memory),
            "the result has to be written, too: n * m numbers.",
        ),
        _time("a multiplication and an addition are two operations.", ops=1),
        _time(
            "twice too short: a number has two bytes, and a multiplication with its addition is two operations.",
            ops=1,
            size=1,
        ),
        _time("memory counts bytes, and you counted bits: 16 bits are two bytes.", size=16),
        Mistake(
            lambda n, k, m, flops, memory: 1e6 * lesson.product_time(n, k, m, flops, memory),
            "those are microseconds; return seconds.",
        ),
    ],
    hints=[
        "Operations: 2 * n * k * m. Numbers that move: n * k, k * m and n * m.",
        "max(operations / flops, bytes / memory)",
    ],
)

# ------------------------------------------------------------------------------------------------- the backward pass


def _layer(n: int, d_in: int, d_out: int, r: int, s: float):
    def make():
        shapes = (n, d_out), (n, d_in), (d_out, d_in), (r, d_in), (d_out, r)
        return *(torch.randn(shape) for shape in shapes), s

    return make


exercise(
    "lora_backward",
    reference=lesson.lora_backward,
    cases=[_layer(7, 6, 5, 2, 2.0), _layer(3, 4, 8, 3, 0.5), _layer(1, 5, 5, 1, 4.0)],
    mistakes=[
        Mistake(
            lambda g, x, W, A, B, s: lesson.lora_backward(g, x, W, A, B, 1.0),
            "the scaling is missing: it is in dx, in dA and in dB, once in each.",
        ),
        Mistake(
            lambda g, x, W, A, B, s: (g @ W, *lesson.lora_backward(g, x, W, A, B, s)[1:]),
            "x reaches the output on two paths: dx lacks the one through A and B.",
        ),
        Mistake(
            lambda g, x, W, A, B, s: (s * g @ B @ A, *lesson.lora_backward(g, x, W, A, B, s)[1:]),
            "x reaches the output on two paths: dx lacks the one through W.",
        ),
        Mistake(
            lambda g, x, W, A, B, s: (
                lesson.lora_backward(g, x, W, A, B, s)[0],
                *lesson.lora_backward(g, x, W, A, B, 1.0)[1:],
            ),
            "dx is right, and dA and dB lack the scaling: the forward pass has it, so each gradient has it once.",
        ),
        Mistake(
            lambda g, x, W, A, B, s: (g @ W + s * g @ B @ A, x.T @ (s * g @ B), (s * x @ A.T).T @ g),
            "dA and dB are transposed: a gradient has its parameter's shape, (r, d_in) and (d_out, r).",
        ),
        Mistake(
            lambda g, x, W, A, B, s: itemgetter(0, 2, 1)(lesson.lora_backward(g, x, W, A, B, s)),
            "dA and dB are exchanged: first the gradient of A, then that of B.",
        ),
        Mistake(
            lambda g, x, W, A, B, s: (g @ W, *lesson.lora_backward(g, x, W, A, B, 1.0)[1:]),
            "two things: dx lacks the path through A and B, and dA and dB lack the scaling.",
        ),
        Mistake(
            lambda g, x, W, A, B, s: (
                *lesson.lora_backward(g, x, W, A, B, s)[:2],
                lesson.lora_backward(g, x, W, A, B, 1.0)[2],
            ),
            "dx and dA are right, and dB lacks the scaling: y holds scaling * (x A^T) B^T, so dB does, too.",
        ),
        Mistake(
            lambda g, x, W, A, B, s: (g @ W + s * s * g @ B @ A, s * (s * g @ B).T @ x, g.T @ (s * x @ A.T)),
            "the scaling is in dx and dA twice: if q has it, don't multiply by it again.",
        ),
        Mistake(
            lambda g, x, W, A, B, s: itemgetter(1, 2, 0)(lesson.lora_backward(g, x, W, A, B, s)),
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


exercise(
    "kept_bytes",
    reference=lesson.kept_bytes,
    cases=[(8192, 4096, 4096, 16), (40, 256, 192, 8), (10, 3, 5, 1)],
    mistakes=[
        Mistake(
            lambda n, d_in, d_out, r: (2 * n * d_in + 2 * n * r, lesson.kept_bytes(n, d_in, d_out, r)[1]),
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
                lesson.kept_bytes(n, d_in, d_out, r)[0] + 4 * n * d_out,
                lesson.kept_bytes(n, d_in, d_out, r)[1] + 2 * n * d_out,
            ),
            "no gradient of this layer needs y, so it isn't kept here.",
        ),
        Mistake(
            lambda n, d_in, d_out, r: lesson.kept_bytes(n, d_in, d_out, r)[::-1],
            "the two are exchanged: first the plain layer, then the fast one.",
        ),
        Mistake(
            lambda n, d_in, d_out, r: (4 * n * d_in, 2 * n * d_in),
            "that is x alone. Both keep h as well, (n, r), and the fast layer its rounded A and B.",
        ),
        Mistake(
            lambda n, d_in, d_out, r: (
                lesson.kept_bytes(n, d_in, d_out, r)[0] + 4 * r * (d_in + d_out),
                lesson.kept_bytes(n, d_in, d_out, r)[1],
            ),
            "the plain layer's A and B are parameters, which are there anyway: they don't count.",
        ),
        Mistake(
            lambda n, d_in, d_out, r: (
                lesson.kept_bytes(n, d_in, d_out, r)[0] + 2 * n * d_in,
                lesson.kept_bytes(n, d_in, d_out, r)[1],
            ),
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
)
