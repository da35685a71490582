"""Quantization in general: a block's largest absolute value becomes its scale, and the rest is rounded to a short list.

``absmax`` quantization divides the values of a block by the block's largest absolute value, so that they lie between -1
and 1, and stores for each the number of the nearest value of a *code book*, and for each block the divisor, its scale.
Steps of equal size make int8 and int4; other code books are in :mod:`utils.quant.nf4`. Dettmers et al., 2021
(https://arxiv.org/abs/2110.02861) introduced the blocks.

Attributes:
    FLOATS: The dtypes that can be quantized.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def check_values(values: Tensor, block: int) -> None:
    """Refuse what can't be quantized.

    Raises TypeError for anything but a float32, float16 or bfloat16 tensor, ValueError for an empty one, for values
    that are not finite, and for a block smaller than 1.
    """
    if not isinstance(values, Tensor) or values.dtype not in FLOATS:
        found = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"only float32, float16 and bfloat16 can be quantized, not {found}: convert it with .float()")
    if not values.numel():
        raise ValueError(f"there is nothing to quantize in a tensor of shape {tuple(values.shape)}")
    if not torch.isfinite(values).all():
        raise ValueError("the tensor holds nan or infinity, which would spoil a whole block: find where they come from")
    if block < 1:
        raise ValueError(f"a block holds at least one value, not {block}")


def block_scales(values: Float[Tensor, "*shape"], block: int) -> Float[Tensor, " blocks"]:
    """The largest absolute value, in float32, of each run of `block` values; the last run may be shorter."""
    flat = values.reshape(-1).float()
    return torch.nn.functional.pad(flat.abs(), (0, -len(flat) % block)).view(-1, block).amax(dim=1)


def repeat_scales(scales: Float[Tensor, " blocks"], block: int, count: int) -> Float[Tensor, " count"]:
    """Each block's scale repeated for each of its values, `count` values in all."""
    return scales.repeat_interleave(block)[:count]


def absmax_int8(
    values: Float[Tensor, "*shape"], block: int | None = None
) -> tuple[Int8[Tensor, "*shape"], Float[Tensor, " blocks"]]:
    """Round each value to one of the 255 steps from -127 to 127 times its block's scale / 127.

    Without `block` the whole tensor is one block. Returns the steps, in the shape of `values`, and the float32 scales.
    A block of zeros has the scale 0. Raises what :func:`check_values` raises.
    """
    check_values(values, 1 if block is None else block)
    block = block or values.numel()
    scales = block_scales(values, block)
    steps = values.reshape(-1).float() / repeat_scales(scales, block, values.numel()).clamp(min=1e-38) * 127
    return steps.round().to(torch.int8).view(values.shape), scales


def from_absmax_int8(
    steps: Int8[Tensor, "*shape"], scales: Float[Tensor, " blocks"], block: int | None = None
) -> Float[Tensor, "*shape"]:
    """The float32 values that :func:`absmax_int8` stands for.

    Raises ValueError when the number of scales isn't the number of blocks.
    """
    block = block or steps.numel()
    if len(scales) != -(-steps.numel() // block):
        raise ValueError(f"{steps.numel()} values in blocks of {block} don't have {len(scales)} scales")
    return (steps.reshape(-1).float() / 127 * repeat_scales(scales, block, steps.numel())).view(steps.shape)


def nearest(values: Float[Tensor, "*shape"], book: Float[Tensor, " codes"]) -> Int[Tensor, "*shape"]:
    """For each value the number of the nearest entry of `book`, which need not be sorted.

    It is computed where the values are. Exactly halfway between two entries the smaller one is taken. Of two equal
    entries the second is taken for values above them, the first for all others.
    """
    ordered, order = book.to(values.device).sort(stable=True)
    found = torch.bucketize(values.float(), (ordered[:-1] + ordered[1:]) / 2)
    return order[found]


def relative_error(values: Float[Tensor, "*shape"], restored: Float[Tensor, "*shape"]) -> float:
    """The size of the error over the size of the values: root of the sum of squares of each. 0 is perfect.

    Values that are all zero have an error of 0 or of infinity. Raises ValueError for tensors of unlike shapes, which
    would be stretched to each other.
    """
    if values.shape != restored.shape:
        raise ValueError(f"values of shape {tuple(values.shape)} can't be restored as {tuple(restored.shape)}")
    error = float((restored.double() - values.double()).norm())
    return error / size if (size := float(values.double().norm())) else error and math.inf
