"""Will it fit? Cards of 8 to 80 GB, the largest batch on each, and a guard that says no before a run fails.

    python -m utils.profiling.fit --model Llama-2-7B --method qlora --batch 4 --checkpointing
    python -m utils.profiling.fit --model Llama-2-7B --card 24        (exit code 1 when it doesn't fit)
    python -m utils.profiling.fit --model Llama-2-7B --table          (what fits on which card)
    python -m utils.profiling.fit --model Llama-2-7B --engine FSDP2 --gpus 4 --adapter-dtype bfloat16 --card 24

Everything rests on :func:`utils.profiling.memory.predict`, and on the one safety margin that :func:`needed` adds to it.

Attributes:
    CARDS: GB that common cards are sold with. One of N shows a little more or less than N * 10**9 bytes.
    CONTEXT: The fixed part of the safety margin, in bytes: see :func:`needed`.
    GAPS: The part of the safety margin that grows with the peak, as a factor: see :func:`needed`.
    SHORTEST: Sequences of fewer tokens aren't proposed where a step doesn't fit.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from utils.models.configs import llama_config
from utils.profiling.memory import ATTENTION, FLOATS, GB, METHODS, OPTIMIZERS, Prediction, Setup, predict
from utils.profiling.ranks import ENGINES, predict_rank

CARDS = (8, 12, 16, 24, 40, 80)
CONTEXT = 810_000_000
GAPS = 1.08
BATCHES = (1, 2, 4, 8, 16)
SHORTEST = 128
WAYS: Mapping[str, Mapping[str, Any]] = {
    "full": {"method": "full"},
    "LoRA": {"method": "lora"},
    "LoRA, checkpointing": {"method": "lora", "checkpointing": True},
    "QLoRA": {"method": "qlora"},
    "QLoRA, checkpointing": {"method": "qlora", "checkpointing": True},
}


class DoesNotFit(RuntimeError):
    """A training step needs more than the card has. `needed` and `room` are bytes.

    It is a RuntimeError as PyTorch's ``OutOfMemoryError`` is, which it comes before: whoever handles the one handles
    both. Python's MemoryError means the machine's own memory, which isn't short here.
    """

    def __init__(self, text: str, needed: int, room: int) -> None:
        super().__init__(text)
        self.needed, self.room = needed, room


def needed(peak: float) -> int:
    """The bytes that a card must have for a step with this peak: the peak and the safety margin.

    The margin is what PyTorch's allocator doesn't report as allocated: 8% of the peak (:data:`GAPS`), since it takes
    memory from the card in large pieces and can't fill each, and 0.81 GB (:data:`CONTEXT`) that CUDA and its libraries
    take for themselves. Both come from `assets/measurements/fits.json`: steps of a 1B model on an H100 whose allocator
    was limited to the size of smaller cards. The gaps were 5 to 7% there, CUDA's own 0.80 to 0.81 GB.
    """
    return int(peak * GAPS) + CONTEXT


def card_bytes(gb: float | None = None) -> int:
    """The bytes of a card of `gb` GB; None means the GPU that is here, and what is free of it.

    Raises ValueError for a size that isn't positive and finite, and RuntimeError when None finds no GPU.
    """
    if gb is not None:
        if not 0 < gb < math.inf:
            raise ValueError(f"a card has a number of GB above 0, such as 24, not {gb}")
        return int(gb * GB)
    if not torch.cuda.is_available():
        raise RuntimeError("there is no CUDA GPU here to ask: say how many GB the card has")
    free, total = torch.cuda.mem_get_info()
    return min(total, free + torch.cuda.memory_reserved() + CONTEXT)


def first_that_fits(setup: Setup, room: int) -> tuple[Setup, Prediction] | None:
    """The first way to take the step that needs at most `room` bytes, the least painful tried first; None if none does.

    That is `setup` as it is, then with checkpointing, then with one sequence at a time too; then the same with LoRA
    where `setup` trains everything, and with QLoRA. Raises what :func:`utils.profiling.memory.predict` raises.
    """
    for method in METHODS[METHODS.index(setup.method) :]:
        as_it_is = dataclasses.replace(setup, method=method)
        lighter = dataclasses.replace(as_it_is, checkpointing=True)
        lightest = dataclasses.replace(lighter, batch=1)
        smallest = predict(lightest)
        if needed(smallest.peak) > room:
            continue
        for change in (as_it_is, lighter):
            if change != lightest and needed((prediction := predict(change)).peak) <= room:
                return change, prediction
        return lightest, smallest
    return None


def refuse_unless_it_fits(setup: Setup, gb: float | None = None) -> Prediction:
    """Call it before training: the prediction when `setup` fits on a card of `gb` GB (None: on the one that is here).

    Raises :class:`DoesNotFit`, with the first change that would fit, and what :func:`card_bytes` and
    :func:`utils.profiling.memory.predict` raise.
    """
    room = card_bytes(gb)
    prediction = predict(setup)
    if (needs := needed(prediction.peak)) <= room:
        return prediction
    largest = max(prediction.parts, key=lambda kind: prediction.parts[kind])
    text = (
        f"this step needs about {needs / GB:.1f} GB and the card has {room / GB:.1f}. Its peak is in the "
        f"{prediction.phase} phase, with {prediction.parts[largest] / GB:.1f} GB for the largest part, {largest}. "
    )
    if (found := first_that_fits(setup, room)) is None:
        cure = "Not even QLoRA with checkpointing and one sequence fits"
        shorter = _longest_that_fits(setup, room)
        cure += f" at {setup.length:,} tokens; with {shorter:,} it would" if shorter else ": take a smaller model"
    else:
        cure = f"It would fit with {_difference(setup, found[0])} ({needed(found[1].peak) / GB:.1f} GB)"
    raise DoesNotFit(text + cure, needs, room)


def _longest_that_fits(setup: Setup, room: int) -> int | None:
    """The length at which QLoRA with checkpointing and one sequence fits: `setup`'s, halved as often as need be; None
    if it doesn't at :data:`SHORTEST` tokens."""
    length = setup.length // 2
    while length >= SHORTEST:
        change = dataclasses.replace(setup, method="qlora", checkpointing=True, batch=1, length=length)
        if needed(predict(change).peak) <= room:
            return length
        length //= 2
    return None


def _difference(setup: Setup, change: Setup) -> str:
    """What `change` does otherwise than `setup`, in words."""
    words = [{"lora": "LoRA", "qlora": "QLoRA"}[change.method]] if change.method != setup.method else []
    words += ["checkpointing"] if change.checkpointing != setup.checkpointing else []
    words += ["one sequence at a time"] if change.batch != setup.batch else []
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


class Fit(NamedTuple):
    """A way to train, the GB that it needs for each batch, and for each card the largest batch (None: not even one)."""

    way: str
    needs: dict[int, float]
    largest: dict[int, int | None]


def what_fits(
    setup: Setup,
    *,
    ways: Mapping[str, Mapping[str, Any]] = WAYS,
    cards: Sequence[int] = CARDS,
    batches: Sequence[int] = BATCHES,
) -> list[Fit]:
    """For each way to train, which differs from `setup` in the fields named, the largest of `batches` on each card.

    Only the smallest and the largest batch are predicted. Between them the straight line is never too low: every moment
    of a step grows evenly with the batch, and the peak is the largest of them.
    """
    low, high = min(batches), max(batches)
    found = []
    for way, fields in ways.items():
        ends = [predict(dataclasses.replace(setup, **{**fields, "batch": b})).peak for b in {low: 0, high: 0}]
        slope = (ends[-1] - ends[0]) / max(high - low, 1)
        needs = {b: needed(ends[0] + slope * (b - low)) / GB for b in sorted(batches)}
        largest = {card: max((b for b in batches if needs[b] <= card), default=None) for card in cards}
        found.append(Fit(way, needs, largest))
    return found


def fit_table(fits: Sequence[Fit]) -> str:
    """The largest batches as text, a line for each way and a column for each card."""
    cards = list(fits[0].largest)
    width = max(len(fit.way) for fit in fits)
    top = max(fits[0].needs)
    lines = [" " * width + "".join(f"{card:>6} GB" for card in cards)]
    for fit in fits:
        cells = ["-" if b is None else f"{b}+" if b == top else str(b) for b in fit.largest.values()]
        lines.append(f"{fit.way:{width}}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)


def fit_report(prediction: Prediction) -> str:
    """A prediction as text: the parts at the peak, largest first, and the phases."""
    lines = [f"peak {prediction.peak / GB:.2f} GB, in the {prediction.phase} phase; of this"]
    for kind, size in sorted(prediction.parts.items(), key=lambda item: -item[1]):
        lines.append(f"  {kind:20} {size / GB:8.3f} GB")
    phases = ", ".join(f"{name} {size / GB:.2f}" for name, size in prediction.phases.items())
    return "\n".join([*lines, f"largest moments (GB): {phases}; between two steps {prediction.resident / GB:.2f}"])


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m utils.profiling.fit", description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--model", default="Llama-2-7B", help="a known name, a folder, or a Hub id (default: %(default)s)"
    )
    parser.add_argument("--sizes", help="instead of a model: hidden=2048,layers=16,heads=32,kv_heads=8,...")
    parser.add_argument("--method", default="lora", choices=METHODS)
    parser.add_argument("--targets", default="all-linear", help="names with commas between, or all-linear")
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--dtype", default="bfloat16", choices=list(FLOATS))
    parser.add_argument("--adapter-dtype", default="float32", choices=list(FLOATS))
    parser.add_argument("--optimizer", default="adamw", choices=OPTIMIZERS)
    parser.add_argument("--attention", default="sdpa", choices=ATTENTION)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--no-double", action="store_true", help="QLoRA without double quantization")
    parser.add_argument("--prepared", action="store_true", help="QLoRA after prepare_model_for_kbit_training")
    parser.add_argument("--engine", choices=ENGINES, help="one rank of several GPUs, each with its own batch")
    parser.add_argument("--gpus", type=int, help="how many GPUs the engine spreads the step over")
    parser.add_argument("--card", type=float, help="GB of a card: exit code 1 when the step doesn't fit")
    parser.add_argument("--table", action="store_true", help="the largest batch of each way on each card")
    return parser.parse_args(argv)


def _setup(arguments: argparse.Namespace) -> Setup:
    model: Any = Path(arguments.model) if Path(arguments.model).is_dir() else arguments.model
    if arguments.sizes:
        pairs = [part.partition("=") for part in arguments.sizes.split(",")]
        try:
            model = llama_config(**{name.strip(): int(value) for name, _, value in pairs})
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"--sizes {arguments.sizes!r} can't be read ({error}): write hidden=2048,layers=16,..."
            ) from error
    targets = arguments.targets if arguments.targets == "all-linear" else tuple(arguments.targets.split(","))
    return Setup(
        model, arguments.method, arguments.batch, arguments.length, arguments.dtype, targets, arguments.r,
        arguments.dropout, arguments.adapter_dtype, not arguments.no_double, arguments.prepared, arguments.optimizer,
        arguments.checkpointing, arguments.attention,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """The command line. Bad settings and a step that doesn't fit end it with a line on stderr and exit code 1."""
    arguments = _arguments(argv)
    try:
        setup = _setup(arguments)
        if (arguments.engine is None) != (arguments.gpus is None) or arguments.engine and arguments.table:
            raise ValueError("--engine and --gpus go together, and without --table")
        if arguments.table:
            print(fit_table(what_fits(setup)))
        elif arguments.engine:
            if setup.optimizer == "adamw" and arguments.engine == "FSDP2":
                setup = dataclasses.replace(setup, optimizer="adamw-fused")
            prediction = predict_rank(setup, arguments.engine, arguments.gpus)
            print(fit_report(prediction))
            if arguments.card is not None and (needs := needed(prediction.peak)) > (room := card_bytes(arguments.card)):
                raise DoesNotFit(
                    f"each rank needs about {needs / GB:.1f} GB and a card has {room / GB:.1f}: take more GPUs, "
                    "checkpointing, or a smaller batch on each",
                    needs, room,
                )  # fmt: skip
        else:
            prediction = predict(setup) if arguments.card is None else refuse_unless_it_fits(setup, arguments.card)
            if arguments.card is not None:
                print(f"needs {needed(prediction.peak) / GB:.1f} GB of {arguments.card:g}: fits")
            print(fit_report(prediction))
    except (ValueError, TypeError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
