"""Chapter 1's exercises: counting what training holds in memory."""

from __future__ import annotations

import random

from utils.course.checks.references import ch01 as lesson
from utils.course.checks.registry import Mistake, exercise


def _count(draw: random.Random) -> int:
    """The parameters of a model, from a thousand to a trillion."""
    return draw.randrange(1, 10 ** draw.randint(3, 12))


# -------------------------------------------------------------------------------------------- full fine-tuning

exercise(
    "training_gb",
    reference=lesson.training_gb,
    cases=[(1_000_000_000, 4), (7_000_000_000, 2), (123_000_000, 4)],
    drawn=lambda draw: (_count(draw), draw.choice((1, 2, 4, 8))),
    mistakes=[
        Mistake(
            lambda parameters, bytes_each: parameters * bytes_each / 1e9,
            "that is the weights alone: gradients and Adam's two moments come on top.",
        ),
        Mistake(
            lambda parameters, bytes_each: parameters * bytes_each * 3 / 1e9,
            "one of the four is missing: Adam keeps two moments for every parameter, not one.",
        ),
        Mistake(
            lambda parameters, bytes_each: parameters * bytes_each * 2 / 1e9,
            "you have the weights and the gradients; Adam's two moments are missing.",
        ),
        Mistake(
            lambda parameters, bytes_each: parameters * bytes_each * 5 / 1e9,
            "that is one number too many for each parameter: the float32 copy belongs to mixed precision alone.",
        ),
        Mistake(
            lambda parameters, bytes_each: parameters * bytes_each * 4 / 2**30,
            "you divided by 2**30, which gives GiB: a GB is 10**9 bytes.",
        ),
        Mistake(
            lambda parameters, bytes_each: parameters * bytes_each * 4,
            "these are bytes: divide by 1e9 to get GB.",
        ),
        Mistake(
            lambda parameters, bytes_each: parameters * bytes_each * 4 / 1e6,
            "these are megabytes: a GB is 10**9 bytes.",
        ),
        Mistake(
            lambda parameters, bytes_each: parameters * 16 / 1e9,
            "16 bytes is right where a number takes four: use bytes_each.",
        ),
        Mistake(
            lambda parameters, bytes_each: parameters * 4 / 1e9,
            "you counted four numbers for each parameter; each of them takes bytes_each bytes.",
        ),
        Mistake(
            lambda parameters, bytes_each: parameters * (bytes_each + 12) / 1e9,
            "here the gradients and the moments have the weights' size: all four take bytes_each bytes.",
        ),
        Mistake(
            lambda parameters, bytes_each: parameters * (2 * bytes_each + 8) / 1e9,
            "here the moments aren't kept in float32: all four numbers take bytes_each bytes.",
        ),
        Mistake(
            lambda parameters, bytes_each: round(parameters * bytes_each * 4 / 1e9),
            "you rounded to whole GB: for a small model that is nothing at all. Keep the fraction.",
        ),
        Mistake(
            lambda parameters, bytes_each: parameters * bytes_each * 4 // 1e9,
            "// drops what is behind the point, and for a small model that is all. Divide with /.",
        ),
    ],
    hints=[
        "How many numbers does training keep for each parameter? Its weight, its gradient, and what Adam needs.",
        "Four numbers for each parameter, bytes_each bytes a number, and 1e9 bytes a GB.",
    ],
    why="Adam's state has the shape of the weights, twice: that is why the optimizer takes half of the sum.",
)

# ------------------------------------------------------------------------------------- grouped-query attention


def _drawn_heads(draw: random.Random) -> tuple[int, int, int]:
    kv_heads, group, head_dim = draw.choice((1, 2, 3, 4, 8)), draw.choice((1, 2, 3, 4, 7)), draw.choice((8, 32, 64, 80))
    heads = kv_heads * group
    return heads * head_dim, heads, kv_heads


exercise(
    "attention_parameters",
    reference=lesson.attention_parameters,
    cases=[(4096, 32, 8), (192, 6, 2), (512, 8, 2)],
    drawn=_drawn_heads,
    mistakes=[
        Mistake(
            lambda hidden, heads, kv_heads: 4 * hidden * hidden,
            "you counted k and v as square: they produce kv_heads * head_dim numbers, which is less than hidden.",
        ),
        Mistake(
            lambda hidden, heads, kv_heads: lesson.attention_parameters(hidden, heads, kv_heads) - hidden * hidden,
            "one square projection is missing: there are q_proj and o_proj, both hidden x hidden.",
        ),
        Mistake(
            lambda hidden, heads, kv_heads: 2 * hidden * hidden + hidden * (hidden // heads * kv_heads),
            "k and v are two projections of the same shape; you counted one.",
        ),
        Mistake(
            lambda hidden, heads, kv_heads: 2 * hidden * hidden + 2 * hidden * kv_heads,
            "each key head is head_dim = hidden // heads numbers wide, not one number.",
        ),
        Mistake(
            lambda hidden, heads, kv_heads: 2 * hidden * hidden + 2 * hidden * (hidden // kv_heads),
            "head_dim comes from the number of query heads: hidden // heads, then times kv_heads.",
        ),
        Mistake(
            lambda hidden, heads, kv_heads: 2 * hidden * hidden + 2 * hidden * (hidden // heads),
            "that is a single key head: k and v have kv_heads of them.",
        ),
        Mistake(
            lambda hidden, heads, kv_heads: 2 * hidden * hidden + 2 * (hidden // heads * kv_heads) ** 2,
            "k and v read all of `hidden`: their weights are (kv_heads * head_dim) x hidden, not square.",
        ),
        Mistake(
            lambda hidden, heads, kv_heads: 3 * hidden * hidden + hidden * (hidden // heads * kv_heads),
            "both k_proj and v_proj are narrow: the values share their heads as the keys do.",
        ),
        Mistake(
            lambda hidden, heads, kv_heads: hidden * hidden + 3 * hidden * (hidden // heads * kv_heads),
            "o_proj reads all the query heads: it is hidden x hidden, as q_proj is.",
        ),
        Mistake(
            lambda hidden, heads, kv_heads: 2 * hidden * (hidden // heads * kv_heads),
            "those are k_proj and v_proj alone: q_proj and o_proj are missing.",
        ),
        Mistake(
            lambda hidden, heads, kv_heads: heads * lesson.attention_parameters(hidden, heads, kv_heads),
            "q_proj holds all the query heads already: don't multiply by heads again.",
        ),
        Mistake(
            lambda hidden, heads, kv_heads: 2 * hidden * hidden + 2 * hidden * kv_heads * (hidden / heads),
            "a count is a whole number, and / makes a float: use //.",
        ),
        Mistake(
            lambda hidden, heads, kv_heads: (
                lesson.attention_parameters(hidden, heads, kv_heads) + 2 * hidden + 2 * (hidden // heads) * kv_heads
            ),
            "you added biases, and these projections have none.",
        ),
    ],
    hints=[
        "head_dim = hidden // heads. The keys are kv_heads * head_dim numbers wide.",
        "q_proj and o_proj are hidden x hidden; k_proj and v_proj are hidden x (kv_heads * head_dim).",
    ],
    why="The width of a head follows from the query heads. Sharing makes fewer key heads, not narrower ones.",
)

# ------------------------------------------------------------------------------------------------ LoRA's state


def _drawn_adapter(draw: random.Random) -> tuple[int, int]:
    parameters = 1000 + _count(draw)
    return parameters, max(1, round(parameters * draw.uniform(1e-4, 0.2)))


exercise(
    "lora_training_gb",
    reference=lesson.lora_training_gb,
    cases=[(7_000_000_000, 8_000_000), (1_000_000_000, 40_000_000)],
    drawn=_drawn_adapter,
    mistakes=[
        Mistake(
            lambda parameters, trainable: (4 * parameters + 16 * trainable) / 1e9,
            "you took four bytes for each weight of the base: it is frozen and held in 16 bits, two bytes.",
        ),
        Mistake(
            lambda parameters, trainable: 16 * trainable / 1e9,
            "the frozen base is missing: it doesn't train, but it must be there to compute.",
        ),
        Mistake(
            lambda parameters, trainable: 2 * parameters / 1e9,
            "that is the base alone: the adapter's weights, gradients and moments come on top.",
        ),
        Mistake(
            lambda parameters, trainable: (2 * parameters + 4 * trainable) / 1e9,
            "the adapter trains, so it needs gradients and Adam's two moments too: 16 bytes for each parameter of it.",
        ),
        Mistake(
            lambda parameters, trainable: (2 * parameters + 2 * trainable) / 1e9,
            "you have the weights of both alone, in bf16: the adapter trains, in float32, with gradients and moments.",
        ),
        Mistake(
            lambda parameters, trainable: (2 * parameters + 8 * trainable) / 1e9,
            "the adapter trains in float32: its four numbers take four bytes each.",
        ),
        Mistake(
            lambda parameters, trainable: (2 * parameters + 12 * trainable) / 1e9,
            "one of the adapter's four is missing: weight, gradient and two moments, four bytes each.",
        ),
        Mistake(
            lambda parameters, trainable: (2 * parameters + 14 * trainable) / 1e9,
            "you are two bytes short for each adapter parameter: its weight is in float32, on top of a whole base.",
        ),
        Mistake(
            lambda parameters, trainable: 16 * (parameters + trainable) / 1e9,
            "you gave the frozen base gradients and moments: only the adapter's parameters have them.",
        ),
        Mistake(
            lambda parameters, trainable: (2 * parameters + 16 * trainable) / 2**30,
            "you divided by 2**30, which gives GiB: a GB is 10**9 bytes.",
        ),
        Mistake(
            lambda parameters, trainable: 2 * parameters + 16 * trainable,
            "these are bytes: divide by 1e9 to get GB.",
        ),
        Mistake(
            lambda parameters, trainable: 2 * parameters + 16 * trainable / 1e9,
            "only the second part is divided by 1e9: put brackets around the sum.",
        ),
    ],
    hints=[
        "Two parts: a frozen base at 2 bytes for each parameter, and an adapter that trains in float32.",
        "The adapter costs what full fine-tuning costs for its own parameters: 4 + 4 + 8 bytes each.",
    ],
    why="What doesn't train has no gradient and no moments, and never changes, so 16 bits will do for it.",
)

# ------------------------------------------------------------------------------------------- the largest that fits


def _drawn_room(draw: random.Random) -> tuple[int, int, int | float]:
    """Room for none, for exactly so many, for a little less or more; a float such as 40e9 in half of the cases."""
    fixed, each = draw.randrange(1, 20_000), draw.randrange(2, 5_000)
    one, fits = fixed + each, draw.choice((0, 0, 1, 2, 3, 7, 40))
    room = fixed + fits * each + draw.choice((0, 0, 1, each // 2, each - 1))
    return one, one + each, float(room) if draw.random() < 0.5 else room


exercise(
    "sequences_that_fit",
    reference=lesson.sequences_that_fit,
    cases=[(17_000, 20_500, 40_000), (10, 14, 22), (10, 14, 10), (10, 14, 2), (6_300, 6_900, 24_000.0)],
    drawn=_drawn_room,
    mistakes=[
        Mistake(
            lambda one, two, room: int(room // one),
            "that gives each sequence a whole peak; the weights are in it, and they are there once.",
        ),
        Mistake(
            lambda one, two, room: int(room // (two - one)),
            "the room isn't empty: weights and all else that needs no sequence are there first.",
        ),
        Mistake(
            lambda one, two, room: max(0, int((room - one) // (two - one))),
            "one too few: the peak `one` has the first sequence in it.",
        ),
        Mistake(
            lambda one, two, room: 1 + int((room - one) // (two - one)),
            "where not even one sequence fits the answer is 0, not a negative number.",
        ),
        Mistake(
            lambda one, two, room: max(0, 1 + int((room - one) / (two - one))),
            "int(...) cuts towards zero: where `one` is a little more than the room, it still leaves one sequence.",
        ),
        Mistake(
            lambda one, two, room: 1 if one > room else 1 + int((room - one) // (two - one)),
            "you count one sequence even where its peak is more than the room: there the answer is 0.",
        ),
        Mistake(
            lambda one, two, room: 0 if one >= room else 1 + int((room - one) // (two - one)),
            "a peak of exactly `room` bytes fits: at most means <=.",
        ),
        Mistake(
            lambda one, two, room: 0 if one > room else 1 - int(-(room - one) // (two - one)),
            "rounded up, the last sequence doesn't fit any more: round down.",
        ),
        Mistake(
            lambda one, two, room: 0 if one > room else 1 + round((room - one) / (two - one)),
            "rounded to the nearest, the last sequence may not fit: round down.",
        ),
        Mistake(
            lambda one, two, room: 0 if one > room else 1 + (room - one) / (two - one),
            "a part of a sequence can't be trained on: return a whole number, rounded down.",
        ),
        Mistake(
            lambda one, two, room: 0 if one > room else 1 + (room - one) // (two - one),
            "// of a float such as 40e9 gives a float: int(...) makes the batch a whole number.",
        ),
        Mistake(
            lambda one, two, room: 0 if one > room else 1 + int((room - one) // two),
            "each further sequence adds the difference, two - one, not the whole peak of two.",
        ),
        Mistake(
            lambda one, two, room: 0 if one > room else 2 + int((room - one) // (two - one)),
            "one too many: after the first sequence, (room - one) holds the further ones.",
        ),
        Mistake(
            lambda one, two, room: 0 if one > room else 1,
            "you stop at one sequence where there is room for more.",
        ),
    ],
    hints=[
        "The second sequence adds two - one. How much room is left beside the first?",
        "One sequence, and as many more as (room - one) holds of (two - one), rounded down.",
        "And 0 when `one` alone is more than `room`.",
    ],
    why="A peak is a fixed part and one for each sequence, so two peaks say both; the rest is division.",
)

# ------------------------------------------------------------------------------------------------- attention scores


def _drawn_batch(draw: random.Random) -> tuple[int, int, int]:
    batch, heads, length = draw.sample((1, 2, 3, 5, 6, 8, 12, 32, 48, 64, 100, 512, 777, 1000), 3)
    return batch, heads, length


exercise(
    "score_bytes",
    reference=lesson.score_bytes,
    cases=[(4, 32, 512), (1, 6, 64), (2, 8, 1000)],
    drawn=_drawn_batch,
    mistakes=[
        Mistake(
            lambda batch, heads, length: batch * heads * length * 4,
            "every token looks at every token: that is length * length scores, not length.",
        ),
        Mistake(
            lambda batch, heads, length: batch * length * length * 4,
            "each head has scores of its own: multiply by the number of heads.",
        ),
        Mistake(
            lambda batch, heads, length: heads * length * length * 4,
            "each sequence of the batch has scores of its own: multiply by batch.",
        ),
        Mistake(
            lambda batch, heads, length: length * length * 4,
            "that is one head of one sequence: each head has scores of its own, and so has each sequence.",
        ),
        Mistake(
            lambda batch, heads, length: batch * heads * length * length,
            "you counted the numbers; a float32 has four bytes.",
        ),
        Mistake(
            lambda batch, heads, length: batch * heads * length * length * 2,
            "two bytes is a 16-bit number; a float32 has four.",
        ),
        Mistake(
            lambda batch, heads, length: batch * heads * length * length * 32,
            "those are bits: a float32 has 32 of them, which is four bytes.",
        ),
        Mistake(
            lambda batch, heads, length: batch * heads * length * (length + 1) // 2 * 4,
            "the mask hides half of the scores, but the tensor holds them all: length * length.",
        ),
        Mistake(
            lambda batch, heads, length: heads * (batch * length) ** 2 * 4,
            "a token looks at the tokens of its own sequence alone: the batch isn't squared.",
        ),
        Mistake(
            lambda batch, heads, length: batch * heads * length * length * 4 / 1e9,
            "those are GB; return bytes, the lesson's cell divides.",
        ),
        Mistake(
            lambda batch, heads, length: batch * heads * length * length * 8,
            "that is twice the scores, or eight bytes a number: one float32 score takes four.",
        ),
    ],
    hints=["One score for each pair of tokens.", "For each sequence and each head: length * length float32 numbers."],
    why="Twice the length is four times the pairs of tokens. This is what makes long contexts dear where it is stored.",
)
