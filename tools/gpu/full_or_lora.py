"""Is a LoRA step faster than a full one? Whole steps of two models' shapes, small and large batches, three times.

Writes ``full_or_lora.json``. A row is one way to train at one batch: the time of a whole step (forward, backward and
the optimizer) and the largest allocation. Every way runs on the same base with the same batch and transformers' default
optimizer, AdamW in its fused form; the adapters have rank 16 on all linear layers. Everything is measured REPEATS
times, each time on models made anew, which shows how far the machine drifts.

Attributes:
    SIZES: Model, batch and whether blocks are recomputed; 512 tokens each.
    WAYS: A name, what it changes in the setup, whether autocast is on, whether the layers are our fused ones.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from tools.gpu.record import Record
from tools.gpu.techniques import fill
from utils.profiling.memory import Setup
from utils.profiling.techniques import SEED, Technique

REPEATS = 3
SEVEN, ONE = "Llama-2-7B", "Llama-3.2-1B"
SIZES = (
    (ONE, 1, False), (ONE, 16, False), (ONE, 1, True), (ONE, 16, True),
    (SEVEN, 1, False), (SEVEN, 4, False), (SEVEN, 1, True), (SEVEN, 8, True),
)  # fmt: skip
WAYS: tuple[tuple[str, dict[str, Any], bool, bool], ...] = (
    ("full", {"method": "full"}, False, False),
    ("LoRA, PEFT as it comes", {}, False, False),
    ("LoRA, PEFT under autocast", {}, True, False),
    ("LoRA, PEFT, 16-bit adapters", {"adapter_dtype": "bfloat16"}, False, False),
    ("LoRA, fused", {}, False, True),
    ("full, float32 under autocast", {"method": "full", "dtype": "float32"}, True, False),
)


def techniques(repeat: int) -> list[Technique]:
    """What is measured in one repeat; those of one base follow each other. A 7B model in float32 fits no card."""
    found = []
    for base, in_float32 in ((ONE, False), (ONE, True), (SEVEN, False)):
        sizes = [size for size in SIZES if size[0] == base]
        ways = [way for way in WAYS if ("dtype" in way[1]) == in_float32]
        for (model, batch, on), (way, changes, autocast, fused) in itertools.product(sizes, ways):
            setup = Setup(model, "lora", batch, 512, r=16, optimizer="adamw-fused", checkpointing=on)
            name = f"{model}, {batch} x 512{', checkpointing' if on else ''}: {way}, {repeat}"
            found.append(Technique(name, dataclasses.replace(setup, **changes), autocast, fused=fused))
    return found


def run(out: Path, trial: bool, seconds: float) -> None:
    """Write ``full_or_lora.json`` into `out`, until `seconds` are over."""
    record = Record(
        out / "full_or_lora.json",
        "a whole training step on 512-token sequences, full fine-tuning or LoRA r=16 on all linear layers, fused "
        "AdamW; bytes that PyTorch's allocator gave out at most, and milliseconds",
        seed=SEED,
    )
    wanted = (technique for repeat in range(REPEATS) for technique in techniques(repeat))
    fill(record, wanted, ("autocast", "fused"), trial, seconds)
