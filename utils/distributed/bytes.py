"""The bytes that a rank sends in a training step: counted from the sizes, and read from PyTorch's profiler.

Counted are ring algorithms, which send the least that is possible: of a tensor of b bytes on N ranks an all-gather or
a reduce-scatter sends ``(N - 1) / N * b`` from each rank, and an all-reduce, which is both, twice that.

Attributes:
    WAYS: The ways of training that :func:`step_bytes` knows.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

Collective = Literal["all_gather", "reduce_scatter", "all_reduce"]
Way = Literal["ddp-lora", "ddp-full", "fsdp-lora", "fsdp-full"]
WAYS: tuple[Way, ...] = get_args(Way)


class StepBytes(NamedTuple):
    """Bytes of one step. gathered, scattered, reduced: the tensors of the step's all-gathers, reduce-scatters and
    all-reduces, each tensor at its whole size. sent: by each rank.
    """

    gathered: int
    scattered: int
    reduced: int
    sent: float


def sent(collective: Collective, size: float, world: int) -> float:
    """The bytes that each of `world` ranks sends for a tensor of `size` bytes, whole.

    Raises ValueError for another collective or fewer than one rank.
    """
    if collective not in get_args(Collective) or world < 1:
        raise ValueError(f"a collective is one of {', '.join(get_args(Collective))}, on one rank or more")
    return (2 if collective == "all_reduce" else 1) * (world - 1) / world * size


def exchange(gathered: int, scattered: int, reduced: int, world: int) -> StepBytes:
    """What each rank sends, by the bytes of a step's tensors. Raises ValueError for fewer than one rank."""
    parts = sent("all_gather", gathered, world), sent("reduce_scatter", scattered, world)
    return StepBytes(gathered, scattered, reduced, sum(parts) + sent("all_reduce", reduced, world))


def step_bytes(
    way: Way, *, blocks: int, rest: int, adapter: int, world: int, weight: int = 2, gradient: int | None = None
) -> StepBytes:
    """What a step exchanges, by the numbers of parameters in the blocks, beside them (embedding, norm, head) and in the
    adapters.

    FSDP2 wraps each block and then the model: a block is gathered forward and again backward, what is beside the blocks
    once, since it isn't freed in between; the adapters lie in the blocks. weight: bytes of a number of the base, and of
    whatever FSDP gathers. gradient: bytes of a number that is reduced (None: as `weight`; PEFT's float32 adapters
    under DDP: 4). Raises ValueError for another way or a negative number.
    """
    if way not in WAYS or min(blocks, rest, adapter) < 0:
        raise ValueError(f"a way is one of {', '.join(WAYS)}, with numbers of parameters that aren't negative")
    size = weight if gradient is None else gradient
    trained = adapter if way.endswith("lora") else blocks + rest
    if way.startswith("ddp"):
        return exchange(0, 0, size * trained, world)
    inside = blocks + (adapter if way.endswith("lora") else 0)
    return exchange(weight * (2 * inside + rest), size * trained, 0, world)


_OPS: dict[str, tuple[str, int]] = {  # the operation, and which of its arguments is the whole tensor
    "c10d::_allgather_base_": ("all_gather", 0),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", 1),
    "gloo:all_reduce": ("all_reduce", 0),
}


def measured(profile: Any, world: int, bytes_of_a_number: int = 4) -> StepBytes:
    """What the collectives of a profile exchanged: ``torch.profiler.profile(record_shapes=True)``, on gloo.

    The profiler knows shapes and no dtypes, hence `bytes_of_a_number`. gloo makes a reduce-scatter of an all-reduce;
    counted is what was asked for, once. On one rank FSDP asks for nothing.
    """
    numbers = {"all_gather": 0, "reduce_scatter": 0, "all_reduce": 0}
    for event in profile.events():
        if event.name not in _OPS or not event.input_shapes:
            continue
        kind, place = _OPS[event.name]
        numbers[kind] += math.prod(event.input_shapes[place])
    numbers["all_reduce"] -= numbers["reduce_scatter"]  # gloo's form of the same exchange
    gathered, scattered, reduced = (bytes_of_a_number * count for count in numbers.values())
    return exchange(gathered, scattered, max(0, reduced), world)
