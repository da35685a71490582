"""The answers to chapter 10's exercises, cell by cell as the lesson solves them.

Generated from lessons/10_save_load_merge.md by `make notebooks`: edit the lesson, not this file.
"""

# fmt: off

# -------- merge_rounded
def merge_rounded(weight, lora_A, lora_B, scaling):
    delta = scaling * (lora_B @ lora_A)
    return (weight.float() + delta).to(weight.dtype)


# -------- lost_in_rounding
def lost_in_rounding(weight, delta, dtype):
    before = weight.to(dtype)
    after = (before.float() + delta).to(dtype)
    added = after.float() - before.float()
    return ((added - delta).norm() / delta.norm()).item()


# -------- divergence
def divergence(reference, logits):
    p = reference.double().log_softmax(dim=-1)
    q = logits.double().log_softmax(dim=-1)
    return (p.exp() * (p - q)).sum(dim=-1).mean().item()


# -------- merge_four_bit
from utils.quant import dequantize, quantize


def merge_four_bit(restored, delta):
    return dequantize(quantize(restored + delta, double=True))


# -------- tensor_range
def tensor_range(length, offsets):
    start_of_data = 8 + length
    return start_of_data + offsets[0], start_of_data + offsets[1]
