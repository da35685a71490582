"""The answers to chapter 21's exercises, cell by cell as the lesson solves them.

Generated from lessons/21_what_a_lora_step_costs.md by `make notebooks`: edit the lesson, not this file.
"""

import torch

# fmt: off

# -------- layer_flops
def layer_flops(n, d_in, d_out, r):
    frozen = 2 * (2 * n * d_in * d_out)
    lora = 3 * 2 * n * r * d_in + 3 * 2 * n * r * d_out
    return frozen, lora


# -------- product_time
def product_time(n, k, m, flops, memory):
    moved = 2 * (n * k + k * m + n * m)
    return max(2 * n * k * m / flops, moved / memory)


# -------- lora_backward
def lora_backward(g, x, h, W, A, B, scaling):
    q = scaling * (g @ B)
    dx = torch.addmm(q @ A, g, W)  # q A + g W
    dA = q.T @ x
    dB = g.T @ h
    return dx, dA, dB


# -------- kept_bytes
def kept_bytes(n, d_in, d_out, r):
    plain = 4 * (n * d_in + n * r)
    fast = 2 * (n * d_in + n * r + r * (d_in + d_out))
    return plain, fast
