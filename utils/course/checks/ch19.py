"""Chapter 19's exercises: the ring's schedule, a mean over the tokens of all ranks, the bytes of a step."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from utils.course.checks.behaviour import same_gradients
from utils.course.checks.references import ch19 as lesson
from utils.course.checks.registry import Mistake, exercise

# ------------------------------------------------------------------------------------------------- the ring's schedule


def _drawn_place(draw: random.Random) -> tuple[int, int, int]:
    """A rank, a step of either half, and how many ranks there are."""
    world = draw.randint(2, 9)
    return draw.randrange(world), draw.randrange(2 * world - 2), world


def _second_half(change: Callable[[int, int], int]) -> Callable[[int, int, int], int]:
    """A wrong answer: right in the first half, and then the chunk of `change`, from the rank and the second half's own
    step."""

    def answer(rank: int, step: int, world: int) -> int:
        return (rank - step if step < world - 1 else change(rank, step - world + 1)) % world

    return answer


exercise(
    "sent_chunk",
    reference=lesson.sent_chunk,
    cases=[(0, 0, 4), (3, 0, 4), (2, 1, 4), (0, 1, 4), (0, 2, 4), (0, 3, 4), (1, 5, 4), (0, 1, 2), (4, 7, 5)],
    drawn=_drawn_place,
    mistakes=[
        Mistake(
            lambda rank, step, world: (rank + step) % world,
            "that runs the other way round: a rank sends on what came from rank - 1, so the chunk's number falls.",
        ),
        Mistake(
            lambda rank, step, world: rank - step,
            "a chunk's number lies between 0 and world - 1, so count round the ring with % world.",
        ),
        Mistake(
            lambda rank, step, world: rank,
            "a rank sends its own chunk in the first step alone; after that it sends on what it has just received.",
        ),
        Mistake(
            lambda rank, step, world: (rank - step - 1) % world,
            "that is the chunk which the rank receives in this step. It is sent on in the next.",
        ),
        Mistake(
            lambda rank, step, world: (step - rank) % world,
            "the sign is turned: in step 0 rank 1 sends chunk 1, and you say world - 1.",
        ),
        Mistake(
            lambda rank, step, world: (rank - (step if step < world - 1 else step - world + 1)) % world,
            "the second half doesn't begin with the rank's own chunk, but with the one that it has just completed.",
        ),
        *(
            Mistake(_second_half(change), message)
            for change, message in (
                (
                    lambda rank, step: rank + 1 + step,
                    "the first half is right, and the second runs the other way round: a rank still sends on what came "
                    "from rank - 1, so the chunk's number goes on falling.",
                ),
                (
                    lambda rank, step: rank + 2 - step,
                    "the second half is one chunk ahead: it begins with the chunk that the rank has just completed, "
                    "the last that it received.",
                ),
                (
                    lambda rank, step: rank - 1 - step,
                    "the second half is two chunks behind: it begins with the chunk that the rank has just completed, "
                    "the last that it received.",
                ),
            )
        ),
        Mistake(
            lambda rank, step, world: step % world,
            "in each step every rank sends another chunk, so the rank has to be in it.",
        ),
        Mistake(
            lambda rank, step, world: (rank + 1) % world,
            "that is where the chunk is sent to; the question is which chunk.",
        ),
    ],
    hints=[
        "In step 0 rank 2 sends chunk 2, and receives chunk 1 from rank 1. What does it send in step 1?",
        "From one step to the next the chunk's number falls by one. Below 0 it goes on at world - 1: % world.",
        "The last chunk that a rank receives in the first half is the one that it has whole: the second half goes on.",
    ],
    why="Each rank sends on what it has just received, in both halves, so one formula is enough.",
)

# --------------------------------------------------------------------------------------- a mean over all ranks' tokens


def _tokens(length: int, count: int, total: int, world: int) -> tuple[Tensor, Tensor, int, int]:
    """Losses of `length` tokens of which `count` have a label."""
    losses = torch.rand(length) + 0.5
    counted = torch.zeros(length, dtype=torch.bool)
    counted[torch.randperm(length)[:count]] = True
    return losses, counted, total, world


def _drawn_tokens(draw: random.Random) -> tuple[Tensor, Tensor, int, int]:
    length, world = draw.randint(3, 9), draw.randint(2, 8)
    count = draw.randint(0, length - 1)
    return _tokens(length, count, max(1, count + draw.randint(0, 30)), world)


def _made(length: int, count: int, total: int, world: int) -> Callable[[], tuple[Any, ...]]:
    return lambda: _tokens(length, count, total, world)


def _no_tokens_no_graph(losses: Tensor, counted: Tensor, total: int, world: int) -> Tensor:
    if not counted.any():
        return torch.tensor(0.0)
    return lesson.ddp_loss(losses, counted, total, world)


exercise(
    "ddp_loss",
    reference=lesson.ddp_loss,
    cases=[_made(5, 3, 10, 2), _made(6, 4, 4, 4), _made(4, 0, 7, 2), _made(7, 7, 20, 3)],
    drawn=_drawn_tokens,
    test=(
        same_gradients(lesson.ddp_loss, _made(5, 3, 10, 2), ("losses", "counted", "total", "world")),
        same_gradients(lesson.ddp_loss, _made(4, 0, 7, 2), ("losses", "counted", "total", "world")),
    ),
    mistakes=[
        Mistake(
            lambda losses, counted, total, world: losses[counted].mean(),
            "that is the mean over this rank's own tokens: a rank with few of them then counts as much as one with "
            "many, and a rank with none is nan. Divide by the tokens of all ranks.",
        ),
        Mistake(
            lambda losses, counted, total, world: losses[counted].sum() / max(1, int(counted.sum())),
            "that is this rank's own mean, without the nan, and still wrong: each token has to count the same, so "
            "divide by the tokens of all ranks.",
        ),
        Mistake(
            lambda losses, counted, total, world: losses[counted].sum() / total,
            "DDP divides the sum of the ranks' gradients by the number of ranks, so yours end up that much too small.",
        ),
        Mistake(
            lambda losses, counted, total, world: losses.sum() * world / total,
            "tokens without a label are in your sum: take those that `counted` marks.",
        ),
        Mistake(
            lambda losses, counted, total, world: losses[counted].sum() / (total * world),
            "DDP divides by the number of ranks already: multiply by it, so that it is divided by once in all.",
        ),
        Mistake(
            lambda losses, counted, total, world: losses[counted].sum() * world / len(losses),
            "you divide by the length of this rank's row, padding included: total is what counts on all ranks.",
        ),
        Mistake(
            lambda losses, counted, total, world: losses[counted].sum() * world,
            "that is a sum over tokens, which grows with the batch: divide by total.",
        ),
        Mistake(
            lambda losses, counted, total, world: losses[counted].sum() * total / world,
            "upside down: the sum is divided by total, and multiplied by world.",
        ),
        Mistake(
            lambda losses, counted, total, world: losses[~counted].sum() * world / total,
            "those are the tokens without a label: counted is True where there is one.",
        ),
        Mistake(
            lambda losses, counted, total, world: losses[counted].sum().item() * world / total,
            expect="a tensor",
        ),
        Mistake(_no_tokens_no_graph, expect="no gradient passes through your result"),
    ],
    hints=[
        "The goal is the sum of all ranks' losses, divided by `total`. Which part of it belongs to this rank?",
        "DDP adds the ranks' gradients and divides by `world`. Undo that division.",
        "A sum over no tokens is 0 with a gradient of zeros: nothing special is needed for a rank that has none.",
    ],
    why="DDP adds the ranks up, so a rank's share is its own sum over the number of all tokens; the factor world "
    "undoes DDP's division.",
    points=2,
)

# ---------------------------------------------------------------------------------------------------- bytes of a step


def _drawn_run(draw: random.Random) -> tuple[int, int, int]:
    # Multiples of 960 are shared by all of these numbers of ranks in whole bytes, so that // is right as well.
    base, adapter = 960 * draw.randint(10, 9000), 960 * draw.randint(1, 9)
    return base, adapter, draw.choice((2, 3, 4, 8, 64))


def _step(message: str, change: Callable[[float, float, float], tuple[float, float, float]]) -> Mistake:
    """A wrong answer from the sizes' bytes that each rank sends of one collective: of the base, and of the adapter."""

    def answer(base: int, adapter: int, world: int) -> tuple[float, float, float]:
        part = (world - 1) / world
        return change(part * 2 * base, part * 2 * adapter, part)

    return Mistake(answer, message)


exercise(
    "sent_bytes",
    reference=lesson.sent_bytes,
    cases=[(6_738_415_616, 39_976_960, 4), (1_000_000, 10_000, 2), (7_000, 3_000, 8), (7_000, 3_000, 1)],
    drawn=_drawn_run,
    mistakes=[
        _step(
            "DDP: half of it. An all-reduce sends each chunk twice, and PEFT's adapters are float32, four bytes each.",
            lambda base, lora, part: (2 * lora, 2 * base + 3 * lora, 3 * base),
        ),
        _step(
            "DDP: a quarter of it. An all-reduce sends each chunk twice, and a float32 number has four bytes.",
            lambda base, lora, part: (lora, 2 * base + 3 * lora, 3 * base),
        ),
        _step(
            "DDP: the frozen base has no gradient, so nothing of it is sent.",
            lambda base, lora, part: (4 * lora + 2 * base, 2 * base + 3 * lora, 3 * base),
        ),
        _step(
            "FSDP frees a block's weights after its forward pass, and gathers them once more for the backward pass.",
            lambda base, lora, part: (4 * lora, base + 2 * lora, 2 * base),
        ),
        _step(
            "FSDP: the gradients are missing, which are reduce-scattered: each rank needs those of its own shard.",
            lambda base, lora, part: (4 * lora, 2 * base + 2 * lora, 2 * base),
        ),
        _step(
            "FSDP: your gradients are twice too many bytes. They are reduce-scattered, not all-reduced, since a rank "
            "needs those of its own shard alone; and they have 16 bits, two bytes, as all under FSDP here.",
            lambda base, lora, part: (4 * lora, 2 * base + 4 * lora, 4 * base),
        ),
        _step(
            "FSDP with LoRA: the adapter's gradients have two bytes, as all under FSDP here; only DDP's are float32.",
            lambda base, lora, part: (4 * lora, 2 * base + 4 * lora, 3 * base),
        ),
        _step(
            "full fine-tuning has no adapter: only the base is gathered and reduced.",
            lambda base, lora, part: (4 * lora, 2 * base + 3 * lora, 3 * base + 3 * lora),
        ),
        _step(
            "FSDP with LoRA: a frozen weight has no gradient, so only the adapter's are reduced.",
            lambda base, lora, part: (4 * lora, 3 * base + 3 * lora, 3 * base),
        ),
        _step(
            "FSDP with LoRA: the adapter lies in the blocks and is sharded, so it is gathered with them.",
            lambda base, lora, part: (4 * lora, 2 * base + lora, 3 * base),
        ),
        Mistake(
            lambda base, adapter, world: (8.0 * adapter, 4.0 * base + 6.0 * adapter, 6.0 * base),
            "a rank has its own N-th already: of a whole tensor it sends (world - 1) / world.",
        ),
        _step(
            "those are numbers of parameters; a number is two bytes, the adapter's under DDP four.",
            lambda base, lora, part: (lora, base + 1.5 * lora, 1.5 * base),
        ),
        Mistake(
            lambda base, adapter, world: tuple(world * size for size in lesson.sent_bytes(base, adapter, world)),
            "that is what all ranks send together; the question is one rank's.",
        ),
        Mistake(
            lambda *sizes: sum(lesson.sent_bytes(*sizes)),
            "three numbers are asked for: DDP of the adapter, FSDP with LoRA, FSDP of full fine-tuning.",
        ),
    ],
    hints=[
        "An all-gather or a reduce-scatter of a tensor of b bytes: (world - 1) / world * b. An all-reduce: twice that.",
        "DDP: one all-reduce of 4 * adapter bytes.",
        "FSDP: two all-gathers of everything in 16 bits, and one reduce-scatter of what trains.",
    ],
    why="DDP sends what trains, FSDP what is sharded: with LoRA a factor of more than two hundred at this size.",
    points=2,
)
