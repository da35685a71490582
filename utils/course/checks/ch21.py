"""Chapter 21's exercises: a layer's arithmetic, a product's shortest time, the backward pass, the bytes kept."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from operator import add, itemgetter
from typing import Any

import torch
from torch import Tensor

from utils.course.checks.behaviour import without_autograd, without_matrix
from utils.course.checks.references import ch21 as lesson
from utils.course.checks.registry import Mistake, exercise

# ----------------------------------------------------------------------------------------------------- the arithmetic


def _drawn_sizes(draw: random.Random) -> tuple[int, int, int, int]:
    """n, d_in, d_out and r, all different."""
    n, d_in, d_out, r = draw.sample((1, 2, 5, 8, 16, 30, 64, 100, 192, 512, 777, 4096, 8192, 11008), 4)
    return n, d_in, d_out, r


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
    drawn=_drawn_sizes,
    mistakes=[
        Mistake(
            lambda *sizes: tuple(count // 2 for count in lesson.layer_flops(*sizes)),
            "each step of a product is a multiplication and an addition: two operations.",
        ),
        _flops("the frozen weight has no gradient: the base computes y and dx, two products and not three.", frozen=3),
        _flops("that is the forward pass alone; the backward pass has products of its own.", frozen=1, thin=1),
        _flops("two of the six skinny products are missing: A and B train, so their gradients are computed.", thin=2),
        Mistake(
            lambda n, d_in, d_out, r: (4 * n * d_in * d_out, 4 * n * d_in * d_out + 6 * n * r * (d_in + d_out)),
            "the second number is what LoRA adds, without the base.",
        ),
        Mistake(
            lambda *sizes: lesson.layer_flops(*sizes)[::-1],
            "the two are exchanged: first the frozen layer, then what LoRA adds.",
        ),
        Mistake(lambda *sizes: sum(lesson.layer_flops(*sizes)), "that is the sum of both; return the two numbers."),
        Mistake(
            lambda n, d_in, d_out, r: (4 * n * d_in * d_out, 4 * n * r * d_in + 6 * n * r * d_out),
            "one of the six skinny products is missing: q A, LoRA's part of dx.",
        ),
        Mistake(
            lambda n, d_in, d_out, r: (4 * n * d_in * d_out, 2 * r * d_in * d_out + 4 * n * d_in * d_out),
            "B @ A is never built: x goes through A first, which is only r wide.",
        ),
        Mistake(
            lambda n, d_in, d_out, r: (4 * n * d_in * d_out, 12 * n * r * d_in),
            "you took the layer for square: three of the skinny products have d_out in them and three d_in.",
        ),
        Mistake(
            lambda n, d_in, d_out, r: (4 * d_in * d_out, 6 * r * (d_in + d_out)),
            "that is one token; there are n of them.",
        ),
        Mistake(
            lambda n, d_in, d_out, r: (4 * n * d_in * d_out, 12 * n * d_in * d_out * r),
            "a skinny product has two of the sizes n, d_in, d_out and r as sides and one inside: never all four.",
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
    why="Each product has a partner backward for x and one for the weight. The frozen W is spared the second.",
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


def _drawn_product(draw: random.Random) -> tuple[int, int, int, float, float]:
    """Now arithmetic decides and now memory, on slow devices and fast ones."""
    n, k, m = draw.sample((16, 30, 64, 100, 512, 777, 4096, 8192, 11008), 3)
    flops = draw.choice((1e12, 6.5e13, 8e14))
    return n, k, m, flops, flops / draw.choice((5.0, 20.0, 80.0, 400.0))


exercise(
    "product_time",
    reference=lesson.product_time,
    cases=[(8192, 4096, 4096, 8e14, 3e12), (8192, 4096, 16, 8e14, 3e12), (8192, 16, 64, 8e14, 3e12), (9, 9, 9, 1, 1)],
    drawn=_drawn_product,
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
        Mistake(
            lambda n, k, m, flops, memory: 1e3 * lesson.product_time(n, k, m, flops, memory),
            "those are milliseconds; return seconds.",
        ),
        Mistake(
            lambda n, k, m, flops, memory: 2 * n * k * m / flops,
            "that is the arithmetic alone: where memory takes longer, memory decides.",
        ),
        Mistake(
            lambda n, k, m, flops, memory: 2 * (n * k + k * m + n * m) / memory,
            "that is the memory alone: where arithmetic takes longer, arithmetic decides.",
        ),
        Mistake(
            lambda n, k, m, flops, memory: max(2 * n * k * m / flops, 2 * (n * k + k * m + 2 * n * m) / memory),
            "the result is n * m numbers of two bytes, written once and not read.",
        ),
        Mistake(
            lambda n, k, m, flops, memory: max(2 * n * k * m / flops, 2 * (n * k + n * m) / memory),
            "the second input has to be read as well: k * m numbers.",
        ),
        Mistake(
            lambda n, k, m, flops, memory: max(2 * n * k * m / flops, 2 * n * m / memory),
            "the two inputs have to be read as well: n * k and k * m numbers.",
        ),
        Mistake(
            lambda n, k, m, flops, memory: max(2 * n * k * m / flops, 2 * n * k * m / memory),
            "no number moves once for each operation: the three matrices have n * k, k * m and n * m numbers.",
        ),
        Mistake(
            lambda n, k, m, flops, memory: max(flops / (2 * n * k * m), memory / (2 * (n * k + k * m + n * m))),
            "upside down: more operations take longer, so the speed is what you divide by.",
        ),
    ],
    hints=[
        "Operations: 2 * n * k * m. Numbers that move: n * k, k * m and n * m.",
        "max(operations / flops, bytes / memory)",
    ],
    why="Arithmetic and memory work at the same time, so the slower one decides. That is the whole roofline.",
)

# ------------------------------------------------------------------------------------------------- the backward pass


Gradients = tuple[Tensor, Tensor, Tensor]


def _made(n: int, d_in: int, d_out: int, r: int, s: float, **how: Any) -> tuple[Any, ...]:
    shapes = (n, d_out), (n, d_in), (d_out, d_in), (r, d_in), (d_out, r)
    g, x, W, A, B = (torch.randn(shape, **how) for shape in shapes)
    return g, x, s * (x @ A.T), W, A, B, s


def _layer(n: int, d_in: int, d_out: int, r: int, s: float):
    return lambda: _made(n, d_in, d_out, r, s)


def _without_data() -> tuple[Any, ...]:
    """What the lesson counts: 16-bit tensors on the meta device."""
    return _made(7, 6, 5, 2, 2.0, dtype=torch.bfloat16, device="meta")


def _drawn_layer(draw: random.Random) -> tuple[Any, ...]:
    n, d_in, d_out, r = draw.sample(range(1, 10), 4)
    s = draw.choice((0.25, 0.5, 1.0, 1.5, 2.0, 8.0))
    return _made(n, d_in, d_out, r, s, dtype=draw.choice((torch.float32, torch.float64)))


def _autograd(g: Tensor, x: Tensor, h: Tensor, W: Tensor, A: Tensor, B: Tensor, s: float) -> tuple[Tensor, ...]:
    x, A, B = (tensor.detach().requires_grad_() for tensor in (x, A, B))
    return torch.autograd.grad(x @ W.T + s * (x @ A.T) @ B.T, (x, A, B), g)


def _parts(change: Callable[..., tuple[Any, Any, Any]]) -> Callable[..., Gradients]:
    """A wrong answer from the right gradients: `change` gets them and the arguments, and gives the three back."""
    return lambda *given: change(*lesson.lora_backward(*given), *given)


exercise(
    "lora_backward",
    reference=lesson.lora_backward,
    cases=[_layer(7, 6, 5, 2, 2.0), _layer(3, 4, 8, 3, 0.5), _layer(1, 5, 5, 1, 4.0), _without_data],
    drawn=_drawn_layer,
    test=(
        without_matrix(_layer(7, 6, 5, 3, 1.5), (5, 6), "a matrix of W's size"),
        without_autograd(_layer(7, 6, 5, 3, 1.5)),
    ),
    mistakes=[
        Mistake(
            lambda g, x, h, W, A, B, s: lesson.lora_backward(g, x, h, W, A, B, 1.0),
            "the scaling is missing from q, and with it from dx and dA; only dB has it, through h.",
        ),
        Mistake(
            lambda g, x, h, W, A, B, s: (g @ W, (g @ B).T @ x, g.T @ h),
            "two things: dx lacks the path through A and B, and dA lacks the scaling.",
        ),
        Mistake(
            _parts(lambda dx, dA, dB, g, x, h, W, A, B, s: (g @ W, dA, dB)),
            "x reaches the output on two paths: dx lacks the one through A and B.",
        ),
        Mistake(
            _parts(lambda dx, dA, dB, g, x, h, W, A, B, s: (s * (g @ B) @ A, dA, dB)),
            "x reaches the output on two paths: dx lacks the one through W.",
        ),
        Mistake(
            _parts(lambda dx, dA, dB, g, x, h, W, A, B, s: (g @ W + g @ B @ A, dA, dB)),
            "dA and dB are right, and in dx the path through A and B lacks the scaling.",
        ),
        Mistake(
            _parts(lambda dx, dA, dB, g, x, h, W, A, B, s: (s * (g @ W) + s * (g @ B) @ A, dA, dB)),
            "in dx the path through W has no scaling: only the one through A and B has.",
        ),
        Mistake(
            _parts(lambda dx, dA, dB, g, x, h, W, A, B, s: (dx, (g @ B).T @ x, dB)),
            "dx and dB are right, and dA lacks the scaling: use q, which has it.",
        ),
        Mistake(
            _parts(lambda dx, dA, dB, g, x, h, W, A, B, s: (dx, dA, dB / s)),
            "dx and dA are right, and dB lacks the scaling: h, which the forward pass kept, has it.",
        ),
        Mistake(
            _parts(lambda dx, dA, dB, g, x, h, W, A, B, s: (dx, dA, s * dB)),
            "dx and dA are right, and dB has the scaling twice: h holds it already.",
        ),
        Mistake(
            _parts(lambda dx, dA, dB, g, x, h, W, A, B, s: (g @ W + s * s * (g @ B) @ A, s * dA, dB)),
            "the scaling is in dx and dA twice: if q has it, don't multiply by it again.",
        ),
        Mistake(
            _parts(lambda dx, dA, dB, g, x, h, W, A, B, s: (g @ W + s * s * (g @ B) @ A, s * dA, s * dB)),
            "the scaling is there twice in all three: q has it once, and so has h.",
        ),
        Mistake(
            _parts(lambda dx, dA, dB, *_: (dx, dA.T, dB.T)),
            "dA and dB are transposed: a gradient has its parameter's shape, (r, d_in) and (d_out, r).",
        ),
        Mistake(
            lambda *given: itemgetter(0, 2, 1)(lesson.lora_backward(*given)),
            "dA and dB are exchanged: first the gradient of A, then that of B.",
        ),
        Mistake(
            lambda *given: itemgetter(1, 2, 0)(lesson.lora_backward(*given)),
            "the order is the gradient of x, then that of A, then that of B.",
        ),
        Mistake(
            _parts(lambda dx, dA, dB, g, *_: (dx, dA / len(g), dB / len(g))),
            "you averaged dA and dB over the tokens: they are sums, and if the loss is a mean, g has that factor.",
        ),
        Mistake(
            _parts(lambda dx, dA, dB, *_: (-dx, -dA, -dB)),
            "all three have the wrong sign: the minus of a step is the optimizer's.",
        ),
        Mistake(
            _parts(lambda *all_of_it: tuple(gradient.float() for gradient in all_of_it[:3])),
            "your gradients are in float32, whatever the inputs are: keep their dtype.",
        ),
        Mistake(
            _parts(lambda dx, dA, dB, g, x, h, W, A, B, s: (g @ (W + s * B @ A), dA, dB)),
            expect="you make a matrix of W's size",
        ),
        Mistake(_autograd, expect="you let autograd do it"),
    ],
    hints=[
        "q = scaling * (g @ B) is needed twice: (n, r), the gradient that reaches A's output.",
        "dx = g @ W + q @ A, since x goes through W and through A.",
        "dA = q.T @ x, and dB = g.T @ h: h has the scaling in it already.",
        "torch.addmm(q @ A, g, W) is q @ A + g @ W without a separate addition.",
    ],
    why="All that LoRA needs passes through r numbers a token, so no matrix of W's size is made, and the addition "
    "rides on the large product, which is busy with arithmetic anyway.",
    points=3,
)

# ---------------------------------------------------------------------------------------------------- what is kept


exercise(
    "kept_bytes",
    reference=lesson.kept_bytes,
    cases=[(8192, 4096, 4096, 16), (40, 256, 192, 8), (10, 3, 5, 1)],
    drawn=_drawn_sizes,
    mistakes=[
        Mistake(
            lambda n, d_in, d_out, r: (2 * n * d_in + 2 * n * r, lesson.kept_bytes(n, d_in, d_out, r)[1]),
            "the plain layer converts x to float32 for its adapters, and keeps that: four bytes a number.",
        ),
        Mistake(
            lambda n, d_in, d_out, r: (
                lesson.kept_bytes(n, d_in, d_out, r)[0],
                4 * (n + r) * d_in + 4 * r * (n + d_out),
            ),
            "the fast layer keeps everything in 16 bits: two bytes a number.",
        ),
        Mistake(
            lambda n, d_in, d_out, r: (lesson.kept_bytes(n, d_in, d_out, r)[0], 2 * (n * d_in + r * (d_in + d_out))),
            "the fast layer keeps h as well: (n, r) numbers, which the gradient of B needs.",
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
        Mistake(
            lambda *sizes: tuple(count + 2 * sizes[0] * sizes[2] for count in lesson.kept_bytes(*sizes)),
            "y is handed on, not kept: no gradient of x, A or B asks for it.",
        ),
        Mistake(
            lambda *sizes: tuple(count + 2 * sizes[1] * sizes[2] for count in lesson.kept_bytes(*sizes)),
            "W is a parameter, which is there anyway: it doesn't count.",
        ),
        Mistake(
            lambda n, d_in, d_out, r: (4 * n * d_in + 2 * n * r, lesson.kept_bytes(n, d_in, d_out, r)[1]),
            "the plain layer's h is in float32 as well: four bytes a number.",
        ),
        Mistake(
            lambda n, d_in, d_out, r: (4 * n * (d_in + r), 2 * n * (d_in + r) + 4 * r * (d_in + d_out)),
            "the fast layer's copies of A and B are rounded to 16 bits: two bytes a number.",
        ),
        Mistake(
            lambda *sizes: tuple(count / 2**20 for count in lesson.kept_bytes(*sizes)),
            "those are MiB; return bytes, whole numbers.",
        ),
    ],
    hints=[
        "Both keep an x of (n, d_in) and an h of (n, r); what differs is the size of a number.",
        "The plain layer's parameters A and B are there anyway and don't count. The fast layer's rounded copies do.",
        "Four bytes in the plain layer, two in the fast one.",
    ],
    why="Kept is what the gradients of A and B are made of: x and h. Everything else is there anyway or isn't needed.",
    points=2,
)
