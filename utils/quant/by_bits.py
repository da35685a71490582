"""Error against bits: what a 4-bit format costs and loses, at one block size after another."""

from __future__ import annotations

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor

from utils.quant.absmax import relative_error
from utils.quant.nf4 import dequantize, quantize
from utils.quant.small_floats import dequantize_floats, quantize_floats


def error_curve(
    values: Float[Tensor, " count"], name: str, blocks: Iterable[int], kept: Tensor | slice = slice(None)
) -> list[tuple[int, float, float]]:
    """For each block size (block, bits a value, error in percent of the `kept` values).

    `name` is "nf4", with double quantization, or one of utils.quant.small_floats.FORMATS. Raises ValueError for
    another name and for what the formats themselves refuse.
    """
    points = []
    for block in blocks:
        if name == "nf4":
            nf4 = quantize(values, block=block, double=True)
            bits, restored = nf4.bits_per_value, dequantize(nf4)
        else:
            floats = quantize_floats(values, name, block=block)
            bits, restored = floats.bits_per_value, dequantize_floats(floats)
        points.append((block, bits, 100 * relative_error(values[kept], restored[kept])))
    return points
