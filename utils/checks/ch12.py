"""Chapter 12's exercises: the variants of LoRA, and what an update does."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from utils.checks.core import Mistake, Wrong, exercise  # noqa: F401

# ------------------------------------------------------------------------------------------ variants (parts 1 and 2)

exercise(
    "same_as_rslora",
    reference=lambda lora_alpha, r: lora_alpha * math.sqrt(r),
    cases=[(16, 4), (16, 8), (8, 64), (32, 1)],
    mistakes=[
        Mistake(
            lambda lora_alpha, r: lora_alpha / math.sqrt(r),
            "that is rsLoRA's scaling itself. Plain LoRA divides your number by r, so it has to be r times as much.",
        ),
        Mistake(
            lambda lora_alpha, r: lora_alpha * r,
            "divided by r that leaves lora_alpha, and rsLoRA has lora_alpha / sqrt(r).",
        ),
        Mistake(
            lambda lora_alpha, r: lora_alpha / r,
            "that is plain LoRA's scaling with the old lora_alpha; a new lora_alpha is wanted.",
        ),
    ],
    hints=[
        "Call it x. Plain LoRA scales by x / r, rsLoRA by lora_alpha / sqrt(r): set them equal.",
        "r / sqrt(r) = sqrt(r).",
    ],
)


def _dora(W: Tensor, A: Tensor, B: Tensor, m: Tensor, s: float) -> Tensor:
    turned = W + s * B @ A
    return m[:, None] * turned / torch.linalg.norm(turned, dim=1, keepdim=True)


def _dora_case(d_out: int, d_in: int, r: int, s: float):
    return lambda: (
        torch.randn(d_out, d_in), torch.randn(r, d_in), torch.randn(d_out, r), torch.rand(d_out) + 0.5, s
    )  # fmt: skip


exercise(
    "dora_weight",
    reference=_dora,
    cases=[_dora_case(5, 7, 2, 2.0), _dora_case(6, 4, 1, 0.5), _dora_case(4, 4, 2, 2.0)],
    mistakes=[
        Mistake(
            lambda W, A, B, m, s: m[:, None] * (W + s * B @ A),
            "the rows keep their lengths and are scaled on top: divide each by its length first.",
        ),
        Mistake(
            lambda W, A, B, m, s: _dora(W, A, B, m, 1.0),
            "the scaling s has no effect: the update is s * B @ A.",
        ),
        Mistake(
            lambda W, A, B, m, s: m[:, None] * (W + s * B @ A) / torch.linalg.norm(W, dim=1, keepdim=True),
            "you divide by the lengths of W's rows. Divide by those of the changed weight.",
        ),
        Mistake(
            lambda W, A, B, m, s: m[:, None] * W / torch.linalg.norm(W, dim=1, keepdim=True) + s * B @ A,
            "the update is added behind the division, so it changes lengths too. Add it to W, then divide.",
        ),
        Mistake(
            lambda W, A, B, m, s: m[:, None] * (W + s * B @ A) / torch.linalg.norm(W + s * B @ A, dim=0),
            "these are the lengths of the columns. One row makes one output: norm(..., dim=1, keepdim=True).",
        ),
    ],
    hints=[
        "Three steps: the changed weight W + s * B @ A, the length of each of its rows, and m over that length.",
        "torch.linalg.norm(V, dim=1, keepdim=True) is (out, 1), and m[:, None] too.",
    ],
    points=2,
)


def _budget(step: int, first: int, last: int, begin: int, end: int) -> int:
    if step <= begin:
        return first
    if step >= end:
        return last
    return int((first - last) * (1 - (step - begin) / (end - begin)) ** 3 + last)


exercise(
    "cubic_budget",
    reference=_budget,
    cases=[
        (0, 100, 20, 10, 50),
        (10, 100, 20, 10, 50),
        (20, 100, 20, 10, 50),
        (30, 96, 32, 10, 50),
        (49, 100, 20, 10, 50),
        (50, 100, 20, 10, 50),
        (80, 100, 20, 10, 50),
    ],  # fmt: skip
    mistakes=[
        Mistake(
            lambda step, first, last, begin, end: (
                first
                if step <= begin
                else last
                if step >= end
                else int((first - last) * (1 - (step - begin) / (end - begin)) + last)
            ),
            "the budget falls along a line. Raise what is left of the way to the third power.",
        ),
        Mistake(
            lambda step, first, last, begin, end: (
                first
                if step <= begin
                else last
                if step >= end
                else int((first - last) * ((step - begin) / (end - begin)) ** 3 + last)
            ),
            "after `begin` the budget jumps down and then grows: take the share of the way that is left, 1 - ...",
        ),
        Mistake(
            lambda step, first, last, begin, end: (
                first
                if step <= begin
                else last
                if step >= end
                else int(first * (1 - (step - begin) / (end - begin)) ** 3)
            ),
            "this falls towards 0. It should fall from first to last: scale their difference, then add last.",
        ),
        Mistake(
            lambda step, first, last, begin, end: (
                last if step >= end else int((first - last) * (1 - (step - begin) / (end - begin)) ** 3 + last)
            ),
            "before `begin` nothing is pruned yet, and your budget is larger than there are triplets.",
        ),
        Mistake(
            lambda step, first, last, begin, end: (
                first
                if step <= begin
                else last
                if step >= end
                else (first - last) * (1 - (step - begin) / (end - begin)) ** 3 + last
            ),
            "nobody can keep a part of a triplet: round down with int(...).",
        ),
    ],
    hints=[
        "Three cases: up to begin, from end on, and between.",
        "Between: left = 1 - (step - begin) / (end - begin) goes from 1 to 0.",
        "int((first - last) * left**3 + last)",
    ],
    points=2,
)


def _difference(A: Tensor, B: Tensor, A0: Tensor, B0: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([A, -A0]), torch.cat([B, B0], dim=1)


def _product(answer) -> Tensor:
    A, B = answer
    return B @ A


def _same_product(expected, got) -> bool:
    try:
        return torch.allclose(_product(expected), _product(got), atol=1e-5) and got[0].shape[0] == expected[0].shape[0]
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return False


def _pissa_case(d_out: int, d_in: int, r: int):
    return lambda: (torch.randn(r, d_in), torch.randn(d_out, r), torch.randn(r, d_in), torch.randn(d_out, r))


exercise(
    "pissa_difference",
    reference=_difference,
    cases=[_pissa_case(5, 7, 2), _pissa_case(4, 3, 1)],
    compare=_same_product,
    mistakes=[
        Mistake(
            lambda A, B, A0, B0: (torch.cat([A, A0]), torch.cat([B, B0], dim=1)),
            "this is the sum B A + B0 A0. Give one of the old factors a minus sign, and one alone: two make a plus.",
        ),
        Mistake(
            lambda A, B, A0, B0: (A - A0, B - B0),
            "(B - B0)(A - A0) has the cross terms B A0 and B0 A in it. Put the factors beside each other instead.",
        ),
        Mistake(
            lambda A, B, A0, B0: (torch.cat([-A0, A]), torch.cat([B, B0], dim=1)),
            "A stands below, but B stands first: B meets A0 and B0 meets A. Keep the same order in both.",
        ),
    ],
    hints=[
        "Chapter 9's cat: rows of A below each other, columns of B beside each other, and the product is the sum.",
        "B A - B0 A0 = B A + B0 (-A0).",
    ],
    points=2,
)

_CHOICE = {
    "the base alone does not fit on the card": "QLoRA",
    "ten thousand users, an adapter each, and little room to store them": "VeRA",
    "lora_alpha was found at r=8, and now r=64 is to be tried": "rsLoRA",
    "which layers need rank is to be found out by training": "AdaLoRA",
    "a first run on a new task": "LoRA",
}


def _but(**changes: str) -> dict[str, str]:
    words = {"card": 0, "users": 1, "rank": 2, "layers": 3, "first": 4}
    names = list(_CHOICE)
    return _CHOICE | {names[words[word]]: variant for word, variant in changes.items()}


exercise(
    "choose",
    reference=_CHOICE,
    mistakes=[
        Mistake(
            _but(card="VeRA"),
            "VeRA makes the adapter small, and the adapter isn't what fills the card: the frozen base is.",
        ),
        Mistake(
            _but(users="QLoRA"),
            "QLoRA shrinks the base, which is there once. What is stored ten thousand times is the adapter.",
        ),
        Mistake(
            _but(rank="LoRA+"),
            "LoRA+ changes the two rates. What depends on the rank is the scaling.",
        ),
        Mistake(
            _but(layers="rsLoRA"),
            "rsLoRA scales all layers alike. One variant begins with too many triplets and prunes the least important.",
        ),
        Mistake(
            _but(first="DoRA"),
            "begin with plain LoRA: every tool supports it, and its learning rate is what decides. Compare later.",
        ),
    ],
    hints=[
        "Ask of each: is it the base that is too large, the adapter, the scaling, or where the rank is?",
        "Every name is used once: LoRA, QLoRA, rsLoRA, VeRA, AdaLoRA.",
    ],
)


# ------------------------------------------------------------------------------------------- effects (parts 3 and 4)
