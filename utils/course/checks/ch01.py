"""Chapter 1's exercises: counting what training holds in memory, and a loss that never holds all logits."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from utils.course.checks.behaviour import same_gradients, without_matrix
from utils.course.checks.references import ch01 as lesson
from utils.course.checks.registry import Mistake, Wrong, exercise


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
            lambda hidden, heads, kv_heads: 2 * hidden * hidden + 2 * (hidden // heads) * kv_heads,
            "that is how wide k and v are, not their parameters: each of these outputs has `hidden` weights.",
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
            lambda parameters, trainable: (2 * parameters + 18 * trainable) / 1e9,
            "you counted the adapter's weights twice, in bf16 and in float32: they are held once, in float32.",
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
            lambda one, two, room: (room - one) // (two - one) + 1,
            "two things: where not even one sequence fits this is negative and not 0, and // of a float such as 40e9 "
            "gives a float, so it takes an int(...).",
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

# ------------------------------------------------------------------------------------------------ a loss in chunks


def _tokens(n: int, width: int, vocabulary: int, chunk: int, left_out: tuple[int, ...] = ()):
    """Hidden states, a head and labels, of which those at `left_out` don't count."""

    def make() -> tuple[Tensor, Tensor, Tensor, int]:
        hidden, weight = (torch.randn(rows, width, dtype=torch.float64) for rows in (n, vocabulary))
        labels = torch.randint(0, vocabulary, (n,))
        labels[list(left_out)] = -100
        return hidden, weight, labels, chunk

    return make


def _drawn_tokens(draw: random.Random) -> tuple[Tensor, Tensor, Tensor, int]:
    """One label at least counts; whole chunks of -100, a short last chunk, and a chunk larger than all occur."""
    n, width, vocabulary = draw.sample(range(2, 24), 3)
    chunk = draw.choice((1, 2, 3, 5, n, n + 4))
    if draw.random() < 0.5:
        left_out = draw.sample(range(n), draw.randrange(n))
    else:
        first = draw.randrange(n)
        left_out = [i for i in range(first, n)] if first else []
    return _tokens(n, width, vocabulary, chunk, tuple(left_out))()


_MANY = _tokens(60, 4, 50, 7, (3, 4, 58))


def _keeps_no_logits(answer: Callable[..., Tensor]) -> None:
    """What autograd saves beside the arguments is less than half of all logits. That leaves room for a function of
    autograd's own that computes the gradients of both arguments in the forward pass, as Liger's does.
    """
    hidden, weight, labels, chunk = _MANY()
    own = {t.untyped_storage().data_ptr() for t in (hidden.requires_grad_(), weight.requires_grad_(), labels)}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage
        return tensor.detach()

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        answer(hidden, weight, labels, chunk)
    kept = sum(storage.nbytes() for address, storage in saved.items() if address not in own)
    if kept > len(hidden) * len(weight) * hidden.element_size() / 2:
        raise Wrong(
            "the loss is right, but the logits of every chunk are kept for the backward pass, so nothing is saved: "
            "compute each chunk's loss in a function and call it by checkpoint(function, ..., use_reentrant=False)."
        )


def _chunks(loss: Callable[[Tensor, Tensor], Any], combine: Callable[[list[Any], Tensor], Any], last: bool = True):
    """A chunked loss of which `loss` makes a chunk's part, from logits and labels, and `combine` the result."""

    def answer(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Any:
        starts = range(0, len(labels) if last else len(labels) - chunk + 1, chunk)
        pieces = [
            checkpoint(
                lambda rows, targets: loss(rows @ weight.T, targets),
                hidden[start : start + chunk],
                labels[start : start + chunk],
                use_reentrant=False,
            )
            for start in starts
        ]
        return combine(pieces, labels)

    return answer


def _sum(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits, targets, reduction="sum")


def _shifted(logits: Tensor, targets: Tensor) -> Tensor:
    return _sum(logits[:-1], targets[1:])


def _counted(labels: Tensor) -> Tensor:
    return (labels != -100).sum()


def _not_recomputed(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Any:
    pieces = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    return sum(_sum(rows @ weight.T, targets) for rows, targets in pieces) / _counted(labels)


def _shifted_once_more(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Any:
    return lesson.chunked_loss(hidden[:-1], weight, labels[1:], chunk)


exercise(
    "chunked_loss",
    reference=lesson.chunked_loss,
    cases=[
        _tokens(6, 3, 5, 2),
        _tokens(7, 4, 9, 3, (0, 5)),
        _tokens(8, 5, 6, 2, (2, 3, 6)),
        _tokens(3, 4, 7, 10, (1,)),
    ],
    drawn=_drawn_tokens,
    test=[
        without_matrix(_MANY, (60, 50), "the logits of all tokens at once"),
        _keeps_no_logits,
        same_gradients(lesson.chunked_loss, _MANY, ("hidden", "weight", "labels", "chunk")),
    ],
    mistakes=[
        Mistake(
            _chunks(cross_entropy, lambda pieces, labels: sum(pieces) / len(pieces)),
            "a mean of the chunks' means counts each chunk alike, however few of its labels count (and with none it is "
            "nan): add up sums, and divide once.",
        ),
        Mistake(
            _chunks(
                lambda logits, targets: cross_entropy(logits, targets) * len(targets),
                lambda pieces, labels: sum(pieces) / len(labels),
            ),
            "a chunk's mean is over the labels that count: times all its rows it isn't the sum. Take reduction='sum'.",
        ),
        Mistake(
            _chunks(
                lambda logits, targets: cross_entropy(logits, targets) * _counted(targets),
                lambda pieces, labels: sum(pieces) / _counted(labels),
            ),
            "a chunk without a label that counts has the mean 0/0, which is nan, and nan times 0 is nan too. Take "
            "reduction='sum', which is 0 there.",
        ),
        Mistake(
            _chunks(_sum, lambda pieces, labels: sum(pieces) / len(labels)),
            "you divide by the number of rows; the mean is over the labels that count, those that aren't -100.",
        ),
        Mistake(
            _chunks(_sum, lambda pieces, labels: sum(pieces)),
            "that is the sum: divide it by the number of labels that count.",
        ),
        Mistake(
            _chunks(_sum, lambda pieces, labels: sum(pieces) / _counted(labels), last=False),
            "the last chunk may have fewer rows, and you leave it out.",
        ),
        Mistake(
            _chunks(_sum, lambda pieces, labels: pieces[-1] / _counted(labels)),
            "only the last chunk is in your result: add the chunks up.",
        ),
        Mistake(
            _chunks(_shifted, lambda pieces, labels: sum(pieces) / _counted(labels)),
            "the labels are shifted already: within a chunk, row i predicts labels[i].",
        ),
        Mistake(
            _shifted_once_more,
            "the labels are shifted already: row i predicts labels[i], and the first label counts too.",
        ),
        Mistake(
            _chunks(
                lambda logits, targets: _sum(logits, targets.clamp(min=0)),
                lambda pieces, labels: sum(pieces) / len(labels),
            ),
            "you count the labels of -100 as token 0: leave them out (ignore_index=-100).",
        ),
        Mistake(
            lambda hidden, weight, labels, chunk: cross_entropy(hidden @ weight.T, labels),
            expect="you make the logits of all tokens at once",
        ),
        Mistake(_not_recomputed, expect="the logits of every chunk are kept for the backward pass"),
        Mistake(
            lambda hidden, weight, labels, chunk: lesson.chunked_loss(hidden.detach(), weight, labels, chunk),
            expect="no gradient reaches hidden",
        ),
        Mistake(
            lambda hidden, weight, labels, chunk: float(lesson.chunked_loss(hidden, weight, labels, chunk)),
            "that is a number without a graph: return the tensor, so that backward() can go through it.",
        ),
    ],
    hints=[
        "The mean is a sum over all labels that count, divided by their number. Sums can be added chunk by chunk.",
        "cross_entropy(logits, targets, reduction='sum') leaves labels of -100 out; it is 0 where none counts.",
        "Write a function of a chunk's rows and labels that makes the logits and returns the sum, and call it by "
        "checkpoint(function, rows, targets, use_reentrant=False).",
    ],
    why="The loss needs each token's logits only until its own cross-entropy is known; the backward pass can make them "
    "again from the hidden states, which are kept anyway.",
)
