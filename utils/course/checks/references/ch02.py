"""The answers to chapter 2's exercises, cell by cell as the lesson solves them.

Generated from lessons/02_rank_decomposition.md by `make notebooks`: edit the lesson, not this file.
"""

import torch

# fmt: off

# -------- best_rank_r
def best_rank_r(W, r):
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return U[:, :r] * S[:r] @ Vh[:r]


# -------- energy_captured
def energy_captured(W, r):
    squares = torch.linalg.svdvals(W) ** 2
    return (squares[:r].sum() / squares.sum()).item()


# -------- break_even_rank
def break_even_rank(d_in, d_out):
    return (d_in * d_out - 1) // (d_in + d_out)
