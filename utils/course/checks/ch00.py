"""Chapter 0's exercises: two small ones, to meet the way exercises work."""

from __future__ import annotations

from torch import nn

from utils.course.checks.references import ch00 as lesson
from utils.course.checks.registry import Mistake, exercise


def _linear(d_in: int, d_out: int, bias: bool):
    return lambda: (nn.Linear(d_in, d_out, bias=bias),)


exercise(
    "linear_parameters",
    reference=lesson.linear_parameters,
    cases=[_linear(3, 5, True), _linear(4, 4, False), _linear(7, 2, True)],
    mistakes=[
        Mistake(
            lambda layer: layer.weight.numel(),
            "the bias is missing: a linear layer may have one number more for each output.",
        ),
        Mistake(
            lambda layer: layer.in_features * layer.out_features + layer.out_features,
            "you counted a bias where there is none: look at layer.bias, which may be None.",
        ),
        Mistake(
            lambda layer: layer.in_features + layer.out_features,
            "a weight has one number for each pair of an input and an output: multiply, don't add.",
        ),
        Mistake(
            lambda layer: len(list(layer.parameters())),
            "that counts the tensors; each tensor has numel() numbers in it.",
        ),
    ],
    hints=[
        "layer.parameters() gives the weight and, where there is one, the bias.",
        "A tensor's numel() is its count.",
    ],
)

exercise(
    "lora_parameters",
    reference=lesson.lora_parameters,
    cases=[(4096, 4096, 8), (192, 512, 4), (100, 30, 1), (64, 64, 16)],
    mistakes=[
        Mistake(lambda d_in, d_out, r: d_in * d_out, "that is the full weight: A has r rows and B has r columns."),
        Mistake(
            lambda d_in, d_out, r: r * d_in * d_out,
            "you multiplied the two sides: A has r * d_in numbers and B has d_out * r, and you add them.",
        ),
        Mistake(lambda d_in, d_out, r: r * d_in, "that is A alone: B has d_out * r numbers more."),
        Mistake(lambda d_in, d_out, r: 2 * r * d_in, "you took B to be as large as A: it has d_out rows, not d_in."),
        Mistake(lambda d_in, d_out, r: d_in + d_out, "the rank is missing: A has r rows and B has r columns."),
    ],
    hints=["A is (r, d_in): how many numbers is that?", "B is (d_out, r). Add the two."],
)
