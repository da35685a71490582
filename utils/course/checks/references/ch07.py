"""The answers to chapter 7's exercises, cell by cell as the lesson solves them.

Generated from lessons/07_four_bits_by_hand.md by `make notebooks`: edit the lesson, not this file.
"""

import torch

# fmt: off

# -------- absmax_steps
def absmax_steps(values):
    scale = values.abs().max()
    return torch.round(values / scale * 127).to(torch.int8), scale


# -------- nearest_code
def nearest_code(values, book):
    return (values[:, None] - book).abs().argmin(dim=1)


# -------- dequantized
def dequantized(codes, scales, book, block, dtype):
    each = scales.repeat_interleave(block)[: len(codes)]
    return (book[codes.long()] * each).to(dtype)


# -------- double_quant_bits
def double_quant_bits(block, scale_block):
    return 4 + 8 / block + 32 / (block * scale_block)


# -------- mx_exponents
def mx_exponents(values, block):
    biggest = values.abs().view(-1, block).amax(dim=1)
    exponents = torch.frexp(biggest).exponent - 1 - 2  # frexp's fraction lies between 0.5 and 1
    return torch.where(biggest > 0, exponents, -127).clamp(min=-127)
