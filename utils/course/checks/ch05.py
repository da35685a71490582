"""Chapter 5's exercises: absmax, nearest code, packing, bits for each weight, a 4-bit Llama's bytes, the device map."""

from __future__ import annotations

import torch
from torch import Tensor

from utils.course.checks.references import ch05 as lesson
from utils.course.checks.registry import Mistake, exercise

# -------------------------------------------------------------------------------------------------- absmax by hand


def _steps(values: Tensor, factor: float = 127, signed: bool = False, rounding=torch.round) -> tuple[Tensor, Tensor]:
    scale = values.max() if signed else values.abs().max()
    return rounding(values / scale * factor).to(torch.int8), scale


exercise(
    "absmax_steps",
    reference=lesson.absmax_steps,
    cases=[
        lambda: (torch.tensor([0.3, -0.72, 0.1, 0.5]),),
        lambda: (torch.tensor([-2.0, 1.21, 0.4, 1.9, 0.0]),),
        lambda: (torch.randn(16) * 3,),
    ],
    mistakes=[
        Mistake(
            lambda values: _steps(values, signed=True),
            "your scale is the largest value. But -2 is larger than 1.9 in size: take the largest absolute value.",
        ),
        Mistake(
            lambda values: _steps(values, 128),
            "you multiplied by 128, but int8 ends at 127: the largest value becomes 128 and wraps round to -128.",
        ),
        Mistake(
            lambda values: _steps(values, rounding=torch.trunc),
            "the fractions are cut off, not rounded, so that every value shrinks towards zero: use torch.round.",
        ),
        Mistake(
            lambda values: (torch.round(values / values.abs().max() * 127), values.abs().max()),
            "the steps are whole numbers, but still float32, four bytes each: .to(torch.int8) makes it one.",
        ),
        Mistake(
            lambda values: (lesson.absmax_steps(values)[0], values.abs().max() / 127),
            "your steps are right. As the scale return the largest absolute value itself, without dividing by 127.",
        ),
        Mistake(
            lambda values: lesson.absmax_steps(values)[0],
            "the scale is missing: without it nobody can restore the values. Return steps, scale.",
        ),
    ],
    hints=[
        "The scale: values.abs().max().",
        "values / scale lies between -1 and 1; int8 has room from -127 to 127.",
        "torch.round(values / scale * 127).to(torch.int8)",
    ],
)

# ----------------------------------------------------------------------------------------------- the nearest code


def _nearest_case(count: int, book: list[float]):
    return lambda: (torch.rand(count) * 2 - 1, torch.tensor(book))


exercise(
    "nearest_code",
    reference=lesson.nearest_code,
    cases=[
        _nearest_case(20, [-1.0, -0.4, 0.0, 0.3, 1.0]),
        _nearest_case(20, [-1.0, -0.9, 0.0, 0.8, 0.9, 1.0]),
        _nearest_case(7, [-0.5, 0.5]),
    ],
    mistakes=[
        Mistake(
            lambda values, book: (values[:, None] - book).argmin(dim=1),
            "you looked for the smallest difference, and -3 is smaller than 0.1: take its absolute value first.",
        ),
        Mistake(
            lambda values, book: (values[:, None] - book).abs().argmax(dim=1),
            "that is the entry farthest away: argmin, not argmax.",
        ),
        Mistake(
            lambda values, book: book[lesson.nearest_code(values, book)],
            "you return the entries; what is stored are their numbers in the book.",
        ),
        Mistake(
            lambda values, book: torch.searchsorted(book, values).clamp(max=len(book) - 1),
            "searchsorted gives the next entry above, which need not be the nearest.",
        ),
        Mistake(
            lambda values, book: (values[:, None] - book).abs().min(dim=1).values,
            "you return the distances; what is stored are the numbers of the entries.",
        ),
    ],
    hints=[
        "Make a table of differences: values[:, None] - book has the shape (values, entries).",
        "The absolute value of the table, then argmin along dim=1.",
    ],
)

# --------------------------------------------------------------------------------------------------------- packing


def _bytes(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8)


exercise(
    "pack_two",
    reference=lesson.pack_two,
    cases=[(_bytes(1, 7, 15, 0), _bytes(2, 9, 0, 12)), (_bytes(3), _bytes(3)), (_bytes(8, 5), _bytes(6, 13))],
    mistakes=[
        Mistake(
            lambda first, second: second << 4 | first,
            "the two are swapped: the first code belongs in the high half, as bitsandbytes has it.",
        ),
        Mistake(
            lambda first, second: first + second,
            "1 + 2 and 2 + 1 would be the same byte: move the first code up by 4 bits.",
        ),
        Mistake(
            lambda first, second: first << 4 & second,
            "& keeps the bits that both have, and they share none: join the halves with |.",
        ),
        Mistake(
            lambda first, second: first * 10 + second,
            "that is how decimal digits are joined. Half a byte has 16 values: first * 16 + second.",
        ),
        Mistake(
            lambda first, second: first << 8 | second,
            "8 bits up is out of the byte; half a byte is 4 bits.",
        ),
    ],
    hints=["first << 4 moves a code into the high half of a byte.", "a | b joins two numbers that share no bits."],
)

# -------------------------------------------------------------------------------------------- bits for each weight


exercise(
    "double_quant_bits",
    reference=lesson.double_quant_bits,
    cases=[(64, 256), (32, 256), (128, 16)],
    mistakes=[
        Mistake(
            lambda block, scale_block: 4 + 32 / block,
            "that is without double quantization: a block's scale takes 8 bits now, not 32.",
        ),
        Mistake(
            lambda block, scale_block: 4 + 8 / block,
            "the scales have scales too: one of 32 bits for each scale_block of them.",
        ),
        Mistake(
            lambda block, scale_block: 4 + 8 / block + 32 / scale_block,
            "one float32 serves scale_block scales, and each of those serves a block of weights: divide by both.",
        ),
        Mistake(
            lambda block, scale_block: 4 + 1 / block + 4 / (block * scale_block),
            "you counted the scales in bytes and the weights in bits: 8 bits and 32 bits.",
        ),
        Mistake(
            lambda block, scale_block: 4 + 32 / block + 8 / (block * scale_block),
            "the two are exchanged: 8 bits for each block of weights, 32 bits for each block of scales.",
        ),
        Mistake(
            lambda block, scale_block: 8 / block + 32 / (block * scale_block),
            "that is what the scales take; add the weight's own 4 bits.",
        ),
    ],
    hints=[
        "Three parts: the code, its share of the block's 8-bit scale, its share of the float32 scale above that.",
        "block weights share 8 bits. block * scale_block weights share 32 bits.",
    ],
)

# ----------------------------------------------------------------------------------------- a 4-bit Llama's bytes

_SMALL = {
    "model.embed_tokens.weight": (100, 64),
    "model.layers.0.self_attn.q_proj.weight": (64, 64),
    "model.layers.0.mlp.down_proj.weight": (64, 128),
    "model.layers.0.input_layernorm.weight": (64,),
    "model.norm.weight": (64,),
    "lm_head.weight": (100, 64),
}
_TIED = {name: shape for name, shape in _SMALL.items() if name != "lm_head.weight"}
_WIDE = {"model.embed_tokens.weight": (50, 8), "model.layers.7.mlp.up_proj.weight": (16, 8), "lm_head.weight": (50, 8)}


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _four_bit_bytes(shapes, bits, keep=("embed", "norm", "lm_head"), kept_bytes: float = 2, unit: float = 8) -> float:
    total = 0.0
    for name, shape in shapes.items():
        kept = any(part in name for part in keep)
        total += _size(shape) * (kept_bytes if kept else bits / unit)
    return total


exercise(
    "four_bit_bytes",
    reference=lesson.four_bit_bytes,
    cases=[(_SMALL, 4.5), (_TIED, 4.127), (_WIDE, 4.5)],
    mistakes=[
        Mistake(
            lambda shapes, bits: _four_bit_bytes(shapes, bits, keep=("embed", "norm")),
            "lm_head is a linear layer, but it is left in 16 bits: its output is the logits.",
        ),
        Mistake(
            lambda shapes, bits: _four_bit_bytes(shapes, bits, keep=("norm", "lm_head")),
            "the embedding was quantized. It is a table to look up, not a linear layer: 2 bytes each.",
        ),
        Mistake(
            lambda shapes, bits: _four_bit_bytes(shapes, bits, keep=()),
            "everything was quantized. Embedding, norms and lm_head stay in 16 bits.",
        ),
        Mistake(
            lambda shapes, bits: lesson.four_bit_bytes(shapes, 4),
            "you counted 4 bits for each weight; the scales come on top: use bits.",
        ),
        Mistake(
            lambda shapes, bits: _four_bit_bytes(shapes, bits, unit=1),
            "a byte has 8 bits: divide bits by 8.",
        ),
        Mistake(
            lambda shapes, bits: _four_bit_bytes(shapes, bits, kept_bytes=4),
            "you kept the rest in 4 bytes, float32; in 16 bits they take 2.",
        ),
        Mistake(
            lambda shapes, bits: _four_bit_bytes(shapes, bits, kept_bytes=0),
            "what isn't quantized was left out; it takes 2 bytes each.",
        ),
    ],
    hints=[
        "math.prod(shape) is the number of parameters.",
        "2 bytes each when the name contains embed, norm or lm_head; bits / 8 bytes each otherwise.",
    ],
    points=2,
)

# -------------------------------------------------------------------------------------------------- the device map


exercise(
    "training_device_map",
    reference=lesson.training_device_map,
    cases=[({"LOCAL_RANK": "0"},), ({"LOCAL_RANK": "3", "WORLD_SIZE": "8"},), ({"HOME": "somewhere"},)],
    mistakes=[
        Mistake(
            lambda environ: "auto",
            '"auto" spreads one copy over all cards; under DDP each process needs a whole copy on its own card.',
        ),
        Mistake(
            lambda environ: {"": 0},
            "then all processes put their copy on card 0: use the LOCAL_RANK that each of them was given.",
        ),
        Mistake(
            lambda environ: {"": environ.get("LOCAL_RANK", 0)},
            "environment variables are text: the card's number is int(...) of it.",
        ),
        Mistake(
            lambda environ: {"": int(environ["LOCAL_RANK"])},
            "without torchrun there is no LOCAL_RANK, and this stops with a KeyError: fall back to card 0.",
        ),
        Mistake(
            lambda environ: int(environ.get("LOCAL_RANK", 0)),
            "that is the card's number; a device map is a dictionary from module names to cards.",
        ),
        Mistake(
            lambda environ: {"model": int(environ.get("LOCAL_RANK", 0))},
            'the map names a part of the model; "" means all of it.',
        ),
    ],
    hints=[
        'The empty name "" stands for the whole model: {"": card}.',
        'environ.get("LOCAL_RANK", 0), made a number.',
    ],
)
