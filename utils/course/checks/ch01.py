"""Chapter 1's exercises: counting what training holds in memory."""

from __future__ import annotations

from utils.course.checks.references import ch01 as lesson
from utils.course.checks.registry import Mistake, exercise

# -------------------------------------------------------------------------------------------- full fine-tuning

exercise(
    "training_gb",
    reference=lesson.training_gb,
    cases=[(1_000_000_000, 4), (7_000_000_000, 2), (123_000_000, 4)],
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
            lambda parameters, bytes_each: parameters * bytes_each * 4 / 2**30,
            "you divided by 2**30, which gives GiB: a GB is 10**9 bytes.",
        ),
        Mistake(
            lambda parameters, bytes_each: parameters * bytes_each * 4,
            "these are bytes: divide by 1e9 to get GB.",
        ),
    ],
    hints=[
        "How many numbers does training keep for each parameter? Its weight, its gradient, and what Adam needs.",
        "Four numbers for each parameter, bytes_each bytes a number, and 1e9 bytes a GB.",
    ],
)

# ------------------------------------------------------------------------------------- grouped-query attention


exercise(
    "attention_parameters",
    reference=lesson.attention_parameters,
    cases=[(4096, 32, 8), (192, 6, 2), (512, 8, 2)],
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
    ],
    hints=[
        "head_dim = hidden // heads. The keys are kv_heads * head_dim numbers wide.",
        "q_proj and o_proj are hidden x hidden; k_proj and v_proj are hidden x (kv_heads * head_dim).",
    ],
)

# ------------------------------------------------------------------------------------------------ LoRA's state

exercise(
    "lora_training_gb",
    reference=lesson.lora_training_gb,
    cases=[(7_000_000_000, 8_000_000), (1_000_000_000, 40_000_000)],
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
            lambda parameters, trainable: (2 * parameters + 4 * trainable) / 1e9,
            "the adapter trains, so it needs gradients and Adam's two moments too: 16 bytes for each parameter of it.",
        ),
        Mistake(
            lambda parameters, trainable: 16 * (parameters + trainable) / 1e9,
            "you gave the frozen base gradients and moments: only the adapter's parameters have them.",
        ),
    ],
    hints=[
        "Two parts: a frozen base at 2 bytes for each parameter, and an adapter that trains in float32.",
        "The adapter costs what full fine-tuning costs for its own parameters: 4 + 4 + 8 bytes each.",
    ],
)

# ---------------------------------------------------------------------------------------- the largest that fits

exercise(
    "largest_model",
    reference=lesson.largest_model,
    cases=[(24, 16), (80, 16), (24, 2), (16, 7)],
    mistakes=[
        Mistake(
            lambda gb, bytes_per_parameter: int(gb * 2**30 // bytes_per_parameter),
            "you took 2**30 bytes for a GB: with this course's GB it is 1e9.",
        ),
        Mistake(
            lambda gb, bytes_per_parameter: int(gb * 1e9 * bytes_per_parameter),
            "more bytes for each parameter must mean fewer parameters: divide.",
        ),
        Mistake(
            lambda gb, bytes_per_parameter: gb * 1e9 / bytes_per_parameter + 0.5,
            "half a parameter doesn't exist: return a whole number, rounded down.",
        ),
        Mistake(
            lambda gb, bytes_per_parameter: int(gb // bytes_per_parameter),
            "that is the answer in billions, cut off: turn the GB into bytes first, then divide.",
        ),
    ],
    hints=[
        "Bytes on the card divided by bytes for each parameter.",
        "// divides and rounds down; int(...) makes it whole.",
    ],
)

# ------------------------------------------------------------------------------------------- the largest that fits

exercise(
    "sequences_that_fit",
    reference=lesson.sequences_that_fit,
    cases=[(17_000, 20_500, 40_000), (10, 14, 22), (10, 14, 10), (10, 14, 2), (6_300, 6_900, 24_000)],
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
            lambda one, two, room: 0 if one > room else 1 - int(-(room - one) // (two - one)),
            "rounded up, the last sequence doesn't fit any more: round down.",
        ),
        Mistake(
            lambda one, two, room: 0 if one > room else 1 + (room - one) / (two - one),
            "a part of a sequence can't be trained on: return a whole number, rounded down.",
        ),
        Mistake(
            lambda one, two, room: 0 if one > room else 1 + int((room - one) // two),
            "each further sequence adds the difference, two - one, not the whole peak of two.",
        ),
    ],
    hints=[
        "The second sequence adds two - one. How much room is left beside the first?",
        "One sequence, and as many more as (room - one) holds of (two - one), rounded down.",
        "And 0 when `one` alone is more than `room`.",
    ],
)

# ------------------------------------------------------------------------------------------------- attention scores

exercise(
    "score_bytes",
    reference=lesson.score_bytes,
    cases=[(4, 32, 512), (1, 6, 64), (2, 8, 1000)],
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
            lambda batch, heads, length: batch * heads * length * length,
            "you counted the numbers; a float32 has four bytes.",
        ),
    ],
    hints=["One score for each pair of tokens.", "For each sequence and each head: length * length float32 numbers."],
)
