"""Chapter 9's exercises: memory of many adapters, the gathered correction, padding, cat, cross terms, SVD, TIES."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.course.checks.references import ch09 as lesson
from utils.course.checks.registry import Mistake, exercise

# ----------------------------------------------------------------------------------- one base or a copy for each task


exercise(
    "bytes_to_serve",
    reference=lesson.bytes_to_serve,
    cases=[(1000, [10, 20]), (500, [7]), (4000, [100, 100, 300])],
    mistakes=[
        Mistake(
            lambda base, adapters: (sum(adapters), len(adapters) * base),
            "the adapters compute nothing alone: the base has to be there once.",
        ),
        Mistake(
            lambda base, adapters: (base + sum(adapters), base),
            "one merged copy serves one task; there is one copy for each adapter.",
        ),
        Mistake(
            lambda base, adapters: (len(adapters) * base + sum(adapters), len(adapters) * base),
            "the adapters share one base: count it once in the first number.",
        ),
        Mistake(
            lambda base, adapters: (base + sum(adapters), len(adapters) * base + sum(adapters)),
            "merging adds the correction into the weights that are there: a merged copy is as large as the base.",
        ),
        Mistake(
            lambda base, adapters: (len(adapters) * base, base + sum(adapters)),
            "the two are exchanged: first one base with its adapters, then the copies.",
        ),
    ],
    hints=[
        "The base is there once, each adapter once.",
        "A merged copy is as large as the base: len(adapters) copies.",
    ],
)

# ------------------------------------------------------------------------------------------- the gathered correction


def _gather_case(index: list[int], adapters: int = 3, length: int = 4):
    def make():
        shapes = (len(index), length, 6), (adapters, 2, 6), (adapters, 5, 2)
        x, a, b = (torch.randn(shape) for shape in shapes)
        return x, a, b, torch.arange(1.0, adapters + 1), torch.tensor(index)

    return make


exercise(
    "gathered",
    reference=lesson.gathered,
    cases=[_gather_case([2, 0, 0, 1]), _gather_case([1, 2]), _gather_case([0, 2, 1], length=1)],
    mistakes=[
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
            lambda x, A, B, scaling, index: lesson.gathered(x, A, B, scaling, index.flip(0)),
            "the rows got each other's adapters: row i wants adapter index[i].",
        ),
    ],
    hints=[
        "A[index] has the shape (batch, r, in): each row's own lora_A.",
        'low = torch.einsum("bti,bri->btr", x, A[index]) takes each row down to r numbers.',
        "scaling[index][:, None, None] gives each row's scaling room for the two other dimensions.",
    ],
    points=2,
)

# ------------------------------------------------------------------------------------------------------- padding


def _factors(r: int, d_in: int = 6, d_out: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(r, d_in), torch.randn(d_out, r)


exercise(
    "pad_rank",
    reference=lesson.pad_rank,
    cases=[lambda: (*_factors(2), 4), lambda: (*_factors(1, 3, 4), 8), lambda: (*_factors(3), 3)],
    mistakes=[
        Mistake(
            lambda A, B, r: (F.pad(A, (0, 0, r - len(A), 0)), F.pad(B, (0, r - len(A)))),
            "A's zeros are above and B's are behind: the numbers meet zeros, and the product changes.",
        ),
        Mistake(
            lambda A, B, r: (A.repeat(-(-r // len(A)), 1)[:r], F.pad(B, (0, r - len(A)))),
            "the new rows of A are copies. The product is right only by luck of B's zeros: pad both with zeros.",
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
            lambda A, B, r: (F.pad(A, (0, 0, 0, r)), F.pad(B, (0, r))),
            "you added r rows and columns: r is what there should be in the end.",
        ),
    ],
    hints=[
        "A needs r - len(A) rows of zeros below, B as many columns of zeros on the right.",
        "torch.zeros and torch.cat.",
    ],
)

# ----------------------------------------------------------------------------------------------------------- cat


def _pair(r1: int, r2: int, s1: float, s2: float, w1: float, w2: float):
    return lambda: ((*_factors(r1), s1), (*_factors(r2), s2), w1, w2)


def _same_product(expected, got) -> bool:
    """Whether `got` is a pair of factors of the expected rank with the expected product."""
    try:
        a, b = got
        return len(a) == len(expected[0]) and torch.allclose(b @ a, expected[1] @ expected[0], rtol=1e-4, atol=1e-5)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return False


exercise(
    "cat_adapters",
    reference=lesson.cat_adapters,
    cases=[_pair(2, 3, 2.0, 0.5, 0.7, 0.3), _pair(1, 1, 1.0, 4.0, 1.0, -1.0), _pair(3, 2, 0.5, 3.0, 0.0, 2.0)],
    compare=_same_product,
    mistakes=[
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
)

# ---------------------------------------------------------------------------------------------------- cross terms


def _cross_case(w1: float, w2: float):
    return lambda: (_factors(2), _factors(2), w1, w2)


exercise(
    "cross_terms",
    reference=lesson.cross_terms,
    cases=[_cross_case(0.7, 0.3), _cross_case(2.0, 1.0), _cross_case(0.5, 0.25)],
    mistakes=[
        Mistake(
            lambda first, second, w1, w2: math.sqrt(w1 * w2) * lesson.cross_terms(first, second, w1, w2),
            "each factor carries a root: the product of the two roots is the root of w1 * w2, not w1 * w2.",
        ),
        Mistake(
            lambda first, second, w1, w2: math.sqrt(w1 * w2) * first[1] @ second[0],
            "one of the two is missing: there is B1 @ A2, and there is B2 @ A1.",
        ),
        Mistake(
            lambda first, second, w1, w2: lesson.cross_terms(first, second, 1, 1),
            "the weights have no effect yet.",
        ),
        Mistake(
            lambda first, second, w1, w2: w1 * first[1] @ first[0] + w2 * second[1] @ second[0],
            "that is the weighted sum itself; asked for is what linear adds to it.",
        ),
        Mistake(
            lambda first, second, w1, w2: (
                lesson.cross_terms(first, second, w1, w2) + w1 * first[1] @ first[0] + w2 * second[1] @ second[0]
            ),
            "that is all that linear gives; take the weighted sum off.",
        ),
    ],
    hints=[
        "Multiply out (sqrt(w1) B1 + sqrt(w2) B2) @ (sqrt(w1) A1 + sqrt(w2) A2): four products.",
        "Two of the four are w1 B1 A1 and w2 B2 A2. The other two are the cross terms.",
    ],
    points=2,
)

# ----------------------------------------------------------------------------------------------- what the SVD loses


exercise(
    "svd_error",
    reference=lesson.svd_error,
    cases=[
        (torch.tensor([4.0, 2.0, 1.0, 0.5]), 2),
        (torch.tensor([3.0, 3.0, 1.0]), 1),
        (torch.tensor([5.0, 1.0, 0.2, 0.1]), 3),
    ],
    mistakes=[
        Mistake(
            lambda s, rank: float((s[:rank].square().sum() / s.square().sum()).sqrt()),
            "that is the part which is kept; asked for is what is lost.",
        ),
        Mistake(
            lambda s, rank: float(s[rank:].square().sum() / s.square().sum()),
            "the squares are right, the root is missing: a norm is the root of a sum of squares.",
        ),
        Mistake(
            lambda s, rank: float(s[rank:].sum() / s.sum()),
            "you summed the singular values; the matrix's norm is the root of the sum of their squares.",
        ),
        Mistake(
            lambda s, rank: float(s[rank:].square().sum().sqrt()),
            "that is the lost part's norm; divide it by the norm of the whole.",
        ),
        Mistake(
            lambda s, rank: lesson.svd_error(s, rank - 1),
            "one too many is lost: s[0] to s[rank - 1] are kept.",
        ),
    ],
    hints=["What is lost are s[rank:].", "The norm of a matrix is the root of the sum of its squared singular values."],
)

# ------------------------------------------------------------------------------------------------------------ TIES


def _agreeing(stacked: Tensor, votes: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the entries that have the sign which `votes` elect, and how many these are."""
    agree = stacked.sign() == torch.where(votes.sum(0) >= 0, 1, -1)
    return (stacked * agree).sum(0), agree.sum(0).clamp(min=1)


def _tensors(*rows: list[float]):
    return lambda: (torch.tensor(rows),)


exercise(
    "elect_and_merge",
    reference=lesson.elect_and_merge,
    cases=[
        _tensors([3.0, -1.0, 1.0, 0.0], [-1.0, -1.0, -1.0, 2.0], [-1.0, 5.0, 0.0, 0.0]),
        _tensors([1.0, -2.0, 0.0], [2.0, -4.0, 0.0]),
        lambda: (torch.randn(4, 3, 2),),
    ],
    mistakes=[
        Mistake(
            lambda stacked: stacked.mean(0),
            "that is the mean of all. First elect a sign, and leave out whoever has the other one.",
        ),
        Mistake(
            lambda stacked: _agreeing(stacked, stacked)[0] / len(stacked),
            "you divided by the number of tensors; divide by the number of those that agree.",
        ),
        Mistake(
            lambda stacked: _agreeing(stacked, stacked)[0],
            "that is the sum of those that agree; TIES takes their mean.",
        ),
        Mistake(
            lambda stacked: torch.div(*_agreeing(stacked, stacked.sign())),
            "each tensor had one vote. Here the larger entry has more to say: the sign of the sum.",
        ),
        Mistake(
            lambda stacked: (
                (stacked * (stacked.sign() == stacked.sum(0).sign())).sum(0)
                / (stacked.sign() == stacked.sum(0).sign()).sum(0)
            ),
            "where nobody agrees you divide zero by zero, and a tie (1 and -1) elects plus: clamp the count to 1.",
        ),
    ],
    hints=[
        "elected = torch.where(stacked.sum(dim=0) >= 0, 1, -1)",
        "agree = stacked.sign() == elected; a zero has the sign 0 and never agrees.",
        "(stacked * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)",
    ],
    points=2,
)
