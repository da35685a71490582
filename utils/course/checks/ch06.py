"""Chapter 6's exercises: absmax, nearest code, weights back from codes, bits for each weight, a 4-bit Llama's bytes,
the device map."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from utils.course.checks.behaviour import without_loop
from utils.course.checks.compare import difference
from utils.course.checks.references import ch06 as lesson
from utils.course.checks.registry import Mistake, exercise

# -------------------------------------------------------------------------------------------------- absmax by hand


def _drawn_values(rng: random.Random) -> tuple[Tensor]:
    shape = rng.choice([(rng.randint(1, 40),), (rng.randint(1, 6), rng.randint(2, 9)), (2, 3, rng.randint(1, 4))])
    values = torch.randn(shape) * 10 ** rng.uniform(-3, 3)
    sign = rng.choice([None, None, -1, 1])
    if sign:
        values = sign * values.abs()
    if rng.random() < 0.3:
        values.view(-1)[rng.randrange(values.numel())] *= -30
    return (values,)


def _pair(expected: Any, got: Any) -> bool | str:
    """The steps in int8; the scale as a tensor of one number, or as that number."""
    if isinstance(got, tuple | list) and len(got) == 2 and type(got[1]) is float:
        got = got[0], torch.tensor(got[1], dtype=torch.float32)
    return difference(expected, got) or True


def _steps(values: Tensor, factor: float = 127, signed: bool = False, rounding=torch.round) -> tuple[Tensor, Tensor]:
    scale = values.max() if signed else values.abs().max()
    return rounding(values / scale * factor).to(torch.int8), scale


def _scaled_in_place(values: Tensor) -> tuple[Tensor, Tensor]:
    scale = values.abs().max()
    values /= scale
    return torch.round(values * 127).to(torch.int8), scale


def _scale_of_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    scale = values.abs().amax(dim=-1, keepdim=True)
    return torch.round(values / scale * 127).to(torch.int8), scale.squeeze(-1)


def _steps_of_range(values: Tensor) -> tuple[Tensor, Tensor]:
    scale = values.max() - values.min()
    return torch.round(values / scale * 127).to(torch.int8), scale


exercise(
    "absmax_steps",
    reference=lesson.absmax_steps,
    cases=[
        lambda: (torch.tensor([0.3, -0.72, 0.1, 0.5]),),
        lambda: (torch.tensor([-2.0, 1.21, 0.4, 1.9, 0.0]),),
        lambda: (torch.randn(16) * 3,),
    ],
    drawn=_drawn_values,
    compare=_pair,
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
            lambda values: _steps(values, rounding=torch.ceil),
            "that always rounds up, so that every restored value is too high: torch.round takes the nearest step.",
        ),
        Mistake(
            lambda values: torch.round(values / values.abs().max() * 127).to(torch.int8) / 127 * values.abs().max(),
            "those are the restored values: what is stored, and asked for, is the pair steps, scale.",
        ),
        Mistake(
            lambda values: _steps(values, rounding=torch.floor),
            "that always rounds down, so that every restored value is too low: torch.round takes the nearest step.",
        ),
        Mistake(
            lambda values: (torch.round(values / values.abs().max() * 127), values.abs().max()),
            "the steps are whole numbers, but still float32, four bytes each: .to(torch.int8) makes it one.",
        ),
        Mistake(
            lambda values: (_steps(values)[0].int(), values.abs().max()),
            "your steps are int32, and those take four bytes each, as much as before: int8 takes one.",
        ),
        Mistake(
            lambda values: (_steps(values)[0].to(torch.uint8), values.abs().max()),
            "uint8 has no negative numbers: -1 became 255. The signed type of one byte is torch.int8.",
        ),
        Mistake(
            lambda values: (_steps(values, 1)[0], values.abs().max()),
            "every step is -1, 0 or 1: values / scale is never larger than 1, so stretch it over the steps with * 127.",
        ),
        Mistake(
            lambda values: (lesson.absmax_steps(values)[0], values.abs().max() / 127),
            "your steps are right. As the scale return the largest absolute value itself, without dividing by 127.",
        ),
        Mistake(
            lambda values: (torch.round(values / values.std() * 127).to(torch.int8), values.std()),
            "the standard deviation isn't the largest: values beyond it don't fit into int8 and wrap round.",
        ),
        Mistake(
            _steps_of_range,
            "that is the distance from the smallest to the largest value. Half of the steps would never be used.",
        ),
        Mistake(
            _scale_of_rows,
            "every row has a scale of its own. Here all the values share one: the largest of the whole tensor.",
        ),
        Mistake(
            lambda values: lesson.absmax_steps(values)[0],
            "the scale is missing: without it nobody can restore the values. Return steps, scale.",
        ),
        Mistake(
            _scaled_in_place,
            "the result is right, but the weights that you were given are divided now, too (/=, div_): whoever wants "
            "to measure the error can't. Make a new tensor.",
        ),
    ],
    hints=[
        "The scale: values.abs().max().",
        "values / scale lies between -1 and 1; int8 has room from -127 to 127.",
        "torch.round(values / scale * 127).to(torch.int8)",
    ],
    why="Dividing by the largest absolute value is the finest scale at which nothing overflows. It costs one number "
    "for all of them, and makes every rounding error at most half a step, scale / 254.",
)

# ----------------------------------------------------------------------------------------------- the nearest code


def _nearest_case(count: int, book: list[float]) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (torch.rand(count) * 2 - 1, torch.tensor(book))


def _drawn_book(rng: random.Random) -> tuple[Tensor, Tensor]:
    book = torch.rand(rng.choice([1, 2, 3, 5, 15, 16])) * 2 - 1
    if rng.random() < 0.6:
        book = book.sort().values
    return (torch.rand(rng.randint(1, 30)) * 2 - 1) * rng.choice([0.5, 1, 1.5]), book


def _many(count: int) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (torch.linspace(-1, 1, count), torch.tensor([-1.0, -0.2, 0.3, 1.0]))


exercise(
    "nearest_code",
    reference=lesson.nearest_code,
    cases=[
        _nearest_case(20, [-1.0, -0.4, 0.0, 0.3, 1.0]),
        _nearest_case(20, [-1.0, -0.9, 0.0, 0.8, 0.9, 1.0]),
        _nearest_case(7, [0.5, -0.5, 0.9]),
    ],
    drawn=_drawn_book,
    any_dtype=True,
    test=without_loop(_many(5), _many(40), "the values"),
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
            "searchsorted gives the next entry above, which need not be the nearest, and takes the book to be sorted.",
        ),
        Mistake(
            lambda values, book: torch.bucketize(values, (book[:-1] + book[1:]) / 2),
            "right for a sorted book. fp4's isn't sorted: its entries stand in the order of their bits.",
        ),
        Mistake(
            lambda values, book: torch.bucketize(values, (book.sort().values[:-1] + book.sort().values[1:]) / 2),
            "you sorted the book and return the numbers in the sorted one: they name other entries in the book itself.",
        ),
        Mistake(
            lambda values, book: (values[:, None] - book).abs().min(dim=1).values,
            "you return the distances; what is stored are the numbers of the entries.",
        ),
        Mistake(
            lambda values, book: (values[:, None] - book).abs().argmin(dim=0),
            "that finds, for each entry, the nearest value. Turn it round: for each value an entry, along dim=1.",
        ),
        Mistake(
            lambda values, book: (values[:, None] - book).abs().argmin(),
            "argmin without dim gives one number for the whole table; one for each value is wanted, along dim=1.",
        ),
        Mistake(
            lambda values, book: (values - book).abs().argmin(),
            "values - book takes pairs of the same place, if there are as many. Each value has to meet every entry: "
            "values[:, None] - book.",
        ),
        Mistake(
            lambda values, book: (values[:, None].abs() - book.abs()).abs().argmin(dim=1),
            "the absolute value is that of the difference; taken before, it makes -0.4 and 0.4 the same.",
        ),
        Mistake(
            lambda values, book: (
                ((values - book.min()) / (book.max() - book.min()) * (len(book) - 1))
                .round()
                .long()
                .clamp(0, len(book) - 1)
            ),
            "you take the entries to be steps of equal size. They are for int4 alone; fp4 and nf4 lie elsewhere.",
        ),
        Mistake(
            lambda values, book: torch.tensor([int((value - book).abs().argmin()) for value in values]),
            expect="your code goes through the values one by one",
        ),
    ],
    hints=[
        "Make a table of differences: values[:, None] - book has the shape (values, entries).",
        "The absolute value of the table, then argmin along dim=1.",
    ],
    why="[:, None] makes a column of the values, so that broadcasting sets each of them against every entry. argmin "
    "wants nothing of the book, not even that it is sorted.",
)

# ------------------------------------------------------------------------------------------ the weights, restored


def _codes(count: int, blocks: int, block: int, dtype: torch.dtype, entries: int = 16) -> tuple[Any, ...]:
    codes = torch.randint(0, entries, (count,), dtype=torch.uint8)
    return codes, torch.rand(blocks) + 0.05, torch.rand(entries) * 2 - 1, block, dtype


def _drawn_codes(rng: random.Random) -> tuple[Any, ...]:
    block, blocks = rng.choice([1, 2, 3, 7, 16, 32, 64]), rng.randint(1, 6)
    count = block * blocks - rng.choice([0, 0, rng.randrange(block)])
    dtype = rng.choice([torch.float32, torch.bfloat16, torch.float16])
    return _codes(count, blocks, block, dtype, rng.choice([16, 16, 256]))


def _rounded_once(expected: Any, got: Any) -> bool | str:
    """As usual, but a 16-bit result to the bit: its last digit shows whether the factors were rounded before. A few in
    a hundred may differ, which is what another way to the exact product can change."""
    if said := difference(expected, got):
        return said
    wrong = int((expected != got).sum()) if expected.element_size() == 2 else 0
    return wrong <= 0.03 * expected.numel() or (
        f"{wrong} of {expected.numel()} weights are the neighbour of the right 16-bit number: multiply in float32 and "
        "round once, at the end."
    )


def _padded(codes: Tensor, scales: Tensor, book: Tensor, block: int) -> Tensor:
    filled = torch.nn.functional.pad(codes.long(), (0, len(scales) * block - len(codes)))
    return book[filled].view(-1, block)


def _each(scales: Tensor, block: int, count: int) -> Tensor:
    return scales.repeat_interleave(block)[:count]


exercise(
    "dequantized",
    reference=lesson.dequantized,
    cases=[
        lambda: _codes(8, 2, 4, torch.float32),
        lambda: _codes(10, 3, 4, torch.float32),
        lambda: _codes(128, 2, 64, torch.bfloat16),
    ],
    drawn=_drawn_codes,
    compare=_rounded_once,
    mistakes=[
        Mistake(
            lambda codes, scales, book, block, dtype: (book[codes.bool()] * _each(scales, block, len(codes))).to(dtype),
            "as an index, a uint8 tensor is taken for a mask of zeros and ones: make the codes whole numbers of "
            "another kind first, codes.long().",
        ),
        Mistake(
            lambda codes, scales, book, block, dtype: (
                book[codes.long()].to(dtype) * _each(scales, block, len(codes)).to(dtype)
            ),
            "entry and scale were rounded to 16 bits before they were multiplied, and the product again: the last "
            "digit suffers. Multiply in float32, and round once, at the end.",
        ),
        Mistake(
            lambda codes, scales, book, block, dtype: (
                book.to(dtype)[codes.long()] * _each(scales, block, len(codes))
            ).to(dtype),
            "you rounded the book to 16 bits before multiplying: multiply in float32, and round the product alone.",
        ),
        Mistake(
            lambda codes, scales, book, block, dtype: (
                book[codes.long()] * _each(scales.to(dtype), block, len(codes))
            ).to(dtype),
            "you rounded the scales to 16 bits before multiplying: multiply in float32, and round the product alone.",
        ),
        Mistake(
            lambda codes, scales, book, block, dtype: (_padded(codes, scales, book, block) * scales[:, None]).to(dtype),
            "your weights still stand in rows, a block in each: asked for is one dimension, as many weights as codes.",
        ),
        Mistake(
            lambda codes, scales, book, block, dtype: (
                (_padded(codes, scales, book, block) * scales[:, None]).flatten().to(dtype)
            ),
            "you filled the last block up and kept what you added: cut it off again, [: len(codes)].",
        ),
        Mistake(
            lambda codes, scales, book, block, dtype: (
                (book[codes.long()].view(-1, block) * scales[:, None]).flatten().to(dtype)
            ),
            "the last block may be shorter, and then the weights don't fit into rows of `block`: give each weight its "
            "scale, and cut off what is too much.",
        ),
        Mistake(
            lambda codes, scales, book, block, dtype: (book[codes.long()] * scales.repeat(block)[: len(codes)]).to(
                dtype
            ),
            "repeat lays the row of scales out again and again: 1 2 1 2. The first `block` weights share the first "
            "scale, 1 1 2 2: repeat_interleave.",
        ),
        Mistake(
            lambda codes, scales, book, block, dtype: (book[codes.long()] / _each(scales, block, len(codes))).to(dtype),
            "quantizing divided by the scale; restoring multiplies.",
        ),
        Mistake(
            lambda codes, scales, book, block, dtype: book[codes.long()].to(dtype),
            "those are the entries, between -1 and 1: the scales are missing.",
        ),
        Mistake(
            lambda codes, scales, book, block, dtype: (codes * _each(scales, block, len(codes))).to(dtype),
            "you multiply the codes themselves. A code is the number of an entry: look it up in the book.",
        ),
        Mistake(
            lambda codes, scales, book, block, dtype: book[codes.long()] * _each(scales, block, len(codes)),
            "the weights are right, but always float32: the layer computes in `dtype`, so end with .to(dtype).",
        ),
        Mistake(
            lambda codes, scales, book, block, dtype: lesson.dequantized(codes, scales, book, 64, dtype),
            "you took blocks of 64, whatever `block` says. The scales of the scales have blocks of 256.",
        ),
        Mistake(
            lambda codes, scales, book, block, dtype: (
                book.sort().values[codes.long()] * _each(scales, block, len(codes))
            ).to(dtype),
            "a code is an entry's number in the book as it is given: don't sort it.",
        ),
        Mistake(
            lambda codes, scales, book, block, dtype: (book[codes.long()] * scales.max()).to(dtype),
            "you gave every block the largest scale: each has its own.",
        ),
    ],
    hints=[
        "Three steps: look the entries up, give each weight its block's scale, multiply and round to dtype.",
        "book[codes.long()] looks up (an index must not be uint8), scales.repeat_interleave(block) repeats each scale.",
        "The last block may be shorter: [: len(codes)] cuts the repeated scales to the right length.",
    ],
    why="The product is made in float32 and rounded once: rounding entry and scale first would cost a digit more, and "
    "the bytes wouldn't be bitsandbytes'. The repeated scales are cut since the last block may be shorter.",
)

# -------------------------------------------------------------------------------------------- bits for each weight


exercise(
    "double_quant_bits",
    reference=lesson.double_quant_bits,
    cases=[(64, 256), (32, 256), (128, 16)],
    drawn=lambda rng: (rng.choice([1, 8, 16, 50, 64, 96, 1024, 4096]), rng.choice([1, 4, 60, 100, 128, 256, 512])),
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
            lambda block, scale_block: 4 + 8 / block + 32 / block / 256,
            "you took 256 for scale_block: use the argument.",
        ),
        Mistake(
            lambda block, scale_block: 4 + (8 + 32) / block,
            "you gave each block a scale of 32 bits as well: one of those serves scale_block blocks.",
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
        Mistake(
            lambda block, scale_block: 4 + 16 / block + 32 / (block * scale_block),
            "a scale of a block takes 8 bits, and you counted 16.",
        ),
        Mistake(
            lambda block, scale_block: 4 + 8 / block + 16 / (block * scale_block),
            "the scales' scale is a float32, 32 bits, and you counted 16.",
        ),
        Mistake(
            lambda block, scale_block: 4 + 8 // block + 32 // (block * scale_block),
            "// drops the fraction, and a weight's share of a scale is a fraction of a bit: divide with /.",
        ),
        Mistake(
            lambda block, scale_block: 4 * block + 8 + 32 / scale_block,
            "those are the bits of a whole block: divide by its weights.",
        ),
    ],
    hints=[
        "Three parts: the code, its share of the block's 8-bit scale, its share of the float32 scale above that.",
        "block weights share 8 bits. block * scale_block weights share 32 bits.",
    ],
    why="What is shared is divided by the number of weights that share it: block of them the 8-bit scale, "
    "block * scale_block of them the float32 above it.",
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

_PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.dense_h_to_4h", "mlp.fc1")
_NORMS = ("self_attn.q_norm", "input_layernorm", "post_attention_layernorm")


def _drawn_shapes(rng: random.Random) -> tuple[dict[str, tuple[int, ...]], float]:
    wide, words = rng.randint(3, 40), rng.randint(20, 90)
    names = [f"model.layers.{rng.randrange(30)}.{part}.weight" for part in rng.sample(_PARTS, rng.randint(1, 5))]
    shapes: dict[str, tuple[int, ...]] = {name: (rng.randint(2, 50), wide) for name in names}
    shapes |= {f"model.layers.0.{part}.weight": (wide,) for part in rng.sample(_NORMS, rng.randint(0, 3))}
    others = {
        "model.embed_tokens.weight": (words, wide),
        "model.decoder.embed_positions.weight": (rng.randint(5, 9), wide),
        "model.norm.weight": (wide,),
        "model.layers.1.self_attn.q_proj.bias": (rng.randint(2, 9),),
        "lm_head.weight": (words, wide),
        "lm_head.bias": (words,),
        "model.layers.2.input_layernorm.bias": (wide,),
        "model.layers.2.self_attn.q_norm_scale": (wide,),
    }
    shapes |= {name: others[name] for name in rng.sample(sorted(others), rng.randint(0, len(others)))}
    return dict(rng.sample(sorted(shapes.items()), len(shapes))), rng.choice([4.5, 4.127, 5.0, 8.25, 3.3])


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
    drawn=_drawn_shapes,
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
            lambda shapes, bits: _four_bit_bytes(shapes, bits, keep=("embed", "lm_head")),
            "the norms were quantized; they stay in 16 bits.",
        ),
        Mistake(
            lambda shapes, bits: _four_bit_bytes(shapes, bits, keep=()),
            "everything was quantized. Embedding, norms and lm_head stay in 16 bits.",
        ),
        Mistake(
            lambda shapes, bits: _four_bit_bytes(shapes, bits, keep=("",)),
            'everything takes 2 bytes, as if every name matched. `"embed" or "norm" in name` does: it is true for '
            'any name, since "embed" is. Ask for each part: any(part in name for part in ...).',
        ),
        Mistake(
            lambda shapes, bits: _four_bit_bytes(shapes, bits, keep=("embed_tokens", "model.norm", "lm_head")),
            "only the last norm was kept: the blocks have norms of their own, such as input_layernorm.",
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
            lambda shapes, bits: _four_bit_bytes(shapes, bits, kept_bytes=16),
            "2 bytes each, not 16: 16 are the bits.",
        ),
        Mistake(
            lambda shapes, bits: _four_bit_bytes(shapes, bits, kept_bytes=0),
            "what isn't quantized was left out; it takes 2 bytes each.",
        ),
        Mistake(
            lambda shapes, bits: sum(
                shape[0] * shape[1] * (2 if any(part in name for part in ("embed", "norm", "lm_head")) else bits / 8)
                for name, shape in shapes.items()
            ),
            "a norm or a bias has one size alone, so shape[1] isn't there: math.prod(shape) takes any number of sizes.",
        ),
        Mistake(
            lambda shapes, bits: sum(
                sum(shape) * (2 if any(part in name for part in ("embed", "norm", "lm_head")) else bits / 8)
                for name, shape in shapes.items()
            ),
            "you added the sizes of a shape up; a (100, 64) matrix has 100 * 64 numbers.",
        ),
        Mistake(
            lambda shapes, bits: lesson.four_bit_bytes(dict(list(shapes.items())[:1]), bits),
            "that is the first parameter alone: the return stands inside the loop.",
        ),
        Mistake(
            lambda shapes, bits: lesson.four_bit_bytes(dict(list(shapes.items())[-1:]), bits),
            "that is the last parameter alone: add up with +=.",
        ),
        Mistake(
            lambda shapes, bits: sum(
                _size(shape) * (bits / 8 if len(shape) == 2 and "embed" not in name and "lm_head" not in name else 2)
                for name, shape in shapes.items()
            ),
            "you went by the dimensions. Here the names decide: a bias of q_proj takes `bits` bits, too.",
        ),
        Mistake(
            lambda shapes, bits: _four_bit_bytes(shapes, bits // 8 * 8),
            "// drops the fraction: with 4.5 bits a weight would take no bytes at all. Divide with /.",
        ),
        Mistake(
            lambda shapes, bits: sum(
                _size(shape) * (bits / 8 if "proj" in name else 2) for name, shape in shapes.items()
            ),
            "other models call their linear layers dense, fc1 or c_attn, and those stay in 16 bits with you: go by "
            "what is kept, embed, norm and lm_head.",
        ),
    ],
    hints=[
        "math.prod(shape) is the number of parameters.",
        "2 bytes each when the name contains embed, norm or lm_head; bits / 8 bytes each otherwise.",
    ],
    points=2,
    why="Only the linear layers of the blocks are quantized. The names tell them from the rest, which takes its 16 "
    "bits whatever `bits` says: in a small model with a large vocabulary that is most of it.",
)

# -------------------------------------------------------------------------------------------------- the device map


def _drawn_environ(rng: random.Random) -> tuple[dict[str, str]]:
    environ = {"HOME": "somewhere", "CUDA_VISIBLE_DEVICES": "0,1,2,3", "WORLD_SIZE": "16", "OMP_NUM_THREADS": "5"}
    environ = {key: environ[key] for key in rng.sample(sorted(environ), rng.randint(0, 4))}
    if rng.random() < 0.8:
        rank = rng.choice([*range(8), 10, 12])
        environ |= {"RANK": str(8 + rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "1"}
    return (environ,)


def _same_map(expected: Any, got: Any) -> bool | str:
    """A card as its number, as "cuda:0" or as a torch.device: transformers takes all three."""
    return difference(_with_numbers(expected), _with_numbers(got)) or True


def _with_numbers(device_map: Any) -> Any:
    if not isinstance(device_map, dict):
        return device_map
    return {part: _number(card) for part, card in device_map.items()}


def _number(card: Any) -> Any:
    if isinstance(card, torch.device) and card.type == "cuda" and card.index is not None:
        return card.index
    if isinstance(card, str) and card.startswith("cuda:") and card[5:].isdecimal():
        return int(card[5:])
    return str(card) if isinstance(card, torch.device) else card


def _popped(environ: dict[str, str]) -> dict[str, int]:
    return {"": int(environ.pop("LOCAL_RANK", 0))}


exercise(
    "training_device_map",
    reference=lesson.training_device_map,
    cases=[
        ({"LOCAL_RANK": "0"},),
        ({"LOCAL_RANK": "3", "RANK": "11", "WORLD_SIZE": "16"},),
        ({"HOME": "somewhere"},),
    ],
    drawn=_drawn_environ,
    compare=_same_map,
    mistakes=[
        Mistake(
            lambda environ: "auto",
            '"auto" spreads one copy over all cards; under DDP each process needs a whole copy on its own card.',
        ),
        Mistake(
            lambda environ: {"": 0},
            "your map names card 0 whatever `environ` holds, and all processes would put their copy there. Read "
            "LOCAL_RANK, and read it from `environ`, the argument.",
        ),
        Mistake(
            lambda environ: {"": environ.get("LOCAL_RANK", 0)},
            "environment variables are text: the card's number is int(...) of it.",
        ),
        Mistake(
            lambda environ: {"": environ.get("LOCAL_RANK", "0")},
            "environment variables are text, and so is your default: the card's number is int(...) of it.",
        ),
        Mistake(
            lambda environ: {"": int(environ["LOCAL_RANK"])},
            "without torchrun there is no LOCAL_RANK, and this stops with a KeyError: fall back to card 0.",
        ),
        Mistake(
            lambda environ: {"": int(environ.get("RANK", 0))},
            "RANK numbers the processes of all machines together: the ninth, on a second machine, would look there for "
            "a card 8. LOCAL_RANK begins anew on each.",
        ),
        Mistake(
            lambda environ: int(environ.get("LOCAL_RANK", 0)),
            "that is the card's number; a device map is a dictionary from module names to cards.",
        ),
        Mistake(
            lambda environ: {"model": int(environ.get("LOCAL_RANK", 0))},
            'the map names a part of the model; "" means all of it.',
        ),
        Mistake(
            lambda environ: {int(environ.get("LOCAL_RANK", 0)): ""},
            "the other way round: the part of the model is the key, the card the value.",
        ),
        Mistake(
            lambda environ: {"": "cuda"},
            '"cuda" alone doesn\'t say which card, and every process would take the same: cuda:0, cuda:1 and so on.',
        ),
        Mistake(
            lambda environ: {"": int(environ.get("WORLD_SIZE", 1)) - 1},
            "WORLD_SIZE is how many processes there are; which of them this is, LOCAL_RANK says.",
        ),
        Mistake(
            lambda environ: {"": int(environ["LOCAL_RANK"])} if "LOCAL_RANK" in environ else None,
            "without LOCAL_RANK your function returns nothing: then the whole model goes on card 0.",
        ),
        Mistake(
            lambda environ: {"": int(environ["LOCAL_RANK"])} if "LOCAL_RANK" in environ else "auto",
            'without LOCAL_RANK you return "auto": the task wants the whole model on card 0.',
        ),
        Mistake(
            lambda environ: {"": int(environ.get("LOCAL_RANK", 1))},
            "cards are numbered from 0: without LOCAL_RANK it is card 0.",
        ),
        Mistake(_popped, expect="changes its input"),
    ],
    hints=[
        'The empty name "" stands for the whole model: {"": card}.',
        'environ.get("LOCAL_RANK", 0), made a number.',
    ],
    why='Each process of torchrun has its own LOCAL_RANK, so each puts a whole copy on its own card. "" means the '
    "whole model, so the same map fits every model.",
)
