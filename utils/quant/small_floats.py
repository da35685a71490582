"""Floats of 8 and of 4 bits: FP8, and 4-bit floats in small blocks, MXFP4 and NVFP4. Equal to torchao, bit by bit.

The tools are those of :mod:`utils.quant.nf4`: a code book, a scale for each block, the nearest entry. What differs is
the code book, which here is a float's own bit patterns, and what a scale is stored in:

- FP8 (Micikevicius et al., 2022, https://arxiv.org/abs/2209.05433) has 256 codes, E4M3 with 4 bits for the exponent and
  3 for the fraction, or E5M2, and here one float32 scale for the whole tensor;
- MXFP4 and MXFP8 (OCP Microscaling Formats, version 1.0, https://arxiv.org/abs/2310.10537) give 32 values one scale in
  E8M0, a power of two in a byte;
- NVFP4 (NVIDIA, 2025, https://arxiv.org/abs/2509.25149) gives 16 values one scale in E4M3, and the tensor a float32.

A value exactly between two entries goes to the one with an even code, as in IEEE 754, and minus zero stays minus zero.

Attributes:
    FORMATS: Name to what its elements, its blocks and its scales are.
    ROUNDINGS: How the shared exponent of an MX block is made from the block's largest value.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from utils.quant.absmax import block_scales, check_values, repeat_scales
from utils.quant.nf4 import pack_codes, unpack_codes


class Format(NamedTuple):
    """The elements' code book, the number of them that share a scale (None: all), and what a scale is stored in."""

    elements: str
    block: int | None
    scales: str


FORMATS = {
    "fp8_e4m3": Format("e4m3", None, "float32"),
    "fp8_e5m2": Format("e5m2", None, "float32"),
    "mxfp8": Format("e4m3", 32, "e8m0"),
    "mxfp4": Format("e2m1", 32, "e8m0"),
    "nvfp4": Format("e2m1", 16, "e4m3"),
}
ROUNDINGS = ("floor", "even", "up")
_BITS = {"e2m1": (2, 1), "e4m3": (4, 3), "e5m2": (5, 2)}
_SMALLEST_SCALE = {"e8m0": 2.0**-126, "e4m3": 2.0**-6, "float32": 2.0**-126}


# --------------------------------------------------------------------------------------------------- the code books


@functools.cache
def _book(kind: str) -> Float32[Tensor, " codes"]:
    exponent_bits, fraction_bits = _BITS[kind]
    bias = 2 ** (exponent_bits - 1) - 1
    codes = torch.arange(2 ** (exponent_bits + fraction_bits))
    exponent = codes >> fraction_bits
    fraction = (codes & (2**fraction_bits - 1)).double() / 2**fraction_bits
    leading = (exponent > 0).double()  # below the smallest exponent the leading 1 is missing: subnormal numbers
    values = (leading + fraction) * 2.0 ** (exponent.clamp(min=1) - bias)
    if kind == "e4m3":
        values[-1] = math.nan
    elif kind == "e5m2":
        values[-4:] = torch.tensor([math.inf, math.nan, math.nan, math.nan])
    return torch.cat([values, -values]).float()


def float_book(kind: str) -> Float32[Tensor, " codes"]:
    """The values of all codes of "e2m1", "e4m3", "e5m2" or "e8m0", in the order of their bits.

    E2M1 has no infinity and no nan, E4M3 two nans, E5M2 both as float16 has, E8M0 one nan. Raises ValueError for
    another name.
    """
    if kind == "e8m0":
        return torch.cat([2.0 ** torch.arange(-127.0, 128.0), torch.tensor([math.nan])])
    if kind not in _BITS:
        raise ValueError(f"unknown float {kind!r}: choose one of {', '.join([*_BITS, 'e8m0'])}")
    return _book(kind).clone()


def largest(kind: str) -> float:
    """The largest finite value of a code book: 6 for "e2m1", 448 for "e4m3", 57,344 for "e5m2"."""
    book = float_book(kind)
    return float(book[book.isfinite()].max())


def float_codes(values: Float[Tensor, "*shape"], kind: str) -> UInt8[Tensor, "*shape"]:
    """For each value the code of the nearest entry; halfway the even code, beyond the largest entry the largest.

    Infinity counts as beyond the largest. Raises ValueError for nan and for an unknown `kind` ("e8m0" has a rule of
    its own, :func:`shared_exponents`).
    """
    if kind not in _BITS:
        raise ValueError(f"unknown float {kind!r}: choose one of {', '.join(_BITS)}")
    if torch.isnan(values).any():
        raise ValueError("nan has no nearest entry: find where it comes from")
    book = float_book(kind).to(values.device)
    positive = book[: len(book) // 2]
    positive = positive[positive.isfinite()]
    middles = (positive[:-1] + positive[1:]) / 2
    size = values.float().abs()
    below, above = torch.bucketize(size, middles), torch.bucketize(size, middles, right=True)
    codes = torch.where(below % 2 == 0, below, above)  # they differ exactly on a middle
    return (codes + torch.signbit(values) * (len(book) // 2)).to(torch.uint8)


# -------------------------------------------------------------------------------------------------------- the scales


def shared_exponents(
    biggest: Float[Tensor, " blocks"], kind: str = "e2m1", rounding: str = "floor"
) -> UInt8[Tensor, " blocks"]:
    """The E8M0 codes of MX scales, from the blocks' largest absolute values: the exponent plus 127.

    "floor" is section 6.3 of the OCP specification: the largest power of two that is no larger than `biggest`, over the
    one in the code book. Values up to a third beyond the code book's end are then cut off. "even" rounds `biggest` to
    the code book's fraction first, so that what would round up past the end takes the next exponent. "up" takes the
    smallest power of two with which nothing is cut off, as NVIDIA's libraries do. Raises ValueError for another
    rounding.
    """
    if rounding not in ROUNDINGS:
        raise ValueError(f"unknown rounding {rounding!r}: choose one of {', '.join(ROUNDINGS)}")
    if rounding == "up":
        fraction, exponent = torch.frexp(biggest / largest(kind))  # a fraction from 0.5 to below 1
        unbiased = exponent - (fraction == 0.5).int()
    else:
        fraction, exponent = torch.frexp(biggest)
        _, fraction_bits = _BITS[kind]
        carried = (fraction >= 1 - 2.0 ** -(fraction_bits + 2)) if rounding == "even" else torch.zeros_like(fraction)
        unbiased = exponent - 1 + carried.int() - int(math.log2(largest(kind)))
    unbiased = torch.where(biggest == 0, -127, unbiased)
    return (unbiased.clamp(-127, 127) + 127).to(torch.uint8)


class Floats(NamedTuple):
    """A tensor in small floats: its codes and scales, and what is needed to make the tensor again.

    Codes of 4 bits are two a byte, the first in the low half. `scales` are E8M0 or E4M3 codes, or float32;
    `tensor_scale` is there where the format has a second one.
    """

    codes: UInt8[Tensor, " bytes"]
    scales: UInt8[Tensor, " blocks"] | Float32[Tensor, " blocks"]
    tensor_scale: Float32[Tensor, ""] | None
    shape: torch.Size
    dtype: torch.dtype
    format: str
    block: int

    @property
    def nbytes(self) -> int:
        """The bytes of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes + (0 if self.tensor_scale is None else self.tensor_scale.nbytes)

    @property
    def bits_per_value(self) -> float:
        """The bits that one value takes, its share of the scales included."""
        return 8 * self.nbytes / math.prod(self.shape)


def quantize_floats(
    values: Float[Tensor, "*shape"], name: str, *, block: int | None = None, rounding: str = "floor"
) -> Floats:
    """Quantize a tensor to one of :data:`FORMATS`; `block` replaces the format's own block.

    `rounding` is :func:`shared_exponents`', for the two MX formats. Raises ValueError for an unknown format, for a last
    dimension that isn't whole blocks, and for an odd block of 4-bit elements; and what
    :func:`utils.quant.absmax.check_values` raises.
    """
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}: choose one of {', '.join(FORMATS)}")
    elements, usual, kind = FORMATS[name]
    check_values(values, 1 if block is None else block)
    block = block or usual or values.numel()
    row = values.shape[-1] if values.ndim else 1
    if block != values.numel() and row % block:
        raise ValueError(f"a row of {row} values isn't whole blocks of {block}")
    if elements == "e2m1" and block % 2:
        raise ValueError(f"two 4-bit values share a byte, so a block has an even number of them, not {block}")
    flat = values.detach().reshape(-1).float()
    biggest, end = block_scales(flat, block), largest(elements)
    tensor_scale = None
    if kind == "e8m0":
        scales = shared_exponents(biggest, elements, rounding)
        scaled = flat / repeat_scales(_e8m0(scales), block, len(flat))
    elif kind == "e4m3":
        tensor_scale = biggest.max() / (largest("e4m3") * end)
        divisor = tensor_scale if tensor_scale > 0 else torch.ones_like(tensor_scale)
        scales = float_codes((biggest / end / divisor).clamp(_SMALLEST_SCALE[kind], largest("e4m3")), "e4m3")
        # torchao multiplies by this inverse, which it makes in this order: dividing rounds otherwise
        inverse = 1 / divisor / float_book("e4m3").to(flat.device)[scales.long()]
        scaled = flat * repeat_scales(inverse, block, len(flat))
    else:
        scales = biggest / end
        scaled = flat / repeat_scales(scales.clamp(min=_SMALLEST_SCALE[kind]), block, len(flat))
    codes = float_codes(scaled, elements)
    if elements == "e2m1":
        codes = pack_codes(codes.view(-1, 2).flip(1).flatten())
    return Floats(codes, scales, tensor_scale, values.shape, values.dtype, name, block)


def dequantize_floats(quantized: Floats) -> Float[Tensor, "*shape"]:
    """The tensor that `quantized` stands for, in its shape and dtype: entry times scale in float32, then rounded."""
    elements, _, kind = FORMATS[quantized.format]
    count = math.prod(quantized.shape)
    codes, scales = quantized.codes, quantized.scales
    if elements == "e2m1":
        codes = unpack_codes(codes, count).view(-1, 2).flip(1).flatten()
    if kind == "e8m0":
        scales = _e8m0(scales)
    elif quantized.tensor_scale is not None:
        scales = float_book("e4m3").to(codes.device)[scales.long()] * quantized.tensor_scale
    values = float_book(elements).to(codes.device)[codes.long()] * repeat_scales(scales, quantized.block, count)
    return values.view(quantized.shape).to(quantized.dtype)


def _e8m0(codes: UInt8[Tensor, " blocks"]) -> Float32[Tensor, " blocks"]:
    """Powers of two; code 0, 2^-127, is taken for 2^-126, the smallest float32 that keeps all its digits."""
    return float_book("e8m0").to(codes.device)[codes.long()].clamp(min=_SMALLEST_SCALE["e8m0"])
