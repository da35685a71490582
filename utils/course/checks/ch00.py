"""Chapter 0's exercises: two small ones, to meet the way exercises work."""

from __future__ import annotations

import random

import torch
from torch import nn

from utils.course.checks.references import ch00 as lesson
from utils.course.checks.registry import Mistake, exercise


def _linear(d_in: int, d_out: int, bias: bool):
    return lambda: (nn.Linear(d_in, d_out, bias=bias),)


def _drawn_linear(draw: random.Random) -> tuple[nn.Linear]:
    d_in, d_out = draw.sample(range(1, 30), 2)
    layer = nn.Linear(d_in, d_out, bias=draw.random() < 0.5, dtype=draw.choice([torch.float32, torch.bfloat16]))
    if layer.bias is not None and draw.random() < 0.5:
        nn.init.zeros_(layer.bias)
    return (layer.requires_grad_(draw.random() < 0.5),)


exercise(
    "linear_parameters",
    reference=lesson.linear_parameters,
    cases=[_linear(3, 5, True), _linear(4, 4, False), _linear(7, 2, True)],
    drawn=_drawn_linear,
    mistakes=[
        Mistake(
            lambda layer: layer.weight.numel(),
            "the bias is missing: a linear layer may have one number more for each output.",
        ),
        Mistake(
            lambda layer: layer.weight.numel() + layer.bias.numel(),
            "a layer made with bias=False has None for its bias, and None has no numel(): ask for it only where it is.",
        ),
        Mistake(
            lambda layer: layer.in_features * layer.out_features + layer.out_features,
            "you counted a bias where there is none: look at layer.bias, which may be None.",
        ),
        Mistake(
            lambda layer: layer.weight.numel() + (layer.in_features if layer.bias is not None else 0),
            "the bias is added to the output: it has one number for each output, not for each input.",
        ),
        Mistake(
            lambda layer: layer.weight.numel() + (layer.bias is not None),
            "you counted the bias as one number: it has one for each output.",
        ),
        Mistake(
            lambda layer: layer.in_features + layer.out_features,
            "a weight has one number for each pair of an input and an output: multiply, don't add.",
        ),
        Mistake(
            lambda layer: len(list(layer.parameters())),
            "that counts the tensors; each tensor has numel() numbers in it.",
        ),
        Mistake(
            lambda layer: sum(len(p) for p in layer.parameters()),
            "len() of a tensor is the length of its first side; numel() counts all of its numbers.",
        ),
        Mistake(
            lambda layer: sum(p.numel() for p in layer.parameters() if p.requires_grad),
            "a frozen layer's numbers are there all the same: count those that don't train, too.",
        ),
        Mistake(
            lambda layer: sum(p.numel() * p.element_size() for p in layer.parameters()),
            "those are the bytes: each float32 number takes four of them.",
        ),
    ],
    hints=[
        "layer.parameters() gives the weight and, where there is one, the bias.",
        "A tensor's numel() is its count.",
    ],
    why="layer.parameters() leaves out a bias that isn't there, so the sum needs no case of its own for it.",
)


def _drawn_sizes(draw: random.Random) -> tuple[int, int, int]:
    d_in, d_out = draw.sample((1, 3, 16, 30, 64, 100, 192, 512, 1024, 4096, 11008), 2)
    return d_in, d_out, draw.choice((1, 2, 4, 5, 8, 16, 64))


exercise(
    "lora_parameters",
    reference=lesson.lora_parameters,
    cases=[(4096, 4096, 8), (192, 512, 4), (100, 30, 1), (64, 64, 16)],
    drawn=_drawn_sizes,
    mistakes=[
        Mistake(lambda d_in, d_out, r: d_in * d_out, "that is the full weight: A has r rows and B has r columns."),
        Mistake(
            lambda d_in, d_out, r: r * d_in * d_out,
            "you multiplied the two sides: A has r * d_in numbers and B has d_out * r, and you add them.",
        ),
        Mistake(
            lambda d_in, d_out, r: (r * d_in) * (d_out * r),
            "you multiplied the two counts: the numbers of A and those of B are added.",
        ),
        Mistake(lambda d_in, d_out, r: r * d_in, "that is A alone: B has d_out * r numbers more."),
        Mistake(lambda d_in, d_out, r: d_out * r, "that is B alone: A has r * d_in numbers more."),
        Mistake(lambda d_in, d_out, r: 2 * r * d_in, "you took B to be as large as A: it has d_out rows, not d_in."),
        Mistake(lambda d_in, d_out, r: 2 * r * d_out, "you took A to be as large as B, but it has d_in columns."),
        Mistake(
            lambda d_in, d_out, r: 2 * r * max(d_in, d_out),
            "A and B have the same size in a square layer alone: A has d_in columns, B has d_out rows.",
        ),
        Mistake(lambda d_in, d_out, r: d_in + d_out, "the rank is missing: A has r rows and B has r columns."),
        Mistake(
            lambda d_in, d_out, r: 2 * r * (d_in + d_out),
            "that is twice too many: each of A and B is counted once.",
        ),
        Mistake(
            lambda d_in, d_out, r: d_in * d_out + r * (d_in + d_out),
            "you added the weight itself: it is there already, and the question is what A and B have.",
        ),
        Mistake(
            lambda d_in, d_out, r: r * d_in + d_out,
            "B isn't one column: it is (d_out, r). Is a pair of brackets missing?",
        ),
        Mistake(
            lambda d_in, d_out, r: r + d_in + d_out + r,
            "you added the sides of each matrix; a matrix has rows times columns numbers.",
        ),
    ],
    hints=["A is (r, d_in): how many numbers is that?", "B is (d_out, r). Add the two."],
    why="The weight grows with the product of its two sides, A and B together with their sum.",
)
