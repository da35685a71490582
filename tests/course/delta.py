"""An exercise that the tests of the checks register: LoRA's update, with three typical mistakes."""

import torch

from utils.course.checks.registry import Mistake, exercise

NEVER = (Mistake("no answer gives this", "never shown"),)


def reference(A, B, alpha):
    return alpha / A.shape[0] * (B @ A)


def factors():
    return torch.randn(4, 10), torch.randn(6, 4), 8.0


def register_delta():
    exercise(
        "lora_delta",
        reference=reference,
        cases=[factors, lambda: (torch.randn(2, 3), torch.randn(5, 2), 1.0)],
        mistakes=[
            Mistake(lambda A, B, alpha: B @ A, "alpha has no effect yet"),
            Mistake(lambda A, B, alpha: alpha * (B @ A), "divide by the rank as well"),
            Mistake(lambda A, B, alpha: A @ B, "the order is B @ A"),
        ],
        hints=["The rank is A.shape[0].", "The update has the shape (out, in)."],
        points=2,
    )
