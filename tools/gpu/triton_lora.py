"""Triton kernels for a LoRA layer's thin products, which have hardly any arithmetic and read or write whole tensors.

`expand` computes both halves of the small product with one pass over x and one over y; `outer` a gradient of A or B
with one pass. Tiles come through the tensor memory accelerator of Hopper GPUs, several ahead, so that enough bytes are
under way. `R` is the rank rounded up to a power of two, at least 16, which the tensor cores ask for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def _expand_kernel(
    x, y, down, up, h, n, width, wide, r, scale, down_column, down_rank, up_column, up_rank,
    R: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """h = scale * x @ down and y = h @ up for ROWS rows: x (n, width), down (width, r), y (n, wide), up (r, wide)."""
    first = tl.program_id(0) * ROWS
    rows, ranks = first + tl.arange(0, ROWS), tl.arange(0, R)
    total = tl.zeros((ROWS, R), dtype=tl.float32)
    for start in tl.range(0, width, COLUMNS, num_stages=STAGES):
        columns = start + tl.arange(0, COLUMNS)
        factor = tl.load(
            down + columns[:, None] * down_column + ranks[None, :] * down_rank,
            mask=(columns[:, None] < width) & (ranks[None, :] < r), other=0.0,
        )  # fmt: skip
        total = tl.dot(x.load([first, start]), factor, total)
    thin = (total * scale).to(y.dtype)
    tl.store(h + rows[:, None] * r + ranks[None, :], thin, mask=(rows[:, None] < n) & (ranks[None, :] < r))
    for start in range(0, wide, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        factor = tl.load(
            up + ranks[:, None] * up_rank + columns[None, :] * up_column,
            mask=(columns[None, :] < wide) & (ranks[:, None] < r), other=0.0,
        )  # fmt: skip
        y.store([first, start], tl.dot(thin, factor).to(y.dtype))


def expand(
    x: Tensor, down: Tensor, up: Tensor, scale: float, *, rows: int = 64, columns: int = 128, stages: int = 5,
    warps: int = 4,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``h = scale * x @ down`` (n, r) and ``h @ up`` (n, wide).

    x (n, width) is contiguous; down (width, r) and up (r, wide) may have any strides.
    """
    n, width = x.shape
    r, wide = up.shape
    h, y = x.new_empty(n, r), x.new_empty(n, wide)
    _expand_kernel[(triton.cdiv(n, rows),)](
        TensorDescriptor(x, [n, width], [width, 1], [rows, columns]),
        TensorDescriptor(y, [n, wide], [wide, 1], [rows, columns]),
        down, up, h, n, width, wide, r, scale, down.stride(0), down.stride(1), up.stride(1), up.stride(0),
        R=max(16, triton.next_power_of_2(r)), ROWS=rows, COLUMNS=columns, STAGES=stages, num_warps=warps,
    )  # fmt: skip
    return h, y


@triton.jit
def _outer_kernel(
    x, thin, out, n, width, r, span, column_stride, rank_stride,
    R: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A span of rows' share of x^T @ thin, for COLUMNS columns of x (n, width); thin (n, r)."""
    first, part = tl.program_id(0) * COLUMNS, tl.program_id(1)
    columns, ranks = first + tl.arange(0, COLUMNS), tl.arange(0, R)
    total = tl.zeros((COLUMNS, R), dtype=tl.float32)
    for start in tl.range(part * span, tl.minimum(part * span + span, n), ROWS, num_stages=STAGES):
        rows = start + tl.arange(0, ROWS)
        factor = tl.load(
            thin + rows[:, None] * r + ranks[None, :], mask=(rows[:, None] < n) & (ranks[None, :] < r), other=0.0
        )
        total = tl.dot(tl.trans(x.load([start, first])), factor, total)
    to = out + part * width * r + columns[:, None] * column_stride + ranks[None, :] * rank_stride
    tl.store(to, total, mask=(columns[:, None] < width) & (ranks[None, :] < r))


def outer(
    x: Tensor, thin: Tensor, *, ranks_first: bool, rows: int = 128, columns: int = 64, stages: int = 4, warps: int = 4,
    programs: int = 256,
) -> Tensor:  # fmt: skip
    """``x.T @ thin`` in float32, as (width, r), or with `ranks_first` transposed as (r, width).

    x (n, width) and thin (n, r) are contiguous. The rows are split among programs, whose sums are added in a fixed
    order.
    """
    n, width = x.shape
    r = thin.shape[1]
    blocks = triton.cdiv(width, columns)
    span = triton.cdiv(triton.cdiv(n, max(1, programs // blocks)), rows) * rows
    spans = triton.cdiv(n, span)
    out = x.new_empty((spans, r, width) if ranks_first else (spans, width, r), dtype=torch.float32)
    _outer_kernel[(blocks, spans)](
        TensorDescriptor(x, [n, width], [width, 1], [rows, columns]),
        thin, out, n, width, r, span, *((1, width) if ranks_first else (r, 1)),
        R=max(16, triton.next_power_of_2(r)), ROWS=rows, COLUMNS=columns, STAGES=stages, num_warps=warps,
    )  # fmt: skip
    return out[0] if spans == 1 else out.sum(0)
