"""Chapter 11's exercises: the gathered update, padding, where an aLoRA begins, cat."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.course.checks.behaviour import same_factors, without_loop
from utils.course.checks.references import ch11 as lesson
from utils.course.checks.registry import Mistake, exercise

# ------------------------------------------------------------------------------------------- the gathered correction


def _gather_case(index: list[int], adapters: int = 3, length: int = 4):
    def make():
        shapes = (len(index), length, 6), (adapters, 2, 6), (adapters, 5, 2)
        x, a, b = (torch.randn(shape) for shape in shapes)
        return x, a, b, torch.arange(1.0, adapters + 1), torch.tensor(index)

    return make


def _drawn_gather(rng: random.Random) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    adapters, length, d_in, r, d_out = rng.sample(range(1, 9), 5)
    index = torch.tensor(rng.choices(range(adapters), k=rng.randint(1, 6)))
    scaling = torch.tensor([rng.choice([0.5, 1.5, 2.0, 3.0]) for _ in range(adapters)])
    shapes = (len(index), length, d_in), (adapters, r, d_in), (adapters, d_out, r)
    dtype = rng.choice([torch.float32, torch.float32, torch.float64])
    x, A, B = (torch.randn(shape, dtype=dtype) for shape in shapes)
    return x, A, B, scaling.to(dtype), index


exercise(
    "gathered",
    reference=lesson.gathered,
    cases=[_gather_case([2, 0, 0, 1]), _gather_case([1, 2]), _gather_case([0, 2, 1], length=1)],
    drawn=_drawn_gather,
    test=without_loop(_gather_case([0, 1]), _gather_case([0, 1, 2, 0, 2, 1, 1, 0]), "the rows"),
    mistakes=[
        Mistake(
            lambda x, A, B, scaling, index: torch.stack(
                [scaling[i] * row @ A[i].T @ B[i].T for row, i in zip(x, index.tolist(), strict=True)]
            ),
            expect="your code goes through the rows one by one",
        ),
        Mistake(
            lambda x, A, B, scaling, index: scaling[index][:, None, None] * lesson.gathered(x, A, B, scaling, index),
            "the scaling counts twice.",
        ),
        Mistake(
            lambda x, A, B, scaling, index: lesson.gathered(x, A, B, 1 / scaling, index),
            "you divided by the scaling: it multiplies the update.",
        ),
        Mistake(
            lambda x, A, B, scaling, index: lesson.gathered(x, A, B, scaling, index).mean(1, keepdim=True),
            "the tokens of a row were averaged: each has an update of its own, (batch, length, out).",
        ),
        Mistake(
            lambda x, A, B, scaling, index: lesson.gathered(x, A, B, scaling, index * 0),
            "every row got adapter 0: pick the row's own factors, A[index] and B[index].",
        ),
        Mistake(
            lambda x, A, B, scaling, index: lesson.gathered(x, A, B, torch.ones_like(scaling), index),
            "the scaling has no effect: each adapter has its own, scaling[index].",
        ),
        Mistake(
            lambda x, A, B, scaling, index: lesson.gathered(x, A, B, scaling[index[0]].expand(len(scaling)), index),
            "all rows are scaled as the first one: scaling[index] has a number for each row.",
        ),
        Mistake(
            lambda x, A, B, scaling, index: sum(
                lesson.gathered(x, A, B, scaling, torch.full_like(index, i)) for i in range(len(A))
            ),
            "every row got the sum of all adapters; it wants one of them.",
        ),
        Mistake(
            lambda x, A, B, scaling, index: lesson.gathered(x, A, B, scaling, index.sort().values),
            "the adapters were sorted, and the rows were not: row i wants adapter index[i], in the order of the rows.",
        ),
        Mistake(
            lambda x, A, B, scaling, index: lesson.gathered(x, A, B, scaling.mean().expand(len(scaling)), index),
            "all rows got the mean of the scalings: scaling[index] has each row's own.",
        ),
        Mistake(
            lambda x, A, B, scaling, index: lesson.gathered(
                x, A.reshape(len(A), -1, A.shape[1]).mT, B.reshape(len(B), -1, B.shape[1]).mT, scaling, index
            ),
            "reshape and view keep the order of the numbers; a transpose, .mT or .transpose(1, 2), exchanges rows and "
            "columns.",
        ),
        Mistake(
            lambda x, A, B, scaling, index: (
                scaling.repeat(len(index))[: len(index), None, None]
                * lesson.gathered(x, A, B, torch.ones_like(scaling), index)
            ),
            "the scalings were taken in their own order: scaling[index] puts them in the order of the rows.",
        ),
        Mistake(
            lambda x, A, B, scaling, index: lesson.gathered(x, A, B, scaling, index.flip(0)),
            "the rows got each other's adapters: row i wants adapter index[i].",
        ),
    ],
    hints=[
        "A[index] has the shape (batch, r, in): each row's own lora_A.",
        'low = torch.einsum("bti,bri->btr", x, A[index]) takes each row down to r numbers.',
        "scaling[index][:, None, None] gives each row's scaling room for the two other dimensions.",
    ],
    why="Indexing with `index` lays the row's own factors beside it, and one batched product serves all rows at once.",
    points=2,
)

# ------------------------------------------------------------------------------------------------------- padding


def _factors(r: int, d_in: int = 6, d_out: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(r, d_in), torch.randn(d_out, r)


def _drawn_padding(rng: random.Random) -> tuple[Tensor, Tensor, int]:
    r, d_in, d_out = rng.sample(range(1, 8), 3)
    dtype = rng.choice([torch.float32, torch.float64, torch.bfloat16])
    A, B = _factors(r, d_in, d_out)
    return A.to(dtype), B.to(dtype), r + rng.randint(0, 5)


exercise(
    "pad_rank",
    reference=lesson.pad_rank,
    cases=[
        lambda: (*_factors(2), 4),
        lambda: (*_factors(1, 3, 4), 8),
        lambda: (*_factors(3), 3),
        lambda: (*_factors(3, 5, 3), 5),
    ],
    drawn=_drawn_padding,
    compare=same_factors,
    mistakes=[
        Mistake(
            lambda A, B, r: (F.pad(A, (0, 0, 0, r - len(A))).float(), F.pad(B, (0, r - len(A))).float()),
            "the factors became float32: keep their dtype, as A.new_zeros(...) does.",
        ),
        Mistake(
            lambda A, B, r: (F.pad(A, (0, 0, 0, r - len(A)), value=1.0), F.pad(B, (0, r - len(A)), value=1.0)),
            "ones were put there: then the product has something more in it. Zeros change nothing.",
        ),
        Mistake(
            lambda A, B, r: (F.pad(A, (0, r - len(A))), F.pad(B, (0, 0, 0, r - len(A)))),
            "the zeros are at the wrong sides: A grows by rows and B by columns, since r is what grows.",
        ),
        Mistake(
            lambda A, B, r: (F.pad(A, (0, 0, r - len(A), 0)), F.pad(B, (0, r - len(A)))),
            "A's zeros are above and B's are behind: the numbers meet zeros, and the product changes.",
        ),
        Mistake(
            lambda A, B, r: (F.pad(A, (0, 0, 0, r - len(A))), B),
            "B must have r columns too, or it can't be multiplied with A.",
        ),
        Mistake(
            lambda A, B, r: (F.pad(A, (0, 0, 0, r - len(A))) * r / len(A), F.pad(B, (0, r - len(A)))),
            "the factors are scaled. Zeros change nothing, so there is nothing to make up for.",
        ),
        Mistake(
            lambda A, B, r: (F.pad(A, (0, 0, 0, r - len(A))), F.pad(B, (0, r - len(A))) * len(A) / r),
            "B was made smaller, by the old rank over the new. Zeros change nothing, so nothing is to be made up for.",
        ),
        Mistake(
            lambda A, B, r: (A[torch.arange(r) % len(A)], B[:, torch.arange(r) % len(A)]),
            "rows and columns were repeated, so that they count twice in the product: what is added has to be zero.",
        ),
        Mistake(
            lambda A, B, r: (F.pad(A, (0, 0, 0, r)), F.pad(B, (0, r))),
            "you added r rows and columns: r is what there should be in the end.",
        ),
    ],
    hints=[
        "A needs r - len(A) rows of zeros below, B as many columns of zeros on the right.",
        "torch.cat, with A.new_zeros(...), which has A's dtype and device.",
    ],
    why="A zero row in A computes a zero, and the zero column of B that meets it adds nothing to the product.",
)

# ------------------------------------------------------------------------------------------- where an aLoRA begins


def _starts(ids: list[int], invocation: list[int]) -> list[int]:
    n = len(invocation)
    return [i for i in range(len(ids) - n + 1) if ids[i : i + n] == invocation]


def _drawn_prompt(rng: random.Random) -> tuple[list[int], list[int]]:
    """Few different tokens, so that an invocation is there often, more than once, overlapping, or only begun."""
    kinds = rng.randint(1, 4)
    ids = [rng.randint(1, kinds) for _ in range(rng.randint(1, 12))]
    return ids, [rng.randint(1, kinds) for _ in range(rng.randint(1, 3))]


exercise(
    "invoked_at",
    reference=lesson.invoked_at,
    cases=[
        ([5, 9, 9, 3, 7], [3]),
        ([3, 5, 9, 3, 9, 8], [3, 9]),
        ([3, 9, 5, 3, 9, 6, 3, 8], [3, 9]),
        ([4, 3, 9], [3, 9]),
        ([4, 5, 3], [3, 9]),
        ([2, 2, 2, 7], [2, 2]),
        ([6], [3, 9]),
    ],
    drawn=_drawn_prompt,
    mistakes=[
        Mistake(
            lambda ids, invocation: next(iter(_starts(ids, invocation)), len(ids)),
            "that is the first occurrence: the last one counts, since earlier turns of a chat hold the invocation too.",
        ),
        Mistake(
            lambda ids, invocation: min(lesson.invoked_at(ids, invocation) + len(invocation), len(ids)),
            "that is where the invocation ends: the adapter acts on the invocation's own tokens, from the first one.",
        ),
        Mistake(
            lambda ids, invocation: min(lesson.invoked_at(ids, invocation) + 1, len(ids)),
            "one too late: the adapter acts from the invocation's first token.",
        ),
        Mistake(
            lambda ids, invocation: len(ids) - lesson.invoked_at(ids, invocation),
            "that counts from the end, as PEFT's alora_offsets do: a position is asked for, counted from 0.",
        ),
        Mistake(
            lambda ids, invocation: max((i for i, t in enumerate(ids) if t == invocation[0]), default=len(ids)),
            "only the invocation's first token was looked for: all of its tokens have to stand there, in this order.",
        ),
        Mistake(
            lambda ids, invocation: max(_starts(ids, invocation), default=0),
            "without an invocation the adapter does nothing: return len(ids). From 0 on it would act on every token.",
        ),
        Mistake(
            lambda ids, invocation: max(_starts(ids, invocation), default=-1),
            "without an invocation return len(ids): the adapter acts on nothing, and ids[:len(ids)] is all the base's.",
        ),
        Mistake(
            lambda ids, invocation: max(_starts(ids, invocation), default=None),
            "without an invocation return len(ids), a number: the adapter acts from there, on nothing.",
        ),
        Mistake(
            lambda ids, invocation: max(_starts(ids[:-1], invocation), default=len(ids)),
            "an invocation at the very end is missed, and there it usually stands: the last place to look at is "
            "len(ids) - len(invocation), and range ends before its second number.",
        ),
    ],
    hints=[
        "ids[i : i + n] == invocation compares n tokens at once; n is len(invocation).",
        "Collect every i for which it holds, from 0 to len(ids) - n, and take the last.",
        "Is there none? Then len(ids).",
    ],
    why="The last occurrence is this turn's. What stands before it was read by the base, in any turn, and is shared.",
)

# ----------------------------------------------------------------------------------------------------------- cat


def _pair(r1: int, r2: int, s1: float, s2: float, w1: float, w2: float):
    return lambda: ((*_factors(r1), s1), (*_factors(r2), s2), w1, w2)


def _drawn_pair(rng: random.Random) -> tuple[tuple[Tensor, Tensor, float], tuple[Tensor, Tensor, float], float, float]:
    r1, r2, d_in, d_out = rng.sample(range(1, 9), 4)
    s1, s2 = rng.sample([0.5, 1.0, 1.5, 2.0, 4.0], 2)
    first, second = ((*_factors(r, d_in, d_out), s) for r, s in ((r1, s1), (r2, s2)))
    return first, second, rng.choice([0.3, 0.7, 1.0, -1.0, 0.0]), rng.choice([0.25, 0.6, 2.0])


exercise(
    "cat_adapters",
    reference=lesson.cat_adapters,
    cases=[_pair(2, 3, 2.0, 0.5, 0.7, 0.3), _pair(1, 1, 1.0, 4.0, 1.0, -1.0), _pair(3, 2, 0.5, 3.0, 0.0, 2.0)],
    drawn=_drawn_pair,
    compare=same_factors,
    mistakes=[
        Mistake(
            lambda first, second, w1, w2: (
                torch.cat([w1 * first[2] * first[0], w2 * second[2] * second[0]]),
                torch.cat([second[1], first[1]], dim=1),
            ),
            "A has the first adapter on top and B the second in front: each meets the other's partner. Keep one order.",
        ),
        Mistake(
            lambda first, second, w1, w2: lesson.cat_adapters((*first[:2], second[2]), (*second[:2], first[2]), w1, w2),
            "the scalings are exchanged: each belongs to its own adapter.",
        ),
        Mistake(
            lambda first, second, w1, w2: lesson.cat_adapters(first, second, w1 / (w1 + w2), w2 / (w1 + w2)),
            "the weights were divided by their sum: they are taken as they are.",
        ),
        Mistake(
            lambda first, second, w1, w2: lesson.cat_adapters(first, second, w1, w2)[::-1],
            "the two factors are right, in the wrong order: A first, then B.",
        ),
        Mistake(
            lambda first, second, w1, w2: lesson.cat_adapters((*first[:2], 1), (*second[:2], 1), w1, w2),
            "the weights are there, the scalings are not: the correction is scaling * B @ A.",
        ),
        Mistake(
            lambda first, second, w1, w2: lesson.cat_adapters(first, second, 1, 1),
            "the weights have no effect yet.",
        ),
        Mistake(
            lambda first, second, w1, w2: (
                lesson.cat_adapters(first, second, w1, w2)[0],
                torch.cat([w1 * first[2] * first[1], w2 * second[2] * second[1]], dim=1),
            ),
            "weight and scaling are in A and in B, so that they count twice: put them on one side only.",
        ),
        Mistake(
            lambda first, second, w1, w2: lesson.cat_adapters(first, second, w1 * w1, w2 * w2),
            "the weights count twice, in A and in B: put them on one side only.",
        ),
        Mistake(
            lambda first, second, w1, w2: lesson.cat_adapters(
                (*first[:2], first[2] ** 2), (*second[:2], second[2] ** 2), w1, w2
            ),
            "the scalings count twice, in A and in B: put them on one side only.",
        ),
        Mistake(
            lambda first, second, w1, w2: w1 * first[2] * first[1] @ first[0] + w2 * second[2] * second[1] @ second[0],
            "that is the update itself, the product: return its two factors, A and B.",
        ),
        Mistake(
            lambda first, second, w1, w2: lesson.cat_adapters(first, second, w2, w1),
            "the weights are exchanged.",
        ),
        Mistake(
            lambda first, second, w1, w2: (first[0] + second[0], first[1] + second[1]),
            "that sums the factors, and it needs equal ranks: put them behind each other with torch.cat.",
        ),
    ],
    hints=[
        "The new A has the rows of both, the new B the columns of both.",
        "Multiply A1 by w1 * scaling1 and leave B1 as it is.",
        "torch.cat([...]) for A along dim=0, for B along dim=1.",
    ],
    why="Side by side each B meets its own A only, so there are no cross terms; the price is the sum of the ranks.",
)
