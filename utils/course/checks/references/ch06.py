"""The answers to chapter 6's exercises, cell by cell as the lesson solves them.

Generated from lessons/06_loading_models.md by `make notebooks`: edit the lesson, not this file.
"""

import math

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


# -------- four_bit_bytes
def four_bit_bytes(shapes, bits):
    total = 0
    for name, shape in shapes.items():
        kept = any(part in name for part in ("embed", "norm", "lm_head"))
        total += math.prod(shape) * (2 if kept else bits / 8)
    return total


# -------- training_device_map
def training_device_map(environ):
    return {"": int(environ.get("LOCAL_RANK", 0))}
