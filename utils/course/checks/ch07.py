"""Chapter 7's exercises: absmax, nearest code, weights back from codes, bits for each weight, an MX exponent."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from utils.course.checks.behaviour import without_loop
from utils.course.checks.compare import difference
from utils.course.checks.references import ch07 as lesson
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
    """The steps in int8; the scale as a tensor of one number, whatever its dimensions, or as that number."""
    return difference(_plain_scale(expected), _plain_scale(got)) or True


def _plain_scale(answer: Any) -> Any:
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        return answer
    steps, scale = answer
    if type(scale) is float:
        scale = torch.tensor(scale, dtype=torch.float32)
    one = isinstance(scale, Tensor) and scale.numel() == 1
    return steps, scale.reshape(()) if one else scale


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
            lambda values: (_steps(values)[0].to(torch.int16), values.abs().max()),
            "your steps are int16, two bytes each: -127 to 127 fits into one byte, int8.",
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
        "The scale is the largest of the absolute values: take those first, then their maximum.",
        "values / scale lies between -1 and 1; int8 has room from -127 to 127.",
        "Stretch it over that room, round with torch.round, and only then change the dtype.",
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

# --------------------------------------------------------------------------------------- an MX block's exponent


def _drawn_blocks(rng: random.Random) -> tuple[Tensor, int]:
    block, blocks = rng.choice([1, 2, 4, 8, 16, 32]), rng.randint(1, 6)
    values = torch.randn(blocks, block) * 10.0 ** (torch.rand(blocks, 1) * 8 - 5)
    if rng.random() < 0.3:
        values[rng.randrange(blocks)] = 0.0
    if rng.random() < 0.3:
        values[rng.randrange(blocks)] = rng.choice([-1, 1]) * 2.0 ** rng.randint(-6, 6)
    if rng.random() < 0.2:
        values = -values.abs()
    return values.flatten(), block


def _whole(expected: Any, got: Any) -> bool | str:
    """Numbers in whatever dtype, a float's too."""
    if isinstance(got, Tensor) and got.dtype != torch.bool and isinstance(expected, Tensor):
        expected, got = expected.double(), got.double()
    return difference(expected, got) or True


def _signed_frexp(values: Tensor, block: int, zeros: bool = True) -> Tensor:
    biggest = values.view(-1, block).amax(dim=1)
    exponents = torch.frexp(biggest).exponent - 3
    return torch.where(biggest != 0, exponents, -127).clamp(min=-127) if zeros else exponents


def _exponents(values: Tensor, block: int, minus: int = 2, rounding=torch.floor, reduce=torch.amax) -> Tensor:
    biggest = reduce(values.abs().view(-1, block), dim=1)
    return (rounding(torch.log2(biggest)) - minus).clamp(min=-127).int()


exercise(
    "mx_exponents",
    reference=lesson.mx_exponents,
    cases=[
        lambda: (torch.tensor([0.3, -5.0, 1.0, 0.7, 0.2, 0.1, -0.05, 0.0]), 4),
        lambda: (torch.tensor([6.0, 7.9, -8.0, 3.0, 0.0, 0.0]), 2),
        lambda: (torch.randn(64) * 0.02, 32),
    ],
    drawn=_drawn_blocks,
    compare=_whole,
    mistakes=[
        Mistake(
            lambda values, block: _exponents(values, block, minus=0),
            "the 2 is missing: with your scale the largest value lands at 1 to 2, and half of E2M1's entries, which "
            "end at 6, are never used. Subtract the exponent of 4, the power of two in 6.",
        ),
        Mistake(
            lambda values, block: _exponents(values, block, rounding=torch.round),
            "you round the logarithm to the nearest whole number; the rule rounds it down: floor.",
        ),
        Mistake(
            lambda values, block: _exponents(values, block, rounding=torch.ceil),
            "you round the logarithm up; the specification's rule rounds it down: floor.",
        ),
        Mistake(
            lambda values, block: _exponents(values, block, rounding=torch.trunc),
            "cutting off the fraction rounds negative logarithms up: -4.3 becomes -4, and floor makes it -5.",
        ),
        Mistake(
            lambda values, block: (
                (torch.floor(torch.log2(values.view(-1, block).amax(dim=1).clamp(min=0))) - 2)
                .nan_to_num(-127, neginf=-127)
                .clamp(min=-127)
                .int()
            ),
            "you took the largest value; -5 is larger than 1 in size: take absolute values first.",
        ),
        Mistake(
            _signed_frexp,
            "frexp reads the exponent of a negative value, too, so nothing complains; but -5 is larger than 1 in size: "
            "take absolute values before you look for the largest.",
        ),
        Mistake(
            lambda values, block: _signed_frexp(values, block, zeros=False),
            "two things are missing: absolute values, since -5 is larger than 1 in size, and the -127 of a block of "
            "zeros.",
        ),
        Mistake(
            lambda values, block: (torch.floor(torch.log2(values.view(-1, block).amax(dim=1))) - 2).clamp(min=-127),
            "a block of negative values has no logarithm, and -5 is larger than 1 in size: take absolute values first.",
        ),
        Mistake(
            lambda values, block: torch.floor(torch.log2(values.view(-1, block).amax(dim=1))) - 2,
            "you took the largest value with its sign, where the largest in size is asked for; and a block of zeros "
            "needs a clamp at -127.",
        ),
        Mistake(
            lambda values, block: (torch.floor(torch.log2(values.abs().max())) - 2).clamp(min=-127).int().view(1),
            "that is one exponent for all values: each block has its own, .view(-1, block).",
        ),
        Mistake(
            lambda values, block: (
                (torch.floor(torch.log2(values.abs().max())) - 2).clamp(min=-127).int().repeat(len(values) // block)
            ),
            "every block has the exponent of the largest value of all: take the largest of each, .view(-1, block).",
        ),
        Mistake(
            lambda values, block: (
                torch.floor(torch.log(values.abs().view(-1, block).amax(dim=1)) - 2).clamp(min=-127).int()
            ),
            "that is the natural logarithm; an exponent of two needs torch.log2.",
        ),
        Mistake(
            lambda values, block: (
                torch.floor(torch.log2(values.abs().view(-1, block).amax(dim=1) / 6)).clamp(min=-127).int()
            ),
            "you divide by 6, the end of the list. The rule takes the power of two in it, 4: where the largest value's "
            "digits lie between 1 and 1.5 yours is one lower.",
        ),
        Mistake(
            lambda values, block: lesson.mx_exponents(values, block) + 127,
            "those are the bytes that are stored, x + 127: asked for is x itself.",
        ),
        Mistake(
            lambda values, block: 2.0 ** lesson.mx_exponents(values, block).float(),
            "those are the scales, 2 to the power of x: asked for is x itself.",
        ),
        Mistake(
            lambda values, block: _exponents(values, block, reduce=torch.amin),
            "you took the smallest of each block; the scale has to fit the largest.",
        ),
        Mistake(
            lambda values, block: _exponents(values, block, reduce=torch.mean),
            "you took the mean of each block; the scale has to fit the largest.",
        ),
        Mistake(
            lambda values, block: _exponents(values, len(values) // block),
            "your rows are as long as there are blocks: .view(-1, block) makes a row of each block, .view(block, -1) "
            "doesn't.",
        ),
        Mistake(
            lambda values, block: (
                (torch.floor(torch.log2(values.abs().view(block, -1).amax(dim=0))) - 2).clamp(min=-127).int()
            ),
            "your blocks are made of values that lie far apart: a block is `block` values next to each other, a row of "
            ".view(-1, block).",
        ),
        Mistake(
            lambda values, block: torch.frexp(values.abs().view(-1, block).amax(dim=1)).exponent - 3,
            "right but for a block of zeros: its exponent is -127, the lowest there is.",
        ),
        Mistake(
            lambda values, block: torch.where(
                values.abs().view(-1, block).amax(dim=1) > 0,
                torch.frexp(values.abs().view(-1, block).amax(dim=1)).exponent - 2,
                -127,
            ),
            "one too high: frexp's fraction lies between 0.5 and 1, so its exponent is that of floor(log2) plus 1.",
        ),
        Mistake(
            lambda values, block: torch.floor(torch.log2(values.abs().view(-1, block).amax(dim=1))) - 2,
            "right but for a block of zeros: its logarithm is minus infinity, and E8M0 begins at -127: clamp it.",
        ),
        Mistake(
            lambda values, block: torch.log2(values.abs().view(-1, block).amax(dim=1)).sub(2).clamp(min=-127),
            "your exponents have fractions, and E8M0 stores whole numbers: floor the logarithm.",
        ),
    ],
    hints=[
        "Make a row of each block, then find the largest absolute value of each row.",
        "torch.log2, rounded down, or the exponent that torch.frexp gives, which is one higher; then minus 2.",
        "A block of zeros has the logarithm minus infinity, and frexp gives it 0: what must come out is -127.",
    ],
    why="The power of two below the block's largest value brings it to between 4 and 8, where E2M1 has 4 and 6. frexp "
    "reads the exponent from the float's bits: exact just below a power of two, where a logarithm may round up.",
)
