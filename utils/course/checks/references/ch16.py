"""The answers to chapter 16's exercises, cell by cell as the lesson solves them.

Generated from lessons/16_variants.md by `make notebooks`: edit the lesson, not this file.
"""

import math

import torch

# fmt: off

# -------- dora_weight
def dora_weight(W, A, B, m, s):
    turned = W + s * B @ A
    return m[:, None] * turned / torch.linalg.norm(turned, dim=1, keepdim=True)


# -------- cubic_budget
def cubic_budget(step, first, last, begin, end):
    if step <= begin:
        return first
    if step >= end:
        return last
    left = 1 - (step - begin) / (end - begin)
    return int((first - last) * left**3 + last)


# -------- pissa_difference
def pissa_difference(A, B, A0, B0):
    return torch.cat([A, -A0]), torch.cat([B, B0], dim=1)


# -------- same_as_rslora
def same_as_rslora(lora_alpha, r):
    return lora_alpha * math.sqrt(r)
