"""Which base model an adapter was trained on, as far as the base's input embedding tells.

LoRA on linear layers, a merge and loading in 4 bits leave the embedding alone, so it is what one base has in common in
all these states. What differs is its dtype, and how often it was rounded. A :class:`Fingerprint` therefore holds two
things: hashes of blocks of rows, rounded to bfloat16, which are equal whenever the same stored numbers were loaded in
float32 or bfloat16; and a few of the numbers themselves, for float16, whose other rounding changes hashes: they are
compared up to that rounding. Blocks of rows, because a vocabulary grows: rows that were added later are in no block.

What it can't tell: a base whose training left the embedding alone, and, where one of the two sides is float16, one
whose embedding moved by less than rounding does.

Attributes:
    BLOCKS: The most blocks that an embedding is divided into.
    SAMPLES: How many of its numbers are kept; more of them from the first rows, which tokenizers give to what is most
        frequent, so that training moves it most.
    ROUNDING: What float16 and bfloat16 together may change of a number, as a share of it and, below float16's normal
        numbers, in size.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

BLOCKS, SAMPLES = 64, 128
ROUNDING = 2.0**-8, 2.0**-24


class Fingerprint(NamedTuple):
    """What is kept of an embedding of `rows` x `width` that was loaded in `dtype`, such as "bfloat16".

    `blocks` holds eight hexadecimal digits for every ``ceil(rows / BLOCKS)`` rows, `samples` the numbers at
    :func:`_places`.
    """

    rows: int
    width: int
    dtype: str
    blocks: list[str]
    samples: list[float]

    def text(self) -> str:
        """One line of JSON, for a file's metadata."""
        return json.dumps(self._asdict())


def _places(rows: int, width: int) -> list[tuple[int, int]]:
    """Which numbers of an embedding are kept, as (row, column)."""
    return [(rows * i * i // SAMPLES**2, 37 * i % width) for i in range(SAMPLES)]


def embedding(model: nn.Module) -> Float[Tensor, "rows width"] | None:
    """The weight of the model's input embedding; None where it has none, or only codes, or no numbers (meta)."""
    try:
        weight = cast(Any, model).get_input_embeddings().weight  # of transformers' models
    except (AttributeError, NotImplementedError):
        return None
    readable = isinstance(weight, Tensor) and weight.is_floating_point() and not weight.is_meta and weight.ndim == 2
    return weight.detach() if readable and weight.numel() else None


def _hashes(weight: Float[Tensor, "rows width"], size: int) -> list[str]:
    """A hash of each block of `size` rows, rounded to bfloat16; the last block may be smaller."""
    parts = weight.split(size)
    data = (part.to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes() for part in parts)
    return [hashlib.sha256(part).hexdigest()[:8] for part in data]


def fingerprint(weight: Float[Tensor, "rows width"]) -> Fingerprint:
    """The fingerprint of an embedding."""
    rows, width = weight.shape
    samples = [float(f"{weight[row, column].item():.6g}") for row, column in _places(rows, width)]
    dtype = str(weight.dtype).removeprefix("torch.")
    return Fingerprint(rows, width, dtype, _hashes(weight, math.ceil(rows / BLOCKS)), samples)


def parsed(text: str) -> Fingerprint:
    """What :meth:`Fingerprint.text` wrote. Raises ValueError when it is anything else."""
    try:
        found = Fingerprint(**json.loads(text))
        counts = math.ceil(found.rows / math.ceil(found.rows / BLOCKS)), SAMPLES
        whole = (len(found.blocks), len([float(value) for value in found.samples])) == counts and found.width > 0
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"it is no fingerprint of an embedding ({type(error).__name__})") from error
    if not whole:
        raise ValueError("it is no fingerprint of an embedding (its parts don't fit each other)")
    return found


def difference(written: Fingerprint, weight: Float[Tensor, "rows width"]) -> str | None:
    """How an embedding differs from the one that was written down, in words; None where it is the same.

    Rows that only one of them has don't count: a vocabulary can be resized.
    """
    rows, width = min(len(weight), written.rows), weight.shape[1]
    if width != written.width:
        return f"its rows had {written.width} numbers, and this model's have {width}"
    size = math.ceil(written.rows / BLOCKS)
    whole = rows if rows == written.rows else rows - rows % size
    here = _hashes(weight[:whole], size) if whole else []
    wrong = sum(one != other for one, other in zip(here, written.blocks, strict=False))
    if not wrong:
        return None
    if (written.dtype == "float16") != (weight.dtype == torch.float16):
        share, least = ROUNDING
        places = zip(_places(written.rows, width), written.samples, strict=True)
        pairs = [(weight[row, column].item(), value) for (row, column), value in places if row < rows]
        if all(abs(one - other) <= share * abs(other) + least for one, other in pairs):
            return None
    return f"{wrong} of its {len(here)} blocks of rows differ"
