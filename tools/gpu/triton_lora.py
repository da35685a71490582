"""Triton kernels for a LoRA layer's thin products, and a large product that takes the small one in as it goes.

Candidates of :mod:`gpu.layer`. `R` is the rank rounded up to a power of two, at least 16, which the tensor cores ask
for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def _thin_kernel(
    x, left, right, down, outer, n, width, r, span,
    DOWN: tl.constexpr, OUTER: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One pass over x (n, width), ROWS rows and `span` columns a program.

    DOWN: this span's share of x @ left, left (width, r) -> down (spans, n, r).
    OUTER: these rows' share of x^T @ right, right (n, r) -> outer (row blocks, width, r).
    """
    block, part = tl.program_id(0), tl.program_id(1)
    rows = block * ROWS + tl.arange(0, ROWS)
    ranks = tl.arange(0, R)
    in_rows, in_rank = rows[:, None] < n, ranks[None, :] < r
    total = tl.zeros((ROWS, R), dtype=tl.float32)
    if OUTER:
        thin = tl.load(right + rows[:, None] * r + ranks[None, :], mask=in_rows & in_rank, other=0.0)
    for start in range(part * span, tl.minimum(part * span + span, width), COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        tile = tl.load(
            x + rows[:, None].to(tl.int64) * width + columns[None, :],
            mask=in_rows & (columns[None, :] < width),
            other=0.0,
        )
        if DOWN:
            factor = tl.load(
                left + columns[:, None] * r + ranks[None, :], mask=(columns[:, None] < width) & in_rank, other=0.0
            )
            total = tl.dot(tile, factor, total)
        if OUTER:
            share = tl.dot(tl.trans(tile), thin)
            to = outer + (block * width + columns[:, None]) * r + ranks[None, :]
            tl.store(to, share, mask=(columns[:, None] < width) & in_rank)
    if DOWN:
        tl.store(down + (part * n + rows[:, None]) * r + ranks[None, :], total, mask=in_rows & in_rank)


def thin(
    x: Tensor, left: Tensor | None = None, right: Tensor | None = None, *, rows: int = 128, columns: int = 64, spans: int = 4,
    warps: int = 4, stages: int = 3,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """``x @ left`` (n, r) and ``x.T @ right`` (width, r), both float32, with one pass over `x` (n, width).

    `left` is (width, r), `right` (n, r), both contiguous; either may be missing, and its result then is.
    """
    n, width = x.shape
    r = (left if left is not None else right).shape[1]
    span = triton.cdiv(triton.cdiv(width, spans), columns) * columns
    spans, blocks = triton.cdiv(width, span), triton.cdiv(n, rows)
    down = x.new_empty(spans, n, r, dtype=torch.float32) if left is not None else None
    outer = x.new_empty(blocks, width, r, dtype=torch.float32) if right is not None else None
    _thin_kernel[(blocks, spans)](
        x, left, right, down, outer, n, width, r, span,
        DOWN=left is not None, OUTER=right is not None, R=max(16, triton.next_power_of_2(r)), ROWS=rows, COLUMNS=columns,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return (None if down is None else down.sum(0)), (None if outer is None else outer.sum(0))


@triton.jit
def _tile(number, rows_of, columns_of, GROUP: tl.constexpr):
    """The row and the column of tile `number`, in groups of GROUP rows of tiles, so that neighbours share what they load."""
    per_group = GROUP * columns_of
    first = number // per_group * GROUP
    size = tl.minimum(rows_of - first, GROUP)
    return first + number % per_group % size, number % per_group // size


@triton.jit
def _product_kernel(
    x, w, h, b, y, n, out, inner, W_IS_OUT_IN: tl.constexpr, R: tl.constexpr, N: tl.constexpr, OUT: tl.constexpr,
    K: tl.constexpr, GROUP: tl.constexpr, PROGRAMS: tl.constexpr, FLAT: tl.constexpr, SPECIALIZE: tl.constexpr,
):  # fmt: skip
    """y (n, out) = x (n, inner) @ w + h (n, R) @ b (R, out); w is (out, inner) transposed, or (inner, out) as it is."""
    rows_of, columns_of = tl.cdiv(n, N), tl.cdiv(out, OUT)
    for number in tl.range(tl.program_id(0), rows_of * columns_of, PROGRAMS, flatten=FLAT, warp_specialize=SPECIALIZE):
        row, column = _tile(number, rows_of, columns_of, GROUP)
        total = tl.zeros((N, OUT), dtype=tl.float32)
        for k in range(tl.cdiv(inner, K)):
            left = x.load([row * N, k * K])
            if W_IS_OUT_IN:
                total = tl.dot(left, w.load([column * OUT, k * K]).T, total)
            else:
                total = tl.dot(left, w.load([k * K, column * OUT]), total)
        total = tl.dot(h.load([row * N, 0]), b.load([column * OUT, 0]).T, total)
        y.store([row * N, column * OUT], total.to(y.dtype))


def product(
    x: Tensor, w: Tensor, h: Tensor, b: Tensor, *, transposed: bool, rows: int = 128, columns: int = 256, inner: int = 64,
    warps: int = 8, stages: int = 3, flat: bool = True, specialize: bool = False,
) -> Tensor:  # fmt: skip
    """``x @ w.T + h @ b.T`` (`transposed`) or ``x @ w + h @ b.T``, the second product taken in before anything is written.

    x (n, inner), w (out, inner) or (inner, out), h (n, R) and b (out, R), all 16-bit and contiguous; R a power of two, at
    least 16.
    """
    n, width = x.shape
    out = w.shape[0] if transposed else w.shape[1]
    y = x.new_empty(n, out)
    rank = h.shape[1]
    programs = torch.cuda.get_device_properties(x.device).multi_processor_count
    tiles = triton.cdiv(n, rows) * triton.cdiv(out, columns)
    _product_kernel[(min(programs, tiles),)](
        TensorDescriptor.from_tensor(x, [rows, inner]),
        TensorDescriptor.from_tensor(w, [columns, inner] if transposed else [inner, columns]),
        TensorDescriptor.from_tensor(h, [rows, rank]),
        TensorDescriptor.from_tensor(b, [columns, rank]),
        TensorDescriptor.from_tensor(y, [rows, columns]),
        n, out, width, W_IS_OUT_IN=transposed, R=rank, N=rows, OUT=columns, K=inner, GROUP=8, PROGRAMS=programs, FLAT=flat,
        SPECIALIZE=specialize, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return y


def padded(thin_matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, r) with zeros up to a rank that :func:`product` takes."""
    r = thin_matrix.shape[1]
    wanted = max(16, triton.next_power_of_2(r))
    thin_matrix = thin_matrix.to(dtype)
    return thin_matrix.contiguous() if wanted == r else torch.nn.functional.pad(thin_matrix, (0, wanted - r))
