"""4-bit quantization as QLoRA does it, equal to bitsandbytes to the bit.

NF4, "4-bit NormalFloat", is a code book of 16 values at quantiles of the normal distribution, since trained weights are
distributed about normally. Blocks of 64 values share one scale, and *double quantization* stores these scales in 8 bits
(Dettmers et al., 2023, https://arxiv.org/abs/2305.14314, section 3 and appendix E).

What runs in bitsandbytes 0.50.2 on a CPU, and is matched here: the 4-bit codes come from its PyTorch implementation,
which multiplies whole blocks by 1 / scale and divides a shorter last block by its scale; the 8-bit codes of the scales
come from a compiled kernel, which rounds the scaled value to one of 65,536 points first and looks the nearest code up
for that point.

Attributes:
    BLOCK: Weights that share a scale.
    SCALE_BLOCK: Scales that share a scale, in double quantization.
    NF4: NF4 as the constants that bitsandbytes and the paper's appendix E have; a test derives them from quantiles.
    FP4: A float of 4 bits, one for the sign, two for the exponent, one for the fraction, in the order of its bits.
    INT4: Fifteen steps of equal size: what 4 bits give when the code book is a ruler.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from utils.quant.absmax import block_scales, check_values, nearest, repeat_scales

BLOCK = 64
SCALE_BLOCK = 256
SMALLEST_SCALE = 1e-38

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = tuple(v / 12 for v in (0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3))
INT4 = tuple(v / 7 for v in range(-7, 8))


def code_book(name: str) -> Float32[Tensor, " codes"]:
    """The values of one of the 4-bit code books, "nf4", "fp4" or "int4". Raises ValueError for another name."""
    books = {"nf4": NF4, "fp4": FP4, "int4": INT4}
    if name not in books:
        raise ValueError(f"unknown code book {name!r}: choose one of {', '.join(books)}")
    return torch.tensor(books[name], dtype=torch.float32)


def pack_codes(codes: UInt8[Tensor, " count"]) -> UInt8[Tensor, " bytes"]:
    """Two 4-bit codes a byte, the first in the high half; after an odd number of codes the last half is 0.

    Raises ValueError for a code that isn't in 0..15.
    """
    if len(codes) and (int(codes.min()) < 0 or int(codes.max()) > 15):
        raise ValueError(f"a 4-bit code is in 0..15, but there is a {int(codes.max())}")
    codes = torch.nn.functional.pad(codes.to(torch.uint8), (0, len(codes) % 2))
    return codes[::2] << 4 | codes[1::2]


def unpack_codes(packed: UInt8[Tensor, " bytes"], count: int) -> UInt8[Tensor, " count"]:
    """The first `count` codes that :func:`pack` packed. Raises ValueError when there are fewer."""
    if not 0 <= count <= 2 * packed.numel():
        raise ValueError(f"{packed.numel()} bytes hold at most {2 * packed.numel()} codes, not {count}")
    flat = packed.reshape(-1)
    return torch.stack([flat >> 4, flat & 15], dim=1).reshape(-1)[:count]


# ------------------------------------------------------------------------------------------- the scales, in 8 bits


@functools.cache
def _dynamic_values() -> tuple[float, ...]:
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float32)
        middles = 10 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += middles.tolist() + (-middles).tolist()
    return tuple(sorted(values))


def dynamic_map() -> Float32[Tensor, " 256"]:
    """The 8-bit "dynamic" code book for scales: 0, 1, and 127 values of each sign in seven decades.

    Between 0.1 and 1 there are 64 values, in the decade below 32, and so on down to a single one. (Dettmers, 2015,
    https://arxiv.org/abs/1511.04561; Dettmers et al., 2021, https://arxiv.org/abs/2110.02861, section 1.3.)
    """
    return torch.tensor(_dynamic_values(), dtype=torch.float32)


@functools.cache
def _dynamic_table() -> UInt8[Tensor, " 65536"]:
    points = -1 + 2 * torch.arange(65_536, dtype=torch.float32) / 65_535
    return nearest(points, dynamic_map()).to(torch.uint8)


class DoubleScales(NamedTuple):
    """Block scales in 8 bits: ``dynamic_map()[codes] * scales + offset``, with one of `scales` for 256 codes."""

    codes: UInt8[Tensor, " blocks"]
    scales: Float[Tensor, " scale_blocks"]
    offset: Float[Tensor, ""]

    @property
    def nbytes(self) -> int:
        """The bytes of all three."""
        return self.codes.nbytes + self.scales.nbytes + self.offset.nbytes


def double_quantize(scales: Float[Tensor, " blocks"]) -> DoubleScales:
    """Quantize block scales in turn: take their mean away, then absmax in blocks of 256 with the dynamic code book.

    Scales are all positive, so without the mean half of a signed code book would be wasted. Raises ValueError when
    their mean overflows float32.
    """
    offset = scales.mean()
    if not torch.isfinite(offset):
        raise ValueError(
            f"the largest value is {float(scales.max()):.2g}, and the mean of the scales overflows float32: no trained "
            "weight is so large, so find where it comes from, or quantize with double=False"
        )
    centred = scales - offset
    absmax = block_scales(centred, SCALE_BLOCK)
    inverse = torch.where(absmax == 0, absmax, 1 / absmax)
    scaled = (centred * repeat_scales(inverse, SCALE_BLOCK, len(centred))).clamp(-1, 1)
    codes = _dynamic_table().to(scales.device)[((scaled + 1) * 0.5 * 65_535 + 0.5).long()]
    codes[repeat_scales(absmax, SCALE_BLOCK, len(codes)) == 0] = 0
    return DoubleScales(codes, absmax, offset)


def double_dequantize(scales: DoubleScales) -> Float[Tensor, " blocks"]:
    """The float32 block scales that `scales` stands for."""
    values = dynamic_map().to(scales.codes.device)[scales.codes.long()]
    return values * repeat_scales(scales.scales, SCALE_BLOCK, len(values)) + scales.offset


# -------------------------------------------------------------------------------------------- the weights, in 4 bits


class Quantized(NamedTuple):
    """A tensor in 4 bits: two codes a byte, a scale for each block, and what is needed to make the tensor again."""

    packed: UInt8[Tensor, " bytes"]
    scales: Float[Tensor, " blocks"] | DoubleScales
    shape: torch.Size
    dtype: torch.dtype
    book: str
    block: int

    @property
    def nbytes(self) -> int:
        """The bytes of codes and scales."""
        return self.packed.nbytes + self.scales.nbytes

    @property
    def bits_per_value(self) -> float:
        """The bits that one value takes, its share of the scales included."""
        return 8 * self.nbytes / math.prod(self.shape)


def quantize(
    values: Float[Tensor, "*shape"], *, book: str = "nf4", block: int = BLOCK, double: bool = False
) -> Quantized:
    """Quantize a tensor to 4 bits with the code book `book`, a scale for each `block` values counted along the memory.

    Blocks run on from one row of a matrix to the next. `double` quantizes the scales as well. Raises what
    :func:`utils.quant.absmax.check_values`, :func:`code_book` and :func:`double_quantize` raise.
    """
    check_values(values, block)
    entries = code_book(book)
    flat = values.detach().reshape(-1).float()
    scales = block_scales(flat, block)
    whole = len(flat) - len(flat) % block
    if whole < len(flat):  # bitsandbytes keeps the scale of a shorter last block away from zero; why, it doesn't say
        scales[-1].clamp_(min=SMALLEST_SCALE)
    divisors = scales.clamp(min=SMALLEST_SCALE)
    scaled = flat * repeat_scales(1 / divisors, block, len(flat))
    scaled[whole:] = flat[whole:] / divisors[-1]
    codes = nearest(scaled.clamp(-1, 1), entries).to(torch.uint8)
    if len(codes) % 2:  # and the half byte left over, where it pads with a zero, holds the code of 0
        codes = torch.cat([codes, nearest(codes.new_zeros(1), entries).to(torch.uint8)])
    stored = double_quantize(scales) if double else scales
    return Quantized(pack_codes(codes), stored, values.shape, values.dtype, book, block)


def dequantize(quantized: Quantized) -> Float[Tensor, "*shape"]:
    """The tensor that `quantized` stands for, in its shape and dtype: entry times scale in float32, then rounded."""
    count = math.prod(quantized.shape)
    scales = quantized.scales
    if isinstance(scales, DoubleScales):
        scales = double_dequantize(scales)
    codes = unpack_codes(quantized.packed, count).long()
    entries = code_book(quantized.book).to(codes.device)[codes]
    values = entries * repeat_scales(scales, quantized.block, count)
    return values.view(quantized.shape).to(quantized.dtype)


def bits_per_parameter(block: int = BLOCK, double: bool = False) -> float:
    """Bits for each weight: 4, and its share of the scale; with `double` its share of the scale's 8 bits and of theirs.

    The offset, one number for a whole tensor, is left out. Raises ValueError for a block smaller than 1.
    """
    if block < 1:
        raise ValueError(f"a block holds at least one value, not {block}")
    if double:
        return 4 + 8 / block + 32 / (block * SCALE_BLOCK)
    return 4 + 32 / block
