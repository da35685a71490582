"""Chapter 10's exercises: merging with one rounding, what arrives, how far apart two models predict, 4 bits, and a
tensor's bytes.
"""

from __future__ import annotations

import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.course.checks.behaviour import numbers_within
from utils.course.checks.compare import difference
from utils.course.checks.describe import apart, dtype_name
from utils.course.checks.references import ch10 as lesson
from utils.course.checks.registry import Mistake, exercise
from utils.quant.nf4 import dequantize, quantize

# ------------------------------------------------------------------------------------------ where a tensor's bytes are


def _drawn_offsets(rng: random.Random) -> tuple[int, list[int]]:
    begin = rng.choice([0, rng.randint(1, 5000)])
    return rng.randint(2, 4000), [begin, begin + rng.randint(0, 9000)]


exercise(
    "tensor_range",
    reference=lesson.tensor_range,
    cases=[(100, [0, 16]), (2048, [512, 1536]), (77, [40, 48])],
    drawn=_drawn_offsets,
    mistakes=[
        Mistake(
            lambda length, offsets: (length + offsets[0] + 7, length + offsets[1] + 7),
            "one byte too early: places count from 0, so behind 8 + length bytes stands the byte number 8 + length.",
        ),
        Mistake(
            lambda length, offsets: (8 + length + offsets[0], 8 + length + offsets[1] - 1),
            "that is the last byte itself. A slice data[begin:end] leaves the byte at end out, as data_offsets do.",
        ),
        Mistake(
            lambda length, offsets: [offset.__add__(8 + length) for offset in offsets[::-1]],
            "begin and end are exchanged.",
        ),
        Mistake(
            lambda length, offsets: offsets.__setitem__(slice(None), [8 + length + o for o in offsets]) or offsets,
            "your function changes its input: the header's own numbers are overwritten, and are read again later.",
        ),
        Mistake(
            lambda length, offsets: tuple(offsets),
            "these count from the start of the data, and before the data come the eight bytes and the header.",
        ),
        Mistake(
            lambda length, offsets: (length + offsets[0], length + offsets[1]),
            "the eight bytes at the very beginning, which hold the header's length, are missing.",
        ),
        Mistake(
            lambda length, offsets: (8 + offsets[0], 8 + offsets[1]),
            "you stepped over the first eight bytes, but not over the header, which is `length` bytes long.",
        ),
        Mistake(
            lambda length, offsets: (8 + length + offsets[0], offsets[1] - offsets[0]),
            "your second number is how many bytes there are. Return where the last one ends, as a slice wants it.",
        ),
        Mistake(
            lambda length, offsets: (8 + length + offsets[0], 8 + length + offsets[0] + offsets[1]),
            "data_offsets are begin and end, both from the start of the data; you took the second for a length.",
        ),
    ],
    hints=[
        "The file: 8 bytes, then `length` bytes of header, then the data.",
        "Both offsets count from the first byte of the data. So the same number is added to both.",
    ],
    why="In front of the data stand eight bytes and the header; both ends of a tensor move by the same number.",
)

# --------------------------------------------------------------------------------------- merge, and round only once


def _merge_case(dtype: torch.dtype, rows: int, columns: int, scaling: float):
    """1024ths and a power of two: lora_B @ lora_A is exact in float32, in any order, and bf16 can't hold them."""

    def make() -> tuple[Tensor, Tensor, Tensor, float]:
        weight = torch.randn(rows, columns).to(dtype)
        a, b = (torch.randint(-1000, 1000, shape) / 1024 for shape in ((4, columns), (rows, 4)))
        return weight, a, b, scaling

    return make


def _drawn_merge(rng: random.Random) -> tuple[Tensor, Tensor, Tensor, float]:
    dtype = rng.choice([torch.bfloat16, torch.float16, torch.float32])
    rows, columns = rng.sample(range(8, 30), 2)
    return _merge_case(dtype, rows, columns, rng.choice([0.25, 0.5, 2.0, 4.0]))()


def _same_bits(expected: Tensor, got: Any) -> bool | str:
    said = difference(expected, got)
    if said or expected.dtype == torch.float32:  # where the order of sums may show
        return said or True
    wrong = int((expected != got).sum())
    return not wrong or (
        f"the weights are near the right ones, but {wrong} of {expected.numel()} are not the same to the bit: "
        f"something is rounded before the end, or in another dtype than {dtype_name(expected)}."
    )


exercise(
    "merge_rounded",
    reference=lesson.merge_rounded,
    cases=[
        _merge_case(torch.bfloat16, 48, 32, 2.0),
        _merge_case(torch.float16, 40, 24, 4.0),
        _merge_case(torch.float32, 8, 6, 0.5),
    ],
    drawn=_drawn_merge,
    compare=_same_bits,
    new_result=True,
    mistakes=[
        Mistake(
            lambda weight, lora_A, lora_B, scaling: (weight.float() - scaling * (lora_B @ lora_A)).to(weight.dtype),
            "the sign is wrong: merging adds the update.",
        ),
        Mistake(
            lambda weight, lora_A, lora_B, scaling: (weight.float() + scaling / len(lora_A) * (lora_B @ lora_A)).to(
                weight.dtype
            ),
            "the rank counts twice: scaling is lora_alpha / r already.",
        ),
        Mistake(
            lambda weight, lora_A, lora_B, scaling: (weight.float() + scaling * (lora_B @ lora_A)).bfloat16(),
            "the result is bf16 whatever came in: a merged layer keeps the weight's own dtype.",
        ),
        Mistake(
            lambda weight, lora_A, lora_B, scaling: (
                (weight.float() + scaling * (lora_B @ lora_A)).bfloat16().to(weight.dtype)
            ),
            "the sum went through bf16 on its way: round to the weight's own dtype, and to no other.",
        ),
        Mistake(
            lambda weight, lora_A, lora_B, scaling: weight.copy_(weight.float() + scaling * (lora_B @ lora_A)),
            "your function changes its input: return a new weight, and leave it to the caller what becomes of the old.",
        ),
        Mistake(
            lambda weight, lora_A, lora_B, scaling: weight + (scaling * (lora_B @ lora_A)).to(weight.dtype),
            "you rounded twice: the correction first, then the sum. Add in float32 and round the sum.",
        ),
        Mistake(
            lambda weight, lora_A, lora_B, scaling: (
                weight + scaling * (lora_B.to(weight.dtype) @ lora_A.to(weight.dtype))
            ),
            "you rounded lora_A and lora_B before multiplying. They are float32: multiply and add there, then round.",
        ),
        Mistake(
            lambda weight, lora_A, lora_B, scaling: weight.float() + scaling * (lora_B @ lora_A),
            "the result is float32. A merged layer keeps the dtype of the weight that it replaces: .to(weight.dtype).",
        ),
        Mistake(
            lambda weight, lora_A, lora_B, scaling: (weight.float() + lora_B @ lora_A).to(weight.dtype),
            "the scaling is missing: the correction is scaling * B A.",
        ),
        Mistake(
            lambda weight, lora_A, lora_B, scaling: (scaling * (lora_B @ lora_A)).to(weight.dtype),
            "that is the correction; the weight itself is missing.",
        ),
        Mistake(
            lambda weight, lora_A, lora_B, scaling: (scaling * (weight.float() + lora_B @ lora_A)).to(weight.dtype),
            "the scaling belongs to the correction alone: you scaled the weight too.",
        ),
    ],
    hints=[
        "In which dtype is a sum of a bf16 and a float32 tensor? Make it sure: weight.float().",
        "scaling * (lora_B @ lora_A) has the weight's shape and is float32.",
        "Round at the very end, once: .to(weight.dtype).",
    ],
    why="Each rounding loses up to half a step of the dtype; rounding the sum alone loses it once.",
    points=2,
)

# ------------------------------------------------------------------------------------------ what of it has arrived


def _arrival_case(scale: float, dtype: torch.dtype):
    return lambda: (torch.randn(24, 16), scale * torch.randn(24, 16), dtype)


def _drawn_arrival(rng: random.Random) -> tuple[Tensor, Tensor, torch.dtype]:
    rows, columns = rng.sample(range(8, 20), 2)
    scale, dtype = rng.choice([0.3, 0.03, 0.003]), rng.choice([torch.bfloat16, torch.float16])
    return torch.randn(rows, columns), scale * torch.randn(rows, columns), dtype


def _added(weight: Tensor, delta: Tensor, dtype: torch.dtype) -> Tensor:
    before = weight.to(dtype).float()
    return (before + delta).to(dtype).float() - before


def _lost(before: Tensor, after: Tensor, delta: Tensor) -> float:
    return _lost_of(after.float() - before.float(), delta)


def _lost_of(added: Tensor, delta: Tensor) -> float:
    return float((added - delta).norm() / delta.norm())


exercise(
    "lost_in_rounding",
    reference=lesson.lost_in_rounding,
    cases=[
        _arrival_case(0.1, torch.bfloat16),
        _arrival_case(0.001, torch.bfloat16),
        _arrival_case(0.01, torch.float16),
    ],
    drawn=_drawn_arrival,
    compare=numbers_within(1e-4),  # two norms in float32, over differences of numbers that nearly cancel
    mistakes=[
        Mistake(
            lambda weight, delta, dtype: _lost(weight, (weight + delta).to(dtype), delta),
            "the base isn't rounded: it is stored in dtype before the merge as well, and its own rounding is no loss "
            "of the merge.",
        ),
        Mistake(
            lambda weight, delta, dtype: _lost(weight.to(dtype), (weight + delta).to(dtype), delta),
            "the sum begins with the weight in float32, and the merge has only what is stored: weight.to(dtype).",
        ),
        Mistake(
            lambda weight, delta, dtype: _lost(weight.to(dtype), weight.to(dtype) + delta.to(dtype), delta),
            "the update is rounded before the sum, and the sum again: add in float32, then round once.",
        ),
        Mistake(
            lambda weight, delta, dtype: 100 * lesson.lost_in_rounding(weight, delta, dtype),
            "that is in percent: a share lies between 0 and about 1.",
        ),
        Mistake(
            lambda weight, delta, dtype: _lost_of(
                ((weight.to(dtype).float() + delta).to(dtype) - weight.to(dtype)).float(), delta
            ),
            "after - before was rounded to dtype once more: subtract in float32, after.float() - before.float().",
        ),
        Mistake(
            lambda weight, delta, dtype: float(
                (_added(weight, delta, dtype) - delta).norm() / _added(weight, delta, dtype).norm()
            ),
            "you divided by the size of what arrived: divide by that of delta, which should have arrived.",
        ),
        Mistake(
            lambda weight, delta, dtype: lesson.lost_in_rounding(weight, delta, torch.bfloat16),
            "bf16 is written into your function: round to the dtype that is given.",
        ),
        Mistake(
            lambda weight, delta, dtype: float((delta.to(dtype).float() - delta).norm() / delta.norm()),
            "you rounded the correction alone, which hardly hurts. Round the sum: its steps are coarser.",
        ),
        Mistake(
            lambda weight, delta, dtype: float(
                ((weight + delta).to(dtype).float() - (weight + delta)).norm() / (weight + delta).norm()
            ),
            "you compared with the size of the weight. Ask how much of the correction is lost: divide by delta.norm().",
        ),
        Mistake(
            lambda weight, delta, dtype: float(
                ((weight.to(dtype).float() + delta).to(dtype).float() - weight.to(dtype).float()).norm() / delta.norm()
            ),
            "that is the size of what arrived, which may be right in size and wrong everywhere: subtract delta first.",
        ),
        Mistake(
            lambda weight, delta, dtype: float(
                ((weight.to(dtype).float() + delta).to(dtype).float() - weight.to(dtype).float() - delta).norm()
            ),
            "divide by delta.norm(): an error means little until you know the size of what it spoils.",
        ),
        Mistake(
            lambda weight, delta, dtype: (
                lesson.lost_in_rounding(weight, delta, dtype) * float(delta.norm() / weight.to(dtype).float().norm())
            ),
            "you divided by the weight's size: the error may be small beside the weight and eat all of the update.",
        ),
        Mistake(
            lambda weight, delta, dtype: float(1 - _added(weight, delta, dtype).norm() / delta.norm()),
            "you compared two sizes. What arrived may be as large as delta and point elsewhere: subtract first, then "
            "take the norm.",
        ),
        Mistake(
            lambda weight, delta, dtype: float((_added(weight, delta, dtype) / delta - 1).abs().mean()),
            "that is the mean of each entry's own relative error, in which the smallest entries count most. Take the "
            "norms of the whole matrices.",
        ),
        Mistake(
            lambda weight, delta, dtype: float((_added(weight, delta, dtype) == 0).float().mean()),
            "that is the share of weights that did not move; the others have lost something as well.",
        ),
        Mistake(
            lambda weight, delta, dtype: 0.0,
            "you got zero: was the sum rounded at all? Both steps need .to(dtype); the difference is taken in float32.",
        ),
    ],
    hints=[
        "before = weight.to(dtype): the base is stored in that dtype already.",
        "after = (before.float() + delta).to(dtype): one rounding.",
        "What arrived is after - before, in float32. Its difference from delta is what was lost.",
    ],
    why="What counts is what the stored weight moved by, against what it should have moved by.",
    points=2,
)

# ------------------------------------------------------------------------------ how far apart two models predict


def _two_models(places: int, vocabulary: int, apart: float, size: float = 3.0):
    """Logits of a model, and of one that has noise on them and another shift at each place."""

    def make() -> tuple[Tensor, Tensor]:
        logits = size * torch.randn(places, vocabulary)
        return logits, logits + apart * torch.randn(places, vocabulary) + torch.randn(places, 1)

    return make


def _sure(places: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """One token has all of the probability in each row: others are at 0 to the last digit, and never exactly."""
    best = torch.randint(vocabulary, (places,))
    return 300.0 * F.one_hot(best, vocabulary), torch.randn(places, vocabulary)


def _drawn_models(rng: random.Random) -> tuple[Tensor, Tensor]:
    places, vocabulary = rng.sample(range(1, 12), 2)
    if rng.random() < 0.2:
        return _sure(places, vocabulary + 1)
    return _two_models(places, vocabulary + 1, rng.choice([3.0, 1.0, 0.3, 1e-3, 1e-4]), rng.choice([0.5, 2.0, 6.0]))()


def _kl(reference: Tensor, logits: Tensor) -> Tensor:
    """The terms of the sum, (places, vocabulary)."""
    p, q = (one.double().log_softmax(dim=-1) for one in (reference, logits))
    return p.exp() * (p - q)


def _kl_by_softmax(reference: Tensor, logits: Tensor) -> Tensor:
    """The terms of the sum by way of the probabilities, which underflow."""
    p, q = (one.double().softmax(dim=-1) for one in (reference, logits))
    return p * (p.log() - q.log())


def _sure_models() -> tuple[Tensor, Tensor]:
    """Two models that are so sure of what isn't said that its probability is 0 in any dtype, and its logarithm not."""
    return torch.tensor([[4.0, 2.0, -900.0]]), torch.tensor([[2.0, 3.0, -800.0]])


def _same_divergence(expected: float, got: Any) -> bool | str:
    if not isinstance(got, float) or math.isclose(expected, got, rel_tol=1e-6, abs_tol=1e-14):
        return difference(expected, got) or True
    if math.isnan(got) or math.isinf(got):
        return "a probability became 0 and its logarithm minus infinity: take log_softmax, which keeps the logarithm."
    if abs(expected - got) < 1e-5 * (1 + expected):
        return (
            "expected {}, got {}: near, and not near enough. Between models this close the last digits count, so "
            "compute in float64 from the first step on, and round or smooth nothing.".format(*apart(expected, got))
        )
    return difference(expected, got) or True


exercise(
    "divergence",
    reference=lesson.divergence,
    cases=[_two_models(4, 6, 1.0), _two_models(1, 9, 0.5), _two_models(7, 5, 1e-3), _sure_models],
    drawn=_drawn_models,
    compare=_same_divergence,
    mistakes=[
        Mistake(
            lambda reference, logits: _kl(logits, reference).sum(-1).mean().item(),
            "that is the divergence from the other model: the weights p belong to the reference.",
        ),
        Mistake(
            lambda reference, logits: _kl(reference, logits).sum().item(),
            "that is the sum over all places, which grows with the text: take the mean over the places.",
        ),
        Mistake(
            lambda reference, logits: _kl(reference, logits).mean().item(),
            "the mean goes over places and vocabulary. At each place it is a sum over the vocabulary: sum, then mean.",
        ),
        Mistake(
            lambda reference, logits: (_kl(reference, logits).sum(-1).mean() / math.log(2)).item(),
            "that is in bits, with the logarithm to base 2. A nat is the natural logarithm's.",
        ),
        Mistake(
            lambda reference, logits: _kl_by_softmax(reference, logits).sum(-1).mean().item(),
            "a probability became 0 and its logarithm minus infinity: take log_softmax, which keeps the logarithm.",
        ),
        Mistake(
            lambda reference, logits: -_kl(reference, logits).sum(-1).mean().item(),
            "the sign is wrong: a divergence is never negative. It is log p - log q.",
        ),
        Mistake(
            lambda reference, logits: (
                (reference.double().softmax(-1) * (reference.double() - logits.double())).sum(-1).mean().item()
            ),
            "the logits themselves are no logarithms of probabilities: they lack the softmax's denominator, so that a "
            "shift of all logits counts as a change.",
        ),
        Mistake(
            lambda reference, logits: (
                -(reference.double().softmax(-1) * logits.double().log_softmax(-1)).sum(-1).mean().item()
            ),
            "that is the cross-entropy. It isn't 0 for equal models: take the reference's own entropy off, "
            "p * (log p - log q).",
        ),
        Mistake(
            lambda reference, logits: _kl(reference.T, logits.T).sum(-1).mean().item(),
            "your softmax goes over the places: each place, a row, has a distribution of its own.",
        ),
        Mistake(
            lambda reference, logits: (
                (reference.double().log_softmax(-1) - logits.double().log_softmax(-1)).sum(-1).mean().item()
            ),
            "every token counts alike, the ones among them that nobody would draw: weight them with p.",
        ),
        Mistake(
            lambda reference, logits: (
                (reference.double().softmax(-1) - logits.double().softmax(-1)).abs().sum(-1).mean().item() / 2
            ),
            "that is the total variation distance, half the sum of |p - q|: another measure, without logarithms.",
        ),
        Mistake(
            lambda reference, logits: (_kl(reference, logits) + _kl(logits, reference)).sum(-1).mean().item() / 2,
            "that is the mean of both directions; the one from the reference is asked for.",
        ),
        Mistake(
            lambda reference, logits: _kl(reference, logits).sum(-1).max().item(),
            "that is the place where the two are farthest apart; take the mean over the places.",
        ),
        Mistake(
            lambda reference, logits: _kl(reference.flatten(), logits.flatten()).sum().item(),
            "your softmax goes over all places at once: each place, a row, has a distribution of its own.",
        ),
        Mistake(
            lambda reference, logits: (
                (reference.double().softmax(-1) * (reference.double().log_softmax(-1) - logits.double().softmax(-1)))
                .sum(-1)
                .mean()
                .item()
            ),
            "a logarithm is missing: q itself stands where log q belongs. (F.kl_div's first argument is log q.)",
        ),
        Mistake(
            lambda reference, logits: (
                (reference.double().softmax(-1) * (reference.double().log_softmax(-1) - logits.double()))
                .sum(-1)
                .mean()
                .item()
            ),
            "log q is missing its denominator: the raw logits stand there. (F.kl_div makes no softmax itself.)",
        ),
        Mistake(
            lambda reference, logits: _kl(reference.float(), logits.float()).sum(-1).tolist(),
            "that is one number for each place: take the mean of them.",
        ),
    ],
    hints=[
        "log_softmax(dim=-1) of .double() gives log p, and .exp() of it p.",
        "p * (log p - log q): sum over the vocabulary, dim=-1, then the mean over the places.",
    ],
    why="A shift of all logits leaves log_softmax as it is, so it isn't counted; p weights a token as it is drawn.",
    points=2,
)

# ------------------------------------------------------------------------------------------------ merging in 4 bits


def _in_four_bits(values: Tensor, double: bool = True) -> Tensor:
    return dequantize(quantize(values, double=double))


def _four_bit_case(rows: int, size: float):
    return lambda: (_in_four_bits(torch.randn(rows, 64)), size * torch.randn(rows, 64))


exercise(
    "merge_four_bit",
    reference=lesson.merge_four_bit,
    cases=[_four_bit_case(8, 0.3), _four_bit_case(40, 0.05), _four_bit_case(3, 1.0)],
    drawn=lambda rng: _four_bit_case(rng.randint(1, 20), rng.choice([0.02, 0.2, 0.7]))(),
    draws=12,
    new_result=True,
    mistakes=[
        Mistake(
            lambda restored, delta: _in_four_bits((restored + delta).bfloat16().float()),
            "the sum was rounded to bf16 first: it is quantized from float32, or one more rounding is in it.",
        ),
        Mistake(
            lambda restored, delta: _in_four_bits(restored) + _in_four_bits(delta),
            "two quantized parts were added, and their sum is no weight in 4 bits: add first, then quantize once.",
        ),
        Mistake(
            lambda restored, delta: _in_four_bits(restored.add_(delta)),
            "your function changes its input: restored + delta makes a new sum.",
        ),
        Mistake(
            lambda restored, delta: restored + delta,
            "that is the sum in float32, and a layer in 4 bits can't hold it: quantize it, and restore what is stored.",
        ),
        Mistake(
            lambda restored, delta: quantize(restored + delta, double=True),
            "those are the codes and scales that are stored. Return the weight that they stand for: dequantize.",
        ),
        Mistake(
            lambda restored, delta: _in_four_bits(delta),
            "only the correction is left: add it to the restored weight.",
        ),
        Mistake(
            lambda restored, delta: _in_four_bits(restored + delta, double=False),
            "the scales are float32 again: the base has them in 8 bits, double=True.",
        ),
        Mistake(
            lambda restored, delta: _in_four_bits(restored) + delta,
            "the base was quantized and the sum was not: what a 4-bit layer stores is the quantized sum.",
        ),
        Mistake(
            lambda restored, delta: restored + _in_four_bits(delta),
            "you quantized the correction alone. There is one weight, and the sum is what it has to store.",
        ),
        Mistake(
            lambda restored, delta: _in_four_bits(restored - delta),
            "the correction was taken away, not added.",
        ),
        Mistake(
            lambda restored, delta: _in_four_bits(restored + _in_four_bits(delta)),
            "the update was quantized before the sum: it is added as it is, and the sum alone is quantized.",
        ),
        Mistake(
            lambda restored, delta: _in_four_bits((restored + delta).T.contiguous()).T,
            "you quantized the transpose, so the blocks hold other weights: a layer's blocks run along its rows.",
        ),
    ],
    hints=[
        "The sum first: restored + delta.",
        "quantize(..., double=True) gives what is stored, and dequantize of that what the layer computes with.",
    ],
    why="A 4-bit layer stores codes and scales, so the sum is quantized anew; it computes with what they stand for.",
)
