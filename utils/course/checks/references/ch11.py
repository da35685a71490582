"""The answers to chapter 11's exercises, cell by cell as the lesson solves them.

Generated from lessons/11_many_adapters.md by `make notebooks`: edit the lesson, not this file.
"""

import torch

# fmt: off

# -------- gathered
def gathered(x, A, B, scaling, index):
    low = torch.einsum("bti,bri->btr", x, A[index])  # (batch, length, r)
    out = torch.einsum("btr,bor->bto", low, B[index])  # (batch, length, out)
    return scaling[index][:, None, None] * out


# -------- pad_rank
def pad_rank(A, B, r):
    more = r - len(A)
    A = torch.cat([A, A.new_zeros(more, A.shape[1])])
    B = torch.cat([B, B.new_zeros(len(B), more)], dim=1)
    return A, B


# -------- invoked_at
def invoked_at(ids, invocation):
    n = len(invocation)
    starts = [i for i in range(len(ids) - n + 1) if ids[i : i + n] == invocation]
    return starts[-1] if starts else len(ids)


# -------- cat_adapters
def cat_adapters(first, second, w1, w2):
    (A1, B1, scaling1), (A2, B2, scaling2) = first, second
    A = torch.cat([w1 * scaling1 * A1, w2 * scaling2 * A2])
    B = torch.cat([B1, B2], dim=1)
    return A, B
