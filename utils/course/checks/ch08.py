"""Chapter 8's exercises: a header's length, a tensor's bytes, an adapter's size, merging with one rounding, what
arrives, merging in 4 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from utils.course.checks.references import ch08 as lesson
from utils.course.checks.registry import Mistake, exercise
from utils.quant.nf4 import dequantize, quantize

# ------------------------------------------------------------------------------------------- the length of a header

exercise(
    "header_length",
    reference=lesson.header_length,
    cases=[
        (bytes([2, 0, 0, 0, 0, 0, 0, 0]),),
        (bytes([0x10, 0x27, 0, 0, 0, 0, 0, 0]),),
        (bytes([1, 2, 3, 0, 1, 0, 0, 0]),),
    ],
    mistakes=[
        Mistake(
            lambda first: int.from_bytes(first, "big"),
            "you read the bytes from the large end: 2 became two followed by seven zero bytes. The format is little.",
        ),
        Mistake(
            lambda first: int.from_bytes(first[:4], "little"),
            "you took four bytes; the length has eight. It shows only when the number is large.",
        ),
        Mistake(
            lambda first: first[0],
            "that is the first byte alone: the second counts 256 times as much, and so on.",
        ),
        Mistake(
            lambda first: sum(first),
            "you added the bytes up as if each counted the same. Each counts 256 times the one before it.",
        ),
        Mistake(
            lambda first: 8 + int.from_bytes(first, "little"),
            "you added the eight bytes of the number itself: that is where the data begin. Asked is the length.",
        ),
    ],
    hints=[
        "Little-endian: the first byte counts 1, the second 256, the third 256 * 256.",
        'int.from_bytes(..., "little") does it.',
    ],
)

# ------------------------------------------------------------------------------------------ where a tensor's bytes are


exercise(
    "tensor_range",
    reference=lesson.tensor_range,
    cases=[(100, (0, 16)), (2048, (512, 1536)), (77, (40, 48))],
    mistakes=[
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
)

# -------------------------------------------------------------------------------------------------- an adapter's bytes


exercise(
    "adapter_bytes",
    reference=lesson.adapter_bytes,
    cases=[([(64, 64), (16, 64)], 8, 4), ([(512, 192)] * 3, 16, 2), ([(10, 20), (20, 10), (7, 5)], 1, 4)],
    mistakes=[
        Mistake(
            lambda shapes, r, each: each * sum(d_out * d_in for d_out, d_in in shapes),
            "that is the weights themselves. An adapter holds lora_A, (r, in), and lora_B, (out, r), of each.",
        ),
        Mistake(
            lambda shapes, r, each: each * sum(r * d_in for _, d_in in shapes),
            "that is lora_A alone; lora_B has r numbers for each output.",
        ),
        Mistake(
            lambda shapes, r, each: each * sum(2 * r * d_in for _, d_in in shapes),
            "2 * r * in is right for square weights only: lora_B is (out, r).",
        ),
        Mistake(
            lambda shapes, r, each: sum(r * (d_out + d_in) for d_out, d_in in shapes),
            "you counted numbers. Each takes `each` bytes.",
        ),
        Mistake(
            lambda shapes, r, each: each * sum(d_out + d_in for d_out, d_in in shapes),
            "the rank is missing: lora_A has r rows and lora_B r columns.",
        ),
        Mistake(
            lambda shapes, r, each: each * r * (shapes[0][0] + shapes[0][1]) * len(shapes),
            "you took the first layer's shape for all of them; in a Llama the MLP's differ.",
        ),
    ],
    hints=[
        "lora_A is (r, in) and lora_B is (out, r): how many numbers together?",
        "Sum over the layers, times `each`.",
    ],
)

# --------------------------------------------------------------------------------------- merge, and round only once


def _merge_case(dtype: torch.dtype, rows: int, columns: int, scaling: float):
    """1024ths and a power of two: lora_B @ lora_A is exact in float32, in any order, and bf16 can't hold them."""

    def make() -> tuple[Tensor, Tensor, Tensor, float]:
        weight = torch.randn(rows, columns).to(dtype)
        a, b = (torch.randint(-1000, 1000, shape) / 1024 for shape in ((4, columns), (rows, 4)))
        return weight, a, b, scaling

    return make


def _same_bits(expected: Tensor, got: Tensor) -> bool:
    if expected.dtype == torch.float32:  # where the order of sums may show
        return got.dtype == torch.float32 and torch.allclose(expected, got, atol=1e-5)
    return expected.dtype == got.dtype and torch.equal(expected, got)


exercise(
    "merge_rounded",
    reference=lesson.merge_rounded,
    cases=[
        _merge_case(torch.bfloat16, 48, 32, 2.0),
        _merge_case(torch.float16, 40, 24, 4.0),
        _merge_case(torch.float32, 8, 6, 0.5),
    ],
    compare=_same_bits,
    mistakes=[
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
    points=2,
)

# ------------------------------------------------------------------------------------------ what of it has arrived


def _arrival_case(scale: float, dtype: torch.dtype):
    return lambda: (torch.randn(24, 16), scale * torch.randn(24, 16), dtype)


def _close(expected: float, got: float) -> bool:
    return abs(float(got) - expected) <= 1e-3 * abs(expected) + 1e-6


exercise(
    "lost_in_rounding",
    reference=lesson.lost_in_rounding,
    cases=[
        _arrival_case(0.1, torch.bfloat16),
        _arrival_case(0.001, torch.bfloat16),
        _arrival_case(0.01, torch.float16),
    ],
    compare=_close,
    mistakes=[
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
            lambda weight, delta, dtype: 0.0,
            "you got zero: was the sum rounded at all? Both steps need .to(dtype); the difference is taken in float32.",
        ),
    ],
    hints=[
        "before = weight.to(dtype): the base is stored in that dtype already.",
        "after = (before.float() + delta).to(dtype): one rounding.",
        "What arrived is after - before, in float32. Its difference from delta is what was lost.",
    ],
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
    mistakes=[
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
            lambda restored, delta: restored + _in_four_bits(delta),
            "you quantized the correction alone. There is one weight, and the sum is what it has to store.",
        ),
        Mistake(
            lambda restored, delta: _in_four_bits(_in_four_bits(restored) - delta),
            "the correction was taken away, not added.",
        ),
    ],
    hints=[
        "The sum first: restored + delta.",
        "quantize(..., double=True) gives what is stored, and dequantize of that what the layer computes with.",
    ],
)
